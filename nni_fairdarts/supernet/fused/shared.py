"""What the candidates on all edges that leave one state have in common."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


class Shared:
    """One state (B, I, H, W) and what its ``edges`` share: computed once, in channels_last order."""

    def __init__(self, x: Tensor, edges: int):
        self.x = x.contiguous(memory_format=torch.channels_last)
        self.edges = edges
        self._known: dict[tuple[str, int], Tensor] = {}

    def activated(self, step: int = 1) -> Tensor:
        """relu(x), of every step-th pixel."""
        return self._once("activated", step, lambda: self.x[:, :, ::step, ::step].relu())

    def repeated(self, step: int = 1) -> Tensor:
        """``activated`` once for every edge, (B, E·I, H, W)."""
        return self._once("repeated", step, lambda: torch.cat([self.activated(step)] * self.edges, 1))

    def interleaved(self) -> Tensor:
        """relu(x) at the even pixels, and at the odd ones, as channels: (B, 2·I, ⌈H/2⌉, ⌈W/2⌉); zeros outside."""
        return self._once("interleaved", 2, self._interleaved)

    def _interleaved(self) -> Tensor:
        r = self.activated()
        odd = F.pad(r, (0, r.shape[3] % 2, 0, r.shape[2] % 2))[:, :, 1::2, 1::2]
        return torch.cat([r[:, :, ::2, ::2], odd], 1)

    def _once(self, name: str, step: int, make: Callable[[], Tensor]) -> Tensor:
        if (name, step) not in self._known:
            self._known[name, step] = make().contiguous(memory_format=torch.channels_last)
        return self._known[name, step]
