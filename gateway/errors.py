"""Every failure in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import orjson
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.responses import Response

from quire.errors import InvalidRequest, NotFound, QuireError
from quire.v1 import types_pb2


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """How one kind of failure looks over HTTP."""

    status: int
    type: str
    code: str


INVALID = ErrorKind(400, "invalid_request_error", "invalid_value")
TOO_LONG = ErrorKind(400, "invalid_request_error", "context_length_exceeded")
BAD_KEY = ErrorKind(401, "invalid_request_error", "invalid_api_key")
NOT_FOUND = ErrorKind(404, "invalid_request_error", "not_found")
UNKNOWN_MODEL = ErrorKind(404, "invalid_request_error", "model_not_found")
UNKNOWN_URL = ErrorKind(404, "invalid_request_error", "unknown_url")
WRONG_METHOD = ErrorKind(405, "invalid_request_error", "method_not_allowed")
BODY_TIMEOUT = ErrorKind(408, "invalid_request_error", "request_timeout")
TOO_LARGE = ErrorKind(413, "invalid_request_error", "request_too_large")
NOT_JSON = ErrorKind(415, "invalid_request_error", "unsupported_media_type")
HEAD_TIMEOUT = ErrorKind(408, "invalid_request_error", "request_timeout")
HEAD_TOO_LARGE = ErrorKind(431, "invalid_request_error", "headers_too_large")
OVERLOADED = ErrorKind(429, "rate_limit_error", "rate_limit_exceeded")
CANCELLED = ErrorKind(499, "invalid_request_error", "cancelled")
INTERNAL = ErrorKind(500, "server_error", "internal_error")
NOT_READY = ErrorKind(503, "service_unavailable_error", "service_unavailable")
CROWDED = ErrorKind(503, "service_unavailable_error", "too_many_connections")
TIMED_OUT = ErrorKind(504, "timeout_error", "deadline_exceeded")

_BY_CODE: Mapping[int, ErrorKind] = {
    types_pb2.ERROR_CODE_INVALID_ARGUMENT: INVALID,
    types_pb2.ERROR_CODE_NOT_FOUND: NOT_FOUND,
    types_pb2.ERROR_CODE_RESOURCE_EXHAUSTED: OVERLOADED,
    types_pb2.ERROR_CODE_DEADLINE_EXCEEDED: TIMED_OUT,
    types_pb2.ERROR_CODE_UNAVAILABLE: NOT_READY,
    types_pb2.ERROR_CODE_CANCELLED: CANCELLED,
    types_pb2.ERROR_CODE_INTERNAL: INTERNAL,
}
_BY_STATUS: Mapping[int, ErrorKind] = {404: UNKNOWN_URL, 405: WRONG_METHOD}

_RETRY_AFTER_S = 1.0
_INTERNAL_MESSAGE = "The server failed to answer this request; the failure was logged."

# In the path of a pydantic error, names of types stand between the names of fields.
_FIELD_NAME = re.compile(r"[a-z_][a-z0-9_]*")
_TYPE_NAMES = frozenset({"str", "int", "float", "bool", "none"})


class ApiError(Exception):
    """A failure as the client sees it."""

    def __init__(
        self, kind: ErrorKind, message: str, *, param: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """The JSON body; also the data of an error event in a stream."""
        error = {
            "message": self.message,
            "type": self.kind.type,
            "param": self.param or None,
            "code": self.kind.code,
        }
        return orjson.dumps({"error": error})

    def response(self) -> Response:
        """The HTTP response."""
        return Response(self.body(), self.kind.status, self.headers, "application/json")


def describe(error: Exception) -> ApiError:
    """The failure as the client sees it; what we do not know becomes a 500 that tells nothing."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QuireError):
        return _describe_quire(error)
    if isinstance(error, ValidationError):
        return _describe_validation(error)
    if isinstance(error, HTTPException):
        kind = _BY_STATUS.get(error.status_code, ErrorKind(error.status_code, INVALID.type, INVALID.code))
        return ApiError(kind, str(error.detail), headers=error.headers)
    return ApiError(INTERNAL, _INTERNAL_MESSAGE)


def _describe_quire(error: QuireError) -> ApiError:
    kind = _BY_CODE.get(error.code, INTERNAL)
    if kind is INTERNAL:
        return ApiError(kind, _INTERNAL_MESSAGE)
    if isinstance(error, NotFound) and error.param == "model":
        kind = UNKNOWN_MODEL
    elif isinstance(error, InvalidRequest) and "context length" in error.message:
        # The words that OpenAI and vLLM use, which the services behind us share; clients look for the code.
        kind = TOO_LONG
    headers = {}
    if kind in (OVERLOADED, NOT_READY):
        wait_s = _RETRY_AFTER_S if error.retry_after_s is None else error.retry_after_s
        headers["Retry-After"] = str(max(1, math.ceil(wait_s)))
    return ApiError(kind, error.message, param=error.param, headers=headers)


def _describe_validation(error: ValidationError) -> ApiError:
    """Of the first field at fault, the deepest complaint: of a union, the member that was nearest."""
    details = error.errors(include_url=False, include_context=False, include_input=False)
    first = _path(details[0])
    nearest = max((item for item in details if _path(item)[: len(first)] == first), key=_depth)
    param = ".".join(_path(nearest))
    message = nearest["msg"].removeprefix("Value error, ")
    return ApiError(INVALID, f"{param}: {message}" if param else message, param=param)


def _depth(item: ErrorDetails) -> int:
    return len(_path(item))


def _path(item: ErrorDetails) -> tuple[str, ...]:
    return tuple(
        str(part)
        for part in item["loc"]
        if isinstance(part, int) or (_FIELD_NAME.fullmatch(part) and part not in _TYPE_NAMES)
    )
