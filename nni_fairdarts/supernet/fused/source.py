"""All candidates on all edges that leave one state: Σ_o g_{e,o} · o_e(x) for every edge e at once."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nni_fairdarts.kernels.depthwise import Geometry
from nni_fairdarts.kernels.gated import Gated
from nni_fairdarts.kernels.normalize import Normalize
from nni_fairdarts.kernels.rows import by_edge, size_of, to_image, to_rows
from nni_fairdarts.kernels.separable import Separable
from nni_fairdarts.kernels.weighted import Weighted
from nni_fairdarts.supernet.fused.layers import both, convolved, pointwise, scaled, update
from nni_fairdarts.supernet.fused.plan import Chain, Free, Norm, Reduce, Stage
from nni_fairdarts.supernet.fused.shared import Shared


class Flow(NamedTuple):
    """What flows along the edges inside a candidate: an image, and the batch norm and ReLU that it still has to pass.

    x is (B, E·I, H, W), or (B, I, H, W) where all edges have the same; without a ``norm`` it passed its ReLU already.
    """

    x: Tensor
    norm: Norm | None = None

    def front(self, weight: Tensor | None) -> tuple:
        """The first arguments of the kernels: image, scale and shift of its batch norm, and the filter's weights."""
        return (self.x, None, None, weight) if self.norm is None else (self.x, self.norm.weight, self.norm.bias, weight)

    @property
    def eps(self) -> float | None:
        return None if self.norm is None else self.norm.eps

    def note(self, mean: Tensor | None, variance: Tensor | None) -> None:
        """Tell the batch norm what it saw."""
        if self.norm is not None:
            update(self.norm, mean, variance, self.x.numel() // self.x.shape[1])


class Source:
    """The candidates on the edges that leave a state, by the kernels of this package: all batch norms are in training.

    ``plans``: a candidate's structure each; ``gates``: (E, candidates). After ``run``, ``total`` (E, P, C) has the sums
    over the candidates, and ``constants`` (E, C) or None what is still to be added to every pixel.
    ``keep``: keep what filters put out for the gradients, else compute it again.
    """

    def __init__(self, x: Tensor, plans: Sequence[Free | Chain], gates: Tensor, keep: bool):
        self.plans = plans
        self.gates = gates.to(x.dtype)  # α is in float32 or better
        self.edges = len(gates)
        self.keep = keep
        self.shared = Shared(x, self.edges)
        self.total: Tensor | None = None
        self.constants: Tensor | None = None
        self.size = size_of(x)

    def run(self) -> tuple[list[Tensor], list[Tensor] | None]:
        """For every edge an image (B, C, h, w), and what is still to be added to its pixels (C,)."""
        self._add_free([k for k, plan in enumerate(self.plans) if isinstance(plan, Free)])
        for k, plan in enumerate(self.plans):
            if isinstance(plan, Chain):
                self._add_chain(plan, self.gates[:, k : k + 1])
        images = [to_image(rows, self.size) for rows in self.total.unbind()]
        return images, None if self.constants is None else list(self.constants.unbind())

    # -- candidates without weights -----------------------------------------------------------------------------------

    def _add_free(self, places: list[int]) -> None:
        if places:
            images = [self._free(self.plans[k]) for k in places]
            self.size = size_of(images[0])
            weights = torch.stack([self.gates[:, k] for k in places], 1)
            self.total = Weighted.apply(weights, torch.stack([to_rows(image) for image in images]))

    def _free(self, plan: Free) -> Tensor:
        image = self.shared.x if plan.pooling is None else plan.pooling(self.shared.x)
        if plan.norm is None:
            return image
        z, mean, variance = Normalize.apply(to_rows(image), None, None, plan.norm.eps)
        # Every edge has a batch norm of its own, and all see the same.
        update(plan.norm, mean.repeat(self.edges), variance.repeat(self.edges), len(z))
        return to_image(z, size_of(image))

    # -- candidates with weights --------------------------------------------------------------------------------------

    def _add_chain(self, chain: Chain, gates: Tensor) -> None:
        first, last = chain.stages[0], chain.stages[-1]
        if isinstance(first, Reduce):
            self._add_gated(Flow(self.shared.interleaved()), None, both(first, self.edges), Geometry(), first, gates)
            return
        once = first.filter is None or not self.keep
        flow = Flow(self.shared.activated(first.step) if once else self.shared.repeated(first.step))
        for stage in chain.stages[:-1]:
            flow = self._through(stage, flow)
        if last.pointwise is None:
            self._add_normalized(last, flow, gates)
        else:
            weight = None if last.filter is None else last.filter.weight
            self._add_gated(flow, weight, pointwise(last.pointwise, self.edges), last.geometry, last, gates)

    def _through(self, stage: Stage, flow: Flow) -> Flow:
        """Behind the convolutions of a stage that is not the last."""
        if stage.filter is None:
            return Flow(self._convolved(stage, flow), stage.norm)
        y, *moments = Separable.apply(
            *flow.front(stage.filter.weight),
            pointwise(stage.pointwise, self.edges),
            flow.eps,
            stage.geometry,
            self.keep,
        )
        flow.note(*moments)
        return Flow(y, stage.norm)

    def _add_gated(
        self, flow: Flow, weight: Tensor | None, mix: Tensor, geometry: Geometry, stage, gates: Tensor
    ) -> None:
        """Add a last stage: its filter (weights or None), its pointwise convolution, its batch norm with the gates."""
        scale, shift = scaled(stage.norm, gates)
        self.total, constants, mean, variance, *moments, self.size = Gated.apply(
            self.total, *flow.front(weight), mix, scale, shift, flow.eps, stage.norm.eps, geometry, self.keep
        )
        self.constants = constants if self.constants is None else self.constants + constants
        update(stage.norm, mean.flatten(), variance.flatten(), self.total.shape[1])
        flow.note(*moments)

    def _add_normalized(self, stage: Stage, flow: Flow, gates: Tensor) -> None:
        """Add a last stage of any kind: its convolutions, then its batch norm with the gates for scales."""
        y = self._convolved(stage, flow)
        scale, shift = (None if part is None else part.flatten() for part in scaled(stage.norm, gates))
        z, mean, variance = Normalize.apply(to_rows(y), scale, shift, stage.norm.eps)
        update(stage.norm, mean, variance, len(z))
        z = by_edge(z, self.edges)
        self.total = z.clone(memory_format=torch.contiguous_format) if self.total is None else self.total + z
        self.size = size_of(y)

    def _convolved(self, stage: Stage, flow: Flow) -> Tensor:
        x = flow.x
        if flow.norm is not None:
            z, *moments = Normalize.apply(to_rows(x), flow.norm.weight, flow.norm.bias, flow.norm.eps)
            flow.note(*moments)
            x = to_image(z.relu(), size_of(x))
        for conv in stage.convolutions:
            x = convolved(conv, x, self.edges)
        return x.contiguous(memory_format=torch.channels_last)
