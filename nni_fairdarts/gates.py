"""Gates, and what is added to the loss for them: Fair DARTS, arXiv 1911.12126, and the relaxations of its kin."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


def softmax(alpha: Tensor) -> Tensor:
    """exp α_o / Σ_p exp α_p over the last dimension, in (0, 1): DARTS, arXiv 1806.09055, eq. 2."""
    return torch.softmax(alpha, -1)


def sparsemax(alpha: Tensor) -> Tensor:
    """The point of the simplex nearest to α over the last dimension: shares of 1, some exactly 0.

    max(α_o - τ, 0) with τ such that they sum to 1. Martins and Astudillo, arXiv 1602.02068, algorithm 1.
    """
    ordered = alpha.sort(-1, descending=True).values
    places = torch.arange(1, alpha.shape[-1] + 1, dtype=alpha.dtype, device=alpha.device)
    above = ordered.cumsum(-1) - 1
    support = (places * ordered > above).sum(-1, keepdim=True)  # at least 1
    return (alpha - above.gather(-1, support - 1) / support).clamp_min(0)


def concentration(alpha: Tensor) -> Tensor:
    """elu(α) + 1, in (0, ∞), 1 at α = 0: of a Dirichlet distribution. DrNAS, arXiv 2006.10355."""
    return torch.nn.functional.elu(alpha) + 1


def dirichlet_mean(alpha: Tensor) -> Tensor:
    """β_o / Σ_p β_p over the last dimension, the mean of Dirichlet(β), β = elu(α) + 1."""
    beta = concentration(alpha)
    return beta / beta.sum(-1, keepdim=True)


def dirichlet_draw(alpha: Tensor) -> Tensor:
    """A draw from Dirichlet(elu(α) + 1) over the last dimension, with gradients for α. DrNAS, arXiv 2006.10355."""
    return torch.distributions.Dirichlet(concentration(alpha).clamp_min(1e-6)).rsample()


def dirichlet_divergence(alpha: Tensor) -> Tensor:
    """Σ over rows of KL(Dirichlet(elu(α) + 1) || Dirichlet(1)), at least 0, 0 at α = 0. DrNAS, arXiv 2006.10355."""
    drawn = torch.distributions.Dirichlet(concentration(alpha).clamp_min(1e-6))
    return torch.distributions.kl_divergence(drawn, torch.distributions.Dirichlet(torch.ones_like(alpha))).sum()


@dataclass(frozen=True)
class Relaxation:
    """How the α of a choice become its gates.

    ``gates``: α (..., candidates) -> as many gates. ``shared``: the gates of a choice share 1. ``none``: an edge of a
    cell has the operation "none" as a candidate too, its α before those of the others: what it takes, they lose.
    ``draw``: as ``gates``, but drawn anew in each forward pass of a training; ``gates`` are the means then.
    """

    gates: Callable[[Tensor], Tensor]
    shared: bool = False
    none: bool = False
    draw: Callable[[Tensor], Tensor] | None = None


RELAXATIONS = {
    "sigmoid": Relaxation(torch.sigmoid),
    "softmax": Relaxation(softmax, shared=True, none=True),
    "sparsemax": Relaxation(sparsemax, shared=True, none=True),
    "dirichlet": Relaxation(dirichlet_mean, shared=True, draw=dirichlet_draw),
}
"""Relaxation by name."""


def of_some(gates: Callable[[Tensor], Tensor], alpha: Tensor, left: Tensor | None) -> Tensor:
    """Gates (edges, candidates) of those α alone whose columns are ``left`` (edges, n); the others are 0.

    ``left`` None: of all.
    """
    if left is None:
        return gates(alpha)
    return torch.zeros_like(alpha).scatter(-1, left, gates(alpha.gather(-1, left)))


def edge_shares(beta: Tensor, sizes: Iterable[int]) -> Tensor:
    """Weights (edges,) of a cell's edges: softmax(β) over the edges into each node. PC-DARTS, arXiv 1907.05737, eq. 4.

    ``sizes``: how many edges lead into each node, 2, 3, 4, … in a cell of two inputs.
    """
    return torch.cat([torch.softmax(part, 0) for part in beta.split(list(sizes))])


def one_of_many(alpha: Tensor) -> Tensor:
    """Weights (values,) of a choice that keeps exactly one of its values, such as a depth, a width or a kernel.

    p = softmax(α), in (0, 1), summing to 1; equal at α = 0. Fair DARTS takes the competition out of the softmax
    because several operations may stay on. Two depths or widths may not: with independent gates all could end at 1,
    and the network that is exported would be none that was trained, or all at 0, and nothing would pass. So here the
    values compete, and the weights are those of an expectation. Ours; the paper has no such choices.

    The zero-one loss sees these weights beside the gates, once a label, and not the sums and products that layers make
    of them. Of weights that sum to 1 its L2 form is a constant minus their mean square: it does not prefer any value
    at equal weights, is least where one weight is 1, and so closes the same gap to the network that is exported.
    """
    return torch.softmax(alpha, 0)


def zero_one_l2(gates: Tensor) -> Tensor:
    """Mean of -(g - 1/2)^2 over all gates, in [-1/4, 0]. Fair DARTS, arXiv 1911.12126, eq. 7: the method."""
    return -(gates - 0.5).square().mean()


def zero_one_l1(gates: Tensor) -> Tensor:
    """Mean of -|g - 1/2| over all gates, in [-1/2, 0]. Fair DARTS, arXiv 1911.12126: its negative example."""
    return -(gates - 0.5).abs().mean()


def no_zero_one(gates: Tensor) -> Tensor:
    """Zero, for the ablation without the loss."""
    return gates.new_zeros(())


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {"l2": zero_one_l2, "l1": zero_one_l1, "none": no_zero_one}
"""Zero-one loss by name."""


def flat(gates: Iterable[Tensor]) -> Tensor:
    """All gates of a supernet in one vector (N,): the zero-one loss is a mean over all cell kinds together."""
    return torch.cat([g.flatten() for g in gates])
