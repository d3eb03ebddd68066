"""Ensembles of decision trees as ONNX: as one `TreeEnsembleRegressor`, or as MatMuls for engines without it.

Owns both spellings and that they agree (`tests/test_trees.py`). A tree goes left where `feature ≤ threshold`. Libraries
compare `float32` features with `float64` thresholds; a threshold rounded down to `float32` decides the same for every
`float32` feature, so no row takes another way.

The MatMul form (Nakandala and others 2020, "Hummingbird", the GEMM strategy): all decisions of a tree at once, then the
leaf all of whose ancestors agree. It costs nodes × leaves per tree: for small trees.
"""

from dataclasses import dataclass

import numpy as np

LEAF = -1


@dataclass(frozen=True)
class Tree:
    """One tree; node 0 is its root."""

    feature: np.ndarray
    threshold: np.ndarray
    """`float32[nodes]`."""
    left: np.ndarray
    """Node where the feature is at most the threshold; `LEAF` at leaves."""
    right: np.ndarray
    value: np.ndarray
    """`float64[nodes, targets]`; read at leaves."""

    def is_leaf(self):
        return self.left == LEAF


def from_sklearn(tree, value):
    """A tree of scikit-learn with `value: [nodes, targets]`."""
    left = np.asarray(tree.children_left)
    return Tree(
        feature=np.where(left == LEAF, 0, tree.feature),
        threshold=np.where(left == LEAF, 0, _round_down(tree.threshold)).astype(np.float32),
        left=left,
        right=np.asarray(tree.children_right),
        value=np.asarray(value, dtype=np.float64).reshape(len(left), -1),
    )


def node_depths(left, right):
    """Edges from the root to each node."""
    depths = np.zeros(len(left), dtype=np.int64)
    # A child comes after its parent.
    for node in range(len(left)):
        if left[node] != LEAF:
            depths[left[node]] = depths[right[node]] = depths[node] + 1
    return depths


def _round_down(threshold):
    threshold = np.asarray(threshold, dtype=np.float64)
    near = threshold.astype(np.float32)
    below = np.nextafter(near, np.float32(-np.inf))
    return np.where(near.astype(np.float64) > threshold, below, near)


def ensemble(graph, features, trees, *, how, average=False):
    """The sum (or average) over the trees, `[batch, targets]`; `how` is `native` or `gemm`."""
    return {"native": _native, "gemm": _gemm}[how](graph, features, trees, average)


def _native(graph, features, trees, average):
    nodes = {key: [] for key in ("treeids", "nodeids", "featureids", "modes", "values", "truenodeids", "falsenodeids")}
    targets = {key: [] for key in ("treeids", "nodeids", "ids", "weights")}
    for tree_id, tree in enumerate(trees):
        for node, leaf in enumerate(tree.is_leaf()):
            nodes["treeids"].append(tree_id)
            nodes["nodeids"].append(node)
            nodes["featureids"].append(int(tree.feature[node]))
            nodes["modes"].append("LEAF" if leaf else "BRANCH_LEQ")
            nodes["values"].append(float(tree.threshold[node]))
            nodes["truenodeids"].append(0 if leaf else int(tree.left[node]))
            nodes["falsenodeids"].append(0 if leaf else int(tree.right[node]))
            for target, weight in _weights(tree, node) if leaf else ():
                targets["treeids"].append(tree_id)
                targets["nodeids"].append(node)
                targets["ids"].append(target)
                targets["weights"].append(float(weight))
    return graph.op(
        "TreeEnsembleRegressor",
        features,
        domain="ai.onnx.ml",
        n_targets=trees[0].value.shape[1],
        aggregate_function="AVERAGE" if average else "SUM",
        post_transform="NONE",
        **{f"nodes_{key}": values for key, values in nodes.items()},
        **{f"target_{key}": values for key, values in targets.items()},
    )


def _weights(tree, leaf):
    # Zeros add nothing; a leaf without any entry would be left to each engine's taste.
    weights = [(target, weight) for target, weight in enumerate(tree.value[leaf]) if weight != 0.0]
    return weights or [(0, 0.0)]


def _gemm(graph, features, trees, average):
    branches = max(1, max(int((~tree.is_leaf()).sum()) for tree in trees))
    leaves = max(int(tree.is_leaf().sum()) for tree in trees)
    targets = trees[0].value.shape[1]
    feature = np.zeros((len(trees), branches), dtype=np.int64)
    threshold = np.zeros((len(trees), branches), dtype=np.float32)
    # path[b, l]: 1 when leaf l is left of branch b, −1 when right of it; a leaf is reached when its sum equals its lefts.
    path = np.zeros((len(trees), branches, leaves), dtype=np.float32)
    lefts = np.full((len(trees), 1, leaves), -1.0, dtype=np.float32)
    value = np.zeros((len(trees), leaves, targets), dtype=np.float64)
    for index, tree in enumerate(trees):
        branch_nodes, leaf_nodes = np.flatnonzero(~tree.is_leaf()), np.flatnonzero(tree.is_leaf())
        feature[index, : len(branch_nodes)] = tree.feature[branch_nodes]
        threshold[index, : len(branch_nodes)] = tree.threshold[branch_nodes]
        place = {int(node): number for number, node in enumerate(branch_nodes)}
        ways = _ways(tree)
        for number, leaf in enumerate(leaf_nodes):
            for branch, side in ways[int(leaf)]:
                path[index, place[branch], number] = side
            lefts[index, 0, number] = sum(side > 0 for _, side in ways[int(leaf)])
            value[index, number] = tree.value[leaf] / (len(trees) if average else 1)
    # [batch, trees × branches] decisions, then per tree [batch, trees, 1, …].
    asked = graph.op("Gather", features, graph.constant(feature.ravel(), np.int64), axis=1)
    decided = graph.op("LessOrEqual", asked, graph.constant(threshold.reshape(1, -1)))
    shape = graph.constant([-1, len(trees), 1, branches], np.int64)
    decided = graph.op("Reshape", graph.op("Cast", decided, to=1), shape)
    # Whole numbers below 2²⁴ are exact in float32: a leaf is reached where the difference is 0.
    off = graph.op("Abs", graph.op("Sub", graph.op("MatMul", decided, graph.constant(path)), graph.constant(lefts)))
    reached = graph.op("Cast", graph.op("Less", off, graph.constant(0.5)), to=1)
    values = graph.op("MatMul", reached, graph.constant(value))
    return graph.op("ReduceSum", values, graph.constant([1, 2], np.int64), keepdims=0)


def _ways(tree):
    """For each leaf its branches and the side taken, 1 left and −1 right."""
    ways, open_ = {}, [(0, [])]
    while open_:
        node, way = open_.pop()
        if tree.left[node] == LEAF:
            ways[node] = way
        else:
            open_.append((int(tree.left[node]), [*way, (node, 1.0)]))
            open_.append((int(tree.right[node]), [*way, (node, -1.0)]))
    return ways
