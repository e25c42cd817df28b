"""Log lines as they are written, with the trace ids that they got."""

from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from structlog.testing import LogCapture

from quire.logging import add_trace_ids

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"


@contextmanager
def traced_logs() -> Iterator[LogCapture]:
    """What is logged inside the block, in `entries`."""
    logs = LogCapture()
    before = structlog.get_config()["processors"]
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, add_trace_ids, logs])
    try:
        yield logs
    finally:
        structlog.configure(processors=before)
