"""What is scraped has the names that dashboards ask for, whichever format the scraper would like best."""

import urllib.request

import pytest
from prometheus_client import Gauge

from quire.launcher import free_port
from quire.metrics import REGISTRY, serve_metrics

OPENMETRICS = "application/openmetrics-text;version=1.0.0"
# What Prometheus 2.42 and 3.5 send.
ACCEPTED = {
    "none": "",
    "2.42": f"{OPENMETRICS},application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5",
    "3.5": f"{OPENMETRICS};escaping=allow-utf-8;q=0.6,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4",
}


@pytest.mark.parametrize("scraper", ACCEPTED)
def test_names_keep_their_colons(scraper: str) -> None:
    gauge = Gauge("vllm:of_a_test", "Has a colon", registry=REGISTRY)
    port = free_port()
    serve_metrics(f"127.0.0.1:{port}")
    try:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics")
        request.add_header("Accept", ACCEPTED[scraper])
        with urllib.request.urlopen(request) as response:
            assert "\nvllm:of_a_test 0.0\n" in "\n" + response.read().decode()
    finally:
        REGISTRY.unregister(gauge)
