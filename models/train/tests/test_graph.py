"""Building blocks compute what the numbers that libraries get are computed with."""

import numpy as np
import onnxruntime
import pytest

from millwright_train import check, features, scale, trees
from millwright_train.errors import TrainError
from millwright_train.graph import Graph

SAMPLES, CHANNELS = 12, 3


def run(graph, value, windows):
    model = graph.finish(graph.sum(value, 1), value)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["contribution"], {"window": windows})[0]


@pytest.fixture
def windows():
    return np.random.default_rng(5).normal((30.0, 4.0, -2.0), (3.0, 0.1, 1.0), (40, SAMPLES, CHANNELS)).astype(np.float32)


@pytest.mark.parametrize("name", features.FEATURES)
def test_features_agree(name, windows):
    # Each feature is the same in the graph as in numpy, within what float32 tells.
    frame = features.Frame.fit(windows)
    graph = Graph("test", SAMPLES, CHANNELS)
    found = run(graph, features.graph_extract(graph, frame, [name]), windows)
    assert np.abs(found - features.extract(frame, [name], windows)).max() < 5e-6


def test_features_keep_digits_far_from_zero():
    # A reading of 100,000 that varies by 0.1 has features as exact as one around 0 has, up to the steps of float32 at its size.
    values = np.random.default_rng(5).normal(0.0, 0.1, (40, SAMPLES, CHANNELS)) + 1e5
    windows = values.astype(np.float32)
    frame = features.Frame.fit(windows)
    graph = Graph("test", SAMPLES, CHANNELS)
    found = run(graph, features.graph_extract(graph, frame, ["std"]), windows)
    assert np.abs(found - features.extract(frame, ["std"], windows)).max() < 5e-6


def test_contributions_add_up_per_channel(windows):
    # Two features of three channels: [m1 m2 m3 s1 s2 s3] adds up to [m1+s1 m2+s2 m3+s3].
    frame = features.Frame.fit(windows)
    graph = Graph("test", SAMPLES, CHANNELS)
    values = features.graph_extract(graph, frame, ["mean", "std"])
    found = run(graph, features.graph_per_channel(graph, values, 2), windows)
    wanted = features.extract(frame, ["mean"], windows) + features.extract(frame, ["std"], windows)
    assert np.abs(found - wanted).max() < 1e-5
    assert np.allclose(features.per_channel(features.extract(frame, ["mean", "std"], windows), 2), wanted)


def test_the_log_of_kernels_goes_on_where_their_sum_is_zero(windows):
    # 100 units off the sum of kernels is 0 in float32; its logarithm is still exact to a millionth.
    frame = features.Frame(np.zeros(CHANNELS, np.float32), np.ones(CHANNELS, np.float32))
    vectors, weights = np.array([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]]), np.array([0.5, 2.0])
    far = np.concatenate([windows, windows + 100.0]).astype(np.float32)
    graph = Graph("test", SAMPLES, CHANNELS)
    value = graph.log_rbf(features.graph_extract(graph, frame, ["last"]), vectors, 0.3, weights)
    found = run(graph, graph.op("Expand", graph.op("Reshape", value, graph.constant([-1, 1], np.int64)), graph.constant([1, 3], np.int64)), far)
    distance = ((far[:, -1, None, :].astype(np.float64) - vectors) ** 2).sum(axis=2)
    wanted = np.logaddexp.reduce(-0.3 * distance + np.log(weights), axis=1)
    assert (np.abs(found[:, 0] - wanted) / np.abs(wanted)).max() < 1e-6 and wanted.min() < -1e4


def test_thresholds_are_rounded_so_that_float32_features_go_the_same_way():
    # Thresholds next to a float32 value: `value ≤ threshold` is decided as in double precision.
    value = np.float32(0.1)
    exact = float(value)
    for threshold in (exact, np.nextafter(exact, 1.0), np.nextafter(exact, -1.0)):
        rounded = trees._round_down(np.array([threshold]))[0]
        assert rounded.dtype == np.float32 and (value <= rounded) == (exact <= threshold)


def test_the_threshold_lies_above_the_healthy():
    # A distance: 1.5 times the highest. A score without a zero: 1.5 times its height over the median.
    healthy = [1.0, 2.0, 3.0]
    assert scale.fit(healthy, margin=1.5) == scale.Scale(0.0, 4.5)
    assert scale.fit(healthy, origin=None, margin=1.5) == scale.Scale(2.0, 3.5)
    # It stays in reach of the highest score there can be, and above the least that means something.
    assert scale.fit(healthy, origin=None, raw_max=3.4, margin=1.5).threshold == pytest.approx(3.2)
    assert scale.fit([0.01, 0.02], raw_max=1.0, least=0.5).threshold == 0.5
    assert list(scale.Scale(2.0, 4.0).score([1.0, 2.0, 3.0, 4.0])) == [0.0, 0.0, 0.5, 1.0]
    with pytest.raises(TrainError, match="score the same"):
        scale.fit([1.0, 1.0], origin=None)
    with pytest.raises(TrainError, match="above 1"):
        scale.fit(healthy, margin=1.0)


def test_a_wrong_export_is_refused(windows):
    # A score that differs from the library's by more than the bound is refused with both numbers; at the bound it is not.
    frame = features.Frame.fit(windows)
    graph = Graph("test", SAMPLES, CHANNELS)
    onnx_bytes = graph.finish(graph.sum(features.graph_extract(graph, frame, ["max"]), 1)).SerializeToString()
    score = features.extract(frame, ["max"], windows).sum(axis=1)
    assert check.compare(onnx_bytes, windows, score, None).score < 1e-5
    off = score.copy()
    off[3] += 0.5 * check.BOUND
    check.compare(onnx_bytes, windows, off, None)
    off[3] += 100 * check.BOUND
    with pytest.raises(TrainError, match="instead of"):
        check.compare(onnx_bytes, windows, off, None)
    with pytest.raises(TrainError, match="disagree about whether contributions"):
        check.compare(onnx_bytes, windows, score, np.zeros((len(score), CHANNELS)))
