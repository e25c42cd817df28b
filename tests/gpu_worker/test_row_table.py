"""The host's mirror of rows: block tables that grow by many rows at once."""

import numpy as np
import pytest

from gpu_worker.row_table import RowTable
from quire.errors import InvalidRequest
from quire.packing import pack_int32
from quire.v1 import worker_pb2


def table_with(blocks: dict[int, list[int]]) -> RowTable:
    """Rows that hold these blocks of 4 tokens."""
    table = RowTable(max_rows=8, max_model_len=20, num_blocks=50, block_size=4)
    for row, ids in blocks.items():
        table.add(
            worker_pb2.RowAdd(
                row=row,
                token_ids=pack_int32([1]),
                num_prompt_tokens=1,
                max_total_tokens=20,
                block_ids=pack_int32(ids),
            )
        )
    return table


def append(table: RowTable, counts: dict[int, int], ids: list[int]) -> list[tuple[int, int]]:
    rows, numbers = np.array(list(counts), np.int64), np.array(list(counts.values()), np.int64)
    table.check_appendable(rows, numbers, len(ids))
    places, columns = table.append_blocks(rows, numbers, np.array(ids, np.int32))
    return list(zip(places.tolist(), columns.tolist(), strict=True))


def test_each_row_gets_its_own_of_the_ids_behind_those_it_has() -> None:
    table = table_with({1: [10, 11], 4: [], 6: [12]})
    assert append(table, {6: 2, 1: 0, 4: 1}, [20, 21, 22]) == [(6, 1), (6, 2), (4, 0)]
    assert table.num_blocks.tolist() == [0, 2, 0, 0, 1, 0, 3, 0]
    assert table.slots(6, np.array([0, 4, 8, 11])).tolist() == [48, 80, 84, 87]
    assert table.slots(4, np.array([1])).tolist() == [89]


def test_blocks_are_counted_once_however_many_rows_share_them() -> None:
    table = table_with({0: [5, 6], 1: [5]})
    append(table, {1: 2}, [6, 7])
    assert table.num_blocks_used == 3
    table.remove(1)
    assert table.num_blocks_used == 2
    table.clear()
    assert table.num_blocks_used == 0


@pytest.mark.parametrize(
    ("counts", "ids"), [({3: 1}, [5]), ({9: 1}, [5]), ({1: 2}, [5]), ({1: 6}, [5, 6, 7, 8, 9, 10])]
)
def test_rows_that_cannot_grow_so_are_refused(counts: dict[int, int], ids: list[int]) -> None:
    table = table_with({1: []})
    with pytest.raises(InvalidRequest, match="append"):
        append(table, counts, ids)
    assert table.num_blocks_used == 0


def test_a_row_that_ends_its_prompt_needs_blocks_for_what_it_decodes() -> None:
    """A block of four tokens holds the prompt's one and three more; of the last token no KV is needed."""
    table = table_with({1: [10], 3: [11]})
    table.check_decode(4, [1])
    for decode_steps in (5, 7):
        with pytest.raises(InvalidRequest, match="row 1 has no block"):
            table.check_decode(decode_steps, [1])
    table.fail(1)
    table.check_decode(5, [1])
    table.take_chunk(3, 1)
    with pytest.raises(InvalidRequest, match="row 3 has no block"):
        table.check_decode(5, [])


def test_rows_decode_from_the_end_of_their_prompt_until_they_fail_or_are_removed() -> None:
    table = table_with({1: [10], 2: [11], 3: [12]})
    assert table.decoding_rows().tolist() == []
    for row in (3, 1, 2):
        table.take_chunk(row, 1)
    assert table.decoding_rows().tolist() == [1, 2, 3]
    table.fail(2)
    assert table.decoding_rows().tolist() == [1, 3]
    table.remove(1)
    assert (table.decoding_rows().tolist(), table.num_used) == ([3], 2)
    table.clear()
    assert (table.decoding_rows().tolist(), table.num_used) == ([], 0)
