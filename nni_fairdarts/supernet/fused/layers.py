"""Weights and batch norms of stacked layers, as the kernels take them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from nni_fairdarts.supernet.fused.plan import Conv, Norm, Reduce


def pointwise(conv: Conv, edges: int) -> Tensor:
    """The weights of a 1×1 convolution, (E, O, I)."""
    return conv.weight.view(edges, -1, conv.weight.shape[1])


def both(stage: Reduce, edges: int) -> Tensor:
    """The two convolutions of the hub's skip as one of the interleaved pixels, (E, O, 2·I)."""
    first, second = pointwise(stage.first, edges), pointwise(stage.second, edges)
    return torch.cat([F.pad(first, (0, second.shape[2])), F.pad(second, (first.shape[2], 0))], 1)


def convolved(conv: Conv, x: Tensor, edges: int) -> Tensor:
    """A convolution on every edge: (B, E·I, H, W), or (B, I, H, W) for one input to all, -> (B, E·O, h, w)."""
    groups = conv.groups * edges
    if x.shape[1] == conv.in_channels:
        if conv.groups == 1:
            groups = 1
        elif edges > 1:
            x = torch.cat([x] * edges, 1)
    return F.conv2d(x, conv.weight, None, conv.stride, conv.padding, conv.dilation, groups)


def scaled(norm: Norm, gates: Tensor) -> tuple[Tensor, Tensor | None]:
    """Scale and shift of a batch norm with the gates (E, 1) in them, (E, C) each; the shift None where it has none."""
    channels, gates = norm.num_features // len(gates), gates.to(norm.running_mean.dtype)
    if norm.weight is None:
        # In one piece: torch's batch norm reads past the end of an expanded scale in its backward pass on a CPU.
        return gates.expand(-1, channels).contiguous(), None
    return gates * norm.weight.view(-1, channels), gates * norm.bias.view(-1, channels)


def average_factor(norm: Norm) -> Tensor:
    """1 / number of batches so far, (E·C,): the newest batch's weight in the plain average of all."""
    counts = norm.num_batches_tracked.reshape(-1)
    return (1 / counts.to(norm.running_mean.dtype)).repeat_interleave(norm.num_features // len(counts))


@torch.no_grad()
def update(norm: Norm, mean: Tensor, variance: Tensor, count: int) -> None:
    """Let a batch norm's statistics follow a batch's mean and biased variance over ``count`` pixels, as torch's do."""
    if count == 1:
        raise ValueError(
            "expected more than 1 value per channel when training: batch norm needs more than one image or pixel"
        )
    follow(norm, mean, variance * (count / (count - 1)))


@torch.no_grad()
def follow(norm: Norm, mean: Tensor, variance: Tensor) -> None:
    """Let a batch norm's statistics follow a batch's mean and unbiased variance."""
    norm.num_batches_tracked.add_(1)
    factor = average_factor(norm) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean, factor)
    norm.running_var.lerp_(variance, factor)


def normalized(norm: Norm, x: Tensor, scale: Tensor | None, shift: Tensor | None, first: bool = True) -> Tensor:
    """A batch norm by torch's own operation, in training or evaluation, with other scales and shifts (E·C,).

    Where it is not the ``first`` time that it sees a batch, its statistics stay.
    """
    if not norm.training:
        return F.batch_norm(x, norm.running_mean, norm.running_var, scale, shift, False, 0.0, norm.eps)
    # With this momentum they hold the batch's own afterwards, the variance as the unbiased one.
    mean, variance = torch.zeros_like(norm.running_mean), torch.zeros_like(norm.running_var)
    z = F.batch_norm(x, mean, variance, scale, shift, True, 1.0, norm.eps)
    if first:
        follow(norm, mean, variance)
    return z
