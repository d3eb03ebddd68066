"""Labels a history by what people said of its alerts: `millwright export --what alerts`.

Owns what a verdict means for the rows of an alert, from its onset until it was cleared: `true` is a fault, `false` is
normal, and rows of `known-work` or of no verdict are left out, since nobody knows what they are. All other rows are normal:
the gateway saw nothing in them. Never guesses.
"""

from dataclasses import replace

import numpy as np

from . import history
from .history import HistoryError

NEEDED = ("asset", "onset", "cleared", "verdict")
MEANING = {"true": "fault", "false": None, "known-work": ""}


def label(rows, path, *, asset, normal="normal"):
    """`rows` with labels `normal` and `fault` by the alerts of `asset` in `path`, CSV or Parquet.

    Raises `HistoryError`.
    """
    labels = np.full(len(rows.time_us), normal, dtype=object)
    for onset_us, cleared_us, verdict in _alerts(path, asset):
        inside = (rows.time_us >= onset_us) & (rows.time_us <= cleared_us)
        meaning = MEANING.get(verdict, "")
        # Of two alerts over the same rows the one that somebody called right counts.
        undecided = labels != "fault"
        labels[inside & undecided] = normal if meaning is None else meaning
    known = labels != ""
    if known.sum() < 2:
        raise HistoryError(f"{path}: its alerts leave fewer than two rows; have them judged, or export a longer time")
    # Rows on both sides of those that were left out are not neighbours.
    left_out = np.cumsum(~known)[known]
    run = np.unique(rows.run[known] + left_out, return_inverse=True)[1]
    return replace(
        rows,
        time_us=rows.time_us[known],
        values=rows.values[known],
        run=run.astype(np.int64),
        labels=labels[known].astype(str),
        rows_missing=rows.rows_missing + int((~known).sum()),
    )


def _alerts(path, asset):
    table = history.read_table(path)
    absent = next((name for name in NEEDED if name not in table.names), None)
    if absent is not None:
        raise HistoryError(f"{path}: there is no column `{absent}`; export it with `millwright export --what alerts`")
    columns = [table.column(name) for name in NEEDED]
    known = sorted({str(cell) for cell in columns[0]})
    if asset is None and len(known) > 1:
        raise HistoryError(f"{path}: it holds alerts of several assets; choose one with --asset")
    for row, (of, onset, cleared, verdict) in enumerate(zip(*columns)):
        if asset is not None and str(of) != asset:
            continue
        onset_us = history.time_us(onset)
        is_up = cleared is None or cleared == ""
        cleared_us = np.iinfo(np.int64).max if is_up else history.time_us(cleared)
        if onset_us is None or cleared_us is None:
            raise HistoryError(f"{table.at(row)}: its onset or its end is no time; export it again")
        yield onset_us, cleared_us, "" if verdict is None else str(verdict)
