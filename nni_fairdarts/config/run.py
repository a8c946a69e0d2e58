"""A run: its sections, and their YAML."""

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Optional

import yaml

from nni_fairdarts.config.checks import check, check_values
from nni_fairdarts.config.data import DataConfig, SpaceConfig
from nni_fairdarts.config.parts import PartsConfig
from nni_fairdarts.config.retrain import RetrainConfig
from nni_fairdarts.config.search import OURS, PenaltyConfig, SearchConfig
from nni_fairdarts.errors import InputError


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
        check_values("run", self)
        check("run", self.seed >= 0, "seed", self.seed, "0 or more")
        for name in ("checkpoint_steps", "figure_epochs"):
            check("run", getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        check("run", self.devices >= 1, "devices", self.devices, "at least 1")
        alone = self.devices == 1 or self.search.strategy in OURS
        check(
            "run",
            alone,
            "devices",
            self.devices,
            f"1 with {self.search.strategy}",
            "; fairdarts and its kin share a search",
        )
        graphs = self.devices > 1 and self.search.cuda_graphs
        check("search", not graphs, "cuda_graphs", True, f"false with devices {self.devices}")
        check("run", self.threads is None or self.threads >= 1, "threads", self.threads, "at least 1, or unset")
        plain = self.name and self.name not in (".", "..") and "/" not in self.name and "\\" not in self.name
        plain = plain and self.name.isprintable() and len(os.fsencode(self.name)) <= 200
        check("run", plain, "name", repr(self.name), "a folder's name without slashes, of at most 200 bytes")
        check("run", self.runs.isprintable() and self.runs != "", "runs", repr(self.runs), "the path of a folder")
        cells = self.search.strategy == "proxyless" and self.space.name == "darts"
        other = "another strategy, or a space of LayerChoice such as nni_fairdarts.spaces:S2; NNI's cannot search cells"
        check("search", not cells, "strategy", "proxyless for the space darts", other)
        skips, operations = self.search.random_skips, self.space.operations or ("skip_connect", "and others")
        fits = self.space.name == "darts" and "skip_connect" in operations and len(operations) > 1
        expected = "unset but for the space darts with skip_connect and another operation"
        unknown = self.search.strategy == "random_search" and self.space.name != "darts"  # until the space is made
        check("search", skips is None or fits or unknown, "random_skips", skips, expected)
        logged = self.metric.startswith("val_")
        check("run", logged, "metric", repr(self.metric), "a name that begins with val_, as logged in validation")
        named = self.evaluator is None or ":" in self.evaluator
        check("run", named, "evaluator", repr(self.evaluator), "module:function, or unset")

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
    parts = values["search"]["parts"]
    parts["temperature"] = parts["temperature"] and list(parts["temperature"])
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
        if isinstance(settings.get("parts"), dict):
            settings["parts"] = PartsConfig(**settings["parts"])
        built[key] = SECTIONS[key](**settings)
    return RunConfig(**built)
