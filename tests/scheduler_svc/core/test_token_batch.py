"""Columns are split by client and merged again without a change of meaning."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from quire.packing import unpack_int32, unpack_uint32
from quire.v1 import scheduler_pb2, types_pb2
from scheduler_svc.core.token_batch import StepColumns, merge

Entry = tuple[int, int, list[int]]
entries = st.tuples(
    st.integers(0, 9), st.integers(0, 2), st.lists(st.integers(0, 99), min_size=1, max_size=3)
)
steps = st.lists(st.tuples(st.integers(1, 3), entries), max_size=8)


def columns(step: list[tuple[int, Entry]]) -> StepColumns:
    """`counts` is left out where every entry has one token, as for a single decode step."""
    counts = [len(tokens) for _, (_, _, tokens) in step]
    return StepColumns(
        np.asarray([client for client, _ in step], np.int64),
        np.asarray([handle for _, (handle, _, _) in step], np.uint32),
        np.asarray([sequence for _, (_, sequence, _) in step], np.uint32),
        None if all(count == 1 for count in counts) else np.asarray(counts, np.uint32),
        np.asarray([token for _, (_, _, tokens) in step for token in tokens], np.int32),
    )


def read(batch: scheduler_pb2.TokenBatch) -> list[Entry]:
    handles = unpack_uint32(batch.handles).tolist()
    sequences = unpack_uint32(batch.sequences).tolist() if batch.sequences else [0] * len(handles)
    counts = unpack_uint32(batch.num_tokens).tolist() if batch.num_tokens else [1] * len(handles)
    tokens, found, start = unpack_int32(batch.token_ids).tolist(), [], 0
    for handle, sequence, count in zip(handles, sequences, counts, strict=True):
        found.append((handle, sequence, tokens[start : start + count]))
        start += count
    assert start == len(tokens)
    return found


@given(steps)
def test_each_client_gets_its_entries_in_order(step: list[tuple[int, Entry]]) -> None:
    found = {client: read(batch) for client, _, batch in columns(step).split()}
    clients = {client for client, _ in step}
    assert found == {client: [entry for owner, entry in step if owner == client] for client in clients}


@given(st.lists(st.lists(entries, min_size=1, max_size=4), min_size=1, max_size=4))
def test_merged_batches_say_what_they_said_in_order(several: list[list[Entry]]) -> None:
    batches = []
    for number, step in enumerate(several):
        ((_, _, batch),) = columns([(1, entry) for entry in step]).split()
        batch.logprobs.add(
            entry=len(step) - 1, logprobs=types_pb2.Logprobs(token_logprobs=bytes([number] * 4))
        )
        batch.ends.add(handle=number)
        batches.append(batch)
    merged = merge(batches)
    assert read(merged) == [entry for step in several for entry in step]
    last_entries = np.cumsum([len(step) for step in several]) - 1
    assert [item.entry for item in merged.logprobs] == last_entries.tolist()
    assert [end.handle for end in merged.ends] == list(range(len(several)))
