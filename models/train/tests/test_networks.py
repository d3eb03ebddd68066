"""PyTorch and Keras, in whichever environment one of them is: exports against the library, and the gateway's own verdict."""

import importlib.util

import numpy as np
import pytest

from millwright_train import check, contract, kinds, pack, windows

from conftest import ROOT

LIBRARIES = {"torch": "torch", "keras": "tensorflow"}
HERE = [library for library, module in LIBRARIES.items() if importlib.util.find_spec(module)]
KINDS = [kind.name for kind in kinds.KINDS.values() if kind.library in HERE]
if not KINDS:
    pytest.skip("neither PyTorch nor TensorFlow is installed here", allow_module_level=True)


@pytest.fixture(autouse=True)
def few_epochs(monkeypatch):
    """How well it is trained does not matter here, but for `.ci/run`, where the examples are trained in full."""
    for library in HERE:
        monkeypatch.setattr(f"millwright_train.{library}_models.EPOCHS", 3)


@pytest.mark.parametrize("name", KINDS)
def test_exports_agree_with_the_library(name, trained, states):
    # On windows of every state the file gives what the library gives, and contributions add up to the square of the score.
    made = trained(name)
    values = windows.cut(states, 20, stride=31).values
    score, contribution = made.reference(values)
    assert check.compare(made.onnx, values, score, contribution).score <= check.BOUND * max(1.0, score.max())
    assert (contribution >= 0.0).all() and np.allclose(contribution.sum(axis=1), score**2, rtol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_the_gateway_runs_it(name, tmp_path, millwright, trained):
    # The gateway's engine loads it and reproduces its golden vectors, which are the library's.
    path = tmp_path / "network.onnx"
    path.write_bytes(trained(name).onnx)
    assert f"test-{name} v1" in pack.pack(millwright, path, tmp_path / "out")


@pytest.mark.skipif("torch" not in HERE, reason="PyTorch is not installed here")
def test_a_network_of_your_own(tmp_path, monkeypatch):
    # The code in README.md runs as it stands there, and writes a file that says what it is.
    import onnx
    import torch

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    (tmp_path / "pump.csv").write_bytes((ROOT / "history" / "pump.csv").read_bytes())
    monkeypatch.chdir(tmp_path)
    network = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Linear(2, 4))
    exec(compile(code, "README.md", "exec"), {"my_network": network})
    assert contract.read(onnx.load(tmp_path / "pump-a-2.onnx")).version == 2
