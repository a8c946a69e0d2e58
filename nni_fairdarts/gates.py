"""Gates, and what is added to the loss for them: Fair DARTS, arXiv 1911.12126, and the relaxations of its kin."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


def softmax(alpha: Tensor) -> Tensor:
    """exp α_o / Σ_p exp α_p over the last dimension, in (0, 1): DARTS, arXiv 1806.09055, eq. 2."""
    return torch.softmax(alpha, -1)


@dataclass(frozen=True)
class Relaxation:
    """How the α of a choice become its gates.

    ``gates``: α (..., candidates) -> as many gates. ``shared``: the gates of a choice share 1, so that an edge of a
    cell has the operation "none" as a candidate too, its α before those of the others: what it takes, they lose.
    """

    gates: Callable[[Tensor], Tensor]
    shared: bool = False


RELAXATIONS = {"sigmoid": Relaxation(torch.sigmoid), "softmax": Relaxation(softmax, shared=True)}
"""Relaxation by name."""


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
