"""What can be trained: the list of kinds, and how each is made.

Owns the names. A library is imported only when one of its kinds is trained, so that one environment per library is enough.
"""

from dataclasses import dataclass
from importlib import import_module

from .errors import TrainError, UsageError


@dataclass(frozen=True)
class Kind:
    """One kind of model."""

    name: str
    library: str
    """The extra of this package that brings it."""
    module: str
    type: str
    summary: str
    supervised: bool = False
    trees: bool = False
    windowed: bool = False
    """Whether it sees the window itself instead of features."""

    def load(self):
        """The class that trains it. Raises `TrainError` when its library is not installed."""
        try:
            return getattr(import_module(f".{self.module}", __package__), self.type)
        except ImportError as error:
            raise TrainError(
                f"`{self.name}` needs `{error.name}`, which is not installed here; install `millwright-train[{self.library}]`"
            ) from error


def _sklearn(name, module, type_, summary, **more):
    return Kind(name, "sklearn", f"sklearn_{module}", type_, summary, **more)


def _torch(name, type_, summary):
    return Kind(name, "torch", "torch_models", type_, summary, windowed=True)


def _keras(name, type_, summary):
    return Kind(name, "keras", "keras_models", type_, summary, windowed=True)


KINDS = {
    kind.name: kind
    for kind in (
        _sklearn("pca", "detectors", "PcaModel", "principal components: T² and Q"),
        _sklearn("mahalanobis", "detectors", "MahalanobisModel", "Mahalanobis distance, Ledoit-Wolf covariance"),
        _sklearn("one-class-svm", "detectors", "OneClassSvmModel", "one-class support vectors, RBF kernel"),
        _sklearn("linear-regression", "detectors", "LinearRegressionModel", "every channel from the other channels"),
        _sklearn("mlp", "detectors", "MlpModel", "perceptron with a bottleneck"),
        _sklearn("isolation-forest", "trees", "IsolationForestModel", "isolation forest", trees=True),
        _sklearn("random-forest", "trees", "RandomForestModel", "labelled states, random forest", trees=True, supervised=True),
        _sklearn(
            "gradient-boosting", "trees", "GradientBoostingModel", "labelled states, boosted trees", trees=True, supervised=True
        ),
        _torch("torch-dense", "DenseModel", "dense autoencoder"),
        _torch("torch-conv", "ConvModel", "convolutional autoencoder"),
        _torch("torch-lstm", "LstmModel", "LSTM autoencoder"),
        _torch("torch-gru", "GruModel", "GRU that forecasts the next sample"),
        _torch("torch-transformer", "TransformerModel", "causal transformer that forecasts the next sample"),
        _keras("keras-dense", "DenseModel", "dense autoencoder"),
        _keras("keras-conv", "ConvModel", "convolutional autoencoder"),
        _keras("keras-lstm", "LstmModel", "LSTM autoencoder, unrolled"),
    )
}


def find(name):
    """The kind of this name. Raises `UsageError` with the list."""
    if name not in KINDS:
        raise UsageError(f"there is no kind `{name}`; there are {', '.join(KINDS)}")
    return KINDS[name]
