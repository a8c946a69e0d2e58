"""The settings of a run: dataclasses that a YAML file, the command line and Python all fill.

Defaults are the published CIFAR-10 search and retraining (Fair DARTS, arXiv 1911.12126, and its code).
"""

from nni_fairdarts.config.data import DataConfig, SpaceConfig
from nni_fairdarts.config.parts import PartsConfig
from nni_fairdarts.config.retrain import RetrainConfig
from nni_fairdarts.config.run import SECTIONS, RunConfig, from_mapping, to_yaml
from nni_fairdarts.config.search import OURS, PenaltyConfig, SearchConfig

__all__ = [
    "OURS",
    "SECTIONS",
    "DataConfig",
    "PartsConfig",
    "PenaltyConfig",
    "RetrainConfig",
    "RunConfig",
    "SearchConfig",
    "SpaceConfig",
    "from_mapping",
    "to_yaml",
]
