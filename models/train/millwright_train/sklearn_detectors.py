"""Detectors of scikit-learn without trees: PCA (T² and Q), Mahalanobis, one-class SVM, linear regression, MLP.

Owns fitting each on healthy windows and writing it as a graph. The reference is always what the library itself answers;
the graph is never asked. Needs `millwright-train[sklearn]`.
"""

import warnings

import numpy as np
import sklearn
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

from . import features
from .errors import TrainError
from .graph import Graph
from .scale import MARGIN

LIBRARY = f"scikit-learn {sklearn.__version__}"
# Share of the variance that PCA keeps.
PCA_VARIANCE = 0.9
# Control limits of T² and Q are this quantile of the training windows.
PCA_QUANTILE = 0.99
# Share of training windows that the one-class SVM may leave outside.
SVM_NU = 0.05
# Its training takes time with the square of the windows; of more, evenly spaced ones are taken.
SVM_WINDOWS_MAX = 5000
# Sums of kernels below this are 0 in double precision, or soon will be.
SVM_SUM_MIN = 1e-300
# A residual's spread is at least this, in standard deviations of the feature: a perfect fit is luck, not precision.
RESIDUAL_FLOOR = 0.02
# A neuron or two per channel: few enough that a faulty machine is not reproduced.
MLP_BOTTLENECK = 2


class FeatureModel:
    """A model of standardised window features. `raw` and `squares` are the library's answer."""

    whitens = False
    """Whether the features are made uncorrelated as well: for models that would not see that two of them belong together."""

    library = LIBRARY
    features_default = features.DEFAULT
    margin = MARGIN
    origin = 0.0
    raw_max = None
    least = None
    trees_rewritten = None

    def __init__(self, frame, names):
        self.frame = frame
        self.names = features.check(names)
        self.scaler = StandardScaler()
        if self.whitens:
            self.scaler = make_pipeline(self.scaler, PCA(whiten=True, svd_solver="full"))

    def extract(self, windows):
        return features.extract(self.frame, self.names, windows)

    def fit_features(self, windows):
        """The scaled features of the windows to train on."""
        return self.scaler.fit_transform(self.extract(windows))

    def scaled(self, windows):
        return self.scaler.transform(self.extract(windows))

    def graph_scaled(self, graph):
        """`StandardScaler` has no operator in the gateway's engine: it is a Sub and a Mul. PCA is a MatMul."""
        values = features.graph_extract(graph, self.frame, self.names)
        if not self.whitens:
            return graph.standardise(values, self.scaler.mean_, self.scaler.scale_)
        scaler, pca = self.scaler[0], self.scaler[1]
        matrix = pca.components_.T / np.sqrt(pca.explained_variance_)
        return graph.affine(graph.standardise(values, scaler.mean_, scaler.scale_), matrix, -(pca.mean_ @ matrix)[None, :])

    def squares(self, windows):
        """What each channel added to the square of `raw`, or `None` when the model cannot say."""
        return None

    def new_graph(self, kind, windows_shape):
        return Graph(kind, windows_shape[0], windows_shape[1])


class WhiteningModel(FeatureModel):
    """A quadratic form of the features: `raw² = Σ y²`, `y = z·matrix`, each feature having a `y` of its own."""

    def graph(self, kind, shape, scale):
        graph = self.new_graph(kind, shape)
        y = graph.affine(self.graph_scaled(graph), self.matrix() / scale.span)
        return finish_squares(graph, y, len(self.names))

    def raw(self, windows):
        return np.sqrt(self.squares(windows).sum(axis=1))


def finish_squares(graph, residual, feature_count):
    """`contribution` = squares added up per channel, `score` = root of their sum."""
    squares = features.graph_per_channel(graph, graph.op("Mul", residual, residual), feature_count)
    return graph.finish(graph.op("Sqrt", graph.sum(squares, 1)), squares)


class PcaModel(WhiteningModel):
    """Hotelling's T² and the squared prediction error Q in one index, `φ = T²/τ² + Q/δ²` (Yue and Qin 2001), with complete
    decomposition contributions (Alcala and Qin 2009), which are never negative and add up to φ.
    """

    def __init__(self, frame, names):
        super().__init__(frame, names)
        self.pca = PCA(n_components=PCA_VARIANCE, svd_solver="full")

    def fit(self, windows):
        z = self.fit_features(windows)
        self.pca.fit(z)
        if self.pca.n_components_ >= z.shape[1]:
            raise TrainError("the features are not correlated, so that PCA keeps all of them and Q is 0; train `mahalanobis`")
        scores = self.pca.transform(z)
        t2 = (scores**2 / self.pca.explained_variance_).sum(axis=1)
        q = ((z - self.pca.inverse_transform(scores)) ** 2).sum(axis=1)
        self.tau2 = float(np.quantile(t2, PCA_QUANTILE))
        self.delta2 = float(np.quantile(q, PCA_QUANTILE))
        return self

    def squares(self, windows):
        z = self.scaled(windows)
        scores = self.pca.transform(z)
        inside = (scores / np.sqrt(self.pca.explained_variance_ * self.tau2)) @ self.pca.components_
        outside = (z - self.pca.inverse_transform(scores)) / np.sqrt(self.delta2)
        return features.per_channel((inside + outside) ** 2, len(self.names))

    def matrix(self):
        axes = self.pca.components_
        inside = (axes.T / np.sqrt(self.pca.explained_variance_ * self.tau2)) @ axes
        return inside + (np.eye(axes.shape[1]) - axes.T @ axes) / np.sqrt(self.delta2)


class MahalanobisModel(WhiteningModel):
    """Mahalanobis distance with the Ledoit–Wolf covariance; contributions from its symmetric (ZCA) root."""

    def __init__(self, frame, names):
        super().__init__(frame, names)
        self.covariance = LedoitWolf()

    def fit(self, windows):
        self.covariance.fit(self.fit_features(windows))
        return self

    def raw(self, windows):
        return np.sqrt(self.covariance.mahalanobis(self.scaled(windows)))

    def squares(self, windows):
        y = (self.scaled(windows) - self.covariance.location_) @ self.matrix()
        return features.per_channel(y**2, len(self.names))

    def matrix(self):
        values, vectors = np.linalg.eigh(self.covariance.precision_)
        return (vectors * np.sqrt(values)) @ vectors.T

    def graph(self, kind, shape, scale):
        # The scaled features have the mean 0 already, up to rounding.
        graph = self.new_graph(kind, shape)
        matrix = self.matrix() / scale.span
        y = graph.affine(self.graph_scaled(graph), matrix, -self.covariance.location_[None, :] @ matrix)
        return finish_squares(graph, y, len(self.names))


class OneClassSvmModel(FeatureModel):
    """Support vectors around the healthy windows: `raw = −ln Σ αᵢ·k(xᵢ, x)`. This orders windows as the library's decision
    function does, but goes on growing with the distance, where the sum itself is 0: a machine far off would look like any other,
    and no channel could be blamed. The kernel is written as MatMul, since engines lack the SVM operators.
    """

    whitens = True
    origin = None

    def fit(self, windows):
        z = self.fit_features(windows)
        z = z[:: -(-len(z) // SVM_WINDOWS_MAX)]
        # What scikit-learn calls "scale", for features of variance 1; it keeps the value of that to itself.
        self.svm = OneClassSVM(kernel="rbf", nu=SVM_NU, gamma=1.0 / z.shape[1]).fit(z)
        return self

    def raw(self, windows):
        # `score_samples` is this sum after −ρ + ρ, which leaves nothing of a small one.
        kernel = rbf_kernel(self.scaled(windows), self.svm.support_vectors_, gamma=self.svm.gamma)
        return -np.log(np.maximum(kernel @ self.svm.dual_coef_[0], SVM_SUM_MIN))

    def graph(self, kind, shape, scale):
        graph = self.new_graph(kind, shape)
        svm = self.svm
        log = graph.log_rbf(self.graph_scaled(graph), svm.support_vectors_, svm.gamma, svm.dual_coef_[0])
        log = graph.op("Max", log, graph.constant([np.log(SVM_SUM_MIN)]))
        above = graph.op("Sub", graph.constant([-scale.origin]), log)
        return graph.finish(graph.op("Relu", graph.op("Mul", above, graph.constant(1.0 / scale.span))))


class ResidualModel(FeatureModel):
    """A model that reproduces its features: `raw²` is the mean square of what it could not, in its usual spread."""

    def fit_spread(self, windows):
        self.spread = np.maximum(self.residual(windows).std(axis=0), RESIDUAL_FLOOR)

    def squares(self, windows):
        residual = self.residual(windows) / self.spread
        return features.per_channel(residual**2 / residual.shape[1], len(self.names))

    def raw(self, windows):
        return np.sqrt(self.squares(windows).sum(axis=1))

    def weights(self, scale):
        """Of each residual in the exported score."""
        return 1.0 / (self.spread * np.sqrt(len(self.spread)) * scale.span)


class LinearRegressionModel(ResidualModel):
    """Each channel's features from those of the other channels: a soft sensor for every channel."""

    def fit(self, windows):
        z = self.fit_features(windows)
        channels = windows.shape[2]
        if channels < 2:
            raise TrainError("linear regression tells a channel from the others, and there is only one")
        self.regressions = []
        for column in range(z.shape[1]):
            others = np.array([other for other in range(z.shape[1]) if other % channels != column % channels])
            self.regressions.append((others, LinearRegression().fit(z[:, others], z[:, column])))
        self.fit_spread(windows)
        return self

    def residual(self, windows):
        z = self.scaled(windows)
        told = [regression.predict(z[:, others]) for others, regression in self.regressions]
        return z - np.stack(told, axis=1)

    def graph(self, kind, shape, scale):
        graph = self.new_graph(kind, shape)
        matrix = np.eye(len(self.regressions))
        for column, (others, regression) in enumerate(self.regressions):
            matrix[others, column] = -regression.coef_
        offset = -np.array([regression.intercept_ for _, regression in self.regressions])
        weights = self.weights(scale)
        residual = graph.affine(self.graph_scaled(graph), matrix * weights, (offset * weights)[None, :])
        return finish_squares(graph, residual, len(self.names))


class MlpModel(ResidualModel):
    """scikit-learn's multi-layer perceptron, trained to reproduce the features through a bottleneck."""

    def __init__(self, frame, names):
        super().__init__(frame, names)
        hidden = (16, MLP_BOTTLENECK, 16)
        self.mlp = MLPRegressor(
            hidden_layer_sizes=hidden, activation="tanh", solver="lbfgs", alpha=1e-3, max_iter=600, random_state=0
        )

    def fit(self, windows):
        z = self.fit_features(windows)
        with warnings.catch_warnings():
            # Stopping before the last digit of the training loss is what is wanted.
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.mlp.fit(z, z)
        self.fit_spread(windows)
        return self

    def residual(self, windows):
        z = self.scaled(windows)
        return z - self.mlp.predict(z)

    def graph(self, kind, shape, scale):
        graph = self.new_graph(kind, shape)
        z = value = self.graph_scaled(graph)
        layers = list(zip(self.mlp.coefs_, self.mlp.intercepts_))
        for number, (weights, offset) in enumerate(layers):
            value = graph.affine(value, weights, offset[None, :])
            if number + 1 < len(layers):
                value = graph.op("Tanh", value)
        residual = graph.op("Mul", graph.op("Sub", z, value), graph.constant(self.weights(scale)))
        return finish_squares(graph, residual, len(self.names))
