"""Which runs differ in the seed alone, how those groups' numbers spread, and what keeps runs from being compared."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields

from nni_fairdarts.config import OURS, PartsConfig
from nni_fairdarts.manager.spread import Spread, is_number, spread
from nni_fairdarts.report.runs import MEASURED, Run

ASIDE = (
    "seed", "search.strategy", "device", "deterministic", "threads", "checkpoint_steps",
    "data.root", "data.download", "data.workers",
)  # fmt: skip
"""Fields that make no group: they are named elsewhere, or of the machine. Of ``data.root`` see ``comparable``."""

OTHER_RESULTS = ("data.", "retrain.", "evaluator", "metric")
"""Where runs differ in these, their accuracies are of other tasks or trainings."""

PARTS = "parts."
_GRADIENT = (*OURS, "darts", "gumbel_darts", "proxyless")
_FAIR = (
    "arc_betas", "arc_weight_decay", "zero_one_weight", "zero_one_loss", "threshold", "discretization", "alpha_init",
)  # fmt: skip
_KIN = (
    "single_level", "candidate_norm", "recompute", "fused", "compile", "cuda_graphs", "penalty.profiler",
    "penalty.baseline", "penalty.scale", "penalty.nonlinear", "penalty.aggregate",
    *(f"{PARTS}{field.name}" for field in fields(PartsConfig)),
)  # fmt: skip
OWNERS = {
    **{f"search.{name}": ("fairdarts",) for name in _FAIR},
    **{f"search.{name}": OURS for name in _KIN},
    "search.arc_learning_rate": _GRADIENT,
    "search.gradient_clip_val": _GRADIENT,
    "search.warmup_epochs": (*_GRADIENT, "enas"),
    "search.temperature": ("gumbel_darts",),
    "search.batches_per_update": ("enas",),
    "search.random_skips": ("random_search", "random"),
}
"""{a setting: the strategies that have it}; the others pass over it, so their runs do not differ in it."""


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed alone.

    ``settings``: by name what it has otherwise than other groups, as far as it is known and the strategy has it;
    ``measured``: by name the spread of what its runs came to.
    """

    strategy: str | None
    settings: dict[str, object]
    runs: tuple[Run, ...]
    measured: dict[str, Spread]

    @property
    def name(self) -> str:
        # A part that is unset is the strategy's own, which its name says.
        own = [key for key, value in self.settings.items() if value is None and key.startswith(f"search.{PARTS}")]
        known = [f"{short(key)} {worded(value)}" for key, value in self.settings.items() if key not in own]
        unknown = ["settings not known"] if self.runs[0].settings is None else []
        return ", ".join([self.strategy or "?", *known, *unknown])


def differing(runs: Sequence[Run]) -> list[str]:
    """The settings with more than one value among the runs that have them; ``ASIDE``'s are left out."""
    known = [comparable(run) for run in runs]
    names = dict.fromkeys(name for settings in known for name in settings)
    return [name for name in names if len({_key(s[name]) for s in known if name in s}) > 1]


def _key(value) -> str:
    """The same text for what is equal: the 10 of a search space is the 10.0 of a configuration."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_key, value))}]"
    whole = isinstance(value, float) and value.is_integer()
    return json.dumps(int(value) if whole else value)


def comparable(run: Run) -> dict:
    """The settings that a run's strategy has, but ``ASIDE``'s; the folder of its images where that says which."""
    settings = run.settings or {}
    own = str(settings.get("data.name")) not in ("digits", "cifar10", "cifar100")
    aside = [name for name in ASIDE if not (own and name == "data.root")]
    has = (name for name in settings if run.strategy in OWNERS.get(name, (run.strategy,)))
    return {name: settings[name] for name in has if name not in aside}


def grouped(runs: Sequence[Run]) -> list[Group]:
    """The runs by strategy, in order of first appearance, and by whatever else differs between them but the seed."""
    names, members = differing(runs), {}
    for run in runs:
        had = comparable(run)
        settings = {name: had[name] for name in names if name in had}
        alike = [run.strategy, run.settings is None, *map(list, settings.items())]
        members.setdefault(_key(alike), []).append((settings, run))
    made = []
    for alike in members.values():
        (settings, first), those = alike[0], tuple(run for _, run in alike)
        numbers = {key: [run.measured[key] for run in those if key in run.measured] for key in MEASURED}
        made.append(Group(first.strategy, settings, those, {key: spread(n) for key, n in numbers.items() if n}))
    strategies = [group.strategy for group in made]
    return sorted(made, key=lambda group: (strategies.index(group.strategy), _order(group)))


def _order(group: Group) -> list:
    """What sorts groups by their settings, numbers by their size, those whose settings are not known behind others."""
    values = [(0, float(v), "") if is_number(v) else (1, 0.0, worded(v)) for v in group.settings.values()]
    return [group.runs[0].settings is None, *values]


def warnings(runs: Sequence[Run]) -> list[str]:
    """Sentences about what keeps the runs' accuracies from being compared, naming the runs."""
    said = []
    for name in differing(runs):
        if name.startswith(OTHER_RESULTS):
            values: dict[str, list[str]] = {}
            for run in runs:
                if name in (run.settings or {}):
                    values.setdefault(worded(run.settings[name]), []).append(run.name)
            had = "; ".join(f"{value} in {listed(names)}" for value, names in values.items())
            kind = "retraining" if name.startswith("retrain.") else "data" if name.startswith("data.") else "evaluation"
            said.append(f"Other {kind}: {name} is {had}. Accuracies of these runs do not compare.")
    if unknown := [run.name for run in runs if run.settings is None]:
        said.append(f"Not known: the settings of {listed(unknown)}. Whether their numbers compare is not known either.")
    return said


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names as a list in a sentence, cut where it is long."""
    shown = list(names[:most]) + ([f"{len(names) - most} more"] if len(names) > most else [])
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def short(name: str) -> str:
    """A setting's name as an experiment's search space has it: those of the search by their own."""
    return name.removeprefix("search.")


def worded(value) -> str:
    """A setting's value for people; of a list of settings what is given of each."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        given = [{name: one for name, one in part.items() if one is not None and one is not False} for part in value]
        return "; ".join(", ".join(f"{name} {worded(one)}" for name, one in part.items()) for part in given)
    return "unset" if value is None else value if isinstance(value, str) else json.dumps(value)
