"""The mark of a settled sequence in Redis, which the ledger's script reads."""

import asyncio

from quire.redis_client import open_redis
from quire.v1 import types_pb2
from scheduler_svc.settlement import LedgerRecord, Settlement

_LOOP = asyncio.new_event_loop()
_RECORD = LedgerRecord.of_end("r", 0, "t", types_pb2.Usage(completion_tokens=5), is_error=False)


def seeds() -> list[bytes]:
    """Of one scheduler, of this one, and of several."""
    return [b"3;other=1", b"3;me=1", b"3;other=7;me=1;third=2"]


def run(data: bytes) -> None:
    """The record is settled and its tenant's totals stay numbers."""
    _LOOP.run_until_complete(_settle(data))


async def _settle(mark: bytes) -> None:
    client = open_redis("")
    try:
        await client.flushall()
        await client.set("quire:settled:r:0", mark)
        settlement = Settlement(client, "me")
        settlement.add(_RECORD)
        await settlement.flush()
        assert settlement.num_unsettled == 0
        for value in (await client.hgetall("quire:usage:t")).values():
            assert 0 <= int(value) < 2**63
    finally:
        await client.aclose()
