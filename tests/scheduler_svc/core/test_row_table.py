"""The scheduler's columns of rows."""

from scheduler_svc.core.row_table import RowTable
from tests.scheduler_svc.core.test_queue import sequence


def test_rows_that_decode_are_counted_anew_after_whatever_changes_them() -> None:
    table = RowTable(2, 4)
    for order, row in ((0, 0), (1, 1)):
        table.take(sequence(order), [order], 0, 0.0)
        assert table.num_live == row
        table.max_total_tokens[row] = table.num_issued[row] + 3
        table.begin_decoding(row, 1)
        assert table.num_live == row + 1
    table.stop(0)
    assert table.num_live == 1
    table.advance(table.live(), 1)
    assert table.num_live == 1
    table.advance(table.live(), 1)
    assert table.num_live == 0, "it is at its limit"
    table.num_issued[1] -= 1
    table.advance(table.live()[:0], 1)
    assert table.num_live == 1
    table.release(1)  # as when its worker is lost: nobody has stopped it
    assert table.num_live == 0
