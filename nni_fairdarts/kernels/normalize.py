"""Batch norm over the rows of a matrix (P, K), and its backward pass from a few sums.

z = s · (y - m) + b with m = mean(y), v = mean((y - m)²), r = 1/√(v + ε), s = scale · r, and b the shift.
With δ = ∂L/∂z and c = y - m: ∂L/∂shift = Σδ, ∂L/∂scale = r · Σδc and
∂L/∂y = s · (δ - mean(δ) - c · r² · mean(δc)). Ioffe and Szegedy, arXiv 1502.03167.
"""

import torch
from torch import Tensor
from torch.autograd import Function

from nni_fairdarts.kernels.once import first_order


def statistics(y: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(m, r) of every column of (P, K), each (K,)."""
    # torch's kernel for a batch norm, which is fast for images; var_mean is ten times slower on a CPU.
    image = y.view(1, 1, *y.shape).permute(0, 3, 1, 2)
    if y.is_cuda:
        return torch.batch_norm_stats(image, eps)
    _, mean, rstd = torch.native_batch_norm(image, None, None, None, None, True, 0.0, eps)
    return mean, rstd


def normalized(y: Tensor, mean: Tensor, rstd: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """z of every row of (P, K); without scale and shift they are 1 and 0."""
    s = rstd if scale is None else scale * rstd
    b = -mean * s if shift is None else shift - mean * s
    return torch.addcmul(b, y, s)


def gradients(delta: Tensor, y: Tensor, mean: Tensor, rstd: Tensor, scale: Tensor | None):
    """(∂L/∂y, ∂L/∂scale, ∂L/∂shift) from δ = ∂L/∂z; ``scale`` None stands for 1."""
    count = y.shape[0]
    centred = y - mean
    sums, moments = delta.sum(0), (delta * centred).sum(0)
    s = rstd if scale is None else scale * rstd
    dy = torch.addcmul(-s * sums / count, delta, s)
    dy.addcmul_(centred, -s * rstd.square() * moments / count)
    return dy, rstd * moments, sums


class Normalize(Function):
    """z of rows (P, K) with their own statistics -> (z, m, v). Scale and shift (K,) or None. v is the biased one."""

    @staticmethod
    def forward(ctx, y, scale, shift, eps):
        mean, rstd = statistics(y, eps)
        ctx.save_for_backward(y, mean, rstd, scale)
        variance = rstd.pow(-2) - eps
        ctx.mark_non_differentiable(mean, variance)
        return normalized(y, mean, rstd, scale, shift), mean, variance

    @staticmethod
    @first_order
    def backward(ctx, delta, *_):
        y, mean, rstd, scale = ctx.saved_tensors
        dy, dscale, dshift = gradients(delta.contiguous(), y, mean, rstd, scale)
        return dy, dscale if ctx.needs_input_grad[1] else None, dshift if ctx.needs_input_grad[2] else None, None
