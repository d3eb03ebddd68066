"""One training from history to checked file.

Owns the order: windows → held back → fit → threshold → export → check → metadata. Labels reach supervised kinds only.
Never writes files; `cli` does.
"""

from dataclasses import dataclass, replace

import numpy as np

from . import check, contract, features, scale, windows
from .errors import TrainError, UsageError

SAMPLES = 20
# Golden vectors: one calm window, the worst healthy one, and one that alarms.
GOLDEN_SHIFT = 6.0


@dataclass(frozen=True)
class Settings:
    """What the user may choose."""

    name: str
    version: int = 1
    samples: int = SAMPLES
    stride: int | None = None
    features: tuple | None = None
    """`None`: as the kind suggests."""
    margin: float | None = None
    """`None`: as the kind suggests."""
    trees: str = "native"
    normal_label: str = "normal"
    units: tuple = ()
    """`(channel, unit)` pairs."""
    created: str | None = None
    trained_from: str | None = None


@dataclass(frozen=True)
class Trained:
    """A model with its file."""

    model: object
    scale: scale.Scale
    onnx: bytes
    contract: contract.Contract
    differences: check.Differences
    windows_trained: int
    windows_held_back: int
    notes: tuple

    def reference(self, values):
        """`(score, contribution)` by the library."""
        return self.scale.score(self.model.raw(values)), self.scale.contribution(self.model.squares(values))


def train(kind, history, settings):
    """Trains, exports and checks. Raises `TrainError`."""
    if kind.supervised and history.labels is None:
        raise UsageError(f"`{kind.name}` learns labelled states: name the column with --label, or the verdicts with --alerts")
    if not kind.supervised and history.labels is not None:
        raise UsageError(
            f"`{kind.name}` learns from healthy rows alone and must not see labels: leave --label and --alerts out and name the channels with --channels"
        )
    make = kind.load()
    training, back = windows.split(windows.cut(history, settings.samples, settings.stride))
    model = fit(kind, make, training, settings)
    healthy = back
    if kind.supervised:
        healthy = back.pick(back.labels == settings.normal_label)
    fitted = scale.fit(
        model.raw(healthy.values),
        origin=model.origin,
        raw_max=model.raw_max,
        least=model.least,
        margin=model.margin if settings.margin is None else settings.margin,
    )
    proto = model.graph(settings.name, training.values.shape[1:], fitted)
    promise = promised(kind, history, training, settings, model)
    probes = probe_windows(model, healthy.values, back.values)
    score, squares = fitted.score(model.raw(probes)), fitted.contribution(model.squares(probes))
    differences = check.compare(proto.SerializeToString(), probes, score, squares, trees=kind.trees)
    golden = [
        contract.Golden(probes[row], score[row], None if squares is None else squares[row])
        for row in golden_rows(score, differences.close)
    ]
    promise = replace(promise, golden=golden)
    onnx_bytes = contract.write(proto, promise).SerializeToString()
    return Trained(
        model, fitted, onnx_bytes, promise, differences, len(training), len(back), tuple(_notes(model, fitted, score))
    )


def fit(kind, make, training, settings):
    """A fitted model."""
    frame = features.Frame.fit(training.values)
    if kind.windowed:
        return make(frame).fit(training.values)
    names = make.features_default if settings.features is None else settings.features
    model = make(frame, names, settings.trees) if kind.trees else make(frame, names)
    if kind.supervised:
        return model.fit(training.values, training.labels, settings.normal_label)
    return model.fit(training.values)


def promised(kind, history, training, settings, model):
    """The contract without golden vectors."""
    units = dict(settings.units)
    for name in units:
        if name not in history.channels:
            raise UsageError(f"a unit is given for `{name}`, which is no channel of the history")
    normals = model.frame.centre
    return contract.Contract(
        name=settings.name,
        version=settings.version,
        channels=tuple(
            contract.Channel(name, units.get(name), float(normal)) for name, normal in zip(history.channels, normals)
        ),
        samples=settings.samples,
        interval_ms=history.interval_ms,
        created=settings.created,
        trained_from=settings.trained_from or f"{kind.name}, {model.library}",
        rows=len(history.values),
    )


def probe_windows(model, healthy, back):
    """What the exported file is compared on: held-back windows, and healthy ones with one channel shifted at a time."""
    some = back[:: max(1, len(back) // (check.WINDOWS_MAX // 2))]
    shifted = []
    for channel in range(healthy.shape[2]):
        window = healthy[len(healthy) // 2].copy()
        window[:, channel] += GOLDEN_SHIFT * model.frame.scale[channel]
        shifted.append(window)
    return np.concatenate([some, np.stack(shifted)]).astype(np.float32)


def golden_rows(score, close):
    """Rows of the lowest, the middle and the highest score; none where the last digit decides."""
    order = [int(row) for row in np.argsort(score, kind="stable") if close[row]]
    return sorted({order[0], order[len(order) // 2], order[-1]})


def _notes(model, fitted, score):
    if getattr(model, "trees_rewritten", None):
        yield "trees are written as Gather, LessOrEqual and MatMul"
    elif getattr(model, "trees_rewritten", None) is False:
        yield "trees are one TreeEnsembleRegressor; --trees gemm writes them as MatMul for engines without it"
    yield from getattr(model, "notes", ())
    if not (score[-model.frame.centre.size :] >= 1.0).any():
        yield (
            f"no channel shifted by {GOLDEN_SHIFT:g} standard deviations reaches the threshold: the history or the kind is a poor "
            f"choice for finding shifts"
        )


def record(trained, values):
    """Inputs and the library's own outputs, for a test without the library."""
    score, contribution = trained.reference(values)
    if not np.isfinite(score).all():
        raise TrainError("the library gives scores that are not finite")
    return {
        "library": trained.model.library,
        "samples": int(values.shape[1]),
        "channels": int(values.shape[2]),
        "windows": [contract.short_list(window) for window in values],
        "score": contract.short_list(score),
        "contribution": None if contribution is None else [contract.short_list(row) for row in contribution],
    }
