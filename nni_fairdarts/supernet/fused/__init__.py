"""The fused supernet: what candidates share is computed once, and gates are folded into their last batch norms.

The mathematics is that of the plain one; ``fuse`` and ``unfuse`` change the one into the other, in place.
"""

from torch import nn

from nni_fairdarts.supernet.cell import GatedCell
from nni_fairdarts.supernet.fused.edges import FusedEdges
from nni_fairdarts.supernet.fused.together import Together
from nni_fairdarts.supernet.layer import GatedLayer

__all__ = ["FusedEdges", "fuse", "unfuse"]


def fuse(supernet: nn.Module) -> None:
    """Fuse every cell of a supernet, and every choice of layers, whose candidates have such a structure, in place."""
    for module in supernet.modules():
        if isinstance(module, GatedCell) and not isinstance(module.edges, FusedEdges):
            edges = FusedEdges(module.edges, module.edge_indices(), module.options.recompute)
            if edges.gains():
                module.edges = edges
        elif isinstance(module, GatedLayer):
            module.together = Together.of(module)


def unfuse(supernet: nn.Module) -> None:
    """Give every cell its edges one by one again, and every choice its candidates, with their weights, in place."""
    for module in supernet.modules():
        if isinstance(module, GatedCell) and isinstance(module.edges, FusedEdges):
            module.edges = module.edges.plain()
        elif isinstance(module, GatedLayer):
            module.together = None
