"""Networks as data: a description that is saved with every checkpoint, and the module that it describes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from deftly.errors import DeftlyError
from deftly.learn.ranks import Ranks

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "mish": nn.Mish,
    "relu": nn.ReLU,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}
MAX_LAYERS, MAX_WIDTH, MAX_GROUPS = 32, 65_536, 64
"""Largest network that is built from a description, which may come from anybody's checkpoint."""
STD_RANGE = (0.05, 2.0)
"""Bounds of the exploration noise, in units of the action: never dead, never beyond the range of an action."""
LOG_STD_RANGE = (-5.0, 2.0)
"""Bounds of the logarithm of a squashed Gaussian's standard deviation before the tanh, as in CleanRL."""


MAX_FILTERS, MAX_KERNEL, MAX_EDGE = 1024, 32, 4096
"""Largest convolution, and longest edge of an image in pixels, of a network that is built from a description."""
FILTERS = ((16, 5, 2), (32, 3, 2), (32, 3, 1))
"""Convolutions over an image: filters, edge of the kernel, stride. A 64x64 image becomes 32 maps of 16x16."""


Head = Literal["plain", "gaussian", "tanh", "squashed_gaussian"]
"""What the last layer's numbers are.

- plain: the outputs.
- gaussian: means, with a learned standard deviation of each output that does not depend on the input.
- tanh: the outputs after a tanh.
- squashed_gaussian: means and logarithms of standard deviations of a Gaussian, whose draws go through a tanh
  (Haarnoja et al. 2018); twice as many numbers as outputs. The output is the tanh of the mean.
"""


@dataclass(frozen=True)
class NetworkSpec:
    """A multilayer perceptron over groups of observations, and over what convolutions find in images.

    It says all that is needed to build the network again, so that a checkpoint is read without the settings, the
    code or the version of the learner that made it.
    """

    inputs: Mapping[
        str, int
    ]  # observation groups in the order in which they are concatenated, and their sizes
    outputs: int
    hidden: tuple[int, ...]  # widths of the hidden layers
    activation: str = "elu"
    normalizer: Literal["running", "none"] = "running"  # of the inputs
    head: Head = "plain"
    images: Mapping[str, tuple[int, int]] = field(
        default_factory=dict
    )  # groups that are images, and their height and width, pixels
    filters: tuple[tuple[int, int, int], ...] = FILTERS  # of each image's encoder
    layer_norm: bool = False  # of each hidden layer, before its activation (Ba et al. 2016)

    def __post_init__(self) -> None:
        widths = (*self.inputs.values(), self.outputs, *self.hidden)
        sized = all(type(width) is int and 1 <= width <= MAX_WIDTH for width in widths)
        small = len(self.hidden) <= MAX_LAYERS and 1 <= len(self.inputs) <= MAX_GROUPS
        if not small or not sized:
            most = (
                f"at most {MAX_LAYERS} layers and {MAX_GROUPS} inputs, widths of 1 to {MAX_WIDTH}"
            )
            raise DeftlyError(f"a network is described that cannot be built: {most}")
        if not self._images_can_be_built():
            most = f"images of at most {MAX_EDGE} pixels, {MAX_FILTERS} filters, kernels of {MAX_KERNEL}"
            raise DeftlyError(f"a network is described that cannot be built: {most}")
        if self.activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise DeftlyError(
                f"activation is '{str(self.activation)[:40]}', but it must be one of {known}"
            )
        known_head = self.head in get_args(Head)
        if self.normalizer not in ("running", "none") or not known_head:
            raise DeftlyError(
                "a network is described with a normalizer or a head that this Deftly does not know"
            )
        if type(self.layer_norm) is not bool:
            raise DeftlyError("a network is described with a layer_norm that is not true or false")

    def _images_can_be_built(self) -> bool:
        """Whether the description of images and of their convolutions is one."""
        edges = [edge for size in self.images.values() for edge in size]
        within = [(edge, MAX_EDGE) for edge in edges]
        for count, kernel, stride in self.filters:
            within += [(count, MAX_FILTERS), (kernel, MAX_KERNEL), (stride, kernel)]
        return (
            len(self.images) <= MAX_GROUPS
            and all(len(size) == 2 for size in self.images.values())
            and 1 <= len(self.filters) <= MAX_LAYERS
            and all(type(number) is int and 1 <= number <= most for number, most in within)
        )

    @property
    def features(self) -> int:
        """Numbers that enter the first hidden layer: the input, and a pair of coordinates for each filter's map."""
        keypoints = self.filters[-1][0] * len(self.images)
        return self.input_size + 2 * keypoints

    @property
    def input_size(self) -> int:
        """Numbers in a row of the input, images apart."""
        return sum(self.inputs.values())

    def to_json(self) -> dict[str, Any]:
        """The description as plain data."""
        described = {
            "kind": "cnn" if self.images else "mlp",
            **asdict(self),
            "inputs": dict(self.inputs),
            "hidden": list(self.hidden),
        }
        if self.images:
            described["images"] = {name: list(size) for name, size in self.images.items()}
            described["filters"] = [list(each) for each in self.filters]
        else:
            del described["images"], described["filters"]
        if not self.layer_norm:
            del described["layer_norm"]
        return described

    @classmethod
    def from_json(cls, data: Any) -> NetworkSpec:
        """Read what `to_json` gave. Raises DeftlyError for anything else."""
        try:
            if data["kind"] not in ("mlp", "cnn"):
                raise DeftlyError(
                    f"a network is of kind '{str(data['kind'])[:40]}', this Deftly builds 'mlp' and 'cnn'"
                )
            sees = data["kind"] == "cnn"
            optional = {"layer_norm"}
            if not sees:
                optional |= {"images", "filters"}
            required = cls.__dataclass_fields__.keys() - optional
            values = {name: data[name] for name in required}
            values["layer_norm"] = data.get("layer_norm", False)
            values["hidden"] = tuple(values["hidden"])
            values["inputs"] = dict(values["inputs"])
            if sees:
                values["images"] = {name: tuple(size) for name, size in data["images"].items()}
                values["filters"] = tuple(tuple(each) for each in data["filters"])
            return cls(**values)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DeftlyError(
                f"a network's description is incomplete: {type(error).__name__} {error}"
            ) from None


class Normalizer(nn.Module):
    """Shifts and scales each input by its running mean and standard deviation.

    Not less than `EPSILON` is divided by: what hardly varies is not blown up.
    """

    EPSILON = 1e-2
    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("var", torch.ones(size))
        self.register_buffer("count", torch.tensor(0, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        """Normalized rows, `(..., size)`."""
        return (x - self.mean) / (self.var.sqrt() + self.EPSILON)

    @torch.no_grad()
    def update(self, x: Tensor, ranks: Ranks) -> None:
        """Take rows, `(n, size)`, into the statistics, with those of the other ranks (Chan et al. 1979)."""
        deviation = x - self.mean
        moments = torch.stack((deviation.mean(0), deviation.square().mean(0)))
        shift, square = ranks.mean_(moments)
        var = (square - shift.square()).clamp(min=0.0)
        count = len(x) * ranks.size
        self.count += count
        rate = count / self.count
        self.var += rate * (var - self.var + shift.square() * (1 - rate))
        self.mean += rate * shift


class ImageEncoder(nn.Module):
    """Convolutions over an image, and where in it each filter answers: a spatial softmax (arXiv:1509.06113).

    Picking and placing is about where things are. This gives a place for each filter, 64 numbers for 32, where
    flattened maps give thousands, whose layer would have to learn the same at each place anew.
    """

    grid_x: Tensor
    grid_y: Tensor

    def __init__(self, size: tuple[int, int], spec: NetworkSpec):
        super().__init__()
        modules: list[nn.Module] = []
        channels, (height, width) = 3, size
        for count, kernel, stride in spec.filters:
            padding = kernel // 2
            modules += [nn.Conv2d(channels, count, kernel, stride, padding=padding)]
            modules += [ACTIVATIONS[spec.activation]()]
            channels = count
            height = (height + 2 * padding - kernel) // stride + 1
            width = (width + 2 * padding - kernel) // stride + 1
        self.convolutions = nn.Sequential(*modules[:-1])
        self.sharpness = nn.Parameter(torch.ones(channels, 1, 1))
        across = torch.linspace(-1, 1, width)
        down = torch.linspace(-1, 1, height)
        self.register_buffer("grid_x", across.view(1, width))
        self.register_buffer("grid_y", down.view(height, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Coordinates in -1 .. 1, `(n, 2 * filters)`, all x before all y, of images `(n, height, width, 3)` uint8."""
        pixels = image.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        answer = self.sharpness * self.convolutions(pixels)
        weight = answer.flatten(2).softmax(-1)  # (n, filters, height * width)
        height, width = answer.shape[2:]
        places = torch.stack(
            (
                self.grid_x.expand(height, width).flatten(),
                self.grid_y.expand(height, width).flatten(),
            ),
            -1,
        )
        return (weight @ places).transpose(1, 2).flatten(1)


class Network(nn.Module):
    """The module that a `NetworkSpec` describes: normalizer, encoders of images, layers, and for the head
    `gaussian` its `std`.
    """

    def __init__(self, spec: NetworkSpec, init_std: float = 1.0):
        super().__init__()
        self.spec = spec
        self.normalizer = (
            Normalizer(spec.input_size) if spec.normalizer == "running" else nn.Identity()
        )
        self.encoders = nn.ModuleList(ImageEncoder(size, spec) for size in spec.images.values())
        modules: list[nn.Module] = []
        width = spec.features
        for hidden in spec.hidden:
            modules += [nn.Linear(width, hidden)]
            modules += [nn.LayerNorm(hidden)] if spec.layer_norm else []
            modules += [ACTIVATIONS[spec.activation]()]
            width = hidden
        is_squashed = spec.head == "squashed_gaussian"
        last = 2 * spec.outputs if is_squashed else spec.outputs
        self.layers = nn.Sequential(*modules, nn.Linear(width, last))
        if spec.head == "gaussian":
            self.std = nn.Parameter(torch.full((spec.outputs,), init_std))

    def forward(self, x: Tensor, *images: Tensor) -> Tensor:
        """Outputs, or means of the Gaussian, `(n, outputs)`, for numbers `(n, input_size)` and images of each group."""
        return self.outputs_of(self.layers(self.features_of(x, images)))

    def features_of(self, x: Tensor, images: Sequence[Tensor]) -> Tensor:
        """Normalized numbers, and behind them what the encoders find in the images, `(n, features)`."""
        found = [encoder(image) for encoder, image in zip(self.encoders, images, strict=True)]
        return torch.cat((self.normalizer(x), *found), -1) if found else self.normalizer(x)

    def outputs_of(self, last: Tensor) -> Tensor:
        """Outputs, `(n, outputs)`, of the last layer's numbers."""
        if self.spec.head == "tanh":
            return last.tanh()
        if self.spec.head == "squashed_gaussian":
            return last[..., : self.spec.outputs].tanh()
        return last

    def draw(
        self, x: Tensor, generator: torch.Generator | None = None, images: Sequence[Tensor] = ()
    ) -> Tensor:
        """Outputs drawn from the head's distribution, `(n, outputs)`; those of a head without one are `forward`'s."""
        if self.spec.head == "squashed_gaussian":
            return self.squashed(x, generator)[0]
        outputs = self(x, *images)
        if self.spec.head != "gaussian":
            return outputs
        return outputs + self.bounded_std() * _normal(outputs, generator)

    def squashed(
        self, x: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Outputs drawn from a squashed Gaussian, `(n, outputs)`, and the logarithms of their densities, `(n,)`.

        Gradients go through the draw (the reparameterization trick).
        """
        mean, log_std = self.layers(self.normalizer(x)).chunk(2, -1)
        log_std = log_std.clamp(*LOG_STD_RANGE)
        noise = _normal(mean, generator)
        before = mean + log_std.exp() * noise
        log_prob = -(0.5 * (noise.square() + math.log(2 * math.pi)) + log_std).sum(-1)
        # log(1 - tanh(x)^2), in a form that does not lose its digits where the tanh is close to 1.
        slope = 2 * (math.log(2) - before - nn.functional.softplus(-2 * before))
        return before.tanh(), log_prob - slope.sum(-1)

    def gather(self, obs: Mapping[str, Tensor]) -> Tensor:
        """The network's input, `(n, input_size)`, from observations by group."""
        parts = [obs[group] for group in self.spec.inputs]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def images(self, obs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The images that the network sees, `(n, height, width, 3)` each, from observations by group."""
        return tuple(obs[group] for group in self.spec.images)

    def bounded_std(self) -> Tensor:
        """Standard deviation of each output, `(outputs,)`, within `STD_RANGE`."""
        return self.std.clamp(*STD_RANGE)


@torch.no_grad()
def follow(slow: nn.Module, fast: nn.Module, rate: float) -> None:
    """Move the parameters of a network by a fraction of the way to those of another one (Polyak averaging)."""
    for behind, ahead in zip(slow.parameters(), fast.parameters(), strict=True):
        behind.lerp_(ahead, rate)


def take_in(average: nn.Module, newest: nn.Module, decay: float, steps: int) -> None:
    """Take the newest weights into a moving average of them: of fewer steps, as long as there were few."""
    share = min(decay, (1 + steps) / (10 + steps))
    follow(average, newest, 1 - share)


def build(spec: NetworkSpec, weights: Mapping[str, Tensor]) -> Network:
    """The network of a description with these weights; raises DeftlyError if they are not of that network.

    Nothing is allocated or drawn before the weights are known to fit: a description may come from anybody.
    """
    with torch.device("meta"):
        network = Network(spec)
    expected = _described(network.state_dict())
    found = _described(weights)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise DeftlyError(
                f"{name} is {_shape(found.get(name))}, the network has {_shape(expected.get(name))}"
            )
    copied = {name: value.clone() for name, value in weights.items()}
    network.load_state_dict(copied, assign=True)
    return network.requires_grad_(False)


def _shape(entry: tuple[tuple[int, ...], torch.dtype] | None) -> str:
    if entry is None:
        return "missing"
    shape, dtype = entry
    return f"{list(shape)} {str(dtype).removeprefix('torch.')}"


def _described(tensors: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of each tensor."""
    return {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}


class Policy(nn.Module):
    """A trained policy: observation `(n, input_size)` float32 to action `(n, outputs)` in [-1, 1] and beyond."""

    def __init__(self, actor: Network):
        super().__init__()
        self.actor = actor

    @torch.inference_mode()
    def forward(self, obs: Tensor | Mapping[str, Tensor], stochastic: bool = False) -> Tensor:
        """The mean action, or a draw from the policy's distribution, which takes torch's own random numbers.

        `obs` is the concatenated input, or observations by group.
        """
        if isinstance(obs, Tensor):
            inputs, images = obs, ()
        else:
            inputs, images = self.actor.gather(obs), self.actor.images(obs)
        if stochastic:
            return self.actor.draw(inputs, images=images)
        return self.actor(inputs, *images)


def _normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers of a tensor's shape and device."""
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def gaussian_kl(old_mean: Tensor, old_std: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Kullback-Leibler divergence of a diagonal Gaussian from an older one, summed over the last axis."""
    ratio = (old_std / std).square()
    distance = ((old_mean - mean) / std).square()
    return 0.5 * (ratio + distance - 1 - ratio.log()).sum(-1)


def gaussian_entropy(std: Tensor) -> Tensor:
    """Differential entropy of a diagonal Gaussian, a scalar, in nats."""
    return std.log().sum() + 0.5 * len(std) * (1 + math.log(2 * math.pi))


def gaussian_log_prob(action: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Logarithm of the density of actions under a diagonal Gaussian, summed over the last axis."""
    squares = ((action - mean) / std).square().sum(-1)
    return -0.5 * squares - std.log().sum() - 0.5 * action.shape[-1] * math.log(2 * math.pi)
