"""Metadata is written as the gateway reads it, and what the gateway would refuse is refused here."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

from millwright_train import contract
from millwright_train.contract import Channel, Contract, Golden
from millwright_train.errors import TrainError
from millwright_train.graph import Graph


def example():
    window = np.array([[0.1, 2.0], [0.3, 1e-7]], dtype=np.float32)
    return Contract(
        name="pump-a",
        version=3,
        channels=(Channel("flow", "l/min", 32.5), Channel("Öldruck", None, None)),
        samples=2,
        interval_ms=0.125,
        created="2026-03-02T06:00:00Z",
        trained_from="a test",
        rows=400,
        golden=[Golden(window, 0.25, np.array([0.0, 0.0625]))],
    )


def model():
    graph = Graph("test", 2, 2)
    return graph.finish(graph.sum(graph.mean(graph.window, 1), 1))


def test_what_is_written_reads_back():
    # Every key survives, golden vectors to the last bit of float32.
    read = contract.read(onnx.load_from_string(contract.write(model(), example()).SerializeToString()))
    assert replace(read, golden=[]) == replace(example(), golden=[])
    assert np.array_equal(read.golden[0].window, example().golden[0].window)
    assert read.golden[0].score == 0.25 and list(read.golden[0].contribution) == [0.0, 0.0625]


def test_writing_again_replaces():
    # A second contract leaves nothing of the first, and keeps what others wrote.
    proto = model()
    proto.metadata_props.add(key="author", value="x")
    contract.write(contract.write(proto, example()), replace(example(), version=4, rows=None))
    keys = [entry.key for entry in proto.metadata_props]
    assert len(keys) == len(set(keys)) and "author" in keys and "millwright.rows" not in keys
    assert contract.read(proto).version == 4


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"name": "../etc"},
        {"name": "a" * 65},
        {"version": 0},
        {"samples": 0},
        {"samples": 65_537},
        {"channels": (Channel("a\nb"),)},
        {"channels": (Channel("a" * 129),)},
        {"golden": example().golden * 17},
    ],
)
def test_what_the_gateway_refuses_is_refused(change):
    # Names, versions and limits are the gateway's.
    with pytest.raises(TrainError):
        contract.entries(replace(example(), **change))
    contract.entries(replace(example(), name="a" * 64, golden=example().golden * 16))


def test_a_foreign_model_is_told_what_it_lacks():
    # The first missing key is named.
    with pytest.raises(TrainError, match="millwright.contract"):
        contract.read(model())
