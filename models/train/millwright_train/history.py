"""Reads a historian's export, CSV or Parquet, wide or long.

Owns the formats: wide is `time,<channel>,<channel>,…`, one row per moment, or `time,asset,<channel>,…` of several
machines; long is `time,asset,channel,value`, one row per value. `millwright export` writes wide ones; of its downsampled
ones the means are read. Times are ISO 8601 (UTC where no offset is given) or numbers since 1970 in s, ms, µs or ns. Never repairs
data: a moment with a missing value is left out, and rows on both sides of a gap are never put into one window.

Limits: `ROWS_MAX` rows, `CHANNELS_MAX` channels. Values are `float32`, as on the gateway.
"""

import csv
import math
import pathlib
from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np

from .errors import TrainError

# A year at one row in six seconds; more belongs into several files or a coarser grid.
ROWS_MAX = 5_000_000
# As in the gateway's contract.
CHANNELS_MAX = 256
# A step of more than this many sampling intervals is a gap.
GAP_INTERVALS = 1.5
# With fewer complete moments than this share, channels were recorded at different moments.
COMPLETE_SHARE_MIN = 0.5

TIME_NAMES = {"time", "timestamp", "ts", "datetime", "date", "time_ms", "time_us", "received_us"}
CHANNEL_NAMES = {"channel", "tag", "tagname", "variable", "sensor"}
ASSET_NAMES = {"asset", "machine", "equipment", "device"}
VALUE_NAMES = {"value", "val"}
# Columns that nobody means as a sensor.
LABEL_NAMES = {
    "anomaly",
    "is_anomaly",
    "changepoint",
    "label",
    "fault",
    "is_fault",
    "failure",
    "class",
    "state",
    "status",
}
MISSING = {"", "nan", "null", "none", "na", "n/a"}
# What a downsampled export has beside each mean, and the gateway's own column in it.
EXTREMES = (".min", ".max")
SCORE_NAME = "score"


class HistoryError(TrainError):
    """An export that cannot be used; the text says where and what to do."""


@dataclass(frozen=True)
class History:
    """Complete rows in the order of time."""

    channels: tuple
    """Names, in the order of the columns."""
    time_us: np.ndarray
    """`int64[rows]`, microseconds since 1970, UTC."""
    values: np.ndarray
    """`float32[rows, channels]`, all finite."""
    run: np.ndarray
    """`int64[rows]`: number of the uninterrupted run that the row belongs to."""
    labels: np.ndarray | None
    """`str[rows]`, when a label column was named."""
    interval_ms: float
    """Median step between rows."""
    rows_missing: int
    """Moments left out since a value was missing."""


@dataclass(frozen=True)
class _Table:
    path: pathlib.Path
    names: list
    columns: list
    place: str
    """What a row is called in an error: the line of a CSV file, the row of a Parquet file."""
    first: int

    def at(self, row):
        return f"{self.path}, {self.place} {self.first + row}"

    def column(self, name):
        return self.columns[self.names.index(name)]

    def named(self, accepted):
        return next((name for name in self.names if name.strip().lower() in accepted), None)


def read(path, *, channels=None, label=None, asset=None):
    """Reads `path`. `channels` keeps these columns in this order; `label` names the column with the machine's state;
    `asset` chooses one of an export of several.

    Raises `HistoryError`.
    """
    path = pathlib.Path(path)
    table = read_table(path)
    if len(table.columns[0]) == 0:
        raise HistoryError(f"{path}: there is no row below the header")
    time_name = table.named(TIME_NAMES)
    if time_name is None:
        raise HistoryError(
            f"{path}: none of the columns {_list(table.names)} is a time; call the column with the time `time`"
        )
    times = _times(table, table.column(time_name))
    if table.named(CHANNEL_NAMES) and table.named(VALUE_NAMES):
        if label is not None:
            raise HistoryError(f"{path}: labels need a wide export, `time,<channel>,…,{label}`, and this one is long")
        return _long(table, times, channels, asset)
    return _wide(table, times, time_name, channels, label, asset)


def read_table(path):
    """The columns of a CSV or Parquet file as they stand there.

    Raises `HistoryError`.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise HistoryError(f"{path}: there is no such file")
    suffix = path.suffix.lower()
    if suffix in {".parquet", ".pq"}:
        return _read_parquet(path)
    if suffix in {".csv", ".txt", ".tsv"}:
        return _read_csv(path)
    raise HistoryError(f"{path}: `{suffix}` is neither CSV nor Parquet; export it as .csv or .parquet")


def _wide(table, times, time_name, channels, label, asset):
    if label is not None and label not in table.names:
        raise HistoryError(f"{table.path}: there is no label column `{label}`; its columns are {_list(table.names)}")
    asset_name = next((name for name in table.names if name.strip().lower() == "asset" and name != label), None)
    keep = _of_asset(table, asset_name, asset)
    rows = np.flatnonzero(keep)
    named = [name for name in table.names if name not in (time_name, label, asset_name)]
    if channels is None:
        named = _means(named)
    columns = {}
    for name in _choose(table, named, channels):
        values = _numbers(table, name, table.column(name), rows)
        # A column of other machines is empty here.
        if asset_name is None or channels is not None or np.isfinite(values).any():
            columns[name] = values
    if not columns:
        raise HistoryError(f"{table.path}: the asset has no value in any column; export another span")
    chosen, values, times = list(columns), np.stack(list(columns.values()), axis=1), times[rows]
    labels = None if label is None else np.array([str(table.column(label)[row]).strip() for row in rows])
    order = np.diff(times)
    if (order <= 0).any():
        row = int(rows[int(np.argmax(order <= 0)) + 1])
        raise HistoryError(
            f"{table.at(row)}: its time is not after the one before; sort the export by time and keep one row per moment "
            f"(a long export of several assets needs the columns `asset,channel,value`)"
        )
    return _history(table.path, chosen, times, values, labels)


def _of_asset(table, asset_name, asset):
    """Which rows are of the asset: all where the export is of one."""
    if asset_name is None:
        if asset is not None:
            raise HistoryError(f"{table.path}: it has no column `asset` to choose `{asset}` by")
        return np.ones(len(table.columns[0]), dtype=bool)
    assets = np.array([str(cell).strip() for cell in table.column(asset_name)])
    known = sorted(set(assets))
    if asset is None and len(known) > 1:
        raise HistoryError(f"{table.path}: it holds the assets {_list(known)}; choose one with --asset")
    if asset is not None and asset not in known:
        raise HistoryError(f"{table.path}: there is no asset `{asset}`; it holds {_list(known)}")
    return assets == (asset if asset is not None else known[0])


def _means(named):
    """Of a downsampled export the means of the channels; all of any other."""
    downsampled = [name for name in named if all(name + extreme in named for extreme in EXTREMES)]
    beside = {name + extreme for name in downsampled for extreme in EXTREMES}
    if SCORE_NAME in downsampled:
        beside.add(SCORE_NAME)
    return [name for name in named if name not in beside]


def _long(table, times, channels, asset):
    keep = _of_asset(table, table.named(ASSET_NAMES), asset)
    tags = np.array([str(cell).strip() for cell in table.column(table.named(CHANNEL_NAMES))])
    value_name = table.named(VALUE_NAMES)
    values = _numbers(table, value_name, table.column(value_name))
    chosen = _choose(table, sorted(set(tags[keep])), channels)
    moments = np.unique(times[keep])
    grid = np.full((len(moments), len(chosen)), np.nan, dtype=np.float32)
    for column, channel in enumerate(chosen):
        rows = keep & (tags == channel)
        grid[np.searchsorted(moments, times[rows]), column] = values[rows]
    complete = np.isfinite(grid).all(axis=1).mean()
    if complete < COMPLETE_SHARE_MIN:
        raise HistoryError(
            f"{table.path}: only {100 * complete:.0f} % of its moments have a value of all of {_list(chosen)}; export the "
            f"channels on one grid of time (interpolated or last value), or choose some with --channels"
        )
    return _history(table.path, chosen, moments, grid, None)


def _history(path, channels, times, values, labels):
    complete = np.isfinite(values).all(axis=1)
    if complete.sum() < 2:
        raise HistoryError(
            f"{path}: fewer than two rows have a value of every channel; leave out empty channels with --channels"
        )
    # The interval is a matter of the clock, not of which values are missing.
    interval_us = float(np.median(np.diff(times)))
    times, values = times[complete], values[complete]
    run = np.concatenate([[0], np.cumsum(np.diff(times) > GAP_INTERVALS * interval_us)])
    labels = None if labels is None else labels[complete]
    missing = int((~complete).sum())
    return History(tuple(channels), times, values, run, labels, interval_us / 1000.0, missing)


def _choose(table, named, channels):
    if channels is not None:
        absent = [name for name in channels if name not in named]
        if absent:
            raise HistoryError(f"{table.path}: there is no channel `{absent[0]}`; it holds {_list(named)}")
        named = list(channels)
    else:
        label = next((name for name in named if name.strip().lower() in LABEL_NAMES), None)
        if label is not None:
            others = ",".join(name for name in named if name != label)
            raise HistoryError(
                f"{table.path}: the column `{label}` looks like a label, which is no channel; name the channels, as with "
                f"`--channels {others}`, or the label with `--label {label}` for a kind that learns labelled states"
            )
    if not named:
        raise HistoryError(f"{table.path}: it holds a time and nothing else")
    if len(named) > CHANNELS_MAX:
        raise HistoryError(
            f"{table.path}: {len(named)} channels, at most {CHANNELS_MAX} fit one model; choose some with --channels"
        )
    twice = next((name for name in named if named.count(name) > 1), None)
    if twice is not None:
        raise HistoryError(f"{table.path}: the channel `{twice}` is there twice; rename one")
    return named


def _numbers(table, name, cells, rows=None):
    rows = range(len(cells)) if rows is None else rows
    values = np.empty(len(rows), dtype=np.float32)
    for index, row in enumerate(rows):
        cell = cells[row]
        value = _number(cell)
        if value is None:
            raise HistoryError(
                f"{table.at(row)}: `{str(cell)[:40]}` in column `{name}` is no number; correct it or leave it empty, or if the "
                f"column is no channel name the others with --channels"
            )
        values[index] = value
    return values


def _number(cell):
    """The cell's value, NaN when it is missing, `None` when it is no number."""
    if cell is None:
        return math.nan
    if isinstance(cell, str):
        text = cell.strip()
        if text.lower() in MISSING:
            return math.nan
        try:
            value = float(text)
        except ValueError:
            return None
    else:
        try:
            value = float(cell)
        except (TypeError, ValueError):
            return None
    # The gateway takes finite 32-bit values; anything else is a reading that it would leave out as well.
    return value if abs(value) < float(np.finfo(np.float32).max) else math.nan


def _times(table, cells):
    times = np.empty(len(cells), dtype=np.int64)
    for row, cell in enumerate(cells):
        at_us = time_us(cell)
        if at_us is None:
            raise HistoryError(
                f"{table.at(row)}: `{str(cell)[:40]}` is no time; write it as 2026-03-02T06:00:00Z, or as a number since 1970 in "
                f"seconds, milliseconds, microseconds or nanoseconds"
            )
        times[row] = at_us
    return times


def time_us(cell):
    """A time as microseconds since 1970, `None` when it is none."""
    if isinstance(cell, str):
        text = cell.strip()
        try:
            cell = float(text)
        except ValueError:
            try:
                cell = datetime.fromisoformat(text)
            except ValueError:
                return None
    if isinstance(cell, datetime):
        aware = cell if cell.tzinfo is not None else cell.replace(tzinfo=timezone.utc)
        return round(aware.timestamp() * 1e6)
    try:
        number = float(cell)
    except (TypeError, ValueError):
        return None
    if not math.isfinite(number):
        return None
    # 10¹¹ s is the year 5138, 10¹¹ ms is 1973: the magnitude tells the unit.
    for below, factor in ((1e11, 1e6), (1e14, 1e3), (1e17, 1.0), (1e20, 1e-3)):
        if abs(number) < below:
            return round(number * factor)
    return None


def _read_csv(path):
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            head = file.readline()
            separator = max(",;\t", key=head.count)
            file.seek(0)
            return _csv_table(path, csv.reader(file, delimiter=separator), separator)
    except UnicodeDecodeError as error:
        raise HistoryError(f"{path}: it is not UTF-8 text ({error.reason}); export it as UTF-8") from error


def _csv_table(path, reader, separator):
    names = [name.strip() for name in next(reader, [])]
    if len(names) < 2:
        raise HistoryError(
            f"{path}, line 1: a header with a time and at least one channel is expected, separated by commas"
        )
    columns = [[] for _ in names]
    # German and French exports separate by semicolons, since the comma is in their numbers.
    decimal_comma = separator == ";"
    for cells in reader:
        if not cells:
            raise HistoryError(f"{path}, line {reader.line_num}: the line is empty; remove it")
        if len(cells) != len(names):
            raise HistoryError(
                f"{path}, line {reader.line_num}: {len(cells)} cells, but the header has {len(names)} columns; correct the line"
            )
        if len(columns[0]) >= ROWS_MAX:
            raise HistoryError(f"{path}: more than {ROWS_MAX} rows; export a shorter time or a coarser grid")
        for column, cell in zip(columns, cells):
            column.append(cell.replace(",", ".") if decimal_comma else cell)
    return _Table(path, names, columns, "line", 2)


def _read_parquet(path):
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise HistoryError(
            f"{path}: Parquet needs pyarrow; install `millwright-train[parquet]` or export CSV"
        ) from error
    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise HistoryError(f"{path}: it is no Parquet file ({error}); export it again") from error
    if table.num_rows > ROWS_MAX:
        raise HistoryError(f"{path}: more than {ROWS_MAX} rows; export a shorter time or a coarser grid")
    columns = [_parquet_column(column) for column in table.columns]
    return _Table(path, list(table.column_names), columns, "row", 0)


def _parquet_column(column):
    import pyarrow

    if pyarrow.types.is_timestamp(column.type):
        # Nanoseconds that a datetime cannot hold would be an error there; microseconds are all that is kept.
        column = column.cast(pyarrow.timestamp("us", tz=column.type.tz), safe=False).cast(pyarrow.int64())
        # An integer would be read by its magnitude, and times before 1973 as another unit.
        return [None if us is None else datetime.fromtimestamp(us / 1e6, tz=timezone.utc) for us in column.to_pylist()]
    return column.to_pylist()


def _list(names):
    shown = ", ".join(f"`{name}`" for name in names[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")
