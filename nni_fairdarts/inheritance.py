"""A supernet's weights in the derived network, and batch norms that fit it."""

import copy
import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping

import torch
from nni.nas.hub.pytorch.nasnet import NDS, FactorizedReduce
from nni.nas.hub.pytorch.utils.nn import DropPath
from nni.nas.nn.pytorch import ModelSpace
from pytorch_lightning.utilities import move_data_to_device
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nni_fairdarts._nni import MixedBatchNorm2d
from nni_fairdarts.errors import InputError
from nni_fairdarts.freezing import freeze
from nni_fairdarts.network import DerivedNetwork
from nni_fairdarts.supernet import choices_of


def inherit(network: nn.Module, supernet: ModelSpace, sample: Mapping) -> None:
    """Copy into ``network``, derived from ``supernet``'s space by ``sample``, the weights it has in the supernet.

    A batch norm whose scales the search dropped gets scale 1 and shift 0. Gates are not folded in: where they were near
    0 and 1 the network is as good as the supernet, where they were not its statistics and weights fit a sum that is no
    more, so estimate the statistics again (``reestimate_batch_norm``), or train on. In cells the batch norms that a
    search puts behind poolings have no place in the network. A layer of a hand-written space that reads a concatenation
    of chosen widths keeps its first channels, not those of each part: train it anew.
    Warns (RuntimeWarning) where batch norms behind poolings are lost. Raises InputError where the network and the
    sample differ, and where a weight of the network is not to be found in the supernet.
    """
    if not any(choices_of(module) for module in supernet.modules()):
        raise InputError("inherit takes the searched supernet (strategy.supernet) second; this space has no gates")
    if isinstance(supernet, NDS):
        _inherit_cells(network, supernet)
        return
    source, own = freeze(supernet, sample).state_dict(), network.state_dict()
    if any(name.endswith("running_mean") and name not in own for name in source):
        warnings.warn(
            "the search put batch norms behind poolings, which this network has not, so the weights behind them see "
            "other numbers than they were trained on; derive it with freeze(..., candidate_norm='paper') to keep them",
            RuntimeWarning,
            stacklevel=2,
        )
    _load(network, {name: tensor for name, tensor in source.items() if name in own})


def reestimate_batch_norm(network: nn.Module, batches: Iterable, count: int, forward: Callable | None = None) -> None:
    """Estimate every batch norm's mean and variance anew, as their average over the first ``count`` of ``batches``.

    ``forward(network, batch)`` feeds a batch to the network; without it a batch is the network's input, or a tuple or
    list that begins with it. Weights and the rest of the network stay as they are. Raises InputError for other batches,
    and where there are none.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momentum = [norm.momentum for norm in norms]
    before = [copy.deepcopy(dict(norm.named_buffers())) for norm in norms]
    training = {module: module.training for module in network.modules()}
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for the plain average
        norm.train()
    hooks = [_average_by_hand(norm) for norm in norms if isinstance(norm, MixedBatchNorm2d)]
    seen = 0
    try:
        with torch.no_grad():
            for batch in itertools.islice(batches, count):
                (forward or _first_input)(network, move_data_to_device(batch, device))
                seen += 1
    finally:
        for undo in hooks:
            undo()
        for norm, value in zip(norms, momentum, strict=True):
            norm.momentum = value
        for module, value in training.items():
            module.training = value
        if not seen:  # nothing to put in their place
            for norm, statistics in zip(norms, before, strict=True):
                norm.load_state_dict(statistics, strict=False)
    if not seen:
        raise InputError("no batch to estimate batch norms from; give a loader that yields at least one")


def _average_by_hand(norm: MixedBatchNorm2d) -> Callable[[], None]:
    """Let a batch norm of NNI's supernets average what it sees; returns what undoes that.

    It takes its momentum from the arguments it was made with, whatever its own is, and knows no None there.
    """
    arguments, momentum, calls = norm.init_arguments, norm.init_arguments["momentum"], itertools.count(1)

    def average(module, inputs):
        arguments["momentum"] = 1 / next(calls)

    hook = norm.register_forward_pre_hook(average)

    def undo():
        hook.remove()
        arguments["momentum"] = momentum

    return undo


def _first_input(network: nn.Module, batch) -> None:
    images = batch[0] if isinstance(batch, list | tuple) else batch
    if not isinstance(images, Tensor):
        raise InputError(
            f"a batch to estimate batch norms from must be a tensor, or begin with one, got {type(images).__name__}; "
            "give forward=, a function of the network and a batch"
        )
    network(images)


def _load(target: nn.Module, source: Mapping[str, Tensor]) -> None:
    """Load ``source``; the scales and shifts that batch norms lack in it become 1 and 0.

    Raises InputError where more is missing.
    """
    scales = {}
    for name, module in target.named_modules():
        if isinstance(module, _BatchNorm) and module.affine:
            scales[f"{name}.weight"] = torch.ones_like(module.weight)
            scales[f"{name}.bias"] = torch.zeros_like(module.bias)
    try:
        missing = target.load_state_dict({**scales, **source}, strict=False).missing_keys
    except RuntimeError as error:  # torch names the weights of other sizes
        raise InputError(f"the network is not the one of this sample: {error}; derive it with the same one") from error
    if missing := [name for name in missing if not name.endswith("num_batches_tracked")]:
        raise InputError(
            f"the supernet has no weights for {', '.join(missing[:3])}{' and more' if len(missing) > 3 else ''}: the "
            "space builds its network anew when it is frozen; export it without inherit_weights"
        )


# -- cells ---------------------------------------------------------------------------------------------------------


def _inherit_cells(network: DerivedNetwork, supernet: NDS) -> None:
    """Every derived cell takes what the supernet's cell of the same place in the same stage has on the same edges.

    Where a search chose a width, the first channels of every layer; where nodes were dropped, the next cell's
    preprocessing forgets their channels. A stage that could have more cells and ends at its first one hands what it
    got on to the next stage, whose layer for it keeps its fresh weights: the supernet has none like it.
    """
    nodes = supernet.num_nodes_per_cell
    stems = ("stem",) if network.dataset == "cifar" else ("stem0", "stem1")
    for name in stems:
        _take(getattr(network, name), getattr(supernet, name))
    # Outputs of the two cells before as the derived network has them: the kept parts of a concatenation, or the stem.
    before_last = last = None
    for cell, (source, has_twin) in zip(network.cells, _places(network, supernet), strict=True):
        pre, pre_source = cell.preprocessor, source.preprocessor
        if has_twin:
            _take(pre.pre0, pre_source.pre0, before_last)
        _take(pre.pre1, pre_source.pre1, last)
        places = {place: i for i, place in enumerate(source.edge_indices())}
        candidates = source.edges.plain()
        for edge, operation in zip(cell.edges, cell.ops, strict=True):
            candidate = candidates[places[edge.node, edge.source]][edge.operation]
            _take(operation, candidate)
        before_last, last = last, ([node - 2 for node in cell.concat], nodes)
    _take(network.classifier, supernet.classifier, last)


def _places(network: DerivedNetwork, supernet: NDS) -> list:
    """[(the supernet's cell behind each of the network's, whether it preprocesses the same two outputs)].

    A stage that chose a depth has more cells than it needs.
    """
    depth, places, cut = len(network.cells), [], False
    for i, stage in enumerate(supernet.stages):
        size = (i + 1) * depth // 3 - i * depth // 3
        cells = list(getattr(stage, "blocks", stage))
        places += [(cell, not (cut and cell is cells[0])) for cell in cells[:size]]
        cut = size == 1 < len(cells)
    return places


def _take(target: nn.Module, source: nn.Module, inputs: tuple[list[int], int] | None = None) -> None:
    """Copy a layer's part of a layer at least as wide: first channels out, and of the inputs those kept.

    ``inputs``: (the parts of a concatenation that are left, how many there were), None for inputs as they were.
    """
    if isinstance(source, nn.Sequential) and isinstance(source[-1], DropPath):
        source = source[0]
    wide = dict(source.named_modules())
    halves = isinstance(target, FactorizedReduce)
    reads_inputs = True
    with torch.no_grad():
        for name, layer in target.named_modules():
            twin = wide.get(name)
            if isinstance(layer, nn.Conv2d | nn.Linear):
                weight = twin.weight[: layer.weight.shape[0]]
                if inputs is not None and (reads_inputs or halves):
                    kept, parts = inputs
                    weight = weight.unflatten(1, (parts, -1))[:, kept, : layer.weight.shape[1] // len(kept)].flatten(
                        1, 2
                    )
                layer.weight.copy_(weight[:, : layer.weight.shape[1]])
                if layer.bias is not None:
                    layer.bias.copy_(twin.bias[: layer.bias.shape[0]])
                reads_inputs = False
            elif isinstance(layer, _BatchNorm):
                width, full = layer.num_features, twin.num_features
                parts = 2 if halves else 1
                kept = torch.arange(full, device=twin.running_mean.device)
                kept = kept.unflatten(0, (parts, -1))[:, : width // parts].flatten()
                layer.running_mean.copy_(twin.running_mean[kept])
                layer.running_var.copy_(twin.running_var[kept])
                layer.num_batches_tracked.copy_(twin.num_batches_tracked)
                layer.weight.copy_(torch.ones_like(layer.weight) if twin.weight is None else twin.weight[kept])
                layer.bias.copy_(torch.zeros_like(layer.bias) if twin.bias is None else twin.bias[kept])
