"""Functions that can be differentiated once, and say so when a second derivative is asked for."""

import functools

import torch
from torch import Tensor
from torch.autograd import Function


class _Last(Function):
    """The identity of a gradient, whose own gradient is refused in everything that the gradient depends on."""

    @staticmethod
    def forward(ctx, gradient: Tensor, *depends_on: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx, *_):
        raise NotImplementedError(
            "a fused supernet has first derivatives only, but the gradient of a gradient is asked for "
            "(create_graph=True); compute the loss inside twice_differentiable() of nni_fairdarts.supernet.fused, or "
            "use the plain one: FairDARTS(fused=False)"
        )


def first_order(backward):
    """For the backward pass of a ``Function``: its results may be used, but to differentiate them raises.

    torch's ``once_differentiable`` does so only where the incoming gradient has a graph: that of a plain sum has none,
    and all that the results depend on would be taken for constant.
    """

    @functools.wraps(backward)
    def checked(ctx, *gradients):
        with torch.no_grad():
            results = backward(ctx, *gradients)
        if not torch.is_grad_enabled():
            return results
        # ``torch.autograd.grad`` goes only where its inputs are: each of these may lead there.
        saved = [tensor for tensor in (*ctx.saved_tensors, *gradients) if tensor is not None and tensor.requires_grad]
        saved.append(torch.ones((), requires_grad=True))
        return tuple(None if result is None else _Last.apply(result, *saved) for result in results)

    return checked
