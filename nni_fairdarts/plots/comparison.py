"""Several searches on the same axes: a line for every run in its strategy's color, and one for a group's mean."""

from collections.abc import Callable, Mapping, Sequence
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nni_fairdarts.plots.canvas import diagram, styled
from nni_fairdarts.plots.curves import metric
from nni_fairdarts.plots.derived import dominant_skips
from nni_fairdarts.recorded import Recorded

# Okabe and Ito's, as far as they go; a darker yellow, and a grey.
STRATEGIES = {
    "fairdarts": "#0072B2",
    "darts": "#D55E00",
    "gumbel_darts": "#009E73",
    "proxyless": "#CC79A7",
    "enas": "#8C6D00",
    "random": "#555555",
    "second_order_darts": "#882255",
    "pc_darts": "#44AA99",
    "darts_plus": "#999933",
    "robust_darts": "#332288",
    "noisy_darts": "#56B4E9",
    "operation_strength_darts": "#AA4499",
    "zero_order_darts": "#117733",
    "p_darts": "#661100",
    "dr_nas": "#6699CC",
    "random_search": "#BBBBBB",
}
"""The color of every strategy; the last ones are Tol's."""

LETTERS = 64
"""Of a line of the legend."""

MARKERS = "osD^vPX"
DASHES = ("-", "--", "-.", ":")


def _accuracy(recorded: Recorded) -> np.ndarray:
    name = metric(recorded)
    return np.full(len(recorded.history), np.nan) if name is None else recorded.series(name)


def _skips(recorded: Recorded) -> np.ndarray:
    every = [counts for label in recorded.labels if (counts := dominant_skips(recorded, label)) is not None]
    return np.sum(every, axis=0, dtype=float) if every else np.full(len(recorded.history), np.nan)


SERIES: dict[str, tuple[str, Callable[[Recorded], np.ndarray]]] = {
    "accuracy": ("Supernet's accuracy on validation data", _accuracy),
    "gap": ("Discretisation gap", lambda recorded: recorded.series("discretization_gap")),
    "skips": ("Dominant skip connections, all cells together", _skips),
    "decided": ("Decided gates", lambda recorded: recorded.series("decided_gates")),
}
"""{name: (title, a number of every epoch: (epochs,), NaN where there is none)}."""


@styled()
def comparisons(groups: Mapping[str, Sequence[Recorded]]) -> dict[str, Figure]:
    """Figures of groups of searches, by their names: "accuracy", "gap", "skips" and "decided", as far as there are.

    ``groups``: the searches that differ in the seed alone, by what the legend calls them. Thin lines are runs; a thick
    one is the mean over a group's finished runs (over all where none is), as far as all of them have come.
    """
    styles = _styles({label: runs[0].strategy for label, runs in groups.items()})
    made = {}
    for name, (title, series) in SERIES.items():
        known = {label: _known(runs, series) for label, runs in groups.items()}
        if any(known.values()):
            made[name] = _figure(name, title, {label: lines for label, lines in known.items() if lines}, styles)
    return made


def _known(runs: Sequence[Recorded], series) -> list[tuple[Recorded, np.ndarray]]:
    """The runs that have any number, with their numbers."""
    every = [(run, series(run)) for run in runs]
    return [(run, values) for run, values in every if np.isfinite(values).any()]


def _figure(name: str, title: str, known: dict[str, list], styles: dict[str, tuple]) -> Figure:
    columns = 2 if max(map(len, known)) < 30 else 1
    rows = sum(1 + len(label) // LETTERS for label in known) / columns
    ax = diagram(None, height=4.0 + 0.2 * max(0, rows - 5))
    values = np.concatenate([values for lines in known.values() for _, values in lines])
    share = name != "skips" and np.nanmax(np.abs(values)) <= 1
    for label, lines in known.items():
        _group(ax, label, lines, styles[label], 100 if share else 1)
    ax.set_title(title)
    ax.set_xlabel("epoch")
    ax.set_ylabel({"gap": "percentage points"}.get(name, "%") if share else "")
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    if name == "skips":
        ax.yaxis.set_major_locator(MaxNLocator(8, integer=True))
        ax.set_ylim(bottom=-0.15)
    for line in ax.lines:
        line.set_label(fill(line.get_label(), LETTERS))
    legend = ax.figure.legend(loc="outside lower center", ncols=columns)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a setting may have a dollar sign
    return ax.figure


def _group(ax: Axes, label: str, lines: list[tuple[Recorded, np.ndarray]], style: tuple, unit: float) -> None:
    """The lines of a group's runs, and of their mean where they are several."""
    color, marker, dashes = style
    for run, values in lines if len(lines) > 1 else ():
        ax.plot(run.epochs, unit * values, color=color, alpha=0.45, linewidth=0.9)
    finished = [line for line in lines if line[0].result is not None] or lines
    shared = min(len(values) for _, values in finished)
    mean = np.mean([values[:shared] for _, values in finished], axis=0)
    name = f"{label}, mean of {len(finished)}" if len(finished) > 1 else label
    every = max(1, shared // 10)
    ax.plot(
        finished[0][0].epochs[:shared], unit * mean, linestyle=dashes, color=color, linewidth=2.2, marker=marker,
        markersize=5, markevery=every, label=name,
    )  # fmt: skip


def _styles(strategies: Mapping[str, str]) -> dict[str, tuple]:
    """(color, marker, dashes) of every group: the strategy's color, from dark to light where it has several groups."""
    colors = [STRATEGIES.get(strategy, "#333333") for strategy in strategies.values()]
    styles, before = {}, dict.fromkeys(colors, 0)
    for number, (label, name) in enumerate(zip(strategies, colors, strict=True)):
        count, place = colors.count(name), before[name]
        before[name] += 1
        color = np.array(to_rgb(name))
        if count > 1:
            lightness = place / (count - 1)  # 0: two thirds of the color; 1: half way to white
            color = color * (1 - lightness) * 2 / 3 + (color + 1) / 2 * lightness
        styles[label] = tuple(color), MARKERS[number % len(MARKERS)], DASHES[place % len(DASHES)]
    return styles
