"""NNI's profilers for the spaces that FairDARTS searches, cells included."""

import copy
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import nni.nas.profiler.pytorch.flops as flops
import nni.nas.profiler.pytorch.utils.misc as misc
import nni.nas.profiler.pytorch.utils.shape as shape
import nni.nas.profiler.pytorch.utils.shape_formula as shape_formula
import torch
from nni.mutable import frozen_context
from nni.nas.hub.pytorch.nasnet import NDSStage
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.profiler import ExpressionProfiler
from torch import nn

from nni_fairdarts._nni import BaseSuperNetModule
from nni_fairdarts.errors import InputError
from nni_fairdarts.penalty.formulas import COSTS, LEAVES, SHAPES, has_cells

COUNTS = tuple(field.name for field in fields(flops.FlopsParamsCounterConfig))
"""NNI's switches for what is counted beside convolutions and linear layers."""


def profiler(kind: str, space: ModelSpace, inputs: Any, **settings) -> ExpressionProfiler:
    """NNI's profiler of ``space``, with the formulas that NNI lacks for cells and NasBench201.

    kind
        "flops": multiply-adds of convolutions and linear layers for one image, as papers count them; "params":
        learnable parameters; "latency": NNI's ``NnMeterProfiler``, in ms, which needs the package nn-meter and takes
        ``predictor="cortexA76cpu_tflite21"`` or another of nn-Meter's.
    inputs
        What the network takes: a tensor, or a tuple of arguments, as NNI's profilers have it.
    settings
        Those of NNI's profiler. "flops" leaves out biases, normalisation and activations, which NNI counts by default:
        ``count_bias=True``, ``count_normalization=True``, ``count_activation=True`` take them in.

    A ``Cell`` costs its preprocessor and Σ over edges and operations of gate times cost. Its choices have the labels
    of FairDARTS' gates, such as ``normal/2_0`` (node 2 from state 0), instead of NNI's, so that the profiler's own
    ``profile`` wants a sample with these labels. Every node counts as used, and no stage as shorter than two cells:
    where a derived network drops nodes, concatenates loose ends only, or has one cell in a stage, the next cell is
    narrower and cheaper than counted. The costs are those of the space as it is built, without the batch norms that
    FairDARTS puts behind poolings.

    The space is copied: neither its batch-norm statistics nor its labels change, and NNI's registries of formulas are
    as before afterwards. Raises InputError for unknown kinds, supernets, and what nn-Meter cannot do.
    """
    if kind not in KINDS:
        raise InputError(f"unknown kind of profiler {kind!r}; known: {', '.join(KINDS)}")
    if not isinstance(space, ModelSpace):
        raise InputError(f"a profiler takes a model space of NNI's, got {type(space).__name__}")
    if any(isinstance(module, BaseSuperNetModule) for module in space.modules()):
        raise InputError(
            "this model space is a one-shot supernet already; make the profiler before the search, or from a new space"
        )
    space = copy.deepcopy(space).cpu().eval()
    for module in space.modules():
        if isinstance(module, NDSStage):
            module._dry_run_depth = module.max_depth  # where each stage's channels fit the next
    defaults = {label: mutable.default() for label, mutable in space.simplify().items()}
    with formulas(), frozen_context(defaults):  # NNI's layers of mutable width are made at a default
        return KINDS[kind](space, inputs, settings)


def _flops(space: ModelSpace, inputs: Any, settings: dict) -> ExpressionProfiler:
    _check_settings(settings)
    return flops.FlopsProfiler(space, inputs, **{**dict.fromkeys(COUNTS, False), **settings})


def _params(space: ModelSpace, inputs: Any, settings: dict) -> ExpressionProfiler:
    _check_settings(settings)
    return flops.NumParamsProfiler(space, inputs, **settings)


def _check_settings(settings: dict) -> None:
    if unknown := settings.keys() - set(COUNTS):
        raise InputError(f"unknown settings of the profiler: {', '.join(sorted(unknown))}; known: {', '.join(COUNTS)}")


def _latency(space: ModelSpace, inputs: Any, settings: dict) -> ExpressionProfiler:
    if has_cells(space):
        raise InputError(
            "nn-Meter predicts the latency of a whole Cell, one prediction for each of its architectures, which are "
            "too many; use a profiler of 'flops' or 'params'"
        )
    if "predictor" not in settings:
        raise InputError(
            "a latency profiler needs predictor=..., a name that 'nn-meter --list-predictors' prints, such as "
            "'cortexA76cpu_tflite21'"
        )
    try:
        import onnx  # noqa: F401
        import onnxsim  # noqa: F401
        from nni.nas.profiler.pytorch import nn_meter
    except ImportError as error:
        raise InputError(
            f"a latency profiler needs nn-Meter, but {error.name} is not installed; "
            "run: pip install nn-meter onnx onnxsim"
        ) from error
    theirs = nn_meter.to_onnx
    nn_meter.to_onnx = _to_onnx
    try:
        return nn_meter.NnMeterProfiler(space, inputs, **settings)
    finally:
        nn_meter.to_onnx = theirs


def _to_onnx(module: nn.Module, inputs: Any):
    """In NNI's place, which writes to a file without a name: torch's newer exporter and onnx both refuse that."""
    import onnx
    import onnxsim

    written = io.BytesIO()
    torch.onnx.export(module, inputs, written, export_params=False, dynamo=False)
    model = onnx.load_from_string(written.getvalue())
    simple, same = onnxsim.simplify(model)
    return simple if same else model


KINDS: dict[str, Callable[[ModelSpace, Any, dict], ExpressionProfiler]] = {
    "flops": _flops,
    "params": _params,
    "latency": _latency,
}
"""Profilers by name."""


@contextmanager
def formulas() -> Iterator[None]:
    """NNI's registries hold this package's formulas inside, and afterwards what they held before."""
    registries = [(shape_formula._shape_inference_formulas, SHAPES), (flops._flops_formula, COSTS)]
    before = [dict(registry) for registry, _ in registries]
    leaves, running = list(misc._leaf_registry), list(shape._current_module_names)
    try:
        for registry, ours in registries:
            registry.update(ours)
        misc._leaf_registry.extend(LEAVES)
        yield
    finally:
        for (registry, _), old in zip(registries, before, strict=True):
            registry.clear()
            registry.update(old)
        misc._leaf_registry[:] = leaves
        shape._current_module_names[:] = running  # NNI forgets it where a shape cannot be found
