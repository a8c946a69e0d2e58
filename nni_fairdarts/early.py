"""Early stopping of a search: rules over its records, and the epoch whose architecture they return."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nni_fairdarts.errors import InputError

FREE = ("max_pool", "avg_pool", "skip_connect", "none")
"""What operations without weights begin with."""


def skips_appear(records: Sequence[dict], most: int = 2) -> int | None:
    """The last epoch, as soon as a normal cell would keep ``most`` or more skip connections; None before.

    Of a space without cells all its choices count together. DARTS+, arXiv 1909.06035, its first criterion (2).
    """
    skips = records[-1].get("skip_connections") or {}
    count = skips["normal"] if "normal" in skips else sum(skips.values())
    return records[-1]["epoch"] if count >= most else None


def ranking_settles(records: Sequence[dict], epochs: int = 10) -> int | None:
    """The last epoch, as soon as the operations with weights were ranked alike in the last ``epochs``; None before.

    Ranked by their gates, within each edge and choice. DARTS+, arXiv 1909.06035, its second criterion (10).
    """
    if len(records) < epochs:
        return None
    ranks = [_ranking(record) for record in records[-epochs:]]
    return records[-1]["epoch"] if all(ranking == ranks[0] for ranking in ranks) else None


def _ranking(record: dict) -> dict[str, list]:
    ranking = {}
    for label, gates in record["gates"].items():
        learned = [k for k, name in enumerate(record["operations"][label]) if not str(name).startswith(FREE)]
        order = np.argsort(-np.atleast_2d(np.array(gates))[:, learned], axis=1, kind="stable")
        ranking[label] = order.tolist()
    return ranking


def sharpness_rises(
    records: Sequence[dict], factor: float = 1.3, window: int = 5, back: int = 4, first: int = 10
) -> int | None:
    """The epoch before the rise of the largest Hessian eigenvalue in α; None while it has not risen.

    Means over ``window`` records stand for the epoch in their middle; the search ends where the last one is more than
    ``factor`` times that of ``back`` records before, whose epoch is returned if it is ``first`` or later, counted from
    0. Records: with "alpha_eigenvalue". RobustDARTS, arXiv 1909.09656, section 4.3.
    """
    if any("alpha_eigenvalue" not in record for record in records):
        raise InputError("the rule 'eigenvalue' needs the Hessian's largest eigenvalue of every epoch; use RobustDARTS")
    if len(records) < window + back:
        return None
    values = [record["alpha_eigenvalue"] for record in records]
    now, then = np.mean(values[-window:]), np.mean(values[-window - back : -back])
    epoch = records[-back - window // 2 - 1]["epoch"]
    return epoch if epoch >= first and now > factor * then else None


RULES: dict[str, Callable[..., int | None]] = {
    "skips": skips_appear,
    "ranking": ranking_settles,
    "eigenvalue": sharpness_rises,
}
"""Rules by name: an epoch's records so far -> the epoch whose architecture is derived, or None to go on."""


@dataclass(frozen=True)
class EarlyStopping:
    """A search ends behind the epoch in which one of its rules says so.

    Args:
        rules: names of RULES.
        skips: of "skips": so many skip connections in a normal cell end it.
        ranking_epochs: of "ranking".
        factor: of "eigenvalue".
        first_epoch: of "eigenvalue": the earliest epoch that it returns, counted from 0.

    Raises InputError for an unknown rule, none, and values out of range.
    """

    rules: tuple[str, ...] = ("skips", "ranking")
    skips: int = 2
    ranking_epochs: int = 10
    factor: float = 1.3
    first_epoch: int = 10

    def __post_init__(self):
        if isinstance(self.rules, str) or not self.rules:
            raise InputError(f"rules must be a list of at least one of {', '.join(RULES)}, got {self.rules!r}")
        for name in self.rules:
            if name not in RULES:
                raise InputError(f"unknown rule {name!r}; known: {', '.join(RULES)}")
        for name, least in (("skips", 1), ("ranking_epochs", 2), ("first_epoch", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not self.factor > 1:
            raise InputError(f"factor must be more than 1, got {self.factor}; RobustDARTS uses 1.3")

    def epoch(self, records: Sequence[dict]) -> tuple[str, int] | None:
        """(rule, epoch whose architecture is derived) where a rule ends the search behind ``records``; else None."""
        settings = {
            "skips": {"most": self.skips},
            "ranking": {"epochs": self.ranking_epochs},
            "eigenvalue": {"factor": self.factor, "first": self.first_epoch},
        }
        for name in self.rules:
            if (epoch := RULES[name](records, **settings[name])) is not None:
                return name, epoch
        return None
