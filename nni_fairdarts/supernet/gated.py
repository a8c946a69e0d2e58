"""What every gated module of a supernet has in common."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nni_fairdarts._nni import BaseSuperNetModule
from nni_fairdarts.discretize import Discretization
from nni_fairdarts.errors import InputError

OPTIONS_KEY = "fairdarts"
"""Under this key of NNI's ``mutate_kwargs`` the strategy hands its options to the hooks."""


@dataclass(frozen=True)
class SupernetOptions:
    """How a space becomes a supernet: relaxation of α, batch norms of candidates, discretisation, α's start.

    ``like`` is one of the space's parameters: what is made new is of its dtype and on its device.
    """

    relaxation: Callable[[Tensor], Tensor]
    candidate_norm: str
    discretization: Discretization
    alpha_init: float
    like: Tensor

    def new_alpha(self, shape: Sequence[int]) -> nn.Parameter:
        """α of ``shape`` at its start, in float32 or better: half precision is too coarse for it."""
        dtype = torch.promote_types(self.like.dtype, torch.float32)
        return nn.Parameter(torch.full(tuple(shape), self.alpha_init, dtype=dtype, device=self.like.device))


class GatedModule(BaseSuperNetModule):
    """A choice whose candidates all run, each scaled by its own gate.

    ``alpha`` holds the architecture parameters, one for each candidate, shared by all modules with the same
    ``label``; ``operations`` names its last dimension.
    """

    alpha: nn.Parameter
    operations: tuple[str, ...]
    options: SupernetOptions

    def gates(self) -> Tensor:
        """Gates in (0, 1), of ``alpha``'s shape."""
        return self.options.relaxation(self.alpha)

    def gate_values(self) -> list:
        """Gates as nested lists of Python floats, without gradient."""
        with torch.no_grad():
            return self.gates().tolist()

    def skip_connections(self) -> int:
        """Number of skip connections that the discretisation would keep now."""
        raise NotImplementedError

    def arch_parameters(self):
        """The architecture parameters of this module."""
        yield self.alpha

    def resample(self, memo):
        """Nothing is sampled: all candidates run."""
        return {}


def shared_alpha(memo: dict, label: str, shape: Sequence[int], options: SupernetOptions) -> nn.Parameter:
    """α of ``shape`` for ``label``: made at the first request, the same parameter afterwards."""
    key = (OPTIONS_KEY, label)
    alpha = memo.get(key)
    if alpha is None:
        alpha = memo[key] = options.new_alpha(shape)
    if alpha.shape != torch.Size(shape):
        raise InputError(
            f"label {label!r} is shared by choices of different sizes, {tuple(alpha.shape)} and {tuple(shape)}; "
            "give them labels of their own"
        )
    return alpha
