"""The parameter-free candidates of all edges that leave a state: a matrix product of gates and images."""

import torch
from torch import Tensor
from torch.autograd import Function

from nni_fairdarts.kernels.once import first_order


class Weighted(Function):
    """total_e = Σ_k g_ek · z_k: gates (E, K), images in rows (K, P, C) -> (E, P, C)."""

    @staticmethod
    def forward(ctx, gates: Tensor, images: Tensor) -> Tensor:
        ctx.save_for_backward(gates, images if ctx.needs_input_grad[0] else None)
        total = images.new_empty(len(gates), *images.shape[1:])
        torch.mm(gates, images.flatten(1), out=total.view(len(gates), -1))
        return total

    @staticmethod
    @first_order
    def backward(ctx, delta: Tensor):
        gates, images = ctx.saved_tensors
        dgates = delta.flatten(1) @ images.flatten(1).T if ctx.needs_input_grad[0] else None
        dimages = None
        if ctx.needs_input_grad[1]:
            dimages = (gates.T @ delta.flatten(1)).unflatten(1, delta.shape[1:])
        return dgates, dimages
