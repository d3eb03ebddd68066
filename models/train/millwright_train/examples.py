"""The worked examples: every kind, trained on the small histories of a simulated pump.

Owns which rows are recorded for the tests. The labelled history is only trained on by supervised kinds; of the others it
shows whether they find what they were never told about.
"""

import pathlib
from dataclasses import dataclass

import numpy as np

from . import history, training, windows

NORMAL = "pump.csv"
STATES = "pump-states.csv"
LABEL = "state"
UNITS = (("flow", "l/min"), ("pressure", "bar"), ("vibration", "mm/s"), ("temperature", "°C"))
# Windows whose outputs are recorded: as many healthy ones as faulty ones.
RECORDED = 12


@dataclass(frozen=True)
class Example:
    trained: training.Trained
    record: dict
    found: str
    """How many windows of each state are above the threshold."""


def make(kind, folder):
    """Trains one example."""
    folder = pathlib.Path(folder)
    states = history.read(folder / STATES, label=LABEL)
    rows = states if kind.supervised else history.read(folder / NORMAL)
    name = STATES if kind.supervised else NORMAL
    settings = training.Settings(
        name=f"example-{kind.name}", units=UNITS, trained_from=f"{kind.name} on {name}, a simulated pump"
    )
    trained = training.train(kind, rows, settings)
    labelled = windows.cut(states, settings.samples)
    if kind.supervised:
        _, labelled = windows.split(labelled)
    score = trained.scale.score(trained.model.raw(labelled.values))
    shares = [f"{label} {100 * (score[labelled.labels == label] >= 1).mean():.0f} %" for label in sorted(set(labelled.labels))]
    return Example(trained, training.record(trained, labelled.values[_recorded(labelled.labels)]), "alarms: " + ", ".join(shares))


def _recorded(labels):
    """Evenly spaced rows, half of them healthy."""
    healthy = np.flatnonzero(labels == "normal")
    faulty = np.flatnonzero(labels != "normal")
    half = RECORDED // 2
    pick = lambda rows: rows[np.linspace(0, len(rows) - 1, half).astype(int)]
    return np.sort(np.concatenate([pick(healthy), pick(faulty)]))
