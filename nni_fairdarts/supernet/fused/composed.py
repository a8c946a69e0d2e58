"""A source made of torch's own operations: for evaluation, half precision and compilers, which fuse them themselves."""

from functools import reduce

import torch
from torch import Tensor

from nni_fairdarts.kernels.rows import by_edge, size_of, to_image, to_rows
from nni_fairdarts.supernet.fused.layers import convolved, normalized, scaled
from nni_fairdarts.supernet.fused.plan import Chain, Free, Reduce, Stage, norms_of
from nni_fairdarts.supernet.fused.shared import Shared
from nni_fairdarts.supernet.recompute import called_again


class ComposedSource:
    """What ``Source`` is, with torch's own gradients and with batch norms that are in training or evaluation."""

    def __init__(self, x: Tensor, plans, gates: Tensor, keep: bool):
        self.x = x
        self.plans = plans
        self.gates = gates
        self.edges = len(gates)
        self.keep = keep

    def run(self) -> tuple[list[Tensor], None]:
        """For every edge an image (B, C, h, w); there is nothing to add."""
        if self.keep or torch.compiler.is_compiling():  # a compiler decides itself what to keep
            return self._images(self.x, self.gates), None
        return called_again(self._images, norms_of(self.plans), self.x, self.gates), None

    def _images(self, x: Tensor, all_gates: Tensor) -> list[Tensor]:
        self.shared = Shared(x, self.edges)
        terms = []
        for k, plan in enumerate(self.plans):
            gates = all_gates[:, k : k + 1]
            image = self._free(plan, gates) if isinstance(plan, Free) else self._chain(plan, gates)
            terms.append(by_edge(to_rows(image), self.edges))
        total = reduce(torch.add, terms)
        return [to_image(rows, size_of(image)) for rows in total.unbind()]

    def _free(self, plan: Free, gates: Tensor) -> Tensor:
        image = self.shared.x if plan.pooling is None else plan.pooling(self.shared.x)
        if plan.norm is None:
            image = torch.cat([image] * self.edges, 1)
        else:
            image = normalized(plan.norm, torch.cat([image] * self.edges, 1), None, None)
        weights = gates.expand(-1, image.shape[1] // self.edges).reshape(1, -1, 1, 1)
        return image * weights.to(image.dtype)

    def _chain(self, chain: Chain, gates: Tensor) -> Tensor:
        x = self.shared.activated()
        for stage in chain.stages:
            y = self._reduced(stage) if isinstance(stage, Reduce) else self._convolved(stage, x)
            if stage is chain.stages[-1]:
                like = stage.norm.running_mean  # also where y is in half precision
                scale, shift = (None if p is None else p.flatten().to(like.dtype) for p in scaled(stage.norm, gates))
                return normalized(stage.norm, y, scale, shift)
            x = normalized(stage.norm, y, stage.norm.weight, stage.norm.bias).relu()
        raise AssertionError("a chain has a last stage")

    def _convolved(self, stage: Stage, x: Tensor) -> Tensor:
        for conv in stage.convolutions:
            x = convolved(conv, x, self.edges)
        return x

    def _reduced(self, stage: Reduce) -> Tensor:
        even, odd = self.shared.interleaved().chunk(2, 1)
        halves = [
            torch.nn.functional.conv2d(half, conv.weight).unflatten(1, (self.edges, -1))
            for half, conv in ((even, stage.first), (odd, stage.second))
        ]
        return torch.cat(halves, 2).flatten(1, 2)
