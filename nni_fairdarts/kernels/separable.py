"""Depthwise and pointwise convolution behind a batch norm and a ReLU, as one step that keeps little for its gradients.

d = depthwise(h) with h = x, or h = relu(batch norm of x); y_e = d_e · w_eᵀ for every edge e.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from nni_fairdarts.kernels.depthwise import Geometry, depthwise, input_gradient, weight_gradient
from nni_fairdarts.kernels.normalize import gradients, normalized, statistics
from nni_fairdarts.kernels.once import first_order
from nni_fairdarts.kernels.rows import by_edge, mixed, products, size_of, to_image, to_rows


class Front(NamedTuple):
    """What is in front of a pointwise convolution: tensors of the batch norm (if any) and of the filter (if any).

    x (B, E·I, H, W), or (B, I, H, W) where all edges have the same input and no batch norm; mean, rstd of its batch
    norm, or None without one; scale, shift of that, or None; weight (E·I, 1, h, w) of the filter, or None.
    """

    x: Tensor
    mean: Tensor | None
    rstd: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    weight: Tensor | None

    @classmethod
    def of(cls, x, scale, shift, weight, eps: float | None):
        """With the statistics of ``x``; ``eps`` None stands for no batch norm."""
        mean, rstd = (None, None) if eps is None else statistics(to_rows(x), eps)
        return cls(x, mean, rstd, scale, shift, weight)

    def activated(self) -> Tensor:
        """h; with a filter it is repeated for every edge that has the same input."""
        if self.mean is None:
            times = 1 if self.weight is None else self.weight.shape[0] // self.x.shape[1]
            return self.x if times == 1 else torch.cat([self.x] * times, 1)
        rows = normalized(to_rows(self.x), self.mean, self.rstd, self.scale, self.shift)
        return to_image(rows.relu_(), size_of(self.x))

    def filtered(self, geometry: Geometry) -> Tensor:
        """d, in channels_last order."""
        h = self.activated()
        return h if self.weight is None else depthwise(h, self.weight, geometry)

    def backward(self, grad: Tensor, geometry: Geometry, needs_weight: bool):
        """(∂L/∂x, ∂L/∂scale, ∂L/∂shift, ∂L/∂weight) from ∂L/∂d."""
        h = self.activated()
        dweight = weight_gradient(h, grad, self.weight, geometry) if needs_weight else None
        if self.weight is not None:
            grad = input_gradient(grad, self.weight, h, geometry)
        if self.mean is None:
            times = grad.shape[1] // self.x.shape[1]
            return grad if times == 1 else sum(grad.chunk(times, 1)), None, None, dweight
        delta = torch.ops.aten.threshold_backward(to_rows(grad), to_rows(h), 0)
        dx, dscale, dshift = gradients(delta, to_rows(self.x), self.mean, self.rstd, self.scale)
        if self.scale is None:
            dscale = dshift = None
        return to_image(dx, size_of(self.x)), dscale, dshift, dweight

    def variance(self, eps: float) -> Tensor:
        """The biased variance of the batch norm's input."""
        return self.rstd.pow(-2) - eps


class Separable(Function):
    """y (B, E·O, h, w) from x; see the module. Also returns mean and variance of x for its batch norm (or None).

    ``pointwise`` is (E, O, I). With ``keep`` False d is computed again for the gradient of the weights.
    """

    @staticmethod
    def forward(ctx, x, scale, shift, weight, pointwise, eps, geometry, keep):
        front = Front.of(x, scale, shift, weight, eps)
        d = front.filtered(geometry)
        kept = keep and ctx.needs_input_grad[4] and weight is not None
        ctx.save_for_backward(*front, pointwise, d if kept else None)
        ctx.geometry = geometry
        y = to_image(mixed(by_edge(to_rows(d), len(pointwise)), pointwise), size_of(d))
        if eps is None:
            return y, None, None
        variance = front.variance(eps)
        ctx.mark_non_differentiable(front.mean, variance)
        return y, front.mean, variance

    @staticmethod
    @first_order
    def backward(ctx, grad, *_):
        *front, pointwise, d = ctx.saved_tensors
        front, edges = Front(*front), len(pointwise)
        delta = by_edge(to_rows(grad), edges)
        dpointwise = None
        if ctx.needs_input_grad[4]:
            d = front.filtered(ctx.geometry) if d is None else d
            dpointwise = products(delta, by_edge(to_rows(d), edges))
        dd = to_image(mixed(delta, pointwise.transpose(1, 2)), size_of(grad))
        dx, dscale, dshift, dweight = front.backward(dd, ctx.geometry, ctx.needs_input_grad[3])
        return dx, dscale, dshift, dweight, dpointwise, None, None, None
