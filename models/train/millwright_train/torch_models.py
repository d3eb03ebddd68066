"""Networks of PyTorch: autoencoders (dense, convolutional, LSTM) and forecasters of the next sample (GRU, transformer).

Owns the modules, their training, and what is around every network: standardising before it, and score and contribution
from its residual after it (`Explained`, which takes a network of your own as well). Needs `millwright-train[torch]`.

The exporter is the one that traces (`dynamo=False`): its files load in the gateway's engine with any batch. An LSTM
autoencoder repeats its latent through a linear layer and a reshape, since the engine trips on an expanded one.
"""

import io
import warnings

import numpy as np
import onnx
import torch
from torch import nn

from .graph import OPSET, Z_MAX, adopt
from .scale import MARGIN
from .windows import epochs

LIBRARY = f"PyTorch {torch.__version__.partition('+')[0]}"
EPOCHS = 60
BATCH = 64
# A long history is gone through less often: some minutes on one core at the most.
STEPS_MAX = 4000
LEARNING_RATE = 5e-3
# The score of a channel that is reproduced perfectly is still measured in at least this share of its spread.
RESIDUAL_FLOOR = 0.02
# Added to attention between a sample and a later one: e^−10⁴ is 0, and unlike −∞ it is a number in every engine.
MASKED = -1e4


class Explained(nn.Module):
    """A network with its scaling and residual: `window` to `(score, contribution)`, as the gateway's contract has it.

    `network` takes `[batch, samples, channels]`, standardised, and gives the same, or that from the second sample on when it
    forecasts the next one.
    """

    def __init__(self, network, frame, forecasts=False):
        super().__init__()
        self.network = network
        self.skip = 1 if forecasts else 0
        self.register_buffer("centre", torch.tensor(frame.centre))
        self.register_buffer("per_scale", torch.tensor((1.0 / frame.scale.astype(np.float64)).astype(np.float32)))
        self.register_buffer("per_spread", torch.ones(len(frame.centre)))
        self.register_buffer("per_span", torch.ones(()))

    def standardise(self, window):
        return torch.clamp((window - self.centre) * self.per_scale, -Z_MAX, Z_MAX)

    def residual(self, z):
        return z[:, self.skip :] - self.network(z)

    def forward(self, window):
        residual = self.residual(self.standardise(window)) * self.per_spread * self.per_span
        # Divided in the end by a number that the graph knows: no shape is asked for when it runs.
        contribution = (residual * residual).mean(dim=1) / self.centre.numel()
        return torch.sqrt(contribution.sum(dim=1)), contribution


class TorchModel:
    """Trains one network to reproduce healthy windows."""

    library = LIBRARY
    margin = MARGIN
    origin = 0.0
    raw_max = None
    least = None
    forecasts = False
    notes = ("exported by tracing (dynamo=False)",)

    def __init__(self, frame):
        self.frame = frame

    def fit(self, windows):
        torch.manual_seed(0)
        torch.set_num_threads(1)
        self.module = Explained(self.network(*windows.shape[1:]), self.frame, self.forecasts)
        z = self.module.standardise(torch.tensor(windows))
        optimiser = torch.optim.Adam(self.module.parameters(), lr=LEARNING_RATE)
        order = torch.Generator().manual_seed(0)
        self.module.train()
        for _ in range(epochs(EPOCHS, len(z), BATCH, STEPS_MAX)):
            for rows in torch.randperm(len(z), generator=order).split(BATCH):
                optimiser.zero_grad()
                self.module.residual(z[rows]).square().mean().backward()
                optimiser.step()
        self.module.eval()
        with torch.no_grad():
            spread = self.module.residual(z).square().mean(dim=(0, 1)).sqrt().clamp(min=RESIDUAL_FLOOR)
            self.module.per_spread.copy_(1.0 / spread)
        return self

    def _answer(self, windows):
        with torch.no_grad():
            self.module.per_span.fill_(1.0)
            score, squares = self.module(torch.tensor(np.asarray(windows, dtype=np.float32)))
        return score.numpy().astype(np.float64), squares.numpy().astype(np.float64)

    def raw(self, windows):
        return self._answer(windows)[0]

    def squares(self, windows):
        return self._answer(windows)[1]

    def graph(self, kind, shape, scale):
        with torch.no_grad():
            self.module.per_span.fill_(1.0 / scale.span)
        return export(self.module, shape)


def export(module, shape):
    """A module from `window` to `(score, contribution)` as ONNX with any batch."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # That the tracing exporter is the old one, and that an LSTM's first state is of the traced batch (it is not: it
        # is expanded to the batch it gets).
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (torch.zeros(2, *shape),),
            file,
            input_names=["window"],
            output_names=["score", "contribution"],
            dynamic_axes={"window": {0: "batch"}, "score": {0: "batch"}, "contribution": {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,
        )
    model = onnx.load_from_string(file.getvalue())
    del model.metadata_props[:]
    return adopt(model)


class DenseModel(TorchModel):
    """All samples at once through a bottleneck."""

    def network(self, samples, channels):
        size = samples * channels
        return nn.Sequential(
            nn.Flatten(), nn.Linear(size, 32), nn.Tanh(), nn.Linear(32, 4), nn.Linear(4, 32), nn.Tanh(),
            nn.Linear(32, size), nn.Unflatten(1, (samples, channels)),
        )  # fmt: skip


class ConvModel(TorchModel):
    """Convolutions over time that halve it twice, and their transposes."""

    def network(self, samples, channels):
        return Convolutions(samples, channels)


class Convolutions(nn.Module):
    def __init__(self, samples, channels):
        super().__init__()
        self.samples = samples
        self.encode = nn.Sequential(
            nn.Conv1d(channels, 12, 5, stride=2, padding=2), nn.ReLU(), nn.Conv1d(12, 2, 5, stride=2, padding=2)
        )
        self.decode = nn.Sequential(
            nn.ConvTranspose1d(2, 12, 4, stride=2, padding=1), nn.ReLU(), nn.ConvTranspose1d(12, channels, 4, stride=2, padding=1)
        )

    def forward(self, z):
        # Rounding up at each halving gives back at least as many samples.
        return self.decode(self.encode(z.transpose(1, 2)))[:, :, : self.samples].transpose(1, 2)


class LstmModel(TorchModel):
    """The last state of one LSTM, spread over time by a linear layer, and another LSTM that reads it."""

    def network(self, samples, channels):
        return Lstms(samples, channels)


class Lstms(nn.Module):
    def __init__(self, samples, channels, hidden=12, latent=3):
        super().__init__()
        self.samples, self.latent = samples, latent
        self.encoder = nn.LSTM(channels, hidden, batch_first=True)
        self.spread = nn.Linear(hidden, samples * latent)
        self.decoder = nn.LSTM(latent, hidden, batch_first=True)
        self.out = nn.Linear(hidden, channels)

    def forward(self, z):
        _, (last, _) = self.encoder(z)
        states, _ = self.decoder(self.spread(last[0]).reshape(-1, self.samples, self.latent))
        return self.out(states)


class GruModel(TorchModel):
    """Forecasts each sample from those before it."""

    forecasts = True

    def network(self, samples, channels):
        return Gru(channels)


class Gru(nn.Module):
    def __init__(self, channels, hidden=16):
        super().__init__()
        self.gru = nn.GRU(channels, hidden, batch_first=True)
        self.out = nn.Linear(hidden, channels)

    def forward(self, z):
        return self.out(self.gru(z[:, :-1])[0])


class TransformerModel(TorchModel):
    """Forecasts each sample by attention to those before it."""

    forecasts = True

    def network(self, samples, channels):
        return Transformer(samples, channels)


class Transformer(nn.Module):
    """One encoder layer with learned positions, two heads, and a causal mask, in plain operators."""

    def __init__(self, samples, channels, width=16, heads=2):
        super().__init__()
        self.heads, self.width = heads, width
        self.steps = samples - 1
        self.inner = nn.Linear(channels, width)
        self.position = nn.Parameter(0.1 * torch.randn(self.steps, width))
        self.query_key_value = nn.Linear(width, 3 * width)
        self.join = nn.Linear(width, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        self.out = nn.Linear(width, channels)
        self.register_buffer("mask", torch.triu(torch.full((self.steps, self.steps), MASKED), diagonal=1))

    def attention(self, value):
        size = self.width // self.heads
        # [batch, steps, 3, heads, size] → three of [batch, heads, steps, size].
        split = self.query_key_value(value).reshape(-1, self.steps, 3, self.heads, size).permute(2, 0, 3, 1, 4)
        query, key, content = split[0], split[1], split[2]
        weights = torch.softmax(query @ key.transpose(2, 3) / size**0.5 + self.mask, dim=-1)
        return self.join((weights @ content).transpose(1, 2).reshape(-1, self.steps, self.width))

    def forward(self, z):
        value = self.inner(z[:, :-1]) + self.position
        value = self.norms[0](value + self.attention(value))
        value = self.norms[1](value + self.feed(value))
        return self.out(value)
