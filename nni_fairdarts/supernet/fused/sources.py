"""Which of the two kinds of source computes a state's candidates."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nni_fairdarts.supernet.fused.composed import ComposedSource
from nni_fairdarts.supernet.fused.plan import Norm
from nni_fairdarts.supernet.fused.source import Source


def source_for(x: Tensor, norms: Sequence[Norm]) -> type[Source] | type[ComposedSource]:
    """This package's kernels in full precision with every batch norm in training, torch's own operations elsewhere."""
    full = x.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(x.device.type)
    training = all(norm.training for norm in norms)
    return Source if full and training and not torch.compiler.is_compiling() else ComposedSource
