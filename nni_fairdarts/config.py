"""The settings of a run: dataclasses that a YAML file, the command line and Python all fill.

Defaults are the published CIFAR-10 search and retraining (Fair DARTS, arXiv 1911.12126, and its code).
"""

import dataclasses
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Optional, get_args

import yaml

from nni_fairdarts.errors import InputError

MOST = {
    "width": 4096, "num_cells": 1000, "image_size": 8192, "workers": 1024, "threads": 4096, "seed": 2**32 - 1,
}  # fmt: skip
"""The largest whole number that a field takes where it is not 10⁹: beyond it no machine has the memory, or no library
takes it."""


def _check_values(owner: str, config) -> None:
    """Raise InputError for what is no number where one is meant, and for numbers without end."""
    for one in dataclasses.fields(config):
        value = getattr(config, one.name)
        optional = type(None) in get_args(one.type)
        _check(owner, value is not None or optional, one.name, "null", "given", "; leave it out for the default")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float):
                _check(owner, math.isfinite(number), one.name, number, "a finite number")
            elif isinstance(number, int):
                most = MOST.get(one.name, 10**9)
                _check(owner, number <= most, one.name, number, f"at most {most}")


def _check(owner: str, ok: bool, name: str, value, expected: str, hint: str = "") -> None:
    if not ok:
        raise InputError(f"{owner}.{name} must be {expected}, got {value}{hint}")


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how training images are varied.

    Args:
        name: digits, cifar10, cifar100, folder (ROOT/train/CLASS, ROOT/test/CLASS) or module:function.
        root: folder of the data set.
        download: let torchvision fetch CIFAR when it is not in root.
        image_size: side in pixels that images are resized to; unset keeps theirs, a folder needs it.
        augmentation: crop (zeros around the image, then a random crop to its size) or imagenet (a random part of the
            image as stored, resized to image_size, and jittered colours; evaluation resizes to image_size / 0.875 and
            keeps the centre).
        crop_padding: width of the zeros that crop adds; 0 for no crop.
        flip: mirror half of the training images.
        search_classes: number of classes, drawn with the seed, that the search sees; unset for all.
        search_images_per_class: training images of each, drawn with the seed; unset for all.
        workers: processes that load ahead of the training; 0 loads in the main process, which is right for digits and
            CIFAR on a CUDA device: they stay there, where they fit, and their batches are built there.
    """

    name: str = "cifar10"
    root: str = "data"
    download: bool = False
    image_size: Optional[int] = None  # noqa: UP045 (jsonargparse shows it better)
    augmentation: Literal["crop", "imagenet"] = "crop"
    crop_padding: int = 4
    flip: bool = True
    search_classes: Optional[int] = None  # noqa: UP045
    search_images_per_class: Optional[int] = None  # noqa: UP045
    workers: int = 0

    def __post_init__(self):
        _check_values("data", self)
        _check("data", self.image_size is None or self.image_size >= 1, "image_size", self.image_size, "at least 1")
        for name in ("crop_padding", "workers"):
            _check("data", getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        _check("data", self.root.isprintable() and self.root != "", "root", repr(self.root), "the path of a folder")
        for name in ("search_classes", "search_images_per_class"):
            value = getattr(self, name)
            _check("data", value is None or value >= 2, name, value, "at least 2, or unset for all")


@dataclass(frozen=True)
class SpaceConfig:
    """What is searched: NNI's DARTS space, or one of yours. In a file ``space: module:Class`` is short for its name.

    Args:
        name: darts, or module:Class, a model space of yours (or a function that makes one).
        arguments: keyword arguments of that class; num_classes and in_channels are the images' where it takes them.
        width: of darts: channels of the first cells.
        num_cells: of darts: cells in a row; the reduction cells are at 1/3 and 2/3 of the depth.
        dataset: of darts: the stem, cifar (keeps the resolution) or imagenet (an eighth of it remains).
        operations: of darts: the candidates on every edge; unset for the paper's seven.
    """

    name: str = "darts"
    arguments: dict = field(default_factory=dict)
    width: int = 16
    num_cells: int = 8
    dataset: Literal["cifar", "imagenet"] = "cifar"
    operations: Optional[list[str]] = None  # noqa: UP045

    def __post_init__(self):
        _check_values("space", self)
        ours = self.name == "darts"
        _check("space", ours or ":" in self.name, "name", repr(self.name), "darts, or module:Class of yours")
        given = self.arguments or "none"
        _check(
            "space", not (ours and self.arguments), "arguments", given, "empty for darts; they are for your own space"
        )
        _check("space", self.width >= 2 and self.width % 2 == 0, "width", self.width, "an even number, at least 2")
        _check("space", self.num_cells >= 3, "num_cells", self.num_cells, "at least 3 (normal, reduction, reduction)")


@dataclass(frozen=True)
class PenaltyConfig:
    """A penalty on what the searched network costs; names and formulas are NNI's, see ``nni_fairdarts.penalty``.

    Args:
        profiler: flops (multiply-adds), params, or none for no penalty.
        baseline: the cost at which the penalty is zero, at the search's own width and number of cells. Every gate's
            share is counted, so a search begins far above what it derives; expected_cost in the history tells.
        scale: weight (add) or exponent (mul) of the penalty.
        nonlinear: linear, positive (nothing below the baseline), negative or absolute.
        aggregate: add to the loss, or mul it.
    """

    profiler: Literal["none", "flops", "params"] = "none"
    baseline: float = 0.0
    scale: float = 1.0
    nonlinear: Literal["linear", "positive", "negative", "absolute"] = "linear"
    aggregate: Literal["add", "mul"] = "add"

    def __post_init__(self):
        _check_values("search.penalty", self)
        used = self.profiler != "none"
        _check("search.penalty", used or not self.baseline, "profiler", "none beside a baseline", "flops or params")
        _check("search.penalty", not used or self.baseline > 0, "baseline", self.baseline, "more than 0")


@dataclass(frozen=True)
class SearchConfig:
    """The search. NNI's strategies have fewer settings than fairdarts; they pass over what they do not have.

    Args:
        strategy: fairdarts, or one of NNI's own, for comparison: darts, gumbel_darts, proxyless, enas or random.
        epochs: passes over the weights' half of the training set.
        batch_size: images per step, for weights and α alike; of each process where devices is more than 1.
        learning_rate: of SGD at the start.
        learning_rate_min: of SGD at the end of its cosine.
        momentum: of SGD.
        weight_decay: of SGD.
        gradient_clip_val: bound on the norm of the weights' gradient; 0 for none.
        cutout: side of the blanked square in training images, in pixels; 0 for none.
        train_portion: share of the training set for the weights; α learns from the rest.
        arc_learning_rate: Adam's for α; unset for the strategy's own, 3e-3 of fairdarts and 3e-4 of NNI's.
        arc_betas: of fairdarts: Adam's for α (NNI's have 0.5 and 0.999).
        arc_weight_decay: of fairdarts: Adam's for α (NNI's have 1e-3).
        zero_one_weight: weight of the zero-one loss.
        zero_one_loss: l2 (the method), l1 (the paper's negative example) or none.
        threshold: a gate at or over it is kept.
        discretization: sparse (the method), edge or darts.
        alpha_init: where every α starts; 0 is a gate of one half.
        single_level: one batch updates weights and α.
        warmup_epochs: epochs at the start in which α rests.
        candidate_norm: paper (no learnable scales in cells, a batch norm behind pooling) or space (as built).
        recompute: of fairdarts: compute candidates again in the backward pass; less memory, more time, same numbers.
        fused: of fairdarts: compute together what candidates share; the same mathematics in less time and memory.
        compile: of fairdarts: compile the cells (torch.compile); for CUDA, on a CPU it takes many minutes.
        cuda_graphs: of fairdarts: launch the supernet's passes as CUDA graphs; not yet run on a device.
        precision: 32-true, bf16-mixed or 16-mixed: convolutions in bfloat16 or float16, with α, losses and optimizers
            in float32. bfloat16 changes numbers in their third digit, float16 in their fourth, and skips steps whose
            gradients overflow. For CUDA: on a CPU it is slower.
        penalty: see PenaltyConfig; of fairdarts.
        temperature: of gumbel_darts: in the first epoch, and the one that it falls to.
        random_skips: of random, on the space darts: exactly so many skip connections in the normal cell, of its 8
            operations, and two different inputs for every node; unset for whatever is drawn.
        batches_per_update: of enas: sampled networks between two updates of its controller.
        gap_batches: batches from which batch norms are estimated to measure the discretisation gap after each epoch;
            0 does not measure it.
    """

    strategy: Literal["fairdarts", "darts", "gumbel_darts", "proxyless", "enas", "random"] = "fairdarts"
    epochs: int = 50
    batch_size: int = 128
    learning_rate: float = 0.005
    learning_rate_min: float = 0.001
    momentum: float = 0.9
    weight_decay: float = 3e-4
    gradient_clip_val: float = 5.0
    cutout: int = 0
    train_portion: float = 0.5
    arc_learning_rate: Optional[float] = None  # noqa: UP045
    arc_betas: tuple[float, float] = (0.9, 0.999)
    arc_weight_decay: float = 1e-3
    zero_one_weight: float = 10.0
    zero_one_loss: Literal["l2", "l1", "none"] = "l2"
    threshold: float = 0.85
    discretization: Literal["sparse", "edge", "darts"] = "sparse"
    alpha_init: float = 0.0
    single_level: bool = False
    warmup_epochs: int = 0
    candidate_norm: Literal["paper", "space"] = "paper"
    recompute: bool = False
    fused: bool = True
    compile: bool = False
    cuda_graphs: bool = False
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    penalty: PenaltyConfig = field(default_factory=PenaltyConfig)
    temperature: tuple[float, float] = (1.0, 0.33)
    random_skips: Optional[int] = None  # noqa: UP045
    batches_per_update: int = 20
    gap_batches: int = 20

    def __post_init__(self):
        _check_sgd("search", self)
        _check(
            "search",
            0 < self.train_portion < 1,
            "train_portion",
            self.train_portion,
            "in (0, 1)",
            "; the paper uses 0.5",
        )
        for name in ("arc_weight_decay", "zero_one_weight", "warmup_epochs", "gap_batches"):
            value = getattr(self, name)
            _check("search", value >= 0, name, value, "0 or more")
        rate, (start, end) = self.arc_learning_rate, self.temperature
        _check("search", rate is None or rate > 0, "arc_learning_rate", rate, "more than 0")
        _check("search", start >= end > 0, "temperature", self.temperature, "two numbers over 0, the larger first")
        alone = self.strategy == "enas" and self.precision == "16-mixed"
        expected = "32-true or bf16-mixed with enas; NNI trains its controller without a scale"
        _check("search", not alone, "precision", self.precision, expected)
        _check("search", self.batches_per_update >= 1, "batches_per_update", self.batches_per_update, "at least 1")
        skips = self.random_skips
        _check("search", skips is None or 0 <= skips <= 8, "random_skips", skips, "0 to 8, or unset")
        meant = skips is None or self.strategy == "random"
        _check("search", meant, "random_skips", skips, f"unset with {self.strategy}; it is of random")
        graphs = self.cuda_graphs and self.recompute
        _check("search", not graphs, "cuda_graphs", True, "false with recompute, which looks at the random state")
        penalized, reaches = self.penalty.profiler, self.strategy == "fairdarts" or self.penalty.profiler == "none"
        expected = f"none with {self.strategy}; NNI's reaches no α"
        _check("search", reaches, "penalty.profiler", penalized, expected)
        _check("search", all(0 <= b < 1 for b in self.arc_betas), "arc_betas", self.arc_betas, "two numbers in [0, 1)")
        _check("search", 0 < self.threshold < 1, "threshold", self.threshold, "in (0, 1)", "; the paper uses 0.85")


@dataclass(frozen=True)
class RetrainConfig:
    """Training of the derived network from scratch, on the whole training set.

    Args:
        width: channels of the first cells.
        num_cells: cells in a row.
        epochs: passes over the training set.
        batch_size: images per step; of each process where devices is more than 1.
        learning_rate: of SGD at the start.
        schedule: of the learning rate: cosine (down to learning_rate_min) or exponential (times
            learning_rate_decay after each epoch).
        learning_rate_min: of SGD at the end of its cosine.
        learning_rate_decay: factor of the exponential schedule.
        momentum: of SGD.
        weight_decay: of SGD.
        gradient_clip_val: bound on the gradient's norm; 0 for none.
        cutout: side of the blanked square in training images, in pixels; 0 for none.
        auxiliary_weight: weight of the auxiliary head's loss; 0 for no head (it needs images of 32 or 224 pixels).
        drop_path_prob: probability that a path is dropped in the last epoch; it grows linearly from 0.
        label_smoothing: of the cross entropy.
    """

    width: int = 36
    num_cells: int = 20
    epochs: int = 600
    batch_size: int = 96
    learning_rate: float = 0.025
    schedule: Literal["cosine", "exponential"] = "cosine"
    learning_rate_min: float = 0.0
    learning_rate_decay: float = 0.97
    momentum: float = 0.9
    weight_decay: float = 3e-4
    gradient_clip_val: float = 5.0
    cutout: int = 16
    auxiliary_weight: float = 0.4
    drop_path_prob: float = 0.2
    label_smoothing: float = 0.0

    def __post_init__(self):
        _check_sgd("retrain", self)
        _check("retrain", self.width >= 2 and self.width % 2 == 0, "width", self.width, "an even number, at least 2")
        _check("retrain", self.num_cells >= 3, "num_cells", self.num_cells, "at least 3 (normal, reduction, reduction)")
        decay = self.learning_rate_decay
        _check("retrain", 0 < decay <= 1, "learning_rate_decay", decay, "in (0, 1]", "; DARTS uses 0.97 on ImageNet")
        _check("retrain", self.auxiliary_weight >= 0, "auxiliary_weight", self.auxiliary_weight, "0 or more")
        for name in ("drop_path_prob", "label_smoothing"):
            _check("retrain", 0 <= getattr(self, name) < 1, name, getattr(self, name), "in [0, 1)")


def _check_sgd(owner: str, config) -> None:
    _check_values(owner, config)
    for name in ("epochs", "batch_size"):
        _check(owner, getattr(config, name) >= 1, name, getattr(config, name), "at least 1")
    _check(owner, config.learning_rate > 0, "learning_rate", config.learning_rate, "more than 0")
    for name in ("learning_rate_min", "weight_decay", "gradient_clip_val", "cutout"):
        _check(owner, getattr(config, name) >= 0, name, getattr(config, name), "0 or more")
    _check(owner, 0 <= config.momentum < 1, "momentum", config.momentum, "in [0, 1)")


@dataclass(frozen=True)
class RunConfig:
    """One run: a search, what it derives, and its retraining.

    Args:
        name: the run's folder is RUNS/NAME.
        runs: folder that holds the runs.
        seed: of everything random.
        device: auto, cpu or cuda.
        checkpoint_steps: steps between two checkpoints within an epoch; 0 for none but at the epochs' ends.
        figure_epochs: epochs between two sets of pictures of gates and cells in TensorBoard, with one after the last
            epoch; 0 for none.
        devices: processes that train together, one per CUDA device; on a CPU by gloo. batch_size is each one's own:
            a step sees devices times as many images. Of fairdarts, and of retraining.
        deterministic: on a CUDA device too, every run of a seed gives the same bits, by slower operations where need
            be; on a CPU it does anyway.
        threads: of the CPU; unset leaves torch's choice. On small images one is hardly slower than two on a quiet
            machine, and many times faster beside other work, where threads wait for each other.
        evaluator: module:function of yours, called as function(stage, config) with the stage "search" or "retrain";
            returns NNI's Lightning evaluator. Unset for image classification on data.
        metric: what the evaluator logs in validation and the run is judged by.
        data: see DataConfig.
        space: see SpaceConfig.
        search: see SearchConfig.
        retrain: see RetrainConfig.
    """

    name: str = "search"
    runs: str = "runs"
    seed: int = 2
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_steps: int = 0
    figure_epochs: int = 5
    devices: int = 1
    deterministic: bool = False
    threads: Optional[int] = None  # noqa: UP045
    evaluator: Optional[str] = None  # noqa: UP045
    metric: str = "val_acc"
    data: DataConfig = field(default_factory=DataConfig)
    space: SpaceConfig = field(default_factory=SpaceConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    retrain: RetrainConfig = field(default_factory=RetrainConfig)

    def __post_init__(self):
        _check_values("run", self)
        _check("run", self.seed >= 0, "seed", self.seed, "0 or more")
        for name in ("checkpoint_steps", "figure_epochs"):
            _check("run", getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        _check("run", self.devices >= 1, "devices", self.devices, "at least 1")
        alone = self.devices == 1 or self.search.strategy == "fairdarts"
        _check(
            "run", alone, "devices", self.devices, f"1 with {self.search.strategy}", "; only fairdarts shares a search"
        )
        graphs = self.devices > 1 and self.search.cuda_graphs
        _check("search", not graphs, "cuda_graphs", True, f"false with devices {self.devices}")
        _check("run", self.threads is None or self.threads >= 1, "threads", self.threads, "at least 1, or unset")
        plain = self.name and self.name not in (".", "..") and "/" not in self.name and "\\" not in self.name
        plain = plain and self.name.isprintable() and len(os.fsencode(self.name)) <= 200
        _check("run", plain, "name", repr(self.name), "a folder's name without slashes, of at most 200 bytes")
        _check("run", self.runs.isprintable() and self.runs != "", "runs", repr(self.runs), "the path of a folder")
        cells = self.search.strategy == "proxyless" and self.space.name == "darts"
        other = "another strategy, or a space of LayerChoice such as nni_fairdarts.spaces:S2; NNI's cannot search cells"
        _check("search", not cells, "strategy", "proxyless for the space darts", other)
        skips, operations = self.search.random_skips, self.space.operations or ("skip_connect", "and others")
        fits = self.space.name == "darts" and "skip_connect" in operations and len(operations) > 1
        expected = "unset but for the space darts with skip_connect and another operation"
        _check("search", skips is None or fits, "random_skips", skips, expected)
        logged = self.metric.startswith("val_")
        _check("run", logged, "metric", repr(self.metric), "a name that begins with val_, as logged in validation")
        named = self.evaluator is None or ":" in self.evaluator
        _check("run", named, "evaluator", repr(self.evaluator), "module:function, or unset")

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.runs) / self.name


SECTIONS = {"data": DataConfig, "space": SpaceConfig, "search": SearchConfig, "retrain": RetrainConfig}


class _Dumper(yaml.SafeDumper):
    """Quotes words that jsonargparse, unlike PyYAML, reads as numbers: a run may be named 1e3."""

    def represent_str(self, text: str) -> yaml.Node:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="'" if _is_number(text) else None)


_Dumper.add_representer(str, _Dumper.represent_str)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def to_yaml(config: RunConfig) -> str:
    """The configuration as YAML; a ``--config`` file."""
    values = dataclasses.asdict(config)
    for name in ("arc_betas", "temperature"):
        values["search"][name] = list(values["search"][name])
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)


def from_mapping(values: dict) -> RunConfig:
    """The configuration in nested mappings of values of the right types; keys left out have their defaults.

    Raises InputError where a section is no mapping, and for values out of range.
    """
    built = dict(values)
    for key in SECTIONS.keys() & values.keys():
        if not isinstance(values[key], dict):
            raise InputError(f"{key} must be a section with settings of its own, got {values[key]!r}")
        settings = dict(values[key])
        if isinstance(settings.get("penalty"), dict):
            settings["penalty"] = PenaltyConfig(**settings["penalty"])
        built[key] = SECTIONS[key](**settings)
    return RunConfig(**built)
