"""When requests leave, and what they ask."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from quire.bench.datasets import random_items, read_conversations, sampled_items
from quire.bench.load import body_of, departures
from quire.bench.workloads import Item
from quire.errors import InvalidRequest


def test_poisson_arrivals_have_their_rate_and_repeat() -> None:
    times = departures(50.0, 20_000, "poisson", seed=3)
    gaps = np.diff(times)
    assert times[0] == 0.0
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.02)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.05)
    np.testing.assert_array_equal(times, departures(50.0, 20_000, "poisson", seed=3))


def test_fixed_arrivals_are_even_and_an_infinite_rate_is_all_at_once() -> None:
    np.testing.assert_allclose(departures(4.0, 3, "fixed", seed=0), [0.0, 0.25, 0.5])
    assert not departures(math.inf, 5, "poisson", seed=0).any()


def test_a_request_asks_for_exactly_its_length() -> None:
    body = json.loads(body_of(Item([1, 2], 9), model="m", temperature=0.0, cache_salt="s"))
    assert (body["prompt"], body["max_tokens"], body["ignore_eos"]) == ([1, 2], 9, True)
    assert body["stream_options"] == {"include_usage": True}


def test_random_prompts_differ_by_seed_and_fit_the_vocabulary() -> None:
    one, other = (random_items(3, 50, 4, 300, seed) for seed in (1, 2))
    assert all(len(item.prompt) == 50 and max(item.prompt) < 300 for item in one)
    assert one != other
    assert one == random_items(3, 50, 4, 300, 1)


async def words(text: str) -> list[int]:
    return [len(word) for word in text.split()]


async def test_conversations_give_prompts_and_the_lengths_of_their_answers(tmp_path: Path) -> None:
    long = "word " * 3000
    turns = [
        ("a b c d", "one two three four five"),
        ("too short", "a b c d e"),
        ("a b c d", long),
        ("a", "b"),
    ]
    document = [
        {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]} for q, a in turns
    ]
    path = tmp_path / "sharegpt.json"
    path.write_text(json.dumps([*document, {"conversations": []}]))
    items = await sampled_items(read_conversations(path), 3, words, seed=0)
    assert items == [Item([1, 1, 1, 1], 5)] * 3
    with pytest.raises(InvalidRequest, match="no conversation"):
        await sampled_items([("a", "b")], 1, words, seed=0)


@pytest.mark.parametrize("text", ["{", "[1]", '[{"conversations": [{"from": "x"}, {}]}]'])
def test_a_file_of_another_format_says_which_it_should_be(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match="ShareGPT"):
        read_conversations(path)
