"""The same candidate on several edges as one module: every weight and statistic is those of the edges in a stack."""

import copy

import torch
from torch import Tensor, nn


class StackedConv2d(nn.Module):
    """The weights of E convolutions of one kind, (E·O, I / groups, h, w); the other attributes are those of one."""

    def __init__(self, convolutions: list[nn.Conv2d]):
        super().__init__()
        for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
            setattr(self, name, getattr(convolutions[0], name))
        self.stacked = len(convolutions)
        self.weight = _stacked([convolution.weight for convolution in convolutions])

    def extra_repr(self) -> str:
        return f"{self.stacked} × ({self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size})"


class StackedNorm(nn.BatchNorm2d):
    """E batch norms of one kind: scales, shifts and statistics are (E·C,), the counts of batches (E,)."""

    def __init__(self, norms: list[nn.BatchNorm2d]):
        one = norms[0]
        super().__init__(len(norms) * one.num_features, one.eps, one.momentum, one.affine)
        self.stacked = len(norms)
        if one.affine:
            self.weight, self.bias = (_stacked([getattr(n, name) for n in norms]) for name in ("weight", "bias"))
        for name in ("running_mean", "running_var"):
            setattr(self, name, torch.cat([getattr(norm, name) for norm in norms]))
        self.num_batches_tracked = torch.stack([norm.num_batches_tracked for norm in norms])
        self.train(one.training)


def _stacked(parameters: list[nn.Parameter]) -> nn.Parameter:
    return nn.Parameter(torch.cat([p.detach() for p in parameters]), parameters[0].requires_grad)


def stacked(candidates: list[nn.Module]) -> nn.Module:
    """One module in the place of ``candidates``, which are alike: their tree, with stacked layers for leaves."""
    one = candidates[0]
    if isinstance(one, nn.Conv2d):
        return StackedConv2d(candidates)
    if isinstance(one, nn.BatchNorm2d):
        return StackedNorm(candidates)
    children = {name: stacked([c.get_submodule(name) for c in candidates]) for name, _ in one.named_children()}
    memo = {id(child): children[name] for name, child in one.named_children()}
    return copy.deepcopy(one, memo)


def stack(tensors: list[Tensor], like: Tensor) -> Tensor:
    """The edges' tensors as the layer here has them, like ``like``: one after the other, numbers as a vector."""
    if not tensors[0].dim():
        return torch.stack(tensors) if like.dim() else tensors[0]
    return torch.cat(tensors)


def parts(tensor: Tensor, one: Tensor, edges: int) -> list[Tensor]:
    """What ``stack`` was made of, each like ``one``."""
    if not one.dim():
        return list(tensor.unbind()) if tensor.dim() else [tensor]
    return list(tensor.chunk(edges))
