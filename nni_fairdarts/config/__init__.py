"""The settings of a run: dataclasses that a YAML file, the command line and Python all fill.

Defaults are the published CIFAR-10 search and retraining (Fair DARTS, arXiv 1911.12126, and its code).
"""

from nni_fairdarts.config.data import DataConfig, SpaceConfig
from nni_fairdarts.config.parts import PartsConfig
from nni_fairdarts.config.retrain import RetrainConfig
from nni_fairdarts.config.run import SECTIONS as SECTIONS
from nni_fairdarts.config.run import RunConfig, from_mapping, to_yaml
from nni_fairdarts.config.search import OURS as OURS
from nni_fairdarts.config.search import PenaltyConfig, SearchConfig

__all__ = [
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
