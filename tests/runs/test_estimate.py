"""What a run will take, measured beforehand on few rows."""

from evolora.runs.estimate import _Rows, _seconds_a_row


def test_as_many_rows_are_measured_as_take_some_seconds() -> None:
    measured: list[_Rows] = []

    def seconds(rows: _Rows) -> float:
        measured.append(rows)
        return 0.5 + 0.25 * rows.count

    # 2 x 2 rows take 1.5 s: 5 s are enough for 13, of which each of the 2 individuals gets 6.
    assert _seconds_a_row(_Rows(2, 100), seconds) == (0.5 + 0.25 * 12) / 12
    assert measured == [_Rows(2, 2), _Rows(2, 2), _Rows(2, 6)]


def test_no_more_rows_are_measured_than_a_batch_has() -> None:
    measured: list[int] = []

    def seconds(rows: _Rows) -> float:
        measured.append(rows.count)
        return 1e-6 * rows.count

    assert round(_seconds_a_row(_Rows(2, 10), seconds), 12) == 1e-6
    assert measured == [4, 4, 20]


def test_slow_rows_are_measured_few_at_a_time() -> None:
    measured: list[int] = []

    def seconds(rows: _Rows) -> float:
        measured.append(rows.count)
        return 60.0 * rows.count

    assert _seconds_a_row(_Rows(8, 16), seconds) == 60
    assert measured == [4, 4, 4]
