"""Writes the models of this folder and what onnxruntime gives for them.

Each case is `<name>.onnx`, a model with the gateway's contract whose score is a mix of what the operator gives, and `<name>.csv`:
per line the numbers of a window and the score. Run it with scikit-learn, skl2onnx, onnx and onnxruntime installed; the
versions that wrote the committed files are in versions.txt.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import skl2onnx
import sklearn
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

HERE = Path(__file__).parent
SAMPLES, CHANNELS = 2, 3
FEATURES = SAMPLES * CHANNELS
ROWS = 40


def contract(name):
    channels = [{"name": f"c{i}"} for i in range(CHANNELS)]
    return {
        "millwright.contract": "1",
        "millwright.name": name.replace("_", "-"),
        "millwright.version": "1",
        "millwright.channels": json.dumps(channels),
        "millwright.samples": str(SAMPLES),
    }


def finish(name, nodes, initializers, result, width, opset_ml=3):
    """Puts a window in front of `nodes` and a score behind: the numbers of `result`, mixed with 1 to 7."""
    mix = (1 + np.arange(width, dtype=np.float32) % 7).reshape(width, 1)
    before = [helper.make_node("Reshape", ["window", "flat"], ["X"])]
    after = [
        helper.make_node("Cast", [result], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["numbers", "wide"], ["row"]),
        helper.make_node("MatMul", ["row", "mix"], ["score"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([-1, FEATURES], dtype=np.int64), "flat"),
        numpy_helper.from_array(np.array([-1, width], dtype=np.int64), "wide"),
        numpy_helper.from_array(mix, "mix"),
    ]
    window = helper.make_tensor_value_info("window", TensorProto.FLOAT, ["batch", SAMPLES, CHANNELS])
    score = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch", 1])
    graph = helper.make_graph(before + nodes + after, name, [window], [score], list(initializers) + constants)
    opsets = [helper.make_opsetid("", 15), helper.make_opsetid("ai.onnx.ml", opset_ml)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    helper.set_model_props(model, contract(name))
    onnx.save(model, HERE / f"{name}.onnx")
    record(name, model)


def record(name, model):
    rng = np.random.default_rng(len(name))
    windows = rng.normal(size=(ROWS, SAMPLES, CHANNELS)).astype(np.float32)
    # Some values at thresholds: the models are trained on numbers rounded to a tenth.
    windows[::2] = np.round(windows[::2], 1)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    scores = session.run(["score"], {"window": windows})[0].reshape(ROWS)
    with open(HERE / f"{name}.csv", "w", encoding="ascii") as out:
        for window, score in zip(windows, scores):
            out.write(",".join(np.format_float_positional(v, unique=True) for v in [*window.ravel(), score]) + "\n")


def convert(name, model, data, output, width, opset_ml=3, **options):
    """Converts a scikit-learn model and takes its graph over."""
    options = {id(model): options} if options else None
    target = {"": 15, "ai.onnx.ml": opset_ml}
    exported = to_onnx(model, data[:1].astype(np.float32), target_opset=target, options=options)
    nodes = list(exported.graph.node)
    assert exported.graph.input[0].name == "X", exported.graph.input
    result = exported.graph.output[output].name
    finish(name, nodes, exported.graph.initializer, result, width, opset_ml)
    print(name, sorted({n.op_type for n in nodes}))


def scikit_learn():
    rng = np.random.default_rng(7)
    data = np.round(rng.normal(size=(400, FEATURES)), 1)
    target = data[:, 0] * data[:, 1] + np.sin(data[:, 2]) + 0.1 * rng.normal(size=400)
    two = (target > 0).astype(int)
    three = np.digitize(target, [-0.5, 0.5])
    trees = dict(n_estimators=12, max_depth=4, random_state=0)
    forest = dict(n_estimators=10, max_depth=5, random_state=0)
    convert("random_forest_regressor", RandomForestRegressor(**forest).fit(data, target), data, 0, 1)
    convert("random_forest_regressor_opset1", RandomForestRegressor(**forest).fit(data, target), data, 0, 1, 1)
    both = np.stack([target, -2 * data[:, 3]], axis=1)
    convert("random_forest_two_targets", RandomForestRegressor(**forest).fit(data, both), data, 0, 2)
    convert("gradient_boosting_regressor", GradientBoostingRegressor(**trees).fit(data, target), data, 0, 1)
    for classes, labels in [("two", two), ("three", three)]:
        width = 2 if classes == "two" else 3
        for name, model in [
            ("random_forest", RandomForestClassifier(**forest)),
            ("gradient_boosting", GradientBoostingClassifier(**trees)),
        ]:
            model = model.fit(data, labels)
            convert(f"{name}_{classes}_classes", model, data, 1, width, zipmap=False)
            convert(f"{name}_{classes}_labels", model, data, 0, 1, zipmap=False)
    logistic = make_pipeline(StandardScaler(), LogisticRegression()).fit(data * [1, 2, 3, 4, 5, 6] + 3, two)
    convert("scaled_logistic_regression", logistic, data, 1, 2, zipmap=False)


def ensemble(kind, rng, modes, targets, **attributes):
    """Five random trees of seven nodes, listed in an unusual order."""
    listed = []
    leaves = []
    for tree in range(5):
        for node in range(7):
            branch = node < 3
            listed.append(
                dict(
                    treeids=tree,
                    nodeids=node,
                    featureids=int(rng.integers(FEATURES)) if branch else 0,
                    modes=str(rng.choice(modes)) if branch else "LEAF",
                    values=float(np.round(rng.normal(), 1)) if branch else 0.0,
                    truenodeids=2 * node + 1 if branch else 0,
                    falsenodeids=2 * node + 2 if branch else 0,
                    missing_value_tracks_true=int(rng.integers(2)),
                )
            )
            if not branch:
                for target in rng.permutation(targets)[: 1 + node % targets]:
                    leaves.append((tree, node, int(target), float(rng.normal())))
    leaves = [leaves[at] for at in rng.permutation(len(leaves))]
    prefix = "target" if kind == "TreeEnsembleRegressor" else "class"
    attributes |= {f"nodes_{key}": [node[key] for node in listed] for key in listed[0]}
    for at, key in enumerate(["treeids", "nodeids", "ids", "weights"]):
        attributes[f"{prefix}_{key}"] = [leaf[at] for leaf in leaves]
    return attributes


def by_hand():
    rng = np.random.default_rng(11)
    every = ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ"]
    for mode in every:
        attributes = ensemble("TreeEnsembleRegressor", rng, [mode], 1, n_targets=1)
        node = helper.make_node("TreeEnsembleRegressor", ["X"], ["Y"], domain="ai.onnx.ml", **attributes)
        finish(f"mode_{mode.removeprefix('BRANCH_').lower()}", [node], [], "Y", 1)
    for function in ["SUM", "AVERAGE", "MIN", "MAX"]:
        for targets in [1, 3]:
            base = [0.5, -1.0, 0.25][:targets]
            attributes = ensemble(
                "TreeEnsembleRegressor",
                rng,
                ["BRANCH_LEQ"],
                targets,
                n_targets=targets,
                aggregate_function=function,
                base_values=base,
            )
            node = helper.make_node("TreeEnsembleRegressor", ["X"], ["Y"], domain="ai.onnx.ml", **attributes)
            finish(f"aggregate_{function.lower()}_{targets}", [node], [], "Y", targets)
    for transform in ["LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO"]:
        attributes = ensemble(
            "TreeEnsembleRegressor", rng, ["BRANCH_LT"], 3, n_targets=3, post_transform=transform
        )
        node = helper.make_node("TreeEnsembleRegressor", ["X"], ["Y"], domain="ai.onnx.ml", **attributes)
        finish(f"post_{transform.lower()}", [node], [], "Y", 3)
    for offset, scale in [([1.0], [0.5]), ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])]:
        node = helper.make_node("Scaler", ["X"], ["Y"], domain="ai.onnx.ml", offset=offset, scale=scale)
        finish(f"scaler_{len(offset)}", [node], [], "Y", FEATURES)


def recurrent():
    """LSTMs over the two samples of three channels; the states of both directions are mixed."""
    rng = np.random.default_rng(13)
    for hidden in [5, 32]:
        for direction in ["forward", "reverse", "bidirectional"]:
            for states in [False, True]:
                recurrent_case(rng, hidden, direction, states)


def recurrent_case(rng, hidden, direction, states):
    sides = 2 if direction == "bidirectional" else 1
    weights = {
        "W": rng.normal(size=(sides, 4 * hidden, CHANNELS)),
        "R": rng.normal(size=(sides, 4 * hidden, hidden)),
        "B": rng.normal(size=(sides, 8 * hidden)),
        "H0": rng.normal(size=(sides, 1, hidden)),
        "C0": rng.normal(size=(sides, 1, hidden)),
    }
    constants = [numpy_helper.from_array((0.5 * v).astype(np.float32), k) for k, v in weights.items()]
    constants += [
        numpy_helper.from_array(np.array([-1, SAMPLES, CHANNELS], dtype=np.int64), "deep"),
        numpy_helper.from_array(np.array([1], dtype=np.int64), "one"),
        numpy_helper.from_array(np.array([sides], dtype=np.int64), "sides"),
        numpy_helper.from_array(np.array([hidden], dtype=np.int64), "hidden"),
    ]
    nodes = [
        helper.make_node("Reshape", ["X", "deep"], ["deep_x"]),
        helper.make_node("Transpose", ["deep_x"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("Shape", ["steps"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["rows"]),
        helper.make_node("Concat", ["sides", "rows", "hidden"], ["state_shape"], axis=0),
        helper.make_node("Expand", ["H0", "state_shape"], ["h0"]),
        helper.make_node("Expand", ["C0", "state_shape"], ["c0"]),
        helper.make_node(
            "LSTM",
            ["steps", "W", "R", "B", "", *(["h0", "c0"] if states else [])],
            ["Y", "Y_h", "Y_c"],
            hidden_size=hidden,
            direction=direction,
        ),
        helper.make_node("Transpose", ["Y"], ["by_row"], perm=[2, 0, 1, 3]),
        helper.make_node("Transpose", ["Y_h"], ["h_by_row"], perm=[1, 0, 2]),
        helper.make_node("Transpose", ["Y_c"], ["c_by_row"], perm=[1, 0, 2]),
        helper.make_node("Flatten", ["by_row"], ["all"]),
        helper.make_node("Flatten", ["h_by_row"], ["last"]),
        helper.make_node("Flatten", ["c_by_row"], ["cell"]),
        helper.make_node("Concat", ["all", "last", "cell"], ["result"], axis=1),
    ]
    kind = "states" if states else "zeros"
    width = sides * hidden * (SAMPLES + 2)
    finish(f"lstm_{direction}_{hidden}_{kind}", nodes, constants, "result", width)


if __name__ == "__main__":
    by_hand()
    recurrent()
    scikit_learn()
    versions = [f"python {sys.version.split()[0]}"]
    versions += [f"{m.__name__} {m.__version__}" for m in [np, onnx, onnxruntime, sklearn, skl2onnx]]
    (HERE / "versions.txt").write_text("\n".join(versions) + "\n", encoding="ascii")
