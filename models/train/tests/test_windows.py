"""Windows lie within one stretch, and what is held back shares no row with what is trained on."""

import numpy as np
import pytest

from millwright_train import history, windows
from millwright_train.errors import TrainError


def test_no_window_spans_a_gap(tmp_path, rows):
    # 100 rows, a gap, 200 rows: 81 + 181 windows of 20.
    lines = [",".join(map(str, row)) for row in rows[:100] + rows[110:]]
    (tmp_path / "a.csv").write_text("\n".join(["time,flow,pressure", *lines]) + "\n", encoding="utf-8")
    read = history.read(tmp_path / "a.csv")
    cut = windows.cut(read, 20)
    assert len(cut) == 81 + 171
    assert all(read.run[start] == read.run[start + 19] for start in cut.start)
    assert np.array_equal(cut.values[0], read.values[:20])
    # The longest stretch has 190 rows: 190 fit, 191 do not.
    assert len(windows.cut(read, 190)) == 1
    with pytest.raises(TrainError, match="the longest has 190"):
        windows.cut(read, 191)


def test_no_window_mixes_labels(states):
    # Every window has the label of all of its rows.
    cut = windows.cut(states, 20)
    for start, label in zip(cut.start, cut.labels):
        assert set(states.labels[start : start + 20]) == {label}


def test_what_is_held_back_was_not_trained_on(states):
    # No row is in both parts, and every state is in both.
    training, back = windows.split(windows.cut(states, 20))
    rows = lambda part: {row for start in part.start for row in range(start, start + 20)}
    assert not rows(training) & rows(back)
    assert set(training.labels) == set(back.labels) == {"normal", "bearing", "blockage"}


def test_too_little_is_refused(states):
    # A stride that leaves a handful of windows is refused with the remedy.
    with pytest.raises(TrainError, match="use a longer export"):
        windows.split(windows.cut(states, 20, stride=200))


def test_a_long_history_is_gone_through_less_often():
    # 6,400 windows in batches of 64 are 100 steps: 40 times are 4,000 steps and allowed, 41 are not.
    assert [windows.epochs(wanted, 6400, 64, 4000) for wanted in (39, 40, 41)] == [39, 40, 40]
    assert windows.epochs(60, 10**9, 64, 4000) == 1
