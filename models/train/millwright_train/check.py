"""Runs an exported file with onnxruntime and compares it with what the training library itself answered.

Owns the bounds. Never trains, and never asks the exported file for a reference. Whether the gateway's own engine runs the
file is asked by `pack`.
"""

from dataclasses import dataclass

import numpy as np
import onnxruntime

from .errors import TrainError

# Largest difference of a score or contribution, absolute up to 1 and relative above: libraries compute in float64 or in
# another order, and features of float32 carry some 1e-6.
BOUND = 1e-4
# A tree sends a window the other way when a feature is closer to the edge of a split than float32 tells: at most this share of
# windows, and at most this much of the score.
EDGE_SHARE = 0.01
EDGE_BOUND = 0.05
# Windows of one comparison.
WINDOWS_MAX = 512


@dataclass(frozen=True)
class Differences:
    """How far an exported file is from its library."""

    close: np.ndarray
    """`bool[windows]`: within `BOUND`; all of them, but for trees."""
    score: float
    """Largest absolute difference of a score, where close."""
    contribution: float | None
    any_batch: bool
    """Whether the file takes any batch; if not, windows are run one by one."""
    edge: float = 0.0
    """Largest absolute difference of a score at the edge of a split."""

    def __str__(self):
        text = f"score within {self.score:.1e}"
        if self.contribution is not None:
            text += f", contribution within {self.contribution:.1e}"
        text += f" of the library over {len(self.close)} windows ({'any batch' if self.any_batch else 'batch of one'})"
        on_edge = int((~self.close).sum())
        return f"{text}, but for {on_edge} at the edge of a split, within {self.edge:.1e}" if on_edge else text


def compare(onnx_bytes, windows, score, contribution, *, trees=False):
    """Compares; raises `TrainError` above the bounds, or when a window scores differently beside others."""
    session = _session(onnx_bytes)
    outputs = [output.name for output in session.get_outputs()]
    if ("contribution" in outputs) != (contribution is not None):
        raise TrainError("the exported file and its library disagree about whether contributions are known")
    names = ["score"] if contribution is None else ["score", "contribution"]
    windows = np.asarray(windows, dtype=np.float32)
    any_batch = not isinstance(session.get_inputs()[0].shape[0], int)
    alone = [session.run(names, {"window": window[None]}) for window in windows]
    found = [np.concatenate([np.atleast_1d(one[index]) for one in alone]) for index in range(len(names))]
    if any_batch:
        for name, separate, together in zip(names, found, session.run(names, {"window": windows})):
            _within(f"the {name} of a window beside others", together.reshape(separate.shape), separate)
    found_score, score = found[0].reshape(-1).astype(np.float64), np.asarray(score)
    close = np.abs(found_score - score) <= BOUND * np.maximum(1.0, np.abs(score))
    edge = 0.0
    if trees and 0 < (~close).mean() <= EDGE_SHARE:
        edge = _within("the score at the edge of a split", found_score[~close], score[~close], EDGE_BOUND)
    else:
        _within("the score", found_score, score)
        close[:] = True
    of_score = float(np.abs(found_score - score)[close].max())
    of_contribution = None if contribution is None else _within("the contribution", found[1], np.asarray(contribution))
    return Differences(close, of_score, of_contribution, any_batch, edge)


def _session(onnx_bytes):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(onnx_bytes, options, providers=["CPUExecutionProvider"])


def _within(what, found, wanted, bound=BOUND):
    difference = np.abs(np.asarray(found, dtype=np.float64) - wanted)
    allowed = bound * np.maximum(1.0, np.abs(wanted))
    # A NaN is above every bound.
    if not (difference <= allowed).all():
        at = int(np.argmax(np.nan_to_num(difference / allowed, nan=np.inf)))
        raise TrainError(
            f"the exported file does not give what the library gives: {what} is {np.ravel(found)[at]:.6g} instead of "
            f"{np.ravel(wanted)[at]:.6g}, more than {bound:g} away; it is not written"
        )
    return float(difference.max())
