"""What sequences that wait begin with: the trie answers as a list of them all would."""

from hypothesis import given
from hypothesis import strategies as st

from scheduler_svc.core.awaited_blocks import AwaitedBlocks
from scheduler_svc.core.sequence import Sequence
from tests.scheduler_svc.core.test_queue import sequence

# Few kinds of blocks, so that prefixes are shared.
paths = st.lists(st.integers(0, 2), max_size=5)


def waiting_for(order: int, path: list[int]) -> Sequence:
    """A sequence whose blocks have these contents, one after the other."""
    found = sequence(order)
    found.block_hashes = [bytes(path[: place + 1]) for place in range(len(path))]
    return found


@given(st.lists(st.tuples(paths, st.integers(0, 9), st.integers(0, 3))), paths, st.integers(0, 5))
def test_what_is_awaited_is_what_some_sequence_waits_for(
    events: list[tuple[list[int], int, int]], asked: list[int], first: int
) -> None:
    blocks, counted = AwaitedBlocks(), dict[Sequence, list[bytes]]()
    for order, (path, leaving, more) in enumerate(events):
        added = waiting_for(order, path)
        blocks.add(added)
        counted[added] = list(added.block_hashes)
        # Its hashes may go on while it waits; they are not counted.
        added.block_hashes += [b"later" + bytes([order, place]) for place in range(more)]
        if leaving < len(counted):
            gone = list(counted)[leaving]
            blocks.remove(gone)
            del counted[gone]
        blocks.check_integrity(counted)
    awaited = {block for hashes in counted.values() for block in hashes}
    hashes = waiting_for(0, asked).block_hashes
    expected = 0
    while first + expected < len(hashes) and hashes[first + expected] in awaited:
        expected += 1
    assert blocks.num_leading(hashes, first, len(hashes)) == expected
