"""The fused supernet: what candidates share is computed once, and gates are folded into their last batch norms.

The mathematics is that of the plain one; ``fuse`` and ``unfuse`` change the one into the other, in place.
"""

from torch import nn

from nni_fairdarts.errors import InputError
from nni_fairdarts.supernet.cell import GatedCell
from nni_fairdarts.supernet.fused.edges import FusedEdges
from nni_fairdarts.supernet.fused.sources import twice_differentiable
from nni_fairdarts.supernet.fused.together import Together
from nni_fairdarts.supernet.layer import GatedLayer

__all__ = ["FusedEdges", "check_norms", "fuse", "is_fused", "twice_differentiable", "unfuse"]


def is_fused(supernet: nn.Module) -> bool:
    """Whether any cell of it is fused."""
    return any(isinstance(module, FusedEdges) for module in supernet.modules())


def check_norms(supernet: nn.Module) -> None:
    """Raise InputError where Lightning put batch norms that wait for other processes in the place of fused ones."""
    fused = is_fused(supernet) or any(getattr(module, "together", None) for module in supernet.modules())
    if fused and any(isinstance(module, nn.SyncBatchNorm) for module in supernet.modules()):
        raise InputError(
            "sync_batchnorm does not go with a fused supernet, whose batch norms see their own process's batch; leave "
            "it out of the trainer, or use FairDARTS(fused=False)"
        )


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
