from __future__ import annotations

import os

from parked.prefork import scoreboard
from parked.prefork.scoreboard import Scoreboard


def claimed(board: Scoreboard, pid: int) -> int:
    row = board.claim()
    assert row is not None
    board.set(row, "owner", pid)
    board.set(row, "ready", pid)
    return row


def test_rows_are_taken_in_order_and_used_again_when_their_process_has_ended() -> None:
    board = Scoreboard()
    assert [claimed(board, 11), claimed(board, 12), claimed(board, 13)] == [0, 1, 2]
    board.release(12)
    assert claimed(board, 14) == 1
    assert board.column("ready") == [11, 14, 13]


def test_what_counts_up_outlives_its_process_and_levels_do_not() -> None:
    board = Scoreboard()
    row = claimed(board, 11)
    board.update(row, [("accepted", 5), ("connections", 3)], board.snapshot(row))
    board.release(11)
    assert (board.get(row, "accepted"), board.get(row, "connections")) == (5, 0)
    assert claimed(board, 12) == row
    board.update(row, [("accepted", 2), ("connections", 1)], board.snapshot(row))
    assert (board.get(row, "accepted"), board.get(row, "connections")) == (7, 1)


def test_a_later_image_reads_the_same_figures_by_descriptor() -> None:
    first = Scoreboard()
    row = claimed(first, 11)
    first.set(row, "accepted", 9)
    second = Scoreboard(os.dup(first.fd))
    assert second.column("accepted") == [9]
    assert claimed(second, 12) == 1
    assert first.column("owner") == [11, 12]


def test_there_may_be_no_row_left() -> None:
    board = Scoreboard()
    board._cells[0] = scoreboard.ROWS
    for row in range(scoreboard.ROWS):
        board.set(row, "owner", 1)
    assert board.claim() is None
