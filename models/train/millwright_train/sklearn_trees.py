"""Tree ensembles of scikit-learn: isolation forest (healthy windows only), random forest and gradient boosting (labelled
fault classes).

Owns fitting each and writing it as a graph, with trees as `trees` spells them. The reference is always what the library
itself answers. Needs `millwright-train[sklearn]`.
"""

import numpy as np
from sklearn.ensemble import GradientBoostingClassifier, IsolationForest, RandomForestClassifier

from . import trees
from .errors import TrainError
from .sklearn_detectors import FeatureModel

# Trees, and the leaves or depth of each; a file of some tens of KB. More trees steady the score, deeper ones do not.
ISOLATION_TREES = 50
ISOLATION_SAMPLES = 64
FOREST_TREES = 40
FOREST_DEPTH = 6
BOOSTING_ROUNDS = 30
BOOSTING_DEPTH = 3
# The probability of a fault from which on it is likelier than not.
PROBABILITY_MIN = 0.5
EULER_GAMMA = 0.5772156649015329


class TreeModel(FeatureModel):
    """A model that compares features. Trees say nothing about channels: the gateway explains them by occlusion."""

    raw_max = 1.0

    def __init__(self, frame, names, how="native"):
        super().__init__(frame, names)
        self.how = how

    @property
    def trees_rewritten(self):
        return self.how == "gemm"

    # Trees compare in float32, as scikit-learn does.
    def fit_features(self, windows):
        return super().fit_features(windows).astype(np.float32)

    def scaled(self, windows):
        return super().scaled(windows).astype(np.float32)

    def begin(self, kind, shape):
        graph = self.new_graph(kind, shape)
        return graph, self.graph_scaled(graph)


class IsolationForestModel(TreeModel):
    """How few comparisons isolate a window: `raw = 2^(−depth / c)`, as in Liu, Ting and Zhou 2008."""

    whitens = True
    # A tree asks one feature at a time, drawn by chance: among many that are calm the one that is not is rarely asked.
    features_default = ("mean",)
    # Beyond the range that it was trained on every window is as isolated as the farthest: scores crowd under a ceiling.
    margin = 1.15
    origin = None

    def fit(self, windows):
        samples = min(ISOLATION_SAMPLES, len(windows))
        self.forest = IsolationForest(n_estimators=ISOLATION_TREES, max_samples=samples, random_state=0)
        self.forest.fit(self.fit_features(windows))
        return self

    def raw(self, windows):
        return -self.forest.score_samples(self.scaled(windows))

    def graph(self, kind, shape, scale):
        graph, values = self.begin(kind, shape)
        usual = len(self.forest.estimators_) * _path_length(np.array([self.forest.max_samples_]))[0]
        exported = []
        for estimator in self.forest.estimators_:
            tree = estimator.tree_
            depth = trees.node_depths(tree.children_left, tree.children_right) + _path_length(tree.n_node_samples)
            exported.append(trees.from_sklearn(tree, depth[:, None] / usual))
        depth = graph.sum(trees.ensemble(graph, values, exported, how=self.how), 1)
        raw = graph.op("Exp", graph.op("Mul", depth, graph.constant(-np.log(2.0))))
        above = graph.op("Sub", raw, graph.constant(scale.origin))
        return graph.finish(graph.op("Relu", graph.op("Mul", above, graph.constant(1.0 / scale.span))))


def _path_length(samples):
    """Average depth of an unsuccessful search among that many: what a leaf with more than one sample still lacks."""
    samples = np.asarray(samples, dtype=np.float64)
    n = np.maximum(samples, 3.0)
    many = 2.0 * (np.log(n - 1.0) + EULER_GAMMA) - 2.0 * (n - 1.0) / n
    return np.where(samples <= 1, 0.0, np.where(samples <= 2, 1.0, many))


class ClassifierModel(TreeModel):
    """Classes of a machine's state; `raw` is the probability that it is not the normal one."""

    origin = 0.0
    least = PROBABILITY_MIN

    def fit(self, windows, labels, normal):
        classes = sorted(set(labels))
        if normal not in classes:
            known = ", ".join(f"`{name}`" for name in classes)
            raise TrainError(f"no training window is labelled `{normal}`, the labels are {known}; name it with --normal-label")
        if len(classes) < 2:
            raise TrainError(f"all training windows are labelled `{normal}`; without a fault train an unsupervised kind")
        self.classifier.fit(self.fit_features(windows), labels)
        self.normal = list(self.classifier.classes_).index(normal)
        return self

    def raw(self, windows):
        return 1.0 - self.classifier.predict_proba(self.scaled(windows))[:, self.normal]

    def finish(self, graph, not_normal, scale):
        """`not_normal` is `[batch, other classes]`, their probabilities."""
        return graph.finish(graph.op("Mul", graph.sum(not_normal, 1), graph.constant(1.0 / scale.span)))


class RandomForestModel(ClassifierModel):
    """The forest's votes for each class."""

    def __init__(self, frame, names, how="native"):
        super().__init__(frame, names, how)
        self.classifier = RandomForestClassifier(
            n_estimators=FOREST_TREES,
            max_depth=FOREST_DEPTH,
            min_samples_leaf=5,
            class_weight="balanced",
            random_state=0,
        )

    def graph(self, kind, shape, scale):
        graph, values = self.begin(kind, shape)
        exported = []
        for estimator in self.classifier.estimators_:
            shares = estimator.tree_.value[:, 0, :]
            shares = shares / shares.sum(axis=1, keepdims=True)
            exported.append(trees.from_sklearn(estimator.tree_, np.delete(shares, self.normal, axis=1)))
        return self.finish(graph, trees.ensemble(graph, values, exported, how=self.how, average=True), scale)


class GradientBoostingModel(ClassifierModel):
    """Boosted regression trees; one sum per class (one in all for two classes), then softmax (sigmoid)."""

    def __init__(self, frame, names, how="native"):
        super().__init__(frame, names, how)
        self.classifier = GradientBoostingClassifier(
            n_estimators=BOOSTING_ROUNDS, max_depth=BOOSTING_DEPTH, learning_rate=0.2, random_state=0
        )

    def fit(self, windows, labels, normal):
        super().fit(windows, labels, normal)
        # What the rounds start from is told by the sum that they end with.
        first = self.scaled(windows[:1])
        rounds = sum(self._step(round_, first) for round_ in self.classifier.estimators_)
        self.start = self.classifier.decision_function(first).reshape(1, -1) - rounds
        return self

    def _step(self, round_, values):
        return self.classifier.learning_rate * np.stack([tree.predict(values) for tree in round_], axis=1)

    def graph(self, kind, shape, scale):
        graph, values = self.begin(kind, shape)
        sums = self.classifier.estimators_.shape[1]
        exported = []
        for round_ in self.classifier.estimators_:
            for target, estimator in enumerate(round_):
                value = np.zeros((estimator.tree_.node_count, sums))
                value[:, target] = self.classifier.learning_rate * estimator.tree_.value[:, 0, 0]
                exported.append(trees.from_sklearn(estimator.tree_, value))
        raw = graph.op("Add", trees.ensemble(graph, values, exported, how=self.how), graph.constant(self.start))
        if sums == 1:
            # Two classes: the sum speaks for the second one.
            sign = 1.0 if self.normal == 0 else -1.0
            return self.finish(graph, graph.op("Sigmoid", graph.op("Mul", raw, graph.constant(sign))), scale)
        others = [target for target in range(sums) if target != self.normal]
        probabilities = graph.op("Softmax", raw, axis=1)
        return self.finish(graph, graph.op("Gather", probabilities, graph.constant(others, np.int64), axis=1), scale)
