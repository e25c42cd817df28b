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
