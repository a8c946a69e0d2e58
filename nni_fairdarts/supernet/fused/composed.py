"""A source made of torch's own operations: for evaluation, half precision and compilers, which fuse them themselves."""

from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nni_fairdarts.kernels.rows import by_edge, size_of, to_image, to_rows
from nni_fairdarts.supernet.fused.layers import convolved, normalized, scaled
from nni_fairdarts.supernet.fused.plan import Chain, Free, Reduce, Stage
from nni_fairdarts.supernet.fused.shared import Shared


class ComposedSource:
    """What ``Source`` is, with torch's own gradients and with batch norms that are in training or evaluation.

    With ``keep`` False each candidate is computed again in the backward pass, but where a compiler decides that itself.
    """

    def __init__(self, x: Tensor, plans, gates: Tensor, keep: bool):
        self.plans = plans
        self.gates = gates
        self.edges = len(gates)
        self.keep = keep or torch.compiler.is_compiling() or not torch.is_grad_enabled()
        self.shared = Shared(x, self.edges)

    def run(self) -> tuple[list[Tensor], None]:
        """For every edge an image (B, C, h, w); there is nothing to add."""
        images = [self._output(plan, self.gates[:, k : k + 1]) for k, plan in enumerate(self.plans)]
        total = reduce(torch.add, (by_edge(to_rows(image), self.edges) for image in images))
        return [to_image(rows, size_of(images[-1])) for rows in total.unbind()], None

    def _output(self, plan: Free | Chain, gates: Tensor) -> Tensor:
        compute = self._free if isinstance(plan, Free) else self._chain
        if self.keep:
            return compute(plan, gates, True)
        if isinstance(plan, Chain):  # what others share is made outside, and once
            self.shared.interleaved() if isinstance(plan.stages[0], Reduce) else self.shared.activated()
        times = iter([True])  # the second time statistics have seen the batch
        return checkpoint(
            lambda gates: compute(plan, gates, next(times, False)), gates, use_reentrant=False, preserve_rng_state=False
        )

    def _free(self, plan: Free, gates: Tensor, first: bool) -> Tensor:
        image = self.shared.x if plan.pooling is None else plan.pooling(self.shared.x)
        image = torch.cat([image] * self.edges, 1)
        if plan.norm is not None:
            image = normalized(plan.norm, image, None, None, first)
        weights = gates.expand(-1, image.shape[1] // self.edges).reshape(1, -1, 1, 1)
        return image * weights.to(image.dtype)

    def _chain(self, chain: Chain, gates: Tensor, first: bool) -> Tensor:
        x = self.shared.activated()
        for stage in chain.stages[:-1]:
            x = normalized(stage.norm, self._convolved(stage, x), stage.norm.weight, stage.norm.bias, first).relu()
        last = chain.stages[-1]
        y = self._reduced(last) if isinstance(last, Reduce) else self._convolved(last, x)
        scale, shift = (None if part is None else part.flatten() for part in scaled(last.norm, gates))
        return normalized(last.norm, y, scale, shift, first)

    def _convolved(self, stage: Stage, x: Tensor) -> Tensor:
        for conv in stage.convolutions:
            x = convolved(conv, x, self.edges)
        return x

    def _reduced(self, stage: Reduce) -> Tensor:
        even, odd = self.shared.interleaved().chunk(2, 1)
        pairs = ((even, stage.first), (odd, stage.second))
        return torch.cat(
            [F.conv2d(half, conv.weight).unflatten(1, (self.edges, -1)) for half, conv in pairs], 2
        ).flatten(1, 2)
