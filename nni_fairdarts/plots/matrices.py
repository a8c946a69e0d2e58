"""Gates as pictures: those of the last epoch with their values, and how many were where over the epochs."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from nni_fairdarts.errors import InputError
from nni_fairdarts.plots.canvas import (
    LETTER,
    SMALL,
    TITLE,
    blank,
    diagram,
    gate_word,
    over_epochs,
    place,
    shortened,
    styled,
    write,
)
from nni_fairdarts.plots.derived import kept, kept_in_choice
from nni_fairdarts.plots.groups import Group, looks_of, sheets, title_of
from nni_fairdarts.recorded import Recorded

COLORS_OF_GATES = "cividis"  # made for color-blind readers: Nuñez and others, PLOS ONE 13(7), 2018
BINS = 20
ROW, FOOT, BAR = 0.24, 0.12, 0.7  # inches


@styled()
def gates(recorded: Recorded, label: str, figure: Figure | None = None) -> Figure:
    """The gates of the cells ``label``, or of all "choices", as colors and as numbers, after the last epoch.

    Framed is what is kept: by a cell, and by choices once the search is finished. Of a search that was stopped early
    the gates are those of the epoch that it derives from.
    """
    known = sheets(recorded)
    if label not in known:
        raise InputError(f"unknown label {label!r}; known: {', '.join(known)}")
    groups = known[label]
    left = 0.3 + LETTER * max(len(_row(name)) for group in groups for name in group.rows)
    widths = [len(group.operations) * _cell(group) for group in groups]
    headings = [0.2 + 0.16 * max(_heading(name).count("\n") + 1 for name in group.operations) for group in groups]
    heights = [heading + ROW * len(group.rows) + FOOT for heading, group in zip(headings, groups, strict=True)]
    epoch = recorded.derived_epoch
    text = f"{gate_word(recorded).capitalize()}s of {title_of(label)} after epoch {epoch}"
    frames = [_kept(recorded, label, group) for group in groups]
    if any(frames):
        text += "; framed: kept" + (" by strength" if recorded.by_strength else "")
    title = 0.2 + 1.3 * LETTER * len(text)  # its letters are larger
    figure = blank(max(left + max(widths) + BAR, title, 4.2), TITLE + sum(heights), figure)
    write(figure, 0.1, 0.1, text, fontsize=10)
    top = TITLE
    for group, found, width, height, heading in zip(groups, frames, widths, heights, headings, strict=True):
        ax = place(figure, left, top + heading, width, ROW * len(group.rows))
        image = _matrix(ax, recorded, group)
        for row, column in found:
            frame = Rectangle((column - 0.46, row - 0.42), 0.92, 0.84, fill=False, edgecolor="black", linewidth=1.2)
            frame.set_path_effects([withStroke(linewidth=3.2, foreground="white")])
            ax.add_patch(frame)
        top += height
    bar = place(
        figure, left + max(widths) + 0.15, TITLE + headings[0], 0.12, min(1.6, sum(heights) - headings[0] - FOOT)
    )
    figure.colorbar(image, cax=bar, ticks=[0, 0.5, 1]).ax.tick_params(labelsize=SMALL)
    return figure


def _kept(recorded: Recorded, label: str, group: Group) -> list[tuple[int, int]]:
    """(row, column) of what is kept."""
    if group.edges:
        edges = kept(recorded, label)
        return [(group.edges.index((e.node, e.source)), group.operations.index(e.operation)) for e in edges]
    names = enumerate(kept_in_choice(recorded, choice) for choice in group.rows)
    return [(row, column) for row, found in names for column, name in enumerate(group.operations) if name in found]


def _matrix(ax: Axes, recorded: Recorded, group: Group):
    (row_of_epoch,) = np.flatnonzero(recorded.epochs == recorded.derived_epoch)
    values = group.gates[row_of_epoch]
    image = ax.imshow(values, cmap=COLORS_OF_GATES, vmin=0, vmax=1, aspect="auto")
    looks = looks_of(recorded)
    for row, column in np.ndindex(*values.shape):
        value = values[row, column]
        ax.text(
            column,
            row,
            f"{value:.2f}",
            ha="center",
            va="center",
            fontsize=7.5,
            color="white" if value < 0.55 else "black",
        )
    ax.set_xticks(range(len(group.operations)), [_heading(name) for name in group.operations])
    ax.set_yticks(range(len(group.rows)), [_row(name) for name in group.rows])
    ax.tick_params(length=0, labelsize=SMALL, top=False, labeltop=True, bottom=False, labelbottom=False, pad=7)
    ax.tick_params(axis="y", pad=3)
    for column, name in enumerate(group.operations):  # each operation's color, over its column
        ax.plot([column - 0.4, column + 0.4], [-0.72] * 2, color=looks[name].color, linestyle=looks[name].dashes,
                linewidth=3, clip_on=False, solid_capstyle="butt")  # fmt: skip
    ax.set_xlim(-0.5, len(group.operations) - 0.5)
    ax.set_ylim(len(group.rows) - 0.5, -0.5)
    ax.spines[:].set_visible(False)
    return image


def _row(name: str) -> str:
    return shortened(name, 30)


def _heading(name: str) -> str:
    """An operation's name in two lines, broken at its last underscore."""
    head, _, tail = shortened(name, 28).rpartition("_")
    return f"{head}\n{tail}" if head else tail


def _cell(group: Group) -> float:
    """Inches of a column."""
    return max(0.5, 0.15 + LETTER * max(len(line) for name in group.operations for line in _heading(name).split("\n")))


@styled()
def histogram(recorded: Recorded, ax: Axes | None = None) -> Figure:
    """How many of all gates were where, after every epoch: epochs across, twenty equal parts of 0 to 1 upwards."""
    every = np.concatenate([recorded.gates(label).reshape(len(recorded.epochs), -1) for label in recorded.labels], 1)
    counts = np.stack([np.histogram(row, bins=BINS, range=(0, 1))[0] for row in every])
    ax = diagram(ax)
    first, last = recorded.epochs[0] - 0.5, recorded.epochs[-1] + 0.5
    image = ax.imshow(
        counts.T,
        cmap="Blues",
        norm=PowerNorm(0.5, 0, max(1, counts.max())),
        origin="lower",
        aspect="auto",
        extent=(first, last, 0, 1),
        interpolation="nearest",
    )
    over_epochs(ax, recorded)
    ax.set_xlim(first, last)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1])
    ax.set_ylabel(gate_word(recorded))
    ax.set_title(f"Histogram of the {every.shape[1]} {gate_word(recorded)}s, epoch by epoch")
    ax.figure.colorbar(image, ax=ax, label="how many", ticks=MaxNLocator(6, integer=True))
    return ax.figure
