"""Log lines are JSON with the service's name, and carry the trace of the request that they are about."""

import json
import subprocess
import sys

import pytest
import structlog
from structlog.testing import LogCapture

from quire import telemetry
from quire.v1 import types_pb2
from tests.support.server import REPOSITORY
from tests.support.traced_logs import TRACE_ID, TRACEPARENT, traced_logs

PROGRAM = f"""
import structlog
from quire import telemetry
from quire.logging import configure_logging
from quire.v1 import types_pb2
configure_logging("example", level="info", format="json")
log = structlog.get_logger()
with telemetry.in_trace(types_pb2.TraceContext(traceparent="{TRACEPARENT}")):
    log.warning("about a request")
log.warning("about nobody")
"""


def test_lines_inside_a_trace_name_it_and_others_name_none() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    inside, outside = map(json.loads, run.stderr.splitlines())
    assert (inside["event"], inside["service"], inside["trace_id"]) == (
        "about a request",
        "example",
        TRACE_ID,
    )
    assert len(inside["span_id"]) == 16
    assert outside["event"] == "about nobody"
    assert not {"trace_id", "span_id"} & outside.keys()


@pytest.mark.parametrize("traceparent", ["", "no traceparent", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_what_is_no_context_names_no_trace(traceparent: str) -> None:
    with traced_logs() as logs, telemetry.in_trace(types_pb2.TraceContext(traceparent=traceparent)):
        _warn(logs)
    with traced_logs() as logs, telemetry.in_trace(None):
        _warn(logs)


def _warn(logs: LogCapture) -> None:
    structlog.get_logger().warning("a line")
    (line,) = logs.entries
    assert "trace_id" not in line
