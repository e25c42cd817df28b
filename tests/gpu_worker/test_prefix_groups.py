"""Rows that begin with the same blocks are found, and put into groups that change no token."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_worker import prefix_groups
from gpu_worker.model_runner import ModelRunner
from gpu_worker.prefix_groups import PrefixFinder, PrefixGroups
from gpu_worker.row_table import RowTable
from quire.packing import pack_int32
from quire.v1 import worker_pb2
from tests.support.checkpoints import checkpoint
from tests.support.sharing_rows import Unrecorded, collect, prefill_sharing
from tests.support.transformers_reference import greedy_tokens
from tests.support.worker_driver import make_runner

BLOCK = 16


def add(table: RowTable, row: int, blocks: list[int]) -> None:
    table.add(
        worker_pb2.RowAdd(
            row=row, token_ids=pack_int32([0]), num_prompt_tokens=1, block_ids=pack_int32(blocks), max_total_tokens=2
        )
    )  # fmt: skip


def sharing_table(num_rows: int, prefix: list[int], *, max_rows: int = 256) -> RowTable:
    """Rows with a prefix and a block of their own each."""
    table = RowTable(max_rows, 4096, 20_000, BLOCK)
    for row in range(num_rows):
        add(table, row, [*prefix, 10_000 + row])
    return table


def groups_of(found: PrefixGroups) -> list[list[int]]:
    return [
        [place for place in members if place >= 0] for members in found.members.tolist() if members[0] >= 0
    ]


def test_a_prefix_of_many_rows_is_read_by_as_few_groups_as_have_room_for_them() -> None:
    table = sharing_table(100, list(range(1, 126)))
    found = PrefixFinder(table, 16, 8).find(np.arange(100))
    assert found is not None
    assert sorted(len(group) for group in groups_of(found)) == [4, 32, 32, 32]
    assert found.lens.tolist() == [2000] * 100 + [0] * 156


def test_places_are_those_of_the_batch_and_not_of_the_table() -> None:
    table = sharing_table(60, list(range(1, 126)))
    add(table, 200, [19_999])
    found = PrefixFinder(table, 16, 8).find(np.array([200, *range(20, 60)]))
    assert found is not None
    assert found.lens[:42].tolist() == [0] + [2000] * 40 + [0]
    assert sorted(place for group in groups_of(found) for place in group) == list(range(1, 41))


@pytest.mark.parametrize(
    ("num_rows", "num_blocks"),
    [(3, 2000), (100, 0), (100, 1), (4, 200)],
    ids=["few rows", "nothing", "little", "both"],
)
def test_groups_are_made_only_where_they_save_much(num_rows: int, num_blocks: int) -> None:
    table = RowTable(256, 40_000, 20_000, BLOCK)
    for row in range(num_rows):
        add(table, row, [*range(1, 1 + num_blocks), 10_000 + row])
    assert PrefixFinder(table, 16, 8).find(np.arange(num_rows)) is None


@pytest.mark.parametrize(("prompts", "continuations"), [(32, 4), (48, 8), (24, 5)])
def test_many_small_groups_are_no_more_than_the_step_looks_at(prompts: int, continuations: int) -> None:
    table = RowTable(512, 4096, 60_000, BLOCK)
    num_rows = prompts * continuations
    for row in range(num_rows):
        stem = 100 * (row // continuations)
        add(table, row, [*range(stem + 1, stem + 71), 50_000 + row])
    for num_heads in (16, 32):
        found = PrefixFinder(table, num_heads, 8).find(np.arange(num_rows))
        assert found is not None
        groups = groups_of(found)
        assert len(groups) <= prefix_groups.groups_of(num_rows, found.members.shape[1])
        assert set(np.flatnonzero(found.lens).tolist()) == {place for group in groups for place in group}


def test_one_prompt_of_all_is_shared_where_it_saves_more_than_what_few_have_in_common() -> None:
    table = RowTable(512, 8192, 60_000, BLOCK)
    for row in range(256):
        own = 1000 + 20 * (row // 4)
        add(table, row, [*range(1, 126), *range(own, own + 4), 50_000 + row])
    found = PrefixFinder(table, 16, 8).find(np.arange(256))
    assert found is not None
    assert found.lens[:256].tolist() == [2000] * 256
    assert len(groups_of(found)) == 8


def test_groups_are_kept_until_rows_come_or_go() -> None:
    table = sharing_table(64, list(range(1, 126)))
    finder = PrefixFinder(table, 16, 8)
    first = finder.find(np.arange(64))
    assert first is not None
    assert finder.find(np.arange(64)) is first
    assert finder.find(np.arange(63)) is not first
    before = finder.find(np.arange(64))
    table.remove(3)
    add(table, 3, [19_998])
    after = finder.find(np.arange(64))
    assert after is not None
    assert after is not before
    assert after.lens[3] == 0


def test_a_row_whose_blocks_before_the_shared_one_are_others_is_left_alone() -> None:
    """No scheduler would do it; the protocol lets anyone."""
    table = sharing_table(64, list(range(1, 126)))
    twisted = [126, *range(2, 126)]
    for row in range(64, 68):
        add(table, row, twisted)
    found = PrefixFinder(table, 16, 8).find(np.arange(68))
    assert found is not None
    for group in groups_of(found):
        tables = table.tables(np.array(group), int(found.lens[group[0]]) // BLOCK)
        assert (tables == tables[0]).all()


@settings(max_examples=60)
@given(st.data())
def test_whatever_is_shared_a_groups_rows_have_the_same_blocks(data: st.DataObject) -> None:
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    table, num_rows = RowTable(128, 8192, 30_000, BLOCK), rng.randint(1, 128)
    stems = [
        [rng.randrange(1, 5000) for _ in range(rng.choice([0, 3, 60, 300]))] for _ in range(rng.randint(1, 4))
    ]
    for row in range(num_rows):
        stem = rng.choice(stems)
        add(table, row, [*stem[: rng.choice([len(stem), rng.randint(0, len(stem))])], 10_000 + row])
    rows = np.array(sorted(rng.sample(range(num_rows), rng.randint(1, num_rows))))
    found = PrefixFinder(table, rng.choice([8, 16, 32, 64]), 8).find(rows)
    if found is None:
        return
    groups = groups_of(found)
    # What is left out by the step of this many rows, or of the next larger size, would be attended to by nobody.
    assert len(groups) <= prefix_groups.groups_of(len(rows), found.members.shape[1])
    placed = [place for group in groups for place in group]
    assert len(placed) == len(set(placed))
    assert set(np.flatnonzero(found.lens).tolist()) == set(placed)
    for group in groups:
        lengths = set(found.lens[group].tolist())
        assert len(lengths) == 1
        tables = table.tables(rows[group], lengths.pop() // BLOCK)
        assert (tables == tables[0]).all()


# -- the runner uses them

PREFIX_BLOCKS, NUM_ROWS, NUM_TOKENS = 5, 12, 10


def decode_sharing(runner: ModelRunner, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy tokens of prompts whose first blocks are the first prompt's."""
    tokens: list[list[int]] = [[] for _ in prompts]
    for rows in ([0], list(range(1, len(prompts)))):
        blocks = {row: [*range(1, 1 + PREFIX_BLOCKS), *range(20 + 4 * row, 24 + 4 * row)] for row in rows}
        computed = 0 if rows == [0] else PREFIX_BLOCKS * BLOCK
        prefill_sharing(runner, tokens, prompts, blocks, num_computed=computed, num_tokens=NUM_TOKENS)
    while min(map(len, tokens)) < NUM_TOKENS:
        collect(runner, tokens, worker_pb2.StepCommand(decode_steps=2))
    return [row[:NUM_TOKENS] for row in tokens]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_tokens_of_rows_in_groups_are_those_of_each_alone(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_groups, "_LEAST_SAVED", 1)
    directory = checkpoint("Qwen3ForCausalLM")
    rng = random.Random(3)
    prefix = [rng.randrange(200) for _ in range(PREFIX_BLOCKS * BLOCK)]
    prompts = [[*prefix, *(rng.randrange(200) for _ in range(rng.randint(1, 40)))] for _ in range(NUM_ROWS)]
    options = {"device": device, "dtype": "float32"} | (
        {"kv_cache_memory": "64MiB"} if device == "cuda" else {}
    )
    runner = make_runner(directory, max_rows=24, block_size=BLOCK, **options)
    if device == "cpu":
        unrecorded = Unrecorded(runner._steps, runner._steps)
        unrecorded.allow(24)
        runner._graphs = unrecorded
    found = decode_sharing(runner, prompts)
    assert found == [greedy_tokens(directory, prompt, NUM_TOKENS) for prompt in prompts]
    if device == "cpu":
        assert all(unrecorded.in_groups[2:])
