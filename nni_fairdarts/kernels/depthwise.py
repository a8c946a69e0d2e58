"""Depthwise convolution, (B, K, H, W) by (K, 1, h, w), and its gradients.

The gradients are those of ``torch.nn.grad``, written so that a CPU's library has fast code for them: at stride 1 the
input's gradient is a forward convolution with the kernel turned round; that of a dilated kernel is the sum over the
interleaved images that it sees one at a time; and a kernel's columns are taken three at a time, the most that oneDNN's
depthwise code for channels_last knows in this pass. Measured in ``benchmarks/``.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

COLUMNS = 3
"""Columns of a kernel whose gradient oneDNN computes by its depthwise code."""


class Geometry(NamedTuple):
    """Stride, padding and dilation of a convolution, (vertical, horizontal) each."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def centred(self, kernel: Sequence[int]) -> bool:
        """Whether a kernel of this size lies with its centre on a pixel, and so that all it sees is inside or 0."""
        return all(k % 2 and 2 * p == d * (k - 1) for p, d, k in zip(self.padding, self.dilation, kernel, strict=True))


def depthwise(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Every channel of ``x`` filtered by its own kernel."""
    return F.conv2d(x, weight, None, *geometry, groups=x.shape[1])


def input_gradient(grad: Tensor, weight: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
    """∂L/∂x of ``depthwise`` from ∂L/∂output; of ``x`` only the shape is read."""
    stride, padding, dilation = geometry
    reach = [d * (k - 1) - p for d, k, p in zip(dilation, weight.shape[2:], padding, strict=True)]
    if stride != (1, 1) or min(reach) < 0 or grad.is_cuda:
        return conv2d_input(x.shape, weight, grad, *geometry, groups=x.shape[1])
    return F.conv2d(grad, weight.flip(2, 3), None, 1, reach, dilation, groups=x.shape[1])


def weight_gradient(x: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """∂L/∂weight of ``depthwise`` from ∂L/∂output; of ``weight`` only the shape is read."""
    stride, padding, dilation = geometry
    if x.is_cuda or x.dtype != torch.float32:
        return conv2d_weight(x, weight.shape, grad, *geometry, groups=x.shape[1])
    if stride == (1, 1) and dilation[0] == dilation[1] > 1 and geometry.centred(weight.shape[2:]):
        x, grad = interleaved(x, dilation[0]), interleaved(grad, dilation[0])
        padding, dilation = (padding[0] // dilation[0], padding[1] // dilation[1]), (1, 1)
    if dilation == (1, 1) and weight.shape[3] > COLUMNS and x.shape[3] + padding[1] >= weight.shape[3]:
        return _by_columns(x, grad, weight, stride, padding)
    return conv2d_weight(x, weight.shape, grad, stride, padding, dilation, groups=x.shape[1])


def interleaved(image: Tensor, step: int) -> Tensor:
    """The step² images of every step-th pixel, one after the other in the batch; zeros fill up odd ones."""
    image = F.pad(image, (0, -image.shape[3] % step, 0, -image.shape[2] % step))
    images = [image[:, :, top::step, left::step] for top in range(step) for left in range(step)]
    return torch.cat(images).contiguous(memory_format=torch.channels_last)


def _by_columns(x: Tensor, grad: Tensor, weight: Tensor, stride, padding) -> Tensor:
    """The gradient, ``COLUMNS`` columns of the kernel at a time: the input is shifted to where these begin."""
    channels, _, height, width = weight.shape
    result = torch.empty_like(weight)
    for column in sorted({*range(0, width - COLUMNS, COLUMNS), width - COLUMNS}):
        left = padding[1] - column
        needed = (grad.shape[3] - 1) * stride[1] + COLUMNS
        shifted = F.pad(x, (left, needed - x.shape[3] - left)).contiguous(memory_format=torch.channels_last)
        shape = (channels, 1, height, COLUMNS)
        part = conv2d_weight(shifted, shape, grad, stride, (padding[0], 0), 1, groups=channels)
        result[..., column : column + COLUMNS] = part
    return result
