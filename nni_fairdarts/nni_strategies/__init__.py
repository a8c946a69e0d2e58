"""NNI's own one-shot strategies beside FairDARTS: by name, validated, recorded and reported by the same code."""

import nni.nas.strategy

from nni_fairdarts.config import SearchConfig
from nni_fairdarts.nni_strategies import repairs
from nni_fairdarts.nni_strategies.recorded import Watched
from nni_fairdarts.strategy import FairDARTS

__all__ = ["STRATEGIES", "build"]


def _fairdarts(settings: SearchConfig, metric: str, penalty) -> dict:
    return {
        "arc_learning_rate": 3e-3 if settings.arc_learning_rate is None else settings.arc_learning_rate,
        "arc_betas": settings.arc_betas,
        "arc_weight_decay": settings.arc_weight_decay,
        "zero_one_weight": settings.zero_one_weight,
        "zero_one_loss": settings.zero_one_loss,
        "threshold": settings.threshold,
        "discretization": settings.discretization,
        "alpha_init": settings.alpha_init,
        "single_level": settings.single_level,
        "warmup_epochs": settings.warmup_epochs,
        "gradient_clip_val": settings.gradient_clip_val or None,
        "candidate_norm": settings.candidate_norm,
        "recompute": settings.recompute,
        "fused": settings.fused,
        "compile": settings.compile,
        "cuda_graphs": settings.cuda_graphs,
        "penalty": penalty,
    }


def _darts(settings: SearchConfig, metric: str, penalty) -> dict:
    return {
        "arc_learning_rate": 3e-4 if settings.arc_learning_rate is None else settings.arc_learning_rate,
        "gradient_clip_val": settings.gradient_clip_val or None,
        "warmup_epochs": settings.warmup_epochs,
    }


def _gumbel_darts(settings: SearchConfig, metric: str, penalty) -> dict:
    return {**_darts(settings, metric, penalty), "temperature": settings.temperature}


def _enas(settings: SearchConfig, metric: str, penalty) -> dict:
    return {
        "batches_per_update": settings.batches_per_update,
        "reward_metric_name": metric,
        "warmup_epochs": settings.warmup_epochs,
    }


def _random(settings: SearchConfig, metric: str, penalty) -> dict:
    return {}


STRATEGIES = {
    "fairdarts": (FairDARTS, _fairdarts),
    "darts": (nni.nas.strategy.DARTS, _darts),
    "gumbel_darts": (nni.nas.strategy.GumbelDARTS, _gumbel_darts),
    "proxyless": (nni.nas.strategy.Proxyless, _darts),
    "enas": (repairs.ENAS, _enas),
    "random": (nni.nas.strategy.RandomOneShot, _random),
}
"""{name: (class, its arguments out of the search's settings)}."""

REPAIRS = {
    "proxyless": (repairs.StrongestPath,),
    "enas": (repairs.OneController,),
    "random": (repairs.SeededSampling,),
}


def build(settings: SearchConfig, metric: str = "val_acc", penalty: dict | None = None):
    """The configured strategy, ``Watched``. ``metric``: what enas is rewarded with; ``penalty``: of fairdarts."""
    base, arguments = STRATEGIES[settings.strategy]
    strategy = type(base.__name__, (Watched, base), {})(**arguments(settings, metric, penalty))
    strategy.threshold = settings.threshold
    strategy.repairs = REPAIRS.get(settings.strategy, ())
    if settings.random_skips is not None:
        strategy.repairs = (type("ExactSkips", (repairs.ExactSkips,), {"skips": settings.random_skips}),)
    return strategy
