"""Networks of Keras on TensorFlow: autoencoders (dense, convolutional, LSTM).

Owns the networks, their training, and what is around every network: standardising before it, and score and contribution
from its residual after it (`export` takes a network of your own as well). Needs `millwright-train[keras]`.

Convolutions and LSTMs are exported with a batch of one, since what the exporter writes for an open one does not load in the
gateway's engine; it runs such a file window by window. LSTM layers are unrolled: a `Loop` has no place there. A GRU of Keras
becomes a `Loop` either way; train it in PyTorch.
"""

import os

# Read when TensorFlow is imported: no word about the processor, one thread, the same numbers every time.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
import tf2onnx  # noqa: E402

from .graph import IR_VERSION, OPSET, Z_MAX, adopt  # noqa: E402
from .scale import MARGIN  # noqa: E402
from .windows import epochs  # noqa: E402

LIBRARY = f"Keras {keras.__version__} on TensorFlow {tf.__version__}"
EPOCHS = 40
BATCH = 64
# A long history is gone through less often: some minutes on one core at the most.
STEPS_MAX = 4000
LEARNING_RATE = 5e-3
RESIDUAL_FLOOR = 0.02


class KerasModel:
    """Trains one network to reproduce healthy windows."""

    library = LIBRARY
    margin = MARGIN
    origin = 0.0
    raw_max = None
    least = None
    any_batch = False
    notes = ("exported with a batch of one, which the gateway runs window by window",)

    def __init__(self, frame):
        self.frame = frame

    def fit(self, windows):
        keras.utils.set_random_seed(0)
        z = self._standardise(tf.constant(windows))
        self.network = self.build(*windows.shape[1:])
        self.network.compile(optimizer=keras.optimizers.Adam(LEARNING_RATE), loss="mse")
        times = epochs(EPOCHS, len(z), BATCH, STEPS_MAX)
        self.network.fit(z, z, epochs=times, batch_size=BATCH, verbose=0)
        residual = z - self.network(z, training=False)
        spread = np.sqrt(np.mean(np.square(residual.numpy()), axis=(0, 1)))
        self.per_spread = (1.0 / np.maximum(spread, RESIDUAL_FLOOR)).astype(np.float32)
        return self

    def _standardise(self, window):
        per_scale = (1.0 / self.frame.scale.astype(np.float64)).astype(np.float32)
        return tf.clip_by_value((window - self.frame.centre) * per_scale, -Z_MAX, Z_MAX)

    def explained(self, window, span=1.0):
        """`(score, contribution)` of a batch of windows, by Keras."""
        z = self._standardise(window)
        residual = (z - self.network(z, training=False)) * (self.per_spread * np.float32(1.0 / span))
        contribution = tf.reduce_mean(tf.square(residual), axis=1) / np.float32(len(self.frame.centre))
        return tf.sqrt(tf.reduce_sum(contribution, axis=1)), contribution

    def _answer(self, windows):
        score, squares = self.explained(tf.constant(np.asarray(windows, dtype=np.float32)))
        return score.numpy().astype(np.float64), squares.numpy().astype(np.float64)

    def raw(self, windows):
        return self._answer(windows)[0]

    def squares(self, windows):
        return self._answer(windows)[1]

    def graph(self, kind, shape, scale):
        return export(lambda window: self.explained(window, scale.span), shape, self.any_batch)


def export(explained, shape, any_batch):
    """A function from `window` to `(score, contribution)` as ONNX."""
    signature = [tf.TensorSpec([None if any_batch else 1, *shape], tf.float32, name="window")]
    function = tf.function(explained, input_signature=signature)
    model, _ = tf2onnx.convert.from_function(function, input_signature=signature, opset=OPSET)
    model.ir_version = IR_VERSION
    return adopt(model)


class DenseModel(KerasModel):
    """All samples at once through a bottleneck."""

    any_batch = True
    notes = ()

    def build(self, samples, channels):
        layers = keras.layers
        return keras.Sequential([
            keras.Input((samples, channels)), layers.Flatten(), layers.Dense(32, "tanh"), layers.Dense(4),
            layers.Dense(32, "tanh"), layers.Dense(samples * channels), layers.Reshape((samples, channels)),
        ])  # fmt: skip


class ConvModel(KerasModel):
    """Convolutions over time, a bottleneck, and a dense layer back."""

    def build(self, samples, channels):
        layers = keras.layers
        return keras.Sequential([
            keras.Input((samples, channels)), layers.Conv1D(12, 5, strides=2, padding="same", activation="relu"),
            layers.Conv1D(2, 5, strides=2, padding="same"), layers.Flatten(), layers.Dense(samples * channels),
            layers.Reshape((samples, channels)), layers.Conv1D(channels, 3, padding="same"),
        ])  # fmt: skip


class LstmModel(KerasModel):
    """The last state of one LSTM, spread over time by a dense layer, and another LSTM that reads it."""

    notes = (*KerasModel.notes, "the LSTM layers are unrolled over the samples of a window")

    def build(self, samples, channels, hidden=12, latent=3):
        layers = keras.layers
        return keras.Sequential([
            keras.Input((samples, channels)), layers.LSTM(hidden, unroll=True), layers.Dense(samples * latent),
            layers.Reshape((samples, latent)), layers.LSTM(hidden, return_sequences=True, unroll=True),
            layers.Dense(channels),
        ])  # fmt: skip
