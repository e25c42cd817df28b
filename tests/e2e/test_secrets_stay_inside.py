"""Keys and what people write are in no log, metric or trace, however much is logged and traced."""

import asyncio
import json
from pathlib import Path

import httpx2
import pytest

from tests.support.checkpoints import checkpoint
from tests.support.otlp_receiver import otlp_receiver
from tests.support.server import launch

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

KEY = "sk-quire-key-that-must-stay-inside"
WRONG_KEY = "sk-quire-wrong-key-that-must-stay-inside"
PROMPT = "aardvark and wombat"


async def ask(http: httpx2.AsyncClient) -> int:
    """Good, bad and refused requests, each with the prompt; the number of those that were served."""
    chat = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4}
    bodies = (
        ("/v1/completions", {"prompt": PROMPT, "max_tokens": 4}),
        ("/v1/completions", {"prompt": PROMPT, "max_tokens": 4, "stream": True}),
        ("/v1/completions", {"prompt": PROMPT, "max_tokens": 10**9}),
        ("/v1/completions", {"prompt": PROMPT, "stop": [""]}),
        ("/v1/completions", {"prompt": {PROMPT: 1}}),
        ("/v1/chat/completions", chat),
        ("/v1/chat/completions", chat | {"messages": [{"role": PROMPT}]}),
        ("/tokenize", {"prompt": PROMPT}),
    )
    served = 0
    for path, body in bodies:
        served += (await http.post(path, json=body)).status_code == 200
    for path in (f"/v1/models?key={KEY}", f"/no/such/{KEY}"):
        await http.get(path)
    await http.post("/v1/completions", content=json.dumps(bodies[0][1])[:-1])
    refused = await http.post(
        "/v1/completions", json=bodies[0][1], headers={"Authorization": f"Bearer {WRONG_KEY}"}
    )
    assert refused.status_code == 401
    return served


async def test_no_log_metric_or_trace_has_a_key_or_a_prompt(tmp_path: Path) -> None:
    async with otlp_receiver() as receiver:
        flags = ("--otlp-endpoint", receiver.endpoint, "--log-level", "debug")
        server = launch(checkpoint(), tmp_path, *flags, api_key=KEY)
        await asyncio.to_thread(server.wait_until_ready)
        headers = {"Authorization": f"Bearer {KEY}"}
        async with httpx2.AsyncClient(base_url=server.url, headers=headers, timeout=60) as http:
            assert await ask(http) >= 4
            metrics = (await http.get("/metrics")).text
        assert await asyncio.to_thread(server.stop) == 0
    outputs = {"log": server.output(), "metrics": metrics, "traces": repr(receiver.spans)}
    assert "POST /v1/completions" in outputs["traces"]
    assert "quire_gateway_http_requests_total" in metrics
    assert "shutting down" in outputs["log"]
    for name, text in outputs.items():
        for secret in (KEY, WRONG_KEY, PROMPT, *PROMPT.split(" ")[::2]):
            assert secret not in text, (name, secret)
