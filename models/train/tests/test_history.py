"""Exports are read as they come, and bad ones are refused with the line and the remedy."""

import numpy as np
import pytest

from millwright_train import history
from millwright_train.history import HistoryError


def write(path, header, rows, separator=","):
    path.write_text(
        "\n".join([header, *(separator.join(str(cell) for cell in row) for row in rows)]) + "\n", encoding="utf-8"
    )
    return path


def refused(path, **options):
    with pytest.raises(HistoryError) as error:
        history.read(path, **options)
    return str(error.value)


def test_wide_csv(tmp_path, rows):
    # Channels keep the order of the columns, and values are float32.
    read = history.read(write(tmp_path / "a.csv", "time,flow,pressure", rows))
    assert read.channels == ("flow", "pressure") and read.values.dtype == np.float32
    assert (len(read.values), read.interval_ms, read.rows_missing, int(read.run[-1])) == (300, 1000.0, 0, 0)
    assert read.values[7, 1] == np.float32(rows[7][2])


def test_chosen_channels_in_the_order_asked_for(tmp_path, rows):
    # `channels` orders columns as well as choosing them.
    read = history.read(write(tmp_path / "a.csv", "time,flow,pressure", rows), channels=["pressure", "flow"])
    assert read.channels == ("pressure", "flow") and read.values[0, 0] == np.float32(rows[0][2])


def test_semicolons_with_decimal_commas(tmp_path, rows):
    # A European export gives the same values as a plain one.
    european = [(time, str(flow).replace(".", ","), str(pressure).replace(".", ",")) for time, flow, pressure in rows]
    read = history.read(write(tmp_path / "a.csv", "time;flow;pressure", european, separator=";"))
    assert read.values[5, 0] == np.float32(rows[5][1])


def test_long_csv_equals_wide(tmp_path, rows):
    # One row per value, in any order, gives what one row per moment gives.
    long = [(time, asset, name, value) for time, *values in rows for asset in ("pump-a", "pump-b") for name, value in
            zip(("flow", "pressure"), values)]  # fmt: skip
    path = write(tmp_path / "long.csv", "time,asset,channel,value", reversed(long))
    read = history.read(path, asset="pump-b")
    wide = history.read(write(tmp_path / "a.csv", "time,flow,pressure", rows))
    assert np.array_equal(read.values, wide.values) and np.array_equal(read.time_us, wide.time_us)
    assert "`pump-a`, `pump-b`; choose one with --asset" in refused(path)
    assert "no asset `pump-c`" in refused(path, asset="pump-c")


@pytest.mark.parametrize("unit", ["us", "ns", "ms"])
def test_parquet_equals_csv(tmp_path, rows, unit):
    # Timestamps of any resolution and floats are read as the same text is.
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    wide = history.read(write(tmp_path / "a.csv", "time,flow,pressure", rows))
    times = pyarrow.array(wide.time_us, pyarrow.timestamp("us", tz="UTC")).cast(pyarrow.timestamp(unit, tz="UTC"))
    table = pyarrow.table({"time": times, "flow": [row[1] for row in rows], "pressure": [row[2] for row in rows]})
    parquet.write_table(table, tmp_path / "a.parquet")
    read = history.read(tmp_path / "a.parquet")
    assert np.array_equal(read.values, wide.values) and np.array_equal(read.time_us, wide.time_us)


def test_no_parquet(tmp_path):
    # A file that only claims to be Parquet is refused.
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no more")
    assert "no Parquet file" in refused(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    "time",
    [
        "1772431200",
        "1772431200000",
        "1772431200000000",
        "1772431200000000000",
        "2026-03-02 06:00:00",
        "2026-03-02T07:00:00+01:00",
    ],
)
def test_times_as_historians_write_them(tmp_path, time):
    # Seconds to nanoseconds, with and without an offset: all the same moment.
    path = write(tmp_path / "a.csv", "time,flow", [("2026-03-02T05:59:59Z", 1.0), (time, 2.0)])
    assert history.read(path).time_us[1] == 1_772_431_200_000_000


def test_gaps_and_missing_values_end_a_run(tmp_path, rows):
    # Row 100 lacks a value and rows 200 to 209 are absent: three runs.
    rows[100] = (rows[100][0], "", rows[100][2])
    read = history.read(write(tmp_path / "a.csv", "time,flow,pressure", rows[:200] + rows[210:]))
    assert (len(read.values), read.rows_missing, int(read.run[-1])) == (289, 1, 2)
    # A step of exactly one and a half intervals is no gap yet.
    times = [0.0, 1.0, 2.0, 3.5, 4.5, 6.1]
    read = history.read(write(tmp_path / "b.csv", "time,flow", [(1_772_431_200 + time, 1.0) for time in times]))
    assert list(read.run) == [0, 0, 0, 0, 0, 1]


def test_refusals_name_the_line_and_the_remedy(tmp_path, rows):
    # Each mistake is told with its place and with what to do.
    header = "time,flow,pressure"
    bad = list(rows)
    bad[3] = (rows[3][0], "n.a", 4.0)
    assert "line 5: `n.a` in column `flow` is no number; correct it or leave it empty" in refused(
        write(tmp_path / "a.csv", header, bad)
    )
    bad[3] = ("yesterday", 30.0, 4.0)
    assert "line 5: `yesterday` is no time; write it as" in refused(write(tmp_path / "a.csv", header, bad))
    bad[3] = rows[2]
    assert "line 5: its time is not after the one before; sort" in refused(write(tmp_path / "a.csv", header, bad))
    bad[3] = (rows[3][0], 30.0)
    assert "line 5: 2 cells, but the header has 3 columns" in refused(write(tmp_path / "a.csv", header, bad))
    assert "none of the columns" in refused(write(tmp_path / "a.csv", "a,flow,pressure", rows))
    assert "no channel `speed`; it holds `flow`, `pressure`" in refused(
        write(tmp_path / "a.csv", header, rows), channels=["speed"]
    )
    assert "no label column `state`" in refused(tmp_path / "a.csv", label="state")
    assert "`flow` is there twice" in refused(write(tmp_path / "a.csv", "time,flow,flow", rows))
    assert "neither CSV nor Parquet" in refused(write(tmp_path / "a.xlsx", header, rows))
    assert "no such file" in refused(tmp_path / "none.csv")
    assert "no row below the header" in refused(write(tmp_path / "a.csv", header, []))
    apart = [(time, "flow" if second % 2 else "pressure", 1.0) for second, (time, *_) in enumerate(rows)]
    assert "only 0 % of its moments" in refused(write(tmp_path / "a.csv", "time,channel,value", apart))


def test_labels_are_no_channel(states):
    # The label column is kept beside the values.
    assert states.channels == ("flow", "pressure", "vibration", "temperature")
    assert set(states.labels) == {"normal", "bearing", "blockage"}


def test_a_label_is_no_channel_unless_it_is_named_as_one(tmp_path, rows):
    # A column of 0 and 1 called `anomaly` would teach a detector the answers; who means it as a channel says so.
    path = write(tmp_path / "a.csv", "time,flow,anomaly", [(time, flow, 0) for time, flow, _ in rows])
    assert "looks like a label, which is no channel; name the channels, as with `--channels flow`" in refused(path)
    assert history.read(path, channels=["flow", "anomaly"]).channels == ("flow", "anomaly")
    assert history.read(path, label="anomaly").channels == ("flow",)
