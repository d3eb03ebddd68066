"""Writes the two small histories that the worked examples train on.

Owns a made-up pump sampled once a second: a load that wanders, and four channels that follow it. Needs nothing but
Python, and writes the same bytes every time. Never used by the gateway, which has a simulator of its own.

    python3 simulate.py DIR
"""

import math
import pathlib
import random
import sys
from datetime import datetime, timedelta, timezone

NORMAL_ROWS = 2400
# (state, rows, severity); the last column of the labelled history.
EPISODES = [
    ("normal", 260, 0.0),
    ("bearing", 160, 1.0),
    ("normal", 200, 0.0),
    ("blockage", 160, 1.0),
    ("normal", 200, 0.0),
    ("bearing", 140, 0.7),
    ("normal", 200, 0.0),
    ("blockage", 140, 0.7),
]


class Pump:
    """One pump; `step` gives its next row: flow l/min, pressure bar, vibration mm/s, temperature °C."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.second = 0
        self.wander = 0.0
        self.temperature = 43.0

    def step(self, state, severity):
        noise = self.random.gauss
        self.wander += -0.02 * self.wander + noise(0.0, 0.06)
        load = math.sin(self.second / 97.0) + 0.5 * math.sin(self.second / 31.0) + self.wander
        self.second += 1
        bearing = severity if state == "bearing" else 0.0
        blockage = severity if state == "blockage" else 0.0
        warm = 43.0 + 2.0 * load + 9.0 * bearing
        self.temperature += (warm - self.temperature) / 40.0
        flow = 32.0 + 3.0 * load - 6.0 * blockage + noise(0.0, 0.35)
        pressure = 4.2 - 0.25 * load + 0.8 * blockage + noise(0.0, 0.03)
        vibration = abs(1.9 + 0.2 * load + 0.9 * bearing + noise(0.0, 0.08 + 0.25 * bearing))
        return f"{flow:.2f},{pressure:.3f},{vibration:.3f},{self.temperature + noise(0.0, 0.05):.2f}"


def write(path, seed, episodes, labelled):
    pump = Pump(seed)
    time = datetime(2026, 3, 2, 6, 0, 0, tzinfo=timezone.utc)
    lines = ["time,flow,pressure,vibration,temperature" + (",state" if labelled else "")]
    for state, rows, severity in episodes:
        for _ in range(rows):
            row = pump.step(state, severity)
            lines.append(f"{time:%Y-%m-%dT%H:%M:%SZ},{row}" + (f",{state}" if labelled else ""))
            time += timedelta(seconds=1)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    write(folder / "pump.csv", 7, [("normal", NORMAL_ROWS, 0.0)], labelled=False)
    write(folder / "pump-states.csv", 11, EPISODES, labelled=True)
