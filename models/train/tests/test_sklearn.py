"""scikit-learn: exports against the library, trees in both spellings, and the gateway's own verdict."""

import json
import subprocess

import numpy as np
import onnx
import pytest

pytest.importorskip("sklearn")

from millwright_train import check, cli, contract, kinds, windows  # noqa: E402
from millwright_train.errors import TrainError, UsageError  # noqa: E402

from conftest import ROOT  # noqa: E402

KINDS = [kind for kind in kinds.KINDS.values() if kind.library == "sklearn"]
TREES = [kind.name for kind in KINDS if kind.trees]
OTHERS = [kind.name for kind in KINDS if not kind.trees]


@pytest.mark.parametrize("name", [kind.name for kind in KINDS])
def test_exports_agree_with_the_library(name, trained, states):
    # On windows of every state, which the threshold has not seen, the file gives what scikit-learn gives.
    made = trained(name)
    values = windows.cut(states, 20, stride=7).values
    score, contribution = made.reference(values)
    differences = check.compare(made.onnx, values, score, contribution, trees=kinds.find(name).trees)
    assert differences.score <= check.BOUND * max(1.0, score.max()) and differences.any_batch


@pytest.mark.parametrize("name", [name for name in OTHERS if name != "one-class-svm"])
def test_contributions_add_up(name, trained, states):
    # What channels added is the square of the score, and never negative.
    score, contribution = trained(name).reference(windows.cut(states, 20, stride=11).values)
    assert (contribution >= 0.0).all() and np.allclose(contribution.sum(axis=1), score**2)


def test_one_class_svm_orders_as_the_library_does(trained, states):
    # The logarithm leaves the order of scikit-learn's decision function as it is, wherever that tells anything.
    made = trained("one-class-svm")
    values = windows.cut(states, 20, stride=3).values
    decision = made.model.svm.decision_function(made.model.scaled(values))
    told = decision > decision.min() + 1e-9
    order = np.argsort(-decision[told], kind="stable")
    assert (np.diff(made.model.raw(values)[told][order]) >= -1e-9).all()


@pytest.mark.parametrize("name", TREES)
def test_trees_as_matmul_give_the_same(name, trained, states):
    # Both spellings give the same scores within rounding of the sums: every window takes the same way in both.
    values = windows.cut(states, 20, stride=3).values
    outputs = []
    for how in ("native", "gemm"):
        session = check._session(trained(name, trees=how).onnx)
        outputs.append(session.run(["score"], {"window": values})[0])
    assert np.abs(outputs[0] - outputs[1]).max() < 5e-6
    operators = {node.op_type for node in onnx.load_from_string(trained(name, trees="gemm").onnx).graph.node}
    assert "TreeEnsembleRegressor" not in operators and "MatMul" in operators


def test_labels_stay_with_supervised_kinds(normal, states):
    # A detector is not given labels, and a classifier is not trained without.
    from millwright_train import training

    with pytest.raises(UsageError, match="must not see labels"):
        training.train(kinds.find("pca"), states, training.Settings(name="x"))
    with pytest.raises(UsageError, match="--label"):
        training.train(kinds.find("random-forest"), normal, training.Settings(name="x"))
    with pytest.raises(TrainError, match="--normal-label"):
        training.train(kinds.find("random-forest"), states, training.Settings(name="x", normal_label="ok"))


def test_golden_vectors_are_the_library_s(trained):
    # What the file promises is the library's answer, and at least one of the vectors alarms.
    made = trained("mahalanobis")
    golden = contract.read(onnx.load_from_string(made.onnx)).golden
    score, contribution = made.reference(np.stack([vector.window for vector in golden]))
    assert np.allclose([vector.score for vector in golden], score, rtol=1e-6)
    assert np.allclose([vector.contribution for vector in golden], contribution, rtol=1e-5, atol=1e-9)
    assert max(score) >= 1.0


def test_the_command_reports_and_fails_as_it_says(tmp_path, capsys):
    # Status 0 with what was measured; 1 with the place of a mistake in the data; 2 for wrong use.
    data = ROOT / "history" / "pump.csv"
    command = ["train", "--kind", "pca", "--data", str(data), "--name", "pump-a", "--out", str(tmp_path), "--no-pack"]
    assert cli.main([*command, "--unit", "flow=l/min", "--version", "2"]) == 0
    assert "of the library over" in capsys.readouterr().out and (tmp_path / "pump-a-2.onnx").is_file()
    assert cli.main([*command, "--features", "median"]) == 2
    assert "no feature `median`" in capsys.readouterr().err
    assert cli.main([*command, "--name", "pump/a"]) == 1
    assert "no model name" in capsys.readouterr().err
    assert cli.main([*command, "--kind", "keras-gru"]) == 2
    (tmp_path / "bad.csv").write_text("time,a\n1,2\n2,x\n", encoding="utf-8")
    assert cli.main([*command, "--data", str(tmp_path / "bad.csv")]) == 1
    assert "line 3: `x`" in capsys.readouterr().err
    assert cli.main([*command[:-1], "--millwright", str(tmp_path / "none")]) == 1
    assert "is no program" in capsys.readouterr().err


def test_the_gateway_packs_what_it_can_run(tmp_path, millwright, capsys):
    # The packed model is what the gateway reads: name, channels, units, normals and golden vectors.
    data = ROOT / "history" / "pump.csv"
    command = [
        "train",
        "--kind",
        "mahalanobis",
        "--data",
        str(data),
        "--name",
        "pump-a",
        "--version",
        "2",
        "--out",
        str(tmp_path),
    ]
    assert cli.main([*command, "--unit", "temperature=°C", "--assets", "pump-*", "--millwright", millwright]) == 0
    assert "pump-a v2" in capsys.readouterr().out and (tmp_path / "pump-a-2.manifest.json").is_file()
    path = tmp_path / "pump-a-2.onnx"
    told = subprocess.run([millwright, "model", "inspect", "--json", path], capture_output=True, text=True, check=True)
    seen = json.loads(told.stdout)
    written = contract.entries(contract.read(onnx.load(path)))
    assert seen["runs"] and seen["any_batch"] and (seen["name"], seen["version"]) == ("pump-a", 2)
    for key in ("channels", "golden"):
        found, wanted = (json.loads(metadata[f"millwright.{key}"]) for metadata in (seen["metadata"], written))
        assert flat(found) == pytest.approx(flat(wanted))
    for key in ("samples", "rows", "trained_from", "interval_ms"):
        assert seen["metadata"][f"millwright.{key}"] == written[f"millwright.{key}"]


def flat(value):
    """All keys, texts and numbers of a JSON value, in order."""
    if isinstance(value, dict):
        return [part for key in sorted(value) for part in (hash(key), *flat(value[key]))]
    if isinstance(value, list):
        return [part for one in value for part in flat(one)]
    return [hash(value) if isinstance(value, str) else value]


def test_the_gateway_s_refusal_is_passed_on(tmp_path, millwright, trained):
    # An operator that the engine lacks is refused when packing, by its name, with the remedy, and nothing is written.
    from millwright_train import pack

    proto = onnx.load_from_string(trained("pca").onnx)
    # The last nodes name the outputs; one of them becomes an operator that no engine has.
    proto.graph.node[-1].op_type = "Bernoulli"
    path = tmp_path / "foreign.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(TrainError, match="`Bernoulli`.*: .*export again"):
        pack.pack(millwright, path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", ["native", "gemm"])
@pytest.mark.parametrize("name", TREES)
def test_the_gateway_runs_trees(name, how, tmp_path, millwright, trained):
    # In both spellings: by its own operator, and as MatMul.
    from millwright_train import pack

    path = tmp_path / "trees.onnx"
    path.write_bytes(trained(name, trees=how).onnx)
    assert "test-" in pack.pack(millwright, path, tmp_path / "out")
