"""Which of the two kinds of source computes a state's candidates."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from nni_fairdarts.supernet.fused.composed import ComposedSource
from nni_fairdarts.supernet.fused.plan import Norm
from nni_fairdarts.supernet.fused.source import Source

_TWICE = ContextVar("twice", default=False)


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """What fused supernets compute inside has second derivatives, at a few times the time and memory."""
    before = _TWICE.set(True)
    try:
        yield
    finally:
        _TWICE.reset(before)


def source_for(x: Tensor, norms: Sequence[Norm]) -> type[Source] | type[ComposedSource]:
    """This package's kernels in full precision with every batch norm in training, torch's own operations elsewhere.

    Also inside ``twice_differentiable``: the kernels have first derivatives only.
    """
    full = x.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(x.device.type)
    training = all(norm.training for norm in norms)
    # A compiler, which knows no context variables, does not come to the last one.
    kernels = full and training and not torch.compiler.is_compiling() and not _TWICE.get()
    return Source if kernels else ComposedSource
