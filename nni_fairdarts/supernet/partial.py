"""Partial channels: PC-DARTS, arXiv 1907.05737."""

from collections.abc import Callable
from functools import partial

import torch
from nni.mutable import Mutable
from nni.nas.nn.pytorch import Cell
from torch import Tensor
from torch.nn.functional import max_pool2d

from nni_fairdarts.errors import InputError


class PartialChannels:
    """Candidates see the first 1/K of a state's channels, the rest passes them by; then the channels are shuffled.

    ``part``: K, at least 2. The rest is halved by 2×2 max pooling where the candidates halve the image.
    """

    def __init__(self, part: int):
        self.part = part

    def seen(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C / K, H, W): what the candidates see."""
        seen = x[:, : x.shape[1] // self.part]
        last = x.is_contiguous(memory_format=torch.channels_last)
        return seen.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

    def joined(self, total: Tensor, states: list[Tensor], weights: Tensor) -> Tensor:
        """A node: Σ of the candidates (B, C / K, h, w), and Σ_j weight_j times the rest of state j; shuffled by K.

        ``weights``: (states,), of the edges from the ``states``.
        """
        passed = [weight * self._passed(x, total.shape[2:]) for x, weight in zip(states, weights.unbind(), strict=True)]
        image = torch.cat([total, sum(passed[1:], passed[0]).to(total.dtype)], 1)
        batch, channels, *size = image.shape
        return image.view(batch, self.part, channels // self.part, *size).transpose(1, 2).reshape(image.shape)

    def _passed(self, x: Tensor, size: torch.Size) -> Tensor:
        rest = x[:, x.shape[1] // self.part :]
        return rest if rest.shape[2:] == size else max_pool2d(rest, 2, 2, ceil_mode=True)


def narrowed(cell: Cell, part: int) -> dict[str, Callable]:
    """What makes a cell's candidates, for 1/K of its channels. Raises InputError where that is not known."""
    factories = cell.op_candidates_factory
    known = isinstance(factories, dict) and all(
        isinstance(factory, partial) and "channels" in factory.keywords for factory in factories.values()
    )
    if not known:
        raise InputError(
            f"partial_channels={part} narrows the operations of the cells of NNI's hub, but Cell {cell.label!r} makes "
            "its own otherwise; leave it at 1"
        )
    (channels,) = {factory.keywords["channels"] for factory in factories.values()}
    if isinstance(channels, Mutable):
        raise InputError(f"partial_channels={part} needs a width that is not a choice, got {channels}; fix the width")
    if channels % part:
        raise InputError(
            f"partial_channels={part} must divide the channels of every cell, but Cell {cell.label!r} has {channels}; "
            f"use another width, a multiple of {part}"
        )
    return {
        name: partial(factory.func, *factory.args, **{**factory.keywords, "channels": channels // part})
        for name, factory in factories.items()
    }
