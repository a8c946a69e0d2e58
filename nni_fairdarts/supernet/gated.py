"""What every gated module of a supernet has in common."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nni_fairdarts._nni import BaseSuperNetModule, weighted_sum
from nni_fairdarts.discretize import Discretization
from nni_fairdarts.errors import InputError
from nni_fairdarts.gates import Relaxation, of_some
from nni_fairdarts.supernet.moving import Moving
from nni_fairdarts.supernet.recompute import run

OPTIONS_KEY = "fairdarts"
"""Under this key of NNI's ``mutate_kwargs`` the strategy hands its options to the hooks."""

DECIDED = 1e4
"""An α at which a sigmoid, and a softmax beside -1e4, is exactly 1, in every precision."""

EXPORTS = ("single", "multi")
"""single: a LayerChoice keeps its strongest candidate; multi: all whose gates reach the threshold."""


@dataclass(frozen=True)
class SupernetOptions:
    """How a space becomes a supernet: relaxation of α, batch norms of candidates, discretisation, α's start.

    ``like`` is one of the space's parameters: what is made new is of its dtype and on its device. α is drawn with mean
    ``alpha_init`` and standard deviation ``alpha_spread``. ``export`` is one of EXPORTS; ``recompute``: candidates are
    computed again in the backward pass instead of being kept. ``partial_channels``: K, the candidates of cells see 1/K
    of the channels; ``edge_normalization``: the edges of cells have weights. ``left``: {label of a cell: α's columns
    (edges, n) of what its edges still have}; a cell that is not in it has all.
    """

    relaxation: Relaxation
    candidate_norm: str
    discretization: Discretization
    alpha_init: float
    like: Tensor
    export: str = "single"
    recompute: bool = False
    alpha_spread: float = 0.0
    partial_channels: int = 1
    edge_normalization: bool = False
    moving: Moving = field(default_factory=Moving)
    left: Mapping[str, Tensor] = field(default_factory=dict)

    def gates(self, alpha: Tensor, left: Tensor | None = None) -> Tensor:
        """α (..., candidates) as gates, at the present temperature; 0 but for the columns ``left``, where given."""
        return of_some(self.relaxation.gates, self.warm(alpha), left)

    def draw(self, label: str, alpha: Tensor, left: Tensor | None = None) -> Tensor:
        """What ``gates`` gives or, where the relaxation draws, what is drawn under ``label`` in this forward pass."""
        if self.relaxation.draw is None:
            return self.gates(alpha, left)
        return self.moving.once(label, lambda: of_some(self.relaxation.draw, self.warm(alpha), left))

    def warm(self, alpha: Tensor) -> Tensor:
        return alpha if self.moving.warmth == 1 else alpha / self.moving.warmth

    def new_alpha(self, shape: Sequence[int]) -> nn.Parameter:
        """α of ``shape`` at its start, in float32 or better: half precision is too coarse for it."""
        dtype = torch.promote_types(self.like.dtype, torch.float32)
        alpha = torch.full(tuple(shape), self.alpha_init, dtype=dtype)
        if self.alpha_spread:
            alpha += self.alpha_spread * torch.randn(tuple(shape), dtype=dtype)
        return nn.Parameter(alpha.to(self.like.device))


@dataclass(frozen=True, eq=False)
class Choice:
    """One label of a supernet: its α, how α becomes gates, and what the gates of its last dimension stand for.

    ``exclusive``: the gates share 1, one of them is kept; else each is its own. ``rows``: names of α's rows where it
    has two dimensions. Where α has one more column than there are operations, its first is that of "none".
    ``row_weights``: of rows that have weights of their own, (rows,). ``left``: α's columns (rows, n) of what there
    still is; None for all.
    """

    label: str
    operations: tuple
    alpha: nn.Parameter
    relaxation: Callable[[Tensor], Tensor]
    exclusive: bool = False
    rows: tuple[str, ...] = ()
    row_weights: Callable[[], Tensor] | None = None
    left: Tensor | None = None

    def gates(self) -> Tensor:
        """Gates in (0, 1), (..., operations)."""
        return self.relaxation(self.alpha)[..., -len(self.operations) :]

    def values(self) -> list:
        """What scales each operation, as nested lists of Python floats: its gate, times its row's weight."""
        with torch.no_grad():
            gates = self.gates()
            return (gates if self.row_weights is None else gates * self.row_weights()[:, None]).tolist()

    def rounded(self) -> Tensor:
        """α at which every gate is exactly 0 or 1: each rounded or, of one of many, the largest 1 and the others 0."""
        with torch.no_grad():
            gates = self.gates()
            largest = nn.functional.one_hot(gates.masked_fill(~self.there(), -1).argmax(-1), gates.shape[-1]).bool()
            kept = largest if self.exclusive else gates >= 0.5
            rounded = torch.full_like(self.alpha, -DECIDED)
            rounded[..., -len(self.operations) :][kept] = DECIDED
            return rounded

    def there(self) -> Tensor:
        """Which gates there still are, (..., operations)."""
        alpha = self.alpha
        there = torch.ones_like(alpha) if self.left is None else torch.zeros_like(alpha).scatter(-1, self.left, 1)
        return there[..., -len(self.operations) :].bool()

    def present(self) -> Tensor:
        """The gates that there still are, as a vector."""
        gates = self.gates()
        return gates.flatten() if self.left is None else gates[self.there()]

    def competing(self) -> Tensor:
        """α of what there still is, (..., candidates)."""
        return self.alpha if self.left is None else self.alpha.gather(-1, self.left)

    def strongest(self, count: int) -> Tensor:
        """α's columns (rows, at most ``count``) of the largest gates among what there is, in α's order.

        The earlier of equals; "none" is one of them.
        """
        with torch.no_grad():
            gates = self.relaxation(self.alpha)
            if self.left is not None:
                gates = gates - 1 + torch.zeros_like(gates).scatter(-1, self.left, 1)
            count = min(count, self.competing().shape[-1])
            return gates.argsort(dim=-1, descending=True, stable=True)[..., :count].sort(-1).values

    def weights(self) -> dict[str, tuple[tuple, Tensor]]:
        """{label, or name of a row: (operations, their gates)}, with gradient."""
        gates = self.gates().unbind() if self.rows else [self.gates()]
        return {name: (self.operations, row) for name, row in zip(self.rows or (self.label,), gates, strict=True)}


class GatedModule(BaseSuperNetModule):
    """A choice whose candidates all run, each scaled by its own gate.

    ``alpha`` holds the architecture parameters, one for each candidate, shared by all modules with the same
    ``label``; ``operations`` names its last dimension.
    """

    alpha: nn.Parameter
    operations: tuple[str, ...]
    options: SupernetOptions

    def choices(self) -> tuple[Choice, ...]:
        return (Choice(self.label, self.operations, self.alpha, self.options.gates, self.options.relaxation.shared),)

    def gates(self) -> Tensor:
        """Gates in (0, 1), (..., operations)."""
        return self.choices()[0].gates()

    def scales(self) -> Tensor:
        """What scales each operation now, (..., operations): its gate; in training its draw, or 0 if it is left out."""
        moving = self.options.moving
        gates = moving.left(self.drawn()) if self.training else self.gates()
        return gates * moving.masks[self.label] if self.label in moving.masks else gates

    def drawn(self) -> Tensor:
        """Gates of a forward pass in training, (..., operations)."""
        return self.options.draw(self.label, self.alpha, self.choices()[0].left)[..., -len(self.operations) :]

    def gate_values(self) -> list:
        """What scales each operation, or ranks it, as nested lists of Python floats, without gradient."""
        ranked = self.options.moving.ranked
        return self.choices()[0].values() if ranked is None else ranked[self.label]

    def run(self, candidate: nn.Module, *args, **kwargs):
        """What ``candidate`` makes of the arguments, computed again in the backward pass if the options say so."""
        return run(candidate, *args, recompute=self.options.recompute, **kwargs)

    def kept(self) -> list[int]:
        """Candidates, of a module with one gate each, whose gates reach the threshold, in their order.

        Where none does, the strongest one (the earlier of equals), with a warning.
        """
        gates, threshold = self.gate_values(), self.options.discretization.threshold
        kept = [i for i, gate in enumerate(gates) if gate >= threshold]
        if not kept:
            kept = strongest(gates)
            warnings.warn(
                f"{self.label}: no gate reaches the threshold {threshold}; kept only the strongest, "
                f"{self.operations[kept[0]]} with {gates[kept[0]]:.4g}; lower the threshold to keep more",
                RuntimeWarning,
                stacklevel=2,
            )
        return kept

    def arch_parameters(self):
        """The architecture parameters of this module."""
        yield self.alpha

    def resample(self, memo):
        """Nothing is sampled: all candidates run."""
        return {}


def gated_sum(label: str, outputs: Sequence, gates: Tensor):
    """Σ_i g_i · output_i of tensors, or of lists, tuples and dicts of tensors. Raises InputError, naming ``label``."""
    if len(outputs) != len(gates):
        raise InputError(f"{label!r} has {len(gates)} candidates, but got {len(outputs)} to choose from")
    try:
        return weighted_sum(list(outputs), gates.unbind())
    except (TypeError, ValueError) as error:  # NNI lists what each one is
        raise InputError(f"what the candidates of {label!r} put out cannot be summed: {error}") from error


def strongest(gates: Sequence[float], count: int = 1) -> list[int]:
    """Places of the ``count`` largest gates, in ascending order; the earlier of equals."""
    return sorted(sorted(range(len(gates)), key=gates.__getitem__, reverse=True)[:count])


def shared_alpha(
    memo: dict, label: str, shape: Sequence[int], options: SupernetOptions, exclusive: bool = False
) -> nn.Parameter:
    """α of ``shape`` for ``label``: made at the first request, the same parameter afterwards.

    Raises InputError where choices of different sizes, or of different kinds, share the label.
    """
    if (OPTIONS_KEY, label) not in memo:
        memo[OPTIONS_KEY, label] = options.new_alpha(shape), exclusive
    alpha, kind = memo[OPTIONS_KEY, label]
    if alpha.shape != torch.Size(shape):
        raise InputError(
            f"label {label!r} is shared by choices of different sizes, {tuple(alpha.shape)} and {tuple(shape)}; "
            "give them labels of their own"
        )
    if kind != exclusive:
        raise InputError(
            f"label {label!r} is shared by a choice of operations or inputs, which may keep several, and a choice of "
            "a value or depth, which keeps one; give them labels of their own"
        )
    return alpha
