"""The end of a candidate: pointwise convolution, batch norm and gate, of all edges that leave a state, as one product.

y = w · d is never made. Over the pixels d has the mean m and the covariance S, so y has the mean w·m and the variances
v = diag(w S wᵀ), and the gated batch norm is itself a pointwise convolution of d:

    g · (y - w·m) / √(v + ε) + b = a · d + c,   a = diag(s) · w,   s = g / √(v + ε),   c = b - a·m,

whose output goes right into the sum over the candidates. The gate's gradient comes from sums of products that the
weights' gradient needs anyway, not from a kept output. With M = Σ_p δ_p d_pᵀ for δ = ∂L/∂(a·d) and γ = ∂L/∂c:

    ∂L/∂a = M - γ mᵀ,   ∂L/∂s = rowsum(∂L/∂a ∘ w),   ∂L/∂g = ∂L/∂s / √(v + ε),   ∂L/∂b = γ,
    ∂L/∂v = -½ g (v + ε)^(-3/2) ∂L/∂s,   ∂L/∂w = diag(s) ∂L/∂a + 2 diag(∂L/∂v) w S,
    ∂L/∂d = aᵀ δ + Q (d - m) - aᵀγ / P,   Q = (2 / P) wᵀ diag(∂L/∂v) w.
"""

import torch
from torch import Tensor
from torch.autograd import Function

from nni_fairdarts.kernels.once import first_order
from nni_fairdarts.kernels.rows import by_edge, products, size_of, to_image, to_rows
from nni_fairdarts.kernels.separable import Front


def moments(d: Tensor, pointwise: Tensor, exact: bool) -> tuple[Tensor, Tensor, Tensor]:
    """m (E, 1, I), S (E, I, I) and v (E, O) of d (E, P, I) and w (E, O, I); d and what follows may be (1, ...).

    ``exact``: with sums in float64, for S and v are small differences where means are large or channels alike.
    """
    wide, count = d.double() if exact else d, d.shape[1]
    mean = wide.sum(1, keepdim=True) / count
    spread = products(wide, wide) / count - mean.transpose(1, 2) * mean
    w = pointwise.to(spread.dtype)
    variance = ((w @ spread) * w).sum(2).clamp_(min=0)
    return mean.to(d.dtype), spread.to(d.dtype), variance.to(d.dtype)


class Gated(Function):
    """(total + a·d, c) from ``total`` (E, P, O), which is changed in place, or None for 0; see the module. c is (E, O).

    x, scale, shift, weight, front_eps, geometry: as of ``Separable``; x is (B, I, H, W) where all edges read the same.
    ``pointwise`` (E, O, I); ``gate``, ``bias`` (E, O): scale and shift of the batch norm, gate included; bias may be
    None. With ``keep`` False d is computed again in the backward pass.
    Also returns, without gradient, mean and variance (E, O) of y, and of x for its batch norm (or None), and (B, h, w).
    """

    @staticmethod
    def forward(ctx, total, x, scale, shift, weight, pointwise, gate, bias, front_eps, eps, geometry, keep):
        front = Front.of(x, scale, shift, weight, front_eps)
        d = front.filtered(geometry)
        edges = _edges(d, pointwise)
        # Behind a filter that pads, images of the largest mean vary at their borders.
        coarse = d.is_cuda and torch.backends.cuda.matmul.allow_tf32
        exact = coarse or weight is None or 0 in geometry.padding
        mean, spread, variance = moments(edges[:1] if _shared(d, pointwise) else edges, pointwise, exact)
        rstd = (variance + eps).rsqrt()
        a = (gate * rstd).unsqueeze(2) * pointwise
        if total is None:
            total = torch.bmm(edges, a.transpose(1, 2))
        else:
            ctx.mark_dirty(total.baddbmm_(edges, a.transpose(1, 2)))
        c = -(a @ mean.transpose(1, 2)).squeeze(2)
        c = c if bias is None else bias + c
        ctx.save_for_backward(*front, pointwise, gate, mean, spread, rstd, d if keep and d is not x else None)
        ctx.geometry = geometry
        y_mean = (pointwise @ mean.transpose(1, 2)).squeeze(2)
        seen = (None, None) if front_eps is None else (front.mean, front.variance(front_eps))
        ctx.mark_non_differentiable(y_mean, variance, *(m for m in seen if m is not None))
        return total, c, y_mean, variance, *seen, size_of(d)

    @staticmethod
    @first_order
    def backward(ctx, delta, gamma, *_):
        *front, pointwise, gate, mean, spread, rstd, d = ctx.saved_tensors
        front = Front(*front)
        d = front.filtered(ctx.geometry) if d is None else d
        edges, count = _edges(d, pointwise), delta.shape[1]
        s = gate * rstd
        a = s.unsqueeze(2) * pointwise
        da = products(delta, edges) - gamma.unsqueeze(2) * mean
        ds = (da * pointwise).sum(2)
        dv = -0.5 * gate * rstd.pow(3) * ds
        dpointwise = None
        if ctx.needs_input_grad[5]:
            dpointwise = s.unsqueeze(2) * da + 2 * dv.unsqueeze(2) * (pointwise @ spread)
        dx = dscale = dshift = dweight = None
        if any(ctx.needs_input_grad[1:5]):
            q = pointwise.transpose(1, 2) @ (dv.unsqueeze(2) * pointwise) * (2 / count)
            constant = -(mean @ q) - gamma.unsqueeze(1) @ a / count  # (E, 1, I)
            dd = _to_input(delta, a, edges, q, constant, shared=_shared(d, pointwise))
            dx, dscale, dshift, dweight = front.backward(
                to_image(dd, size_of(d)), ctx.geometry, ctx.needs_input_grad[4]
            )
        dtotal = delta if ctx.needs_input_grad[0] else None
        dgate, dbias = (ds * rstd if ctx.needs_input_grad[6] else None), (gamma if ctx.needs_input_grad[7] else None)
        return dtotal, dx, dscale, dshift, dweight, dpointwise, dgate, dbias, None, None, None, None


def _shared(d: Tensor, pointwise: Tensor) -> bool:
    return len(pointwise) > 1 and d.shape[1] == pointwise.shape[2]


def _edges(d: Tensor, pointwise: Tensor) -> Tensor:
    """d as (E, P, I); where all edges read the same it is repeated without a copy."""
    if _shared(d, pointwise):
        return to_rows(d).expand(len(pointwise), -1, -1)
    return by_edge(to_rows(d), len(pointwise))


def _to_input(delta: Tensor, a: Tensor, d: Tensor, q: Tensor, constant: Tensor, shared: bool) -> Tensor:
    """∂L/∂d in rows: δ·a + d·q + constant, in one buffer."""
    edges, pixels, width = d.shape
    if shared:
        return torch.baddbmm(constant, delta, a).sum(0).addmm_(d[0], q.sum(0))
    out = d.new_empty(pixels, edges, width)
    by_edge = out.transpose(0, 1)
    by_edge.copy_(constant.expand_as(by_edge))
    by_edge.baddbmm_(delta, a).baddbmm_(d, q)
    return out.view(pixels, -1)
