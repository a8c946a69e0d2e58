"""Candidates of a supernet: what their batch norms may rescale, and which put out nothing but zeros."""

from collections.abc import Iterable

from nni.mutable import Mutable
from nni.nas.hub.pytorch import nasbench201, nasnet
from nni.nas.hub.pytorch.utils.nn import DropPath
from nni.nas.nn.pytorch import MutableBatchNorm2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nni_fairdarts.errors import InputError

POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)

CANDIDATE_NORMS = ("paper", "unscaled", "space")
"""paper: no learnable scales inside cells and choices, a batch norm after each pooling; unscaled: the first of these
alone, as DrNAS has it; space: as it was built."""


def drop_scales(module: nn.Module) -> None:
    """Take the learnable scale and shift from every batch norm inside ``module``, in place.

    With them the weights could undo the gates, and pooling would have nothing alike (Fair DARTS' published code).
    """
    for norm in module.modules():
        if isinstance(norm, _BatchNorm) and norm.affine:
            norm.affine = False
            norm.weight = norm.bias = None


def out_channels(module: nn.Module):
    """Channels that ``module`` puts out, read from its last convolution or batch norm; None where it has neither.

    A number or, where the space chooses it, NNI's expression.
    """
    channels = None
    for layer in module.modules():
        name = "num_features" if isinstance(layer, _BatchNorm) else "out_channels"
        if isinstance(layer, _BatchNorm | nn.Conv2d):
            channels = getattr(layer, "trace_kwargs", {}).get(name, getattr(layer, name))
    return channels


def is_pooling(module: nn.Module) -> bool:
    """Whether a candidate is a pooling of maps and nothing else (alone, or with a drop path or dropout)."""
    leaves = [m for m in module.modules() if not any(True for _ in m.children())]
    pools = [isinstance(leaf, POOLING) for leaf in leaves]
    return any(pools) and all(
        pool or isinstance(leaf, DropPath | nn.Identity | nn.Dropout) for leaf, pool in zip(leaves, pools, strict=True)
    )


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
    batch_norm = MutableBatchNorm2d if isinstance(channels, Mutable) else nn.BatchNorm2d
    return {
        name: nn.Sequential(op, batch_norm(channels, affine=False)) if is_pooling(op) else op
        for name, op in candidates.items()
    }


def is_zero(name, candidate: nn.Module) -> bool:
    """Whether a candidate puts out zeros: NNI's ``Zero``, or one named "none" without weights."""
    if isinstance(candidate, nasnet.Zero | nasbench201.Zero):
        return True
    return name == "none" and not any(True for _ in candidate.parameters())
