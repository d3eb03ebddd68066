"""The `millwright.*` metadata of a model file, as the gateway reads it (`models/src/contract.rs`).

Owns the keys, their limits and how golden vectors are written. A golden vector's outputs are those of the training
library: a gateway that does not reproduce them refuses the model. Never looks at the graph.
"""

import json
import re
from dataclasses import dataclass, field

import numpy as np

from .errors import TrainError

CONTRACT_VERSION = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LABEL_BYTES_MAX = 128
GOLDEN_MAX = 16
SAMPLES_MAX = 65_536
WINDOW_VALUES_MAX = 1 << 20
VALUE_BYTES_MAX = 1 << 20
PREFIX = "millwright."


@dataclass(frozen=True)
class Channel:
    name: str
    unit: str | None = None
    normal: float | None = None


@dataclass(frozen=True)
class Golden:
    """An input and what the library answers to it."""

    window: np.ndarray
    score: float
    contribution: np.ndarray | None


@dataclass(frozen=True)
class Contract:
    name: str
    version: int
    channels: tuple
    samples: int
    interval_ms: float | None = None
    created: str | None = None
    trained_from: str | None = None
    rows: int | None = None
    golden: list = field(default_factory=list)


def check(contract):
    """Refuses what the gateway would refuse."""
    if not NAME.fullmatch(contract.name):
        raise TrainError(
            f"`{contract.name}` is no model name: use 1 to 64 of A-Z a-z 0-9 . _ - and begin with a letter or digit"
        )
    if not 1 <= contract.version < 2**64:
        raise TrainError(f"version {contract.version}: a model's version is a positive integer")
    for channel in contract.channels:
        for label in filter(None, (channel.name, channel.unit)):
            if not label.strip() or len(label.encode()) > LABEL_BYTES_MAX or not label.isprintable():
                raise TrainError(f"`{label[:40]}`: names and units are 1 to {LABEL_BYTES_MAX} bytes of printable text")
    values = contract.samples * len(contract.channels)
    if not 1 <= contract.samples <= SAMPLES_MAX or values > WINDOW_VALUES_MAX:
        raise TrainError(f"{contract.samples} samples of {len(contract.channels)} channels are more than a window may hold")
    if len(contract.golden) > GOLDEN_MAX:
        raise TrainError(f"{len(contract.golden)} golden vectors, at most {GOLDEN_MAX} are read")


def entries(contract):
    """The metadata, `{key: text}`."""
    check(contract)
    channels = [_without_none({"name": c.name, "unit": c.unit, "normal": short(c.normal)}) for c in contract.channels]
    found = {
        "contract": str(CONTRACT_VERSION),
        "name": contract.name,
        "version": str(contract.version),
        "channels": _json(channels),
        "samples": str(contract.samples),
        "interval_ms": None if contract.interval_ms is None else f"{contract.interval_ms:.12g}",
        "input": "window",
        "output": "score",
        "created": contract.created,
        "trained_from": contract.trained_from,
        "rows": None if contract.rows is None else str(contract.rows),
        "golden": _json([_golden(vector) for vector in contract.golden]) if contract.golden else None,
    }
    for key, value in found.items():
        if value is not None and len(value.encode()) > VALUE_BYTES_MAX:
            raise TrainError(f"the metadata `{PREFIX}{key}` has {len(value.encode())} bytes, at most {VALUE_BYTES_MAX} are read")
    return {PREFIX + key: value for key, value in _without_none(found).items()}


def write(model, contract):
    """Puts the metadata into an ONNX model, in place of any it had."""
    kept = [(entry.key, entry.value) for entry in model.metadata_props if not entry.key.startswith(PREFIX)]
    del model.metadata_props[:]
    for key, value in [*kept, *entries(contract).items()]:
        model.metadata_props.add(key=key, value=value)
    return model


def read(model):
    """The contract of a model that `write` has written."""
    found = {entry.key.removeprefix(PREFIX): entry.value for entry in model.metadata_props if entry.key.startswith(PREFIX)}
    missing = [key for key in ("contract", "name", "version", "channels", "samples") if key not in found]
    if missing:
        raise TrainError(f"the model's metadata lacks `{PREFIX}{missing[0]}`; export it with millwright-train")
    channels = tuple(Channel(c["name"], c.get("unit"), c.get("normal")) for c in json.loads(found["channels"]))
    samples = int(found["samples"])
    return Contract(
        name=found["name"],
        version=int(found["version"]),
        channels=channels,
        samples=samples,
        interval_ms=float(found["interval_ms"]) if "interval_ms" in found else None,
        created=found.get("created"),
        trained_from=found.get("trained_from"),
        rows=int(found["rows"]) if "rows" in found else None,
        golden=[_read_golden(vector, samples, len(channels)) for vector in json.loads(found.get("golden", "[]"))],
    )


def short(value):
    """The shortest decimal that is this `float32`; `None` stays."""
    return None if value is None else float(str(np.float32(value)))


def short_list(values):
    """The same for an array, flattened."""
    return [short(value) for value in np.asarray(values).ravel()]


def _golden(vector):
    contribution = None if vector.contribution is None else short_list(vector.contribution)
    return _without_none({"window": short_list(vector.window), "score": short(vector.score), "contribution": contribution})


def _read_golden(vector, samples, channels):
    if "row" in vector:
        window = np.tile(np.array(vector["row"], dtype=np.float32), (samples, 1))
    else:
        window = np.array(vector["window"], dtype=np.float32).reshape(samples, channels)
    contribution = vector.get("contribution")
    return Golden(window, vector["score"], None if contribution is None else np.array(contribution))


def _json(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _without_none(values):
    return {key: value for key, value in values.items() if value is not None}
