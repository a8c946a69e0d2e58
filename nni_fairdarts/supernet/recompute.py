"""Memory for time: what a candidate computes inside is computed again in the backward pass instead of being kept."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputed(module: nn.Module, *args, **kwargs):
    """``module(*args, **kwargs)``, computed a second time in the backward pass; only its inputs are kept until then.

    Outputs, gradients, buffers and the random numbers drawn afterwards are those of a plain call, bit for bit where the
    kernels are deterministic: the second computation starts from the random state and from copies of the buffers that
    the first one started from, so a batch norm sees a batch once.
    Without gradients, and for an ``nn.Identity``, it is the plain call.
    The module must not change its arguments in place; its forward hooks run twice.
    Chen et al., arXiv 1604.06174, by ``torch.utils.checkpoint``.
    """
    if not torch.is_grad_enabled() or isinstance(module, nn.Identity):
        return module(*args, **kwargs)
    start = copies_of(
        {
            (owner, name): buffer
            for owner in module.modules()
            for name, buffer in owner.named_buffers(recurse=False, remove_duplicate=False)
        }
    )
    again = False

    def call(*args, **kwargs):
        nonlocal again
        if not again:
            again = True
            return module(*args, **kwargs)
        with buffers_from(start):
            return module(*args, **kwargs)

    return checkpoint(call, *args, use_reentrant=False, preserve_rng_state=True, **kwargs)


def run(module: nn.Module, *args, recompute: bool, **kwargs):
    """``module(*args, **kwargs)``, ``recomputed`` if so asked."""
    return recomputed(module, *args, **kwargs) if recompute else module(*args, **kwargs)


Buffers = dict[tuple[nn.Module, str], Tensor]
"""Buffers by the module that holds them and their name there."""


def copies_of(buffers: Buffers) -> Buffers:
    """Copies under the same keys; what was one tensor under several is one copy."""
    copies = {id(buffer): buffer.clone() for buffer in buffers.values()}
    return {key: copies[id(buffer)] for key, buffer in buffers.items()}


@contextmanager
def buffers_from(start: Buffers) -> Iterator[None]:
    """Inside, the modules have copies of the buffers in ``start``; afterwards they have their own again, untouched."""
    own = {(module, name): getattr(module, name) for module, name in start}
    try:
        # Copies of copies: where the graph is kept, another backward pass starts from the same.
        for (module, name), buffer in copies_of(start).items():
            setattr(module, name, buffer)
        yield
    finally:
        for (module, name), buffer in own.items():
            setattr(module, name, buffer)
