"""FairDARTS, its kin, and NNI's own one-shot strategies: by name, validated, recorded and reported by the same code."""

from dataclasses import asdict, fields, replace

import nni.nas.strategy

from nni_fairdarts import family
from nni_fairdarts.config import SearchConfig
from nni_fairdarts.early import EarlyStopping
from nni_fairdarts.mended import repairs
from nni_fairdarts.mended.recorded import Watched
from nni_fairdarts.stages import Stage
from nni_fairdarts.strategy import FairDARTS, GatedSearch
from nni_fairdarts.supernet.moving import Disturbance

__all__ = ["STRATEGIES", "build"]


def _parts(settings: SearchConfig, own: type[GatedSearch]) -> dict:
    """The arguments for what is set of ``search.parts``; noise and rules that are set change the strategy's own."""
    given = settings.parts.given()
    preset = getattr(own, "published", {})
    disturbance = {name: given.pop(name) for name in [f.name for f in fields(Disturbance)] if name in given}
    if disturbance:
        given["disturbance"] = replace(preset.get("disturbance", Disturbance()), **disturbance)
    if "stages" in given:
        given["stages"] = tuple(Stage(**asdict(stage)) for stage in given["stages"])
    rules = given.pop("early_stopping", None)
    early = {name: given.pop(key) for key, name in EARLY.items() if key in given}
    stopping = preset.get("early_stopping")
    if rules == []:
        given["early_stopping"] = None
    elif rules or early:
        early |= {"rules": tuple(rules)} if rules else {}
        given["early_stopping"] = replace(stopping or EarlyStopping(), **early)
    return given


EARLY = {
    "early_skips": "skips",
    "early_ranking": "ranking_epochs",
    "early_factor": "factor",
    "early_first": "first_epoch",
}
"""{name in ``search.parts``: what it is of EarlyStopping}."""


def _kin(own: type[GatedSearch]):
    """Arguments of one of FairDARTS' kin: its own settings, but for those that have no value of their own."""

    def arguments(settings: SearchConfig, metric: str, penalty) -> dict:
        optional = ("arc_learning_rate", "warmup_epochs", "candidate_norm")
        shared = ("single_level", "recompute", "fused", "compile", "cuda_graphs")
        return {
            **{name: getattr(settings, name) for name in optional if getattr(settings, name) is not None},
            **{name: getattr(settings, name) for name in shared},
            "gradient_clip_val": settings.gradient_clip_val or None,
            "penalty": penalty,
            **_parts(settings, own),
        }

    return own, arguments


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
        "warmup_epochs": settings.warmup_epochs or 0,
        "gradient_clip_val": settings.gradient_clip_val or None,
        "candidate_norm": settings.candidate_norm or "paper",
        "recompute": settings.recompute,
        "fused": settings.fused,
        "compile": settings.compile,
        "cuda_graphs": settings.cuda_graphs,
        "penalty": penalty,
        **_parts(settings, FairDARTS),
    }


def _darts(settings: SearchConfig, metric: str, penalty) -> dict:
    return {
        "arc_learning_rate": 3e-4 if settings.arc_learning_rate is None else settings.arc_learning_rate,
        "gradient_clip_val": settings.gradient_clip_val or None,
        "warmup_epochs": settings.warmup_epochs or 0,
    }


def _gumbel_darts(settings: SearchConfig, metric: str, penalty) -> dict:
    return {**_darts(settings, metric, penalty), "temperature": settings.temperature}


def _enas(settings: SearchConfig, metric: str, penalty) -> dict:
    return {
        "batches_per_update": settings.batches_per_update,
        "reward_metric_name": metric,
        "warmup_epochs": settings.warmup_epochs or 0,
    }


def _random(settings: SearchConfig, metric: str, penalty) -> dict:
    return {}


def _random_search(settings: SearchConfig, metric: str, penalty) -> dict:
    return {} if settings.random_skips is None else {"skips": settings.random_skips}


STRATEGIES = {
    "fairdarts": (FairDARTS, _fairdarts),
    "second_order_darts": _kin(family.SecondOrderDARTS),
    "p_darts": _kin(family.PDARTS),
    "pc_darts": _kin(family.PCDARTS),
    "dr_nas": _kin(family.DrNAS),
    "darts_plus": _kin(family.DARTSPlus),
    "robust_darts": _kin(family.RobustDARTS),
    "noisy_darts": _kin(family.NoisyDARTS),
    "operation_strength_darts": _kin(family.OperationStrengthDARTS),
    "zero_order_darts": _kin(family.ZeroOrderDARTS),
    "random_search": (family.RandomSearch, _random_search),
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
    watched = base if issubclass(base, Watched) else type(base.__name__, (Watched, base), {})
    strategy = watched(**arguments(settings, metric, penalty))
    strategy.threshold = settings.threshold
    strategy.repairs = REPAIRS.get(settings.strategy, strategy.repairs)
    if settings.strategy == "random" and settings.random_skips is not None:
        strategy.repairs = (type("ExactSkips", (repairs.ExactSkips,), {"skips": settings.random_skips}),)
    return strategy
