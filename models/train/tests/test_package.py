"""The package agrees with itself: pins, kinds, committed examples."""

import json
import re
import tomllib

import onnx
import pytest

from millwright_train import contract, errors, kinds

from conftest import ROOT


def pins(lines):
    # A dot, a dash and an underscore are the same in a package's name.
    pairs = (re.fullmatch(r"([\w.-]+)==(\S+)", line.strip()) for line in lines)
    return {re.sub(r"[-_.]+", "-", pair[1]).lower(): pair[2] for pair in pairs if pair}


@pytest.mark.parametrize("extra", ["sklearn", "torch", "keras"])
def test_environments_hold_what_the_package_pins(extra):
    # What pyproject.toml asks for is what the environment of that library installs.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    wanted = pins([*project["dependencies"], *optional[extra], *optional["test"]])
    installed = pins((ROOT / "requirements" / f"{extra}.txt").read_text(encoding="utf-8").splitlines())
    assert {name: installed.get(name) for name in wanted} == wanted


@pytest.mark.parametrize("name", kinds.KINDS)
def test_examples_are_committed_and_say_what_they_are(name):
    # Each kind has its file and record, of tens of kilobytes, with the library's version.
    path = ROOT / "examples" / f"{name}.onnx"
    assert path.stat().st_size < 100_000
    read = contract.read(onnx.load(path))
    record = json.loads((ROOT / "examples" / f"{name}.json").read_text(encoding="utf-8"))
    assert read.name == f"example-{name}" and len(read.golden) >= 2
    assert (record["samples"], record["channels"]) == (read.samples, len(read.channels))
    assert len(record["windows"]) == len(record["score"])


def test_a_kind_without_its_library_says_what_to_install(monkeypatch):
    # In an environment without the library the error names the extra.
    kind = kinds.Kind("x", "torch", "no_such_module", "X", "")
    with pytest.raises(errors.TrainError, match=r"install `millwright-train\[torch\]`"):
        kind.load()
