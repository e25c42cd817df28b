"""The file of API keys."""

import json
from typing import Any

from quire import keys
from quire.v1 import types_pb2
from quire.v1.scheduler_pb2 import TokenRequest

WORDS = (
    "keys",
    "name",
    "hash",
    "created",
    "weight",
    "kv_floor",
    "kv_ceiling",
    "min_priority",
    "a" * 64,
    "default",
)


class _File:
    """A path to some bytes, without the disk."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __str__(self) -> str:
        return "/keys.json"

    def read_bytes(self) -> bytes:
        return self._data


def seeds() -> list[bytes]:
    """A first key, and a tenant's with every field."""
    first = {"name": "default", "hash": "0" * 64, "created": 1, "min_priority": -5}
    full = {**first, "name": "b", "weight": 2.5, "kv_floor": 0.25, "kv_ceiling": 0.5}
    return [json.dumps({"keys": records}).encode() for records in ([], [first], [first, full])]


def run(data: bytes) -> None:
    """It is read whole, and can be used and written again; or one error says that it is damaged."""
    path: Any = _File(data)
    try:
        records = keys.load(path)
    except keys.KeysFileError as error:
        assert str(path) in error.message
        error.message.encode()
        return
    assert keys.verify(records, "sk-quire-nobody's") is None
    for record in records:
        policy = types_pb2.TenantPolicy(
            weight=record.weight, kv_floor=record.kv_floor, kv_ceiling=record.kv_ceiling
        )
        request = TokenRequest(tenant=record.name, tenant_policy=policy, priority=record.min_priority)
        request.SerializeToString()
    assert keys._parse(keys._serialise(records)) == records
