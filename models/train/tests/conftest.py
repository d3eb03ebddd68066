"""What the tests share: the committed histories, and the gateway's program when there is one."""

import os
import pathlib

import numpy as np
import pytest

from millwright_train import history, kinds, training

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def normal():
    return history.read(ROOT / "history" / "pump.csv")


@pytest.fixture(scope="session")
def states():
    return history.read(ROOT / "history" / "pump-states.csv", label="state")


@pytest.fixture(scope="session")
def trained(normal, states):
    """Trains a kind once for all tests."""
    made = {}

    def get(name, **settings):
        key = (name, *sorted(settings.items()))
        if key not in made:
            kind = kinds.find(name)
            rows = states if kind.supervised else normal
            made[key] = training.train(kind, rows, training.Settings(name=f"test-{name}", **settings))
        return made[key]

    return get


@pytest.fixture(scope="session")
def millwright():
    """The gateway's program. `.ci/run` has always built one; elsewhere tests that need it say that they did not run."""
    program = os.environ.get("MILLWRIGHT")
    if program is None:
        pytest.skip("MILLWRIGHT names no gateway program")
    return program


@pytest.fixture
def rows():
    """300 rows of two channels once a second, as text: `(time, flow, pressure)`."""
    random = np.random.default_rng(3)
    values = np.round(random.normal((30.0, 4.0), (1.0, 0.1), (300, 2)), 3)
    return [(f"2026-03-02T06:{second // 60:02}:{second % 60:02}Z", *row) for second, row in enumerate(values.tolist())]
