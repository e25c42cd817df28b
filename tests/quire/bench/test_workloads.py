"""Workloads: the same tokens on every machine and in every version, whatever the model."""

import hashlib

import numpy as np
import pytest

from quire.bench.workloads import named, of_lengths
from quire.errors import InvalidRequest


@pytest.mark.parametrize(
    ("name", "requests", "prompt_tokens", "output_tokens", "digest"),
    [
        ("batch1_decode", 1, 128, 256, "144aaefb414a9c7f"),
        ("uniform256", 256, 145_014, 146_763, "9d967f56d0d43c21"),
        ("uniform1024", 1024, 586_511, 577_378, "6d17bb72d20df699"),
        ("prefill4k", 32, 131_072, 32, "fff064c955f5b611"),
        ("decode256", 256, 32_768, 131_072, "d02e13e7cf971574"),
        ("shared_prefix", 256, 528_384, 4_096, "8c5976963ef38b1d"),
        ("tiny", 4, 96, 32, "4e37f99d8070fd6a"),
    ],
)
def test_a_name_means_these_tokens_for_ever(
    name: str, requests: int, prompt_tokens: int, output_tokens: int, digest: str
) -> None:
    work = named(name)
    assert (len(work.items), work.prompt_tokens, work.output_tokens) == (
        requests,
        prompt_tokens,
        output_tokens,
    )
    hashed = hashlib.sha256()
    for item in work.items:
        hashed.update(np.array([*item.prompt, -item.output_len], dtype="<i4").tobytes())
    assert hashed.hexdigest()[:16] == digest


def test_a_smaller_vocabulary_keeps_lengths_and_shared_prefixes() -> None:
    work = named("shared_prefix")
    small = work.within(512)
    assert [len(item.prompt) for item in small.items] == [len(item.prompt) for item in work.items]
    assert all(0 <= token < 512 for item in small.items for token in item.prompt)
    assert len({tuple(item.prompt[:2000]) for item in small.items}) == 1


def test_a_vocabulary_that_is_large_enough_changes_nothing() -> None:
    work = of_lengths(2, 8, 4)
    assert work.within(100_000) is work


def test_an_unknown_name_says_which_there_are() -> None:
    with pytest.raises(InvalidRequest, match="batch1_decode"):
        named("nope")
