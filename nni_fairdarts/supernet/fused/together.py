"""The candidates of a ``GatedLayer`` together: one state with one edge."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nni_fairdarts.supernet.fused.plan import Chain, Free, Norm, plan_of
from nni_fairdarts.supernet.fused.sources import source_for
from nni_fairdarts.supernet.layer import GatedLayer


def _alike(candidates: list[nn.Module]) -> bool:
    """Whether all put out images of one size; where they do not, the plain choice says so."""
    weight = next(weight for candidate in candidates for weight in candidate.parameters())
    channels = next(m.in_channels for candidate in candidates for m in candidate.modules() if type(m) is nn.Conv2d)
    x = torch.empty(1, channels, 31, 32, dtype=weight.dtype, device="meta")
    try:
        return len({copy.deepcopy(candidate).to("meta").eval()(x).shape for candidate in candidates}) == 1
    except RuntimeError:
        return False


@dataclass(frozen=True, eq=False)
class Together:
    """The structures of a choice's candidates, which share what they read; their weights stay where they are."""

    plans: tuple[Free | Chain, ...]
    norms: tuple[Norm, ...]
    keep: bool

    @classmethod
    def of(cls, layer: GatedLayer) -> "Together | None":
        """None where there is nothing to gain: a candidate of another structure or size, or none with weights."""
        candidates = [layer[name] for name in layer.gated_names]
        plans = tuple(map(plan_of, candidates))
        if None in plans or not any(isinstance(plan, Chain) for plan in plans) or not _alike(candidates):
            return None
        stages = [stage for plan in plans if isinstance(plan, Chain) for stage in plan.stages]
        norms = [stage.norm for stage in stages] + [p.norm for p in plans if isinstance(p, Free) and p.norm is not None]
        return cls(plans, tuple(norms), not layer.options.recompute)

    def takes(self, x) -> bool:
        """Whether ``x`` is a batch of images."""
        return isinstance(x, Tensor) and x.dim() == 4

    def __call__(self, x: Tensor, gates: Tensor) -> Tensor:
        """Σ_o g_o · o(x): (B, I, H, W) and gates (operations,) -> (B, C, h, w)."""
        source = source_for(x, self.norms)(x, self.plans, gates.unsqueeze(0), self.keep)
        (image,), constants = source.run()
        return image if constants is None else image + constants[0].view(-1, 1, 1)
