"""Gates and the zero-one loss: Fair DARTS, arXiv 1911.12126."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

RELAXATIONS: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid}
"""Relaxation by name: architecture parameters α (..., operations) -> gates of the same shape."""


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
