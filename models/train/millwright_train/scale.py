"""From a library's own score to the gateway's, in which 1.0 is the alarm threshold.

Owns how the threshold is set: from held-back healthy windows alone. Never sees a label of a fault.
"""

from dataclasses import dataclass

import numpy as np

from .errors import TrainError

# How far above the highest held-back healthy score the threshold is, in multiples of that score's height over the origin.
MARGIN = 1.5


@dataclass(frozen=True)
class Scale:
    """`score = max(0, raw − origin) / (threshold − origin)`."""

    origin: float
    threshold: float

    @property
    def span(self):
        """Raw units from a score of 0 to a score of 1."""
        return self.threshold - self.origin

    def score(self, raw):
        """Scores of raw scores."""
        return np.maximum(0.0, np.asarray(raw, dtype=np.float64) - self.origin) / self.span

    def contribution(self, squares):
        """Contributions, in the scale in which their sum is the square of the score."""
        return None if squares is None else np.asarray(squares, dtype=np.float64) / self.span**2


def fit(raw, *, origin=0.0, raw_max=None, least=None, margin=MARGIN):
    """The scale for the raw scores of held-back healthy windows.

    A distance has the origin 0. A score with an origin of `None` gets the median of the healthy ones, since its own zero means
    nothing (a density, a vote). `raw_max` is the highest that such a score can be: the threshold is never above the middle between
    it and the healthy ones, else a broken machine could not reach it. `least` is a floor of the threshold.
    """
    if margin <= 1.0:
        raise TrainError(f"a margin of {margin:g} puts the threshold among the healthy scores; choose one above 1")
    raw = np.asarray(raw, dtype=np.float64)
    if not np.isfinite(raw).all():
        raise TrainError("the model gives scores that are not finite; look for channels that never move")
    highest = float(raw.max())
    origin = float(np.median(raw)) if origin is None else float(origin)
    threshold = origin + margin * (highest - origin)
    if raw_max is not None:
        threshold = min(threshold, 0.5 * (highest + raw_max))
    if least is not None:
        threshold = max(threshold, least)
    if threshold - origin <= 1e-9 * max(1.0, abs(origin)):
        raise TrainError("all held-back windows score the same; train on a history in which the machine is at work")
    return Scale(origin, threshold)
