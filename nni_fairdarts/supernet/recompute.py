"""Memory for time: what a candidate computes inside is computed again in the backward pass instead of being kept."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputed(module: nn.Module, *args, **kwargs):
    """``module(*args, **kwargs)``, computed a second time in the backward pass; only its inputs are kept until then.

    Outputs, gradients, buffers and the random numbers drawn afterwards are, bit for bit, those of a plain call: the
    second computation starts from the random state and from copies of the buffers that the first one started from, so
    a batch norm sees a batch once. Without gradients, and for an ``nn.Identity``, it is the plain call.
    The module must not change its arguments in place; its forward hooks run twice.
    Chen et al., arXiv 1604.06174, by ``torch.utils.checkpoint``.
    """
    if not torch.is_grad_enabled() or isinstance(module, nn.Identity):
        return module(*args, **kwargs)
    start = {id(buffer): buffer.clone() for buffer in module.buffers()}  # by identity: modules may share a buffer
    again = False

    def call(*args, **kwargs):
        nonlocal again
        if not again:
            again = True
            return module(*args, **kwargs)
        with buffers_from(module, start):
            return module(*args, **kwargs)

    return checkpoint(call, *args, use_reentrant=False, preserve_rng_state=True, **kwargs)


@contextmanager
def buffers_from(module: nn.Module, start: dict[int, Tensor]) -> Iterator[None]:
    """Inside, every buffer of ``module`` is a copy of what ``start`` has under its id, afterwards its own again."""
    own = [(m, name, buffer) for m in module.modules() for name, buffer in m.named_buffers(recurse=False)]
    copies = {key: tensor.clone() for key, tensor in start.items()}  # a kept graph may be gone through once more
    try:
        for owner, name, buffer in own:
            setattr(owner, name, copies[id(buffer)])
        yield
    finally:
        for owner, name, buffer in own:
            setattr(owner, name, buffer)
