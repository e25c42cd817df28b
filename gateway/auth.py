"""API keys: every path but /health asks for one, whether or not it exists."""

import os
from pathlib import Path

import structlog
from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.calls import call_of
from gateway.errors import BAD_KEY, ApiError
from quire import keys
from quire.keys import KeyRecord, KeysFileError
from quire.v1 import types_pb2

log = structlog.get_logger()

# A key is some 50 characters; hashing a megabyte of header for a stranger is work for nothing.
_MAX_KEY_CHARACTERS = 512


class ApiKeys:
    """The keys that open this gateway: the one it was told, and those of the keys file as it is now."""

    def __init__(self, path: Path, own: SecretStr | None) -> None:
        self._path = path
        self._own = (keys.operators_record(own.get_secret_value()),) if own is not None else ()
        self._seen = _fingerprint(path)
        self._records: tuple[KeyRecord, ...] = (*self._own, *keys.load(path))

    def verify(self, key: str) -> KeyRecord | None:
        """The record of `key`, or None."""
        self._reload_if_changed()
        return keys.verify(self._records, key)

    def _reload_if_changed(self) -> None:
        """A key revoked by another process stops working at once: one stat a call, some microseconds."""
        seen = _fingerprint(self._path)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._records = (*self._own, *keys.load(self._path))
        except KeysFileError as error:
            log.error("the keys read before stay valid", error=error.message)


def _fingerprint(path: Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


class AuthMiddleware:
    """Refuses calls without a valid key, and notes whose key it was."""

    def __init__(self, app: ASGIApp, api_keys: ApiKeys, *, metrics_public: bool) -> None:
        self._app = app
        self._api_keys = api_keys
        self._metrics_public = metrics_public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] == "http" and not self._is_open(scope["path"]):
            presented = _presented(Headers(scope=scope))
            record = self._api_keys.verify(presented) if presented else None
            if record is None:
                await _refusal(presented).response()(scope, receive, send)
                return
            call = call_of(scope)
            call.tenant, call.min_priority = record.name, record.min_priority
            call.policy = types_pb2.TenantPolicy(
                weight=record.weight, kv_floor=record.kv_floor, kv_ceiling=record.kv_ceiling
            )
        await self._app(scope, receive, send)

    def _is_open(self, path: str) -> bool:
        return path in ("/health", "/health/live", "/health/ready") or (
            path == "/metrics" and self._metrics_public
        )


def _presented(headers: Headers) -> str:
    scheme, _, value = headers.get("authorization", "").partition(" ")
    key = value.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    return key if len(key) <= _MAX_KEY_CHARACTERS else key[:_MAX_KEY_CHARACTERS]


def _refusal(presented: str) -> ApiError:
    message = (
        "Incorrect API key provided."
        if presented
        else "You didn't provide an API key. Send it as a header: `Authorization: Bearer YOUR_KEY`."
    )
    return ApiError(BAD_KEY, message, headers={"WWW-Authenticate": "Bearer"})
