"""What disturbs a supernet in training, and what changes from one epoch to the next."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from nni_fairdarts.errors import InputError


def _constant(epoch: int, epochs: int) -> float:
    return 1.0


def _linear(epoch: int, epochs: int) -> float:
    return max(0.0, 1 - epoch / epochs)


def _cosine(epoch: int, epochs: int) -> float:
    return (1 + math.cos(math.pi * min(epoch / epochs, 1.0))) / 2


def _p_darts(epoch: int, epochs: int) -> float:
    """(E - e - 1) / E, and e^(-0.2 (e - 10)) from epoch 10 on, at P-DARTS' E = 25; stretched to other numbers."""
    early = epoch < 0.4 * epochs
    return (epochs - epoch - 1) / epochs if early else math.exp(-5 * (epoch / epochs - 0.4))


DECAYS: dict[str, Callable[[int, int], float]] = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "p_darts": _p_darts,
}
"""How a strength falls, by name: epoch, counted from 0, of so many -> a factor, at most 1."""


@dataclass(frozen=True)
class Disturbance:
    """What is done to the operations of a supernet in training, against the advantage of skip connections.

    Args:
        skip_noise: standard deviation of the Gaussian noise added to what skip connections of stride 1 put out
            (NoisyDARTS, arXiv 2005.03566: 0.2; the Fair DARTS authors: 1, not relative, a cosine over 30 epochs).
        noise_relative: the deviation is in those of the skip connection's input, else in units of its values.
        skip_dropout: share of the values that skip connections of stride 1 put out which are set to 0 (P-DARTS).
        operation_dropout: probability with which an operation of a cell or a choice is left out of a forward pass.
        edge_dropout: probability with which an edge of a cell is.
        decay: how all of these fall: constant, linear, cosine, or p_darts (P-DARTS' own, in two parts).
        decay_epochs: the epochs that they fall over; unset for those of the search, or of each of its stages.

    What is kept is scaled by 1 / (1 - p). Raises InputError for values out of range.
    """

    skip_noise: float = 0.0
    noise_relative: bool = True
    skip_dropout: float = 0.0
    operation_dropout: float = 0.0
    edge_dropout: float = 0.0
    decay: str = "constant"
    decay_epochs: int | None = None

    def __post_init__(self):
        if not self.skip_noise >= 0 or math.isinf(self.skip_noise):
            raise InputError(f"skip_noise must be 0 (none) or more, got {self.skip_noise}; NoisyDARTS uses 0.2")
        for name in ("skip_dropout", "operation_dropout", "edge_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be in [0, 1), got {getattr(self, name)}; 0 leaves nothing out")
        if self.decay not in DECAYS:
            raise InputError(f"unknown decay {self.decay!r}; known: {', '.join(DECAYS)}")
        if self.decay_epochs is not None and self.decay_epochs < 1:
            raise InputError(f"decay_epochs must be at least 1, or unset for the last epoch, got {self.decay_epochs}")

    def __bool__(self) -> bool:
        return any((self.skip_noise, self.skip_dropout, self.operation_dropout, self.edge_dropout))


@dataclass(eq=False)
class Moving:
    """Shared by all modules of a supernet: how far its ``disturbance`` has fallen, the temperature, and draws.

    ``temperature``: (of the first epoch, of the last one); α is divided by what it is now. Draws are of one forward
    pass of the whole supernet, so that all cells of a kind see the same gates. ``masks``: {label: 0 for the gates that
    are left out now, else 1}. ``ranked``: {label: numbers in [0, 1] by which operations are kept in place of their
    gates}; None where gates decide.
    """

    disturbance: Disturbance = Disturbance()
    temperature: tuple[float, float] = (1.0, 1.0)
    strength: float = 1.0
    warmth: float = field(init=False)
    drawn: dict[str, Tensor] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    ranked: dict[str, list] | None = None

    def __post_init__(self):
        self.warmth = self.temperature[0]

    def __deepcopy__(self, memo):  # of a module: copies move with the supernet
        return self

    def begin_epoch(self, epoch: int, epochs: int, of_stage: tuple[int, int] | None = None) -> None:
        """What holds in an epoch, counted from 0, of a search of so many; ``of_stage``: the same of its stage."""
        within, length = of_stage or (epoch, epochs)
        self.strength = DECAYS[self.disturbance.decay](within, self.disturbance.decay_epochs or max(length, 1))
        start, end = self.temperature
        self.warmth = start * (end / start) ** (epoch / max(epochs - 1, 1))

    def forget(self, *_) -> None:
        """Draw anew from now on: a hook before and behind the supernet's forward pass."""
        self.drawn.clear()

    def once(self, label: str, draw: Callable[[], Tensor]) -> Tensor:
        """What ``draw`` gives, the same for all who ask under ``label`` in a forward pass."""
        if label not in self.drawn:
            self.drawn[label] = draw()
        return self.drawn[label]

    def left(self, gates: Tensor) -> Tensor:
        """Gates (edges, operations) or (operations,) of a module in training, some of them left out."""
        operation = self.disturbance.operation_dropout * self.strength
        edge = self.disturbance.edge_dropout * self.strength if gates.dim() == 2 else 0.0
        if operation:
            gates = dropout(gates, operation)
        if edge:
            gates = gates * dropout(torch.ones_like(gates[:, :1]), edge)
        return gates


class DisturbedSkip(nn.Identity):
    """A skip connection with noise and dropout in training, as its supernet's ``Moving`` has them now."""

    def __init__(self, moving: Moving):
        super().__init__()
        self.moving = moving

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        what, strength = self.moving.disturbance, self.moving.strength
        if what.skip_noise and strength:
            scale = what.skip_noise * strength
            x = x + torch.randn_like(x) * (scale * x.detach().std() if what.noise_relative else scale)
        return dropout(x, what.skip_dropout * strength) if what.skip_dropout and strength else x


def disturbed(candidate: nn.Module, moving: Moving) -> nn.Module:
    """``candidate``, or what stands for it where it is a skip connection of stride 1 and those are disturbed."""
    disturbance = moving.disturbance
    wanted = disturbance.skip_noise or disturbance.skip_dropout
    return DisturbedSkip(moving) if wanted and type(candidate) is nn.Identity else candidate
