"""Columns of tokens for many clients: split by client, and merged when a client is slow."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from quire.packing import pack_uint32
from quire.v1 import scheduler_pb2

_ZERO = pack_uint32([0])
_ONE = pack_uint32([1])


class StepColumns:
    """What one step produced, in columns of n entries; `split` makes a TokenBatch for each client.

    clients, handles, sequences, counts: integers [n]; token_ids: int32 [sum(counts)], entry after entry.
    `counts` None means one token each.
    """

    def __init__(
        self,
        clients: NDArray[np.int64],
        handles: NDArray[np.uint32],
        sequences: NDArray[np.uint32],
        counts: NDArray[np.uint32] | None,
        token_ids: NDArray[np.int32],
    ) -> None:
        self.clients = clients
        self.handles = handles
        self.sequences = sequences
        self.counts = counts
        self.token_ids = token_ids

    def split(self) -> Iterator[tuple[int, NDArray[np.intp] | None, scheduler_pb2.TokenBatch]]:
        """Yield (client, indices of its entries or None for all, its batch); entries keep their order."""
        clients = self.clients
        if len(clients) == 0:
            return
        first = int(clients[0])
        if bool((clients == first).all()):
            yield first, None, self._batch(self.handles, self.sequences, self.counts, self.token_ids)
            return
        order = np.argsort(clients, kind="stable")
        bounds = np.flatnonzero(np.diff(clients[order])) + 1
        ends = None if self.counts is None else np.cumsum(self.counts)
        for entries in np.split(order, bounds):
            counts, tokens = None, entries
            if self.counts is not None and ends is not None:
                counts = self.counts[entries]
                tokens = _ranges(ends[entries] - counts, counts)
            batch = self._batch(
                self.handles[entries], self.sequences[entries], counts, self.token_ids[tokens]
            )
            yield int(clients[entries[0]]), entries, batch

    @staticmethod
    def _batch(
        handles: NDArray[np.uint32],
        sequences: NDArray[np.uint32],
        counts: NDArray[np.uint32] | None,
        token_ids: NDArray[np.int32],
    ) -> scheduler_pb2.TokenBatch:
        return scheduler_pb2.TokenBatch(
            handles=handles.tobytes(),
            sequences=sequences.tobytes() if sequences.any() else b"",
            num_tokens=b"" if counts is None else counts.tobytes(),
            token_ids=token_ids.tobytes(),
        )


def merge(batches: Sequence[scheduler_pb2.TokenBatch]) -> scheduler_pb2.TokenBatch:
    """One batch that says what `batches` say, in their order."""
    merged = scheduler_pb2.TokenBatch(
        handles=b"".join(batch.handles for batch in batches),
        token_ids=b"".join(batch.token_ids for batch in batches),
    )
    # An empty column stands for its default only if it is empty in all.
    if any(batch.sequences for batch in batches):
        merged.sequences = b"".join(b.sequences or _ZERO * (len(b.handles) // 4) for b in batches)
    if any(batch.num_tokens for batch in batches):
        merged.num_tokens = b"".join(b.num_tokens or _ONE * (len(b.handles) // 4) for b in batches)
    first_entry = 0
    for batch in batches:
        for logprobs in batch.logprobs:
            merged.logprobs.add(entry=first_entry + logprobs.entry, logprobs=logprobs.logprobs)
        merged.ends.extend(batch.ends)
        first_entry += len(batch.handles) // 4
    return merged


def _ranges(starts: NDArray[np.integer], counts: NDArray[np.uint32]) -> NDArray[np.intp]:
    """Indices of the ranges [starts[i], starts[i] + counts[i]), one after the other."""
    counts_wide = counts.astype(np.intp)
    ends = np.cumsum(counts_wide)
    offsets = np.repeat(starts.astype(np.intp) - (ends - counts_wide), counts_wide)
    indices: NDArray[np.intp] = np.arange(len(offsets), dtype=np.intp) + offsets
    return indices
