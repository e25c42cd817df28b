"""Structured logs: one JSON object a line off a terminal, readable lines on one, with trace ids."""

import logging
import sys
from typing import Any, Literal

import orjson
import structlog
from opentelemetry import trace
from structlog.typing import EventDict, Processor, WrappedLogger

LogFormat = Literal["auto", "console", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]


def add_trace_ids(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A processor: the ids of the trace and span that the line is about, where there are some."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = trace.format_trace_id(context.trace_id)
        event["span_id"] = trace.format_span_id(context.span_id)
    return event


def _dumps(event: Any, **_options: Any) -> str:
    return orjson.dumps(event, default=str).decode()


def configure_logging(service: str, *, level: LogLevel, format: LogFormat) -> None:
    """Send our logs and those of the libraries to standard error, with the service's name on every line."""
    as_json = format == "json" or (format == "auto" and not sys.stderr.isatty())
    structlog.contextvars.bind_contextvars(service=service)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_trace_ids,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        cache_logger_on_first_use=True,
    )
    renderers: list[Processor]
    if as_json:
        renderers = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_dumps)]
    else:
        renderers = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # Each request is counted in metrics; a line for each would be the busiest log of all.
    logging.getLogger("uvicorn.access").disabled = True
