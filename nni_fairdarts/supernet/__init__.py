"""What stands in a supernet where the space had a choice.

One module per primitive of NNI: ``cell.py`` for ``Cell``, ``layer.py`` for ``LayerChoice``. ``InputChoice``,
``Repeat`` and mutable operations have their place here too; until they do, ``refuse_unsupported`` names them.
"""

from nni.nas.nn.pytorch import Cell, LayerChoice, MutableModule
from torch import nn

from nni_fairdarts.errors import InputError
from nni_fairdarts.supernet.cell import GatedCell
from nni_fairdarts.supernet.gated import OPTIONS_KEY, GatedModule, SupernetOptions
from nni_fairdarts.supernet.layer import GatedLayer

__all__ = [
    "HOOKS",
    "OPTIONS_KEY",
    "GatedCell",
    "GatedLayer",
    "GatedModule",
    "SupernetOptions",
    "refuse_unsupported",
]

HOOKS = [GatedLayer.mutate, GatedCell.mutate]
"""NNI mutation hooks in the order they are tried."""


def refuse_unsupported(module: nn.Module, name: str) -> None:
    """Raise InputError, naming it, where ``module`` chooses something that has no gated counterpart yet."""
    if not isinstance(module, MutableModule) or not module.mutables or type(module) in (LayerChoice, Cell):
        return
    where = repr(name) if name else "at the space's root"
    labels = sorted({label for mutable in module.mutables for label in mutable.simplify()})
    raise InputError(
        f"FairDARTS cannot search {type(module).__name__} {where} (choices: "
        f"{', '.join(labels)}) yet: it searches LayerChoice, and Cell in NNI's hub spaces. Fix this choice (for a hub "
        "space give one width and one depth, such as DARTS(width=16, num_cells=8, dataset='cifar')), or pass a hook "
        "for it in mutation_hooks"
    )
