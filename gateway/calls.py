"""What every HTTP call has: an id, a span, a place in the metrics, and an answer whatever happens."""

import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog
from opentelemetry import trace
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway import metrics
from gateway.errors import describe
from quire import telemetry
from quire.v1 import types_pb2

log = structlog.get_logger()

_SCOPE_KEY = "quire.call"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(slots=True)
class Call:
    """One HTTP call."""

    request_id: str
    """What the client called it, or our own name for it; sent back as X-Request-Id."""
    started_s: float
    """`time.perf_counter()` when its headers had been read."""
    started_ns: int
    """Wall-clock time of the same moment, for spans."""
    incoming: types_pb2.TraceContext
    span: trace.Span
    tenant: str = ""
    policy: types_pb2.TenantPolicy = field(default_factory=types_pb2.TenantPolicy)
    """What the tenant is entitled to."""
    min_priority: int = 0
    """The lowest `priority` that it may ask for."""

    def trace_context(self) -> types_pb2.TraceContext:
        """Parent of the next service's spans: our own span, or the client's if this process is not traced."""
        return telemetry.trace_context(self.span) if telemetry.enabled() else self.incoming


def call_of(scope: Scope) -> Call:
    """The call that `scope` belongs to."""
    call: Call = scope[_SCOPE_KEY]
    return call


class CallMiddleware:
    """Outermost: names the call, times it, traces it, and turns what nobody caught into a 500.

    Once `leaving()`, every answer closes its connection.
    """

    def __init__(self, app: ASGIApp, leaving: Callable[[], bool]) -> None:
        self._app = app
        self._leaving = leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = scope[_SCOPE_KEY] = _begin(scope)
        status = 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = call.request_id
                if self._leaving():
                    headers["Connection"] = "close"
            await send(message)

        ids = structlog.contextvars.bound_contextvars(request_id=call.request_id)
        with ids, telemetry.in_trace(call.trace_context()):
            try:
                await self._app(scope, receive, send_named)
            except Exception as error:
                log.error("call failed", path=scope["path"], exc_info=error)
                if status:
                    raise  # half a response cannot be mended: the connection is closed
                await describe(error).response()(scope, receive, send_named)
            finally:
                _end(call, scope, status)


def _begin(scope: Scope) -> Call:
    headers = Headers(scope=scope)
    request_id = headers.get("x-request-id", "")
    if not _REQUEST_ID.fullmatch(request_id):
        request_id = uuid.uuid4().hex
    incoming = types_pb2.TraceContext()
    traceparent = headers.get("traceparent", "")
    if _TRACEPARENT.fullmatch(traceparent):
        incoming.traceparent = traceparent
        incoming.tracestate = headers.get("tracestate", "")[:512]
    span: trace.Span = trace.INVALID_SPAN
    if telemetry.enabled() and scope["method"] == "POST":
        span = telemetry.start_span(
            f"POST {scope['path'][:64]}",
            incoming,
            kind=trace.SpanKind.SERVER,
            attributes={"http.request.method": "POST", "quire.request_id": request_id},
        )
    return Call(request_id, time.perf_counter(), time.time_ns(), incoming, span)


def _end(call: Call, scope: Scope, status: int) -> None:
    # Paths that match no route share one label, or a scan would fill the memory.
    route = getattr(scope.get("route"), "path", "unmatched")
    metrics.http_requests.labels(route, scope["method"], str(status or 499)).inc()
    metrics.http_request_seconds.labels(route).observe(time.perf_counter() - call.started_s)
    if call.span.is_recording():
        call.span.set_attributes({"http.route": route, "http.response.status_code": status or 499})
        if status >= 500:
            call.span.set_status(trace.StatusCode.ERROR)
        call.span.end()
