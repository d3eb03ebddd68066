"""Features of a window, as numbers for a library and as operators for the graph.

Owns the two spellings of each and that they agree (`tests/test_features.py`). Every feature is taken of the standardised
window `u = (window − centre) / scale`: where values are far from 0, `float32` would otherwise lose in the sums what the
features are about. Features of all channels come after one another: `[mean of a, mean of b, …, std of a, …]`.
"""

from dataclasses import dataclass

import numpy as np

from .errors import UsageError
from .graph import Z_MAX

# A channel that never moves is given this scale, relative to its value and at least; as the gateway's own detector does.
CONSTANT_SCALE = 1e-3


def _slope_weights(samples):
    # Least squares over time from −½ to ½: the change over the window. One sample has no slope.
    time = np.linspace(-0.5, 0.5, samples) if samples > 1 else np.zeros(1)
    return time / max(float((time**2).sum()), 1e-12)


def _graph_std(graph, u):
    centred = graph.op("Sub", u, graph.mean(u, 1, keepdims=1))
    return graph.op("Sqrt", graph.mean(graph.op("Mul", centred, centred), 1))


def _graph_slope(graph, u):
    weights = graph.constant(_slope_weights(graph.samples)[None, :, None])
    return graph.sum(graph.op("Mul", u, weights), 1)


def _graph_last(graph, u):
    last = graph.op("Gather", u, graph.constant([graph.samples - 1], np.int64), axis=1)
    return graph.sum(last, 1)


# name: (of u[windows, samples, channels], in the graph)
FEATURES = {
    "mean": (lambda u: u.mean(axis=1), lambda graph, u: graph.mean(u, 1)),
    "std": (lambda u: u.std(axis=1), _graph_std),
    "rms": (
        lambda u: np.sqrt((u**2).mean(axis=1)),
        lambda graph, u: graph.op("Sqrt", graph.mean(graph.op("Mul", u, u), 1)),
    ),
    "min": (lambda u: u.min(axis=1), lambda graph, u: graph.op("ReduceMin", u, axes=[1], keepdims=0)),
    "max": (lambda u: u.max(axis=1), lambda graph, u: graph.op("ReduceMax", u, axes=[1], keepdims=0)),
    "slope": (lambda u: np.einsum("wsc,s->wc", u, _slope_weights(u.shape[1])), _graph_slope),
    "last": (lambda u: u[:, -1], _graph_last),
}
DEFAULT = ("mean", "std")


@dataclass(frozen=True)
class Frame:
    """How windows of one machine are standardised."""

    centre: np.ndarray
    """`float32[channels]`: medians; also what occlusion takes for normal."""
    scale: np.ndarray
    """`float32[channels]`: standard deviations."""

    @staticmethod
    def fit(windows):
        """From windows to train on."""
        rows = np.asarray(windows, dtype=np.float64).reshape(-1, windows.shape[-1])
        centre = np.median(rows, axis=0)
        floor = CONSTANT_SCALE * np.maximum(np.abs(centre), 1.0)
        scale = rows.std(axis=0)
        scale = np.where(scale > 1e-6 * np.maximum(np.abs(centre), 1.0), scale, floor)
        return Frame(centre.astype(np.float32), scale.astype(np.float32))

    def standardise(self, windows):
        """`u`, in double precision."""
        u = (np.asarray(windows, dtype=np.float64) - self.centre.astype(np.float64)) / self.scale.astype(np.float64)
        return np.clip(u, -Z_MAX, Z_MAX)

    def graph_standardise(self, graph):
        """`u` in the graph."""
        return graph.standardise(graph.window, self.centre, self.scale.astype(np.float64))


def check(names):
    """Refuses unknown features, by name."""
    for name in names:
        if name not in FEATURES:
            raise UsageError(f"there is no feature `{name}`; there are {', '.join(FEATURES)}")
    return tuple(names)


def extract(frame, names, windows):
    """`float64[windows, features × channels]`."""
    u = frame.standardise(windows)
    return np.concatenate([FEATURES[name][0](u) for name in names], axis=1)


def graph_extract(graph, frame, names):
    """The same in the graph."""
    u = frame.graph_standardise(graph)
    values = [FEATURES[name][1](graph, u) for name in names]
    return values[0] if len(values) == 1 else graph.op("Concat", *values, axis=1)


def per_channel(values, features):
    """Adds up what the features of one channel contributed: `[windows, features × channels]` to `[windows, channels]`."""
    return values.reshape(len(values), features, -1).sum(axis=1)


def graph_per_channel(graph, values, features):
    """The same in the graph."""
    if features == 1:
        return values
    # −1 is the batch; `Reshape` to a fixed tail works for every batch.
    shape = graph.constant([-1, features, graph.channels], np.int64)
    return graph.sum(graph.op("Reshape", values, shape), 1)
