"""`quire bench serve`: what it sends."""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from quire.bench import serving
from quire.bench.load import Load
from quire.bench.server_process import RunningServer
from quire.bench.workloads import Item

OPTIONS = serving.ServingOptions(
    model="", url="", api_key="", device="cpu", server_flags=[], rates=[], arrivals="poisson", duration_s=1.0,
    at_once=1, dataset=cast("Path | None", None), prompt_len=1, output_len=1, vocab_size=10, temperature=0.0,
    slo_ttft_ms=1.0, slo_tpot_ms=1.0, seed=0,
)  # fmt: skip


class Sent(Exception):
    """What would have been sent, instead of its being sent."""


async def test_a_measurement_finds_nothing_that_an_earlier_one_of_the_same_prompts_left_in_the_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def offer(client: object, load: Load, bodies: list[bytes]) -> None:
        raise Sent([json.loads(body)["cache_salt"] for body in bodies])

    monkeypatch.setattr(serving, "offer", offer)
    load = Load(float("inf"), [Item([1, 2], 1)] * 3, np.zeros(3))
    salts = []
    for _ in range(2):
        with pytest.raises(Sent) as caught:
            await serving._measure(cast("Any", None), load, "m", RunningServer("", ""), OPTIONS)
        salts.append(set(caught.value.args[0]))
    assert [len(of_one) for of_one in salts] == [1, 1]
    assert salts[0] != salts[1]
