"""Batch norms of a supernet: what the candidates of a choice may rescale."""

from collections.abc import Iterable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nni_fairdarts.errors import InputError

POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)

CANDIDATE_NORMS = ("paper", "space")
"""paper: no learnable scales inside cells and choices, a batch norm after each pooling; space: as it was built."""


def drop_scales(module: nn.Module) -> None:
    """Take the learnable scale and shift from every batch norm inside ``module``, in place.

    With them the weights could undo the gates, and pooling would have nothing alike (Fair DARTS' published code).
    """
    for norm in module.modules():
        if isinstance(norm, _BatchNorm) and norm.affine:
            norm.affine = False
            norm.weight = norm.bias = None


def out_channels(module: nn.Module) -> int | None:
    """Channels that ``module`` puts out, read from its last convolution or batch norm; None where it has neither."""
    channels = None
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            channels = layer.num_features
        elif isinstance(layer, nn.Conv2d):
            channels = layer.out_channels
    return channels


def is_pooling(module: nn.Module) -> bool:
    """Whether a candidate pools and learns nothing (a pooling, alone or with a drop path behind it)."""
    return any(isinstance(m, POOLING) for m in module.modules()) and not any(True for _ in module.parameters())


def normalize_pooling(candidates: dict[str, nn.Module], kin: Iterable[nn.Module], where: str) -> dict[str, nn.Module]:
    """Put a batch norm without scales behind each pooling among ``candidates``.

    Its channels are those of the other candidates, else of ``kin`` (modules with the same number of channels).
    Raises InputError where neither has a convolution or batch norm to read them from.
    """
    if not any(is_pooling(op) for op in candidates.values()):
        return candidates
    channels = next((c for c in map(out_channels, (*candidates.values(), *kin)) if c is not None), None)
    if channels is None:
        raise InputError(
            f"{where}: candidate_norm='paper' puts a batch norm behind each pooling, but no other candidate has a "
            "convolution to read the number of channels from; use FairDARTS(candidate_norm='space')"
        )
    return {
        name: nn.Sequential(op, nn.BatchNorm2d(channels, affine=False)) if is_pooling(op) else op
        for name, op in candidates.items()
    }
