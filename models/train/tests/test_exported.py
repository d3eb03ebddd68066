"""What `millwright export` writes is read as it is meant; the gateway's own tests hold the files beside this to what it writes."""

import numpy as np
import pytest

from millwright_train import history, kinds, training, verdicts
from millwright_train.errors import UsageError
from millwright_train.history import HistoryError

from conftest import ROOT

EXPORTED = ROOT / "tests" / "exported"
BEGIN_US = 1_772_431_200_000_000


def test_one_asset():
    # An export of one machine is a history as it stands: every second, every channel.
    read = history.read(EXPORTED / "one.csv")
    assert read.channels == ("flow", "pressure") and len(read.values) == 120
    assert read.time_us[0] == BEGIN_US and read.interval_ms == 1000.0 and int(read.run[-1]) == 0


def test_parquet():
    # Parquet has the times of the CSV, and the values that the machine sent.
    pytest.importorskip("pyarrow")
    read = history.read(EXPORTED / "one.parquet")
    assert read.channels == ("flow", "pressure")
    assert np.array_equal(read.time_us, history.read(EXPORTED / "one.csv").time_us)
    assert np.array_equal(read.values[:, 1], np.full(120, 4.0, dtype=np.float32))
    assert read.values[2, 0] == np.float32(30.2)


def test_several_assets():
    # One machine of an export of several has its own channels alone, and the same rows as an export of its own.
    read = history.read(EXPORTED / "several.csv", asset="pump-1")
    alone = history.read(EXPORTED / "one.csv")
    assert read.channels == alone.channels and np.array_equal(read.values, alone.values)
    fan = history.read(EXPORTED / "several.csv", asset="fan-2")
    assert fan.channels == ("speed",) and (len(fan.values), fan.rows_missing, int(fan.run[-1])) == (119, 1, 1)
    with pytest.raises(HistoryError, match="holds the assets `fan-2`, `pump-1`; choose one with --asset"):
        history.read(EXPORTED / "several.csv")
    with pytest.raises(HistoryError, match="no asset `pump-9`"):
        history.read(EXPORTED / "several.csv", asset="pump-9")
    with pytest.raises(HistoryError, match="no column `asset`"):
        history.read(EXPORTED / "one.csv", asset="pump-1")


def test_downsampled():
    # Of a downsampled export the means are the channels; extremes and the gateway's score are there for who names them.
    read = history.read(EXPORTED / "every-10s.csv")
    assert read.channels == ("flow",) and read.interval_ms == 10_000.0
    assert list(read.values[:3, 0]) == [0.0, 1.0, 2.0]
    named = history.read(EXPORTED / "every-10s.csv", channels=["flow.max", "score"])
    assert list(named.values[0]) == [2.0, 0.25]


def test_verdicts_are_labels():
    # Rows of an alert that was right are a fault, of one that was wrong normal, of known work left out.
    rows = history.read(EXPORTED / "one.csv")
    read = verdicts.label(rows, EXPORTED / "alerts.csv", asset="pump-1")
    second = (read.time_us - BEGIN_US) // 1_000_000
    fault = set(second[read.labels == "fault"])
    assert fault == set(range(35, 51)) and set(read.labels) == {"normal", "fault"}
    assert set(range(120)) - set(second) == set(range(65, 81))
    assert read.rows_missing == 16 and len(set(read.run)) == 2
    assert int(read.run[second.tolist().index(64)]) == 0 and int(read.run[second.tolist().index(81)]) == 1


def test_alerts_that_cannot_be_used(tmp_path):
    # What is no export of alerts is refused, and so are labels for a kind that must not see them.
    rows = history.read(EXPORTED / "one.csv")
    with pytest.raises(HistoryError, match="no column `asset`; export it with `millwright export --what alerts`"):
        verdicts.label(rows, EXPORTED / "one.csv", asset=None)
    several = tmp_path / "alerts.csv"
    several.write_text("asset,onset,cleared,verdict\na,0,1,\nb,0,1,\n", encoding="utf-8")
    with pytest.raises(HistoryError, match="several assets; choose one with --asset"):
        verdicts.label(rows, several, asset=None)
    several.write_text("asset,onset,cleared,verdict\na,soon,1,\n", encoding="utf-8")
    with pytest.raises(HistoryError, match="line 2: its onset"):
        verdicts.label(rows, several, asset=None)
    labelled = verdicts.label(rows, EXPORTED / "alerts.csv", asset=None)
    with pytest.raises(UsageError, match="must not see labels"):
        training.train(kinds.find("pca"), labelled, training.Settings(name="pump-1"))


def test_an_alert_that_is_up_reaches_to_the_end(tmp_path):
    # Without an end, and without a verdict, all rows since its onset are unknown.
    path = tmp_path / "alerts.csv"
    path.write_text("asset,onset,cleared,verdict\npump-1,2026-03-02T06:01:00Z,,\n", encoding="utf-8")
    rows = history.read(EXPORTED / "one.csv")
    assert len(verdicts.label(rows, path, asset="pump-1").values) == 60
