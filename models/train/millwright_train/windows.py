"""Cuts a history into windows and divides them into those to train on and those held back.

Owns where a window may lie: never across a gap, never across a change of label. Never looks at values.

Limits: `WINDOWS_MAX` windows; a longer history is cut with a larger stride.
"""

import math
from dataclasses import dataclass

import numpy as np

from .errors import TrainError

# At 20 samples of 8 channels 32 MB; more teach these models nothing new.
WINDOWS_MAX = 50_000
# Windows that a threshold is set from, at the least; the highest of fewer is a matter of luck.
HELD_BACK_MIN = 20


@dataclass(frozen=True)
class Windows:
    """Windows of one history."""

    values: np.ndarray
    """`float32[windows, samples, channels]`."""
    start: np.ndarray
    """Row of the history that each begins with."""
    segment: np.ndarray
    """Number of the stretch without gap and change of label that each lies in."""
    labels: np.ndarray | None
    """Label of each, when the history has labels."""

    def __len__(self):
        return len(self.start)

    def pick(self, mask):
        labels = None if self.labels is None else self.labels[mask]
        return Windows(self.values[mask], self.start[mask], self.segment[mask], labels)


def cut(history, samples, stride=None):
    """All windows of `samples` rows, every `stride` rows (by default as many as `WINDOWS_MAX` allows)."""
    if stride is None:
        stride = max(1, math.ceil(len(history.values) / WINDOWS_MAX))
    change = np.diff(history.run) != 0
    if history.labels is not None:
        change |= history.labels[1:] != history.labels[:-1]
    segment = np.concatenate([[0], np.cumsum(change)])
    starts = np.arange(0, max(0, len(history.values) - samples + 1), stride)
    starts = starts[segment[starts] == segment[starts + samples - 1]] if len(starts) else starts
    if len(starts) == 0:
        longest = int(np.bincount(segment).max())
        raise TrainError(
            f"no stretch without a gap is long enough for a window of {samples} rows: the longest has {longest} of "
            f"{history.interval_ms:g} ms; choose fewer with --samples, or export on a regular grid"
        )
    rows = starts[:, None] + np.arange(samples)[None, :]
    labels = None if history.labels is None else history.labels[starts]
    return Windows(history.values[rows], starts, segment[starts], labels)


def split(windows, held_back=0.3):
    """`(training, held back)`: the last part of every stretch is held back, and no window of one part shares a row with
    the other. Neighbouring windows are almost equal, so a random choice would hold nothing back.
    """
    samples = windows.values.shape[1]
    late = np.zeros(len(windows), dtype=bool)
    early = np.zeros(len(windows), dtype=bool)
    for segment in np.unique(windows.segment):
        members = np.flatnonzero(windows.segment == segment)
        first_late = members[min(len(members) - 1, int(len(members) * (1.0 - held_back)))]
        late[members[members >= first_late]] = True
        early[members[windows.start[members] + samples <= windows.start[first_late]]] = True
    training, back = windows.pick(early), windows.pick(late)
    if len(training) < HELD_BACK_MIN or len(back) < HELD_BACK_MIN:
        raise TrainError(
            f"{len(training)} windows to train on and {len(back)} held back, at least {HELD_BACK_MIN} of each are needed; "
            f"use a longer export or fewer --samples"
        )
    return training, back


def epochs(wanted, windows, batch, steps_max):
    """How often to go through the windows: as often as wanted, but for at most `steps_max` steps, and at least once."""
    return max(1, min(wanted, steps_max // math.ceil(windows / batch)))
