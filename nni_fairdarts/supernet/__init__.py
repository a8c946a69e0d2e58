"""What stands in a supernet where the space had a choice.

One module per primitive of NNI: ``cell.py`` for ``Cell``, ``layer.py`` for ``LayerChoice``, ``input.py`` for
``InputChoice``, ``depth.py`` for ``Repeat`` and the hub's stages, ``operations.py`` for layers with a choice among
their arguments, whose weights come from ``values.py``, ``attention.py`` for attention among them, ``plain.py`` for
layers without a choice.
"""

import torch
from nni.nas.hub.pytorch.modules.nasbench101 import NasBench101Cell
from nni.nas.nn.pytorch import MutableModule
from torch import nn

from nni_fairdarts._nni import BaseSuperNetModule
from nni_fairdarts.errors import InputError
from nni_fairdarts.supernet.attention import GatedAttention
from nni_fairdarts.supernet.cell import GatedCell
from nni_fairdarts.supernet.depth import REPLACED, GatedRepeat, GatedStage
from nni_fairdarts.supernet.gated import EXPORTS, OPTIONS_KEY, Choice, GatedModule, SupernetOptions
from nni_fairdarts.supernet.input import GatedInput
from nni_fairdarts.supernet.layer import GatedLayer
from nni_fairdarts.supernet.operations import (
    GatedBatchNorm2d,
    GatedConv2d,
    GatedLayerNorm,
    GatedLinear,
    GatedReduce,
    read_whole_cells,
)
from nni_fairdarts.supernet.plain import settle
from nni_fairdarts.supernet.values import ValuePolicy, ValueWeights

__all__ = [
    "EXPORTS",
    "HOOKS",
    "OPTIONS_KEY",
    "REPLACED",
    "Choice",
    "GatedCell",
    "GatedInput",
    "GatedLayer",
    "GatedModule",
    "GatedRepeat",
    "GatedStage",
    "SupernetOptions",
    "ValuePolicy",
    "alphas_of",
    "choices_of",
    "compile_cells",
    "read_whole_cells",
    "refuse",
    "refuse_twins",
    "settle",
]

OPERATIONS = (GatedLinear, GatedConv2d, GatedBatchNorm2d, GatedLayerNorm, GatedAttention)


def choices_of(module: nn.Module) -> tuple[Choice, ...]:
    """The choices of one supernet module; none where it is not one of this package's."""
    if isinstance(module, GatedModule):
        return module.choices()
    weights = getattr(module, "value_weights", None)
    return weights.choices() if isinstance(weights, ValueWeights) else ()


def alphas_of(supernet: nn.Module) -> list[nn.Parameter]:
    """α in the order of the space, of this package's supernets and of NNI's: the same order in every process.

    NNI's own is a set's, and the state of Adam goes by it.
    """
    found: dict[nn.Parameter, None] = {}
    for module in supernet.modules():
        if isinstance(module, BaseSuperNetModule):
            found.update(dict.fromkeys(choice.alpha for choice in choices_of(module)))
            if hasattr(module, "arch_parameters"):
                found.update(dict.fromkeys(module.arch_parameters()))
    return list(found)


def compile_cells(supernet: nn.Module, backend: bool | str) -> None:
    """Compile every gated cell in place, when it is first called; ``backend`` True stands for torch's own."""
    cells = [module for module in supernet.modules() if isinstance(module, GatedCell)]
    # All run one code, and each compiles it anew with α frozen, with the weights frozen, and in evaluation. Over the
    # compiler's limit (8) what comes later would not be compiled.
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 4 * len(cells))
    for cell in cells:
        cell.compile() if backend is True else cell.compile(backend=backend)


def refuse(module: nn.Module, name: str, memo: dict, mutate_kwargs: dict) -> None:
    """NNI's mutation hook behind all others: raise InputError where ``module`` still has a choice."""
    if not isinstance(module, MutableModule) or not module.mutables:
        return
    where = repr(name) if name else "at the space's root"
    if isinstance(module, NasBench101Cell):
        raise InputError(
            f"FairDARTS cannot search NasBench101Cell {where}: its operations, edges and their number are bound by one "
            "constraint that no set of gates can keep; use NasBench201, or search it with a multi-trial strategy"
        )
    labels = sorted({label for mutable in module.mutables for label in mutable.simplify()})
    raise InputError(
        f"FairDARTS cannot search {type(module).__name__} {where} (choices: {', '.join(labels)}): it searches "
        "LayerChoice, InputChoice, Repeat, Cell, and widths and kernels of "
        f"{', '.join(operation.bound_type.__name__ for operation in OPERATIONS)}. Fix this choice, put whole layers "
        "into a LayerChoice, or pass a hook for it in mutation_hooks"
    )


def refuse_twins(space: nn.Module) -> None:
    """Raise InputError for a choice under two names: NNI would mutate, and freeze, only one of them or each anew."""
    names: dict[nn.Module, str] = {}
    for name, module in space.named_modules(remove_duplicate=False):
        if isinstance(module, MutableModule) and module.mutables and names.setdefault(module, name) != name:
            raise InputError(
                f"the space has one {type(module).__name__} under two names, {names[module]!r} and {name!r}, and NNI "
                "cannot freeze it so; give it one name and call it twice, or build two with the same label"
            )


HOOKS = [
    GatedLayer.mutate,
    GatedInput.mutate,
    GatedCell.mutate,
    GatedStage.mutate,
    GatedRepeat.mutate,
    GatedReduce.mutate,
    *(operation.mutate for operation in OPERATIONS),
    settle,
    refuse,
]
"""NNI mutation hooks in the order they are tried."""
