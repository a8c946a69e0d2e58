"""What a candidate is made of, read from its modules: the structure that a fused supernet can share and fold."""

from collections.abc import Iterator
from dataclasses import dataclass

from nni.nas.hub.pytorch.nasnet import FactorizedReduce
from torch import nn

from nni_fairdarts.kernels.depthwise import Geometry
from nni_fairdarts.supernet.fused.stacked import StackedConv2d, StackedNorm

Conv = nn.Conv2d | StackedConv2d
Norm = nn.BatchNorm2d | StackedNorm


@dataclass(frozen=True, eq=False)
class Free:
    """A candidate without weights: the state itself (pooling None) or its pooling, and the batch norm behind that."""

    pooling: nn.Module | None
    norm: Norm | None


@dataclass(frozen=True, eq=False)
class Stage:
    """ReLU, convolutions, batch norm.

    ``filter``, a depthwise one or None, and ``pointwise`` where these are all; else ``pointwise`` is None and
    ``convolutions`` has them. ``step``: only every step-th pixel of the input counts; ``geometry`` is the filter's
    on those.
    """

    convolutions: tuple[Conv, ...]
    norm: Norm
    filter: Conv | None = None
    pointwise: Conv | None = None
    step: int = 1
    geometry: Geometry = Geometry()


@dataclass(frozen=True, eq=False)
class Reduce:
    """The hub's skip of stride 2: two pointwise convolutions of interleaved pixels, batch norm."""

    first: Conv
    second: Conv
    norm: Norm


@dataclass(frozen=True, eq=False)
class Chain:
    """One ``Stage`` after another, or one ``Reduce``."""

    stages: tuple[Stage | Reduce, ...]


def plan_of(candidate: nn.Module) -> Free | Chain | None:
    """The structure of a candidate, None where it has another one than these, or hooks: those would not be called."""
    if any(module._forward_hooks or module._forward_pre_hooks for module in candidate.modules()):
        return None
    if isinstance(candidate, FactorizedReduce):
        return _reduce(candidate)
    leaves = list(_leaves(candidate))
    if not leaves:
        return None
    if len(leaves) == 1 and type(leaves[0]) is nn.Identity:
        return Free(None, None)
    if type(leaves[0]) in (nn.MaxPool2d, nn.AvgPool2d):
        return _pooling(leaves)
    return _chain(leaves)


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    """The layers that ``module`` calls one after the other: itself, or those of nested sequences."""
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        for child in module:
            yield from _leaves(child)
    else:
        yield module


def _pooling(leaves: list[nn.Module]) -> Free | None:
    plain = not getattr(leaves[0], "return_indices", False)
    if not plain or len(leaves) > 2 or (len(leaves) == 2 and not (_is_norm(leaves[1]) and not leaves[1].affine)):
        return None
    return Free(leaves[0], leaves[1] if len(leaves) == 2 else None)


def _reduce(reduce: FactorizedReduce) -> Chain | None:
    known = type(reduce) is FactorizedReduce and _is_norm(reduce.bn)
    if not known or not all(_is_convolution(conv) for conv in (reduce.conv_1, reduce.conv_2)):
        return None
    return Chain((Reduce(reduce.conv_1, reduce.conv_2, reduce.bn),))


def _chain(leaves: list[nn.Module]) -> Chain | None:
    """[ReLU, convolution, …, batch norm] again and again, else None."""
    stages, inside = [], []
    for leaf in leaves:
        if not inside:
            if type(leaf) is not nn.ReLU or leaf.inplace:
                return None
            inside = [leaf]
        elif _is_convolution(leaf):
            inside.append(leaf)
        elif _is_norm(leaf) and len(inside) > 1:
            stages.append(_stage(tuple(inside[1:]), leaf, first=not stages))
            inside = []
        else:
            return None
    return Chain(tuple(stages)) if stages and not inside else None


def _stage(convolutions: tuple[Conv, ...], norm: Norm, first: bool) -> Stage:
    *before, last = convolutions
    if len(before) > 1 or not _is_pointwise(last) or not all(map(_is_depthwise, before)):
        return Stage(convolutions, norm)
    if not before:
        return Stage(convolutions, norm, None, last)
    geometry, step = Geometry(before[0].stride, before[0].padding, before[0].dilation), 1
    stride, padding, dilation = geometry
    if first and stride == dilation and stride[0] == stride[1] > 1 and geometry.centred(before[0].kernel_size):
        # It never sees the pixels between.
        step = stride[0]
        geometry = Geometry(padding=(padding[0] // step, padding[1] // step))
    return Stage(convolutions, norm, before[0], last, step, geometry)


def _is_convolution(module: nn.Module) -> bool:
    if type(module) is StackedConv2d:
        return True
    zeros = type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return zeros and module.bias is None


def _is_norm(module: nn.Module) -> bool:
    return type(module) in (nn.BatchNorm2d, StackedNorm) and module.track_running_stats


def _is_pointwise(conv: Conv) -> bool:
    return (conv.kernel_size, conv.stride, conv.padding, conv.groups) == ((1, 1), (1, 1), (0, 0), 1)


def _is_depthwise(conv: Conv) -> bool:
    return conv.groups == conv.in_channels == conv.out_channels
