"""Hashes taken from a prompt that begins alike are those that one would compute, and need not be computed."""

import copy
import pickle
from array import array
from collections.abc import Iterator
from unittest.mock import Mock, patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.v1 import types_pb2
from scheduler_svc.core import recent_prompts
from scheduler_svc.core import sequence as sequence_module
from scheduler_svc.core.block_hash import block_hash
from scheduler_svc.core.recent_prompts import RecentPrompts
from scheduler_svc.core.sequence import Request, Sequence
from scheduler_svc.core.tenants import Tenant

BLOCK = 4


def sequence(tokens: list[int], root: bytes = b"root", num_public_tokens: int = 0) -> Sequence:
    """One with this prompt."""
    return Sequence(
        Request(
            1,
            1,
            "r",
            Tenant("t", 0),
            0,
            0.0,
            None,
            None,
            root,
            b"public",
            num_public_tokens=num_public_tokens,
        ),
        0,
        0,
        token_ids=array("i", tokens),
        num_prompt_tokens=len(tokens),
        max_total_tokens=1000,
        sampling=types_pb2.SamplingParams(),
        stop_token_ids=frozenset(),
    )


@pytest.fixture
def hashing() -> Iterator[Mock]:
    """Counts the blocks that are hashed."""
    with patch.object(sequence_module, "block_hash", Mock(side_effect=block_hash)) as counting:
        yield counting


prompts = st.builds(
    lambda common, own: [7, 8, 9, 1, 2, 3, 4, 5, 6, 0][:common] * 2 + own,
    st.integers(0, 10),
    st.lists(st.integers(0, 2), min_size=1, max_size=12),
)


@given(st.lists(st.tuples(prompts, st.sampled_from([b"a", b"b"]), st.sampled_from([0, 6, 9])), max_size=12))
def test_hashes_are_those_of_a_prompt_that_comes_alone(asked: list[tuple[list[int], bytes, int]]) -> None:
    recent = RecentPrompts()
    for tokens, root, num_public in asked:
        known = sequence(tokens, root, num_public)
        recent.hash(known, BLOCK)
        count = (len(tokens) - 1) // BLOCK
        assert known.block_hashes == sequence(tokens, root, num_public).hash_blocks(count, BLOCK)


def test_what_prompts_begin_with_alike_is_hashed_once(hashing: Mock) -> None:
    recent, common = RecentPrompts(), list(range(100))
    for own in range(10):
        recent.hash(sequence([*common, own, own, own, own, own]), BLOCK)
    assert hashing.call_count == 25 + 10


def test_tokens_generated_since_count_too(hashing: Mock) -> None:
    recent, first = RecentPrompts(), sequence(list(range(20)))
    recent.hash(first, BLOCK)
    first.token_ids.extend(range(20, 40))
    first.hash_blocks(10, BLOCK)
    recent.hash(sequence(list(range(50))), BLOCK)
    assert hashing.call_count == 12


def test_the_beginning_not_seen_for_longest_is_forgotten(
    hashing: Mock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent_prompts, "_MAX_KEPT", 2)
    recent = RecentPrompts()
    for first, num_hashed in ((1, 3), (2, 3), (1, 0), (3, 3), (1, 0), (2, 3)):
        hashing.reset_mock()
        recent.hash(sequence([first] * 13), BLOCK)
        assert hashing.call_count == num_hashed


def test_a_copy_carries_no_prompts(hashing: Mock) -> None:
    recent = RecentPrompts()
    recent.hash(sequence([1] * 13), BLOCK)
    assert len(pickle.dumps(recent)) < 100
    copy.copy(recent).hash(sequence([1] * 13), BLOCK)
    assert hashing.call_count == 6
