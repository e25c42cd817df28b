"""The errors a request can end with, and how they cross process boundaries.

QuireError                 code                  gRPC status           HTTP
├── InvalidRequest         INVALID_ARGUMENT      INVALID_ARGUMENT      400
├── NotFound               NOT_FOUND             NOT_FOUND             404
├── Overloaded             RESOURCE_EXHAUSTED    RESOURCE_EXHAUSTED    429
├── DeadlineExceeded       DEADLINE_EXCEEDED     DEADLINE_EXCEEDED     504
├── NotReady               UNAVAILABLE           UNAVAILABLE           503
├── Cancelled              CANCELLED             CANCELLED             499
└── Internal               INTERNAL              INTERNAL              500

Inside a shared stream an error is a message (`quire.v1.Error`); on a unary call, or a stream of one request,
it is a gRPC status whose trailing metadata carries `param` and the time to wait.
"""

from typing import ClassVar

import grpc

from quire.v1 import types_pb2

PARAM_KEY = "quire-error-param-bin"
RETRY_AFTER_KEY = "quire-retry-after-s"


class QuireError(Exception):
    """A failure with a code, a message for people, and the request field at fault."""

    code: ClassVar[types_pb2.ErrorCode.ValueType] = types_pb2.ERROR_CODE_INTERNAL
    status: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL

    def __init__(self, message: str, *, param: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def to_proto(self) -> types_pb2.Error:
        """The error as it travels inside a shared stream."""
        error = types_pb2.Error(code=self.code, message=self.message, param=self.param)
        if self.retry_after_s is not None:
            error.retry_after_s = self.retry_after_s
        return error

    def trailing_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """`param` and the time to wait, as gRPC metadata beside the status."""
        metadata: list[tuple[str, str | bytes]] = []
        if self.param:
            metadata.append((PARAM_KEY, self.param.encode()))
        if self.retry_after_s is not None:
            metadata.append((RETRY_AFTER_KEY, f"{self.retry_after_s:.3f}"))
        return tuple(metadata)


class InvalidRequest(QuireError):
    """The request is wrong and will be wrong again."""

    code = types_pb2.ERROR_CODE_INVALID_ARGUMENT
    status = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(QuireError):
    """The named thing does not exist."""

    code = types_pb2.ERROR_CODE_NOT_FOUND
    status = grpc.StatusCode.NOT_FOUND


class Overloaded(QuireError):
    """A queue or a quota is full; `retry_after_s` says when to try again."""

    code = types_pb2.ERROR_CODE_RESOURCE_EXHAUSTED
    status = grpc.StatusCode.RESOURCE_EXHAUSTED


class DeadlineExceeded(QuireError):
    """The request's own deadline passed."""

    code = types_pb2.ERROR_CODE_DEADLINE_EXCEEDED
    status = grpc.StatusCode.DEADLINE_EXCEEDED


class NotReady(QuireError):
    """The service is starting, draining, or has lost a part that it needs."""

    code = types_pb2.ERROR_CODE_UNAVAILABLE
    status = grpc.StatusCode.UNAVAILABLE


class Cancelled(QuireError):
    """The caller gave the request up."""

    code = types_pb2.ERROR_CODE_CANCELLED
    status = grpc.StatusCode.CANCELLED


class Internal(QuireError):
    """A fault of ours."""

    code = types_pb2.ERROR_CODE_INTERNAL
    status = grpc.StatusCode.INTERNAL


_KINDS = (InvalidRequest, NotFound, Overloaded, DeadlineExceeded, NotReady, Cancelled, Internal)
_BY_CODE: dict[int, type[QuireError]] = {kind.code: kind for kind in _KINDS}
_BY_STATUS: dict[grpc.StatusCode, type[QuireError]] = {kind.status: kind for kind in _KINDS}


def from_proto(error: types_pb2.Error) -> QuireError:
    """The exception that `error` describes; an unknown code is Internal."""
    kind = _BY_CODE.get(error.code, Internal)
    retry_after_s = error.retry_after_s if error.HasField("retry_after_s") else None
    return kind(error.message, param=error.param, retry_after_s=retry_after_s)


def from_rpc_error(error: grpc.aio.AioRpcError) -> QuireError:
    """The exception that a failed gRPC call describes; an unknown status is Internal."""
    kind = _BY_STATUS.get(error.code(), Internal)
    param, retry_after_s = "", None
    for key, value in error.trailing_metadata() or ():
        if key == PARAM_KEY:
            param = value.decode() if isinstance(value, bytes) else value
        elif key == RETRY_AFTER_KEY:
            retry_after_s = float(value)
    return kind(error.details() or error.code().name, param=param, retry_after_s=retry_after_s)
