"""What the page says of several runs: a row for each, means over those that differ in the seed alone, figures."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from nni_fairdarts.plots import comparisons
from nni_fairdarts.plots.comparison import SERIES
from nni_fairdarts.report.groups import Group, comparable, differing, grouped, listed, short, warnings, worded
from nni_fairdarts.report.numbers import Number, heading, mean, shown
from nni_fairdarts.report.pictures import Picture, picture
from nni_fairdarts.report.runs import MEASURED, Run
from nni_fairdarts.report.sections import Section, by_now, section


@dataclass(frozen=True)
class Cell:
    """A table's cell: a text, or a number; ``link`` to another place of the page, ``note`` behind it."""

    text: str = ""
    number: Number | None = None
    link: str = ""
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Headings, and rows of as many cells; the first ``about`` columns say what a row is about."""

    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    about: int


def compared(runs: Sequence[Run], titles: Sequence[str]) -> dict:
    """What the template of a comparison is given; ``titles``: of the experiments among what was named."""
    groups, metric = grouped(runs), _metric(runs)
    numbered = enumerate(tqdm(runs, desc="report", unit="run", leave=False, disable=None), 1)
    sections = [section(run, f"run-{number}") for number, run in numbered]
    return {
        "title": f"Experiment {listed(titles)}" if titles else f"Comparison of {len(runs)} searches",
        "counts": _counts(runs),
        "warnings": warnings(runs),
        "means": _means(groups, metric),
        "table": _table(sections, differing(runs), metric),
        "figures": _figures(groups),
        "lines": LINES,
        "sections": sections,
    }


def _metric(runs: Sequence[Run]) -> str:
    """What the runs are judged by; "score" where that differs."""
    metrics = {run.metric for run in runs}
    return metrics.pop() if len(metrics) == 1 else "score"


def _counts(runs: Sequence[Run]) -> str:
    states = [run.state.partition(",")[0] for run in runs]
    return "; ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def _means(groups: Sequence[Group], metric: str) -> Table:
    names = list(dict.fromkeys(name for group in groups for name in group.settings))
    keys = [key for key in MEASURED if any(key in group.measured for group in groups)]
    rows = []
    for group in groups:
        count = len(group.runs)
        cells = [Cell(group.strategy or "?"), *_settings(group.runs[0], names), Cell(number=Number(str(count), count))]
        for key in keys:
            found = group.measured.get(key)
            note = "" if found is None or found.n == count else f"of {found.n}"
            cells.append(Cell() if found is None else Cell(number=mean(key, found, metric), note=note))
        rows.append(tuple(cells))
    about = ("strategy", *map(short, names))
    return Table((*about, "runs", *(heading(key, metric) for key in keys)), tuple(rows), len(about))


def _table(sections: Sequence[Section], names: Sequence[str], metric: str) -> Table:
    runs = [section.run for section in sections]
    keys = [key for key in MEASURED if any(key in run.measured or key in run.latest for run in runs)]
    rows = []
    for part in sections:
        run, seed = part.run, "?" if part.run.seed is None else str(part.run.seed)
        cells = [Cell(run.name, link=part.anchor), Cell(run.strategy or "?"), Cell(seed), *_settings(run, names)]
        rows.append((*cells, *(_measured(run, key, metric) for key in keys), Cell(run.state)))
    about = ("run", "strategy", "seed", *map(short, names))
    return Table((*about, *(heading(key, metric) for key in keys), "state"), tuple(rows), len(about))


def _settings(run: Run, names: Sequence[str]) -> list[Cell]:
    """The values of settings; a dash where the strategy has none, a question mark where nobody knows."""
    had, known = comparable(run), run.settings or {}
    return [Cell(worded(had[name]) if name in had else "–" if name in known else "?") for name in names]


def _measured(run: Run, key: str, metric: str) -> Cell:
    if key in run.measured:
        return Cell(number=shown(key, run.measured[key], metric))
    if key in run.latest:
        return Cell(number=shown(key, run.latest[key], metric), note=by_now(run, key))
    return Cell()


TITLES = {
    "accuracy": ("The supernet in validation, over the epochs", ""),
    "gap": ("Discretisation gap over the epochs", "What the supernet loses when its gates are rounded."),
    "skips": (
        "Dominant skip connections over the epochs, all cells together",
        "Counted as the paper does: where one is the strongest operation on one of a node's two strongest edges.",
    ),
    "decided": ("Decided gates over the epochs", "Those under 0.1 or over 0.9."),
}
LINES = "Thin lines are single runs; a thick one is the mean over the finished runs of a group."


def _figures(groups: Sequence[Group]) -> list[Picture]:
    """The curves of all runs on the same axes; a caption names the runs that have none."""
    runs = [run for group in groups for run in group.runs if run.recorded is not None]
    alone = Counter(group.strategy for group in groups)
    names = {id(group): group.name if alone[group.strategy] > 1 else group.strategy or "?" for group in groups}
    known = {names[id(group)]: [run.recorded for run in group.runs if run.recorded is not None] for group in groups}
    made = []
    for name, figure in comparisons({name: those for name, those in known.items() if those}).items():
        title, more = TITLES[name]
        if without := [run.name for run in runs if not np.isfinite(SERIES[name][1](run.recorded)).any()]:
            more = f"{more} Not recorded in {listed(without)}.".strip()
        made.append(picture(name, figure, title, more))
    return made
