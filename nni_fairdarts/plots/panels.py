"""How gates went over the epochs: of one edge or choice, and of all as small multiples."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nni_fairdarts.errors import InputError
from nni_fairdarts.plots.canvas import (
    LETTER,
    SMALL,
    TITLE,
    WIDE,
    blank,
    diagram,
    gate_axis,
    gate_word,
    over_epochs,
    place,
    shortened,
    styled,
    write,
)
from nni_fairdarts.plots.colors import Look
from nni_fairdarts.plots.groups import Group, looks_of, sheets, title_of
from nni_fairdarts.recorded import Recorded

LEFT, RIGHT, FOOT = 0.55, 0.1, 0.5  # inches around the panels
GAP, HEADING, PANEL, LINE = 0.12, 0.24, 0.85, 0.19  # between panels, over each, each one's height, a legend's line
COLUMNS, NAME = 5, 16  # of choices; letters of a name in a legend


@styled()
def trajectory(recorded: Recorded, label: str, edge: tuple[int, int] | None = None, ax: Axes | None = None) -> Figure:
    """The gates of one edge, (node, source), of the cells ``label``, or of the choice ``label``, over the epochs.

    Raises InputError for a label or an edge that the record does not have.
    """
    if label not in recorded.labels:
        raise InputError(f"unknown label {label!r}; known: {', '.join(recorded.labels)}")
    edges = recorded.edges(label)
    if edges and edge not in edges:
        shown = ", ".join(f"{source} → {node}" for node, source in edges)
        got = "none" if edge is None else " → ".join(map(str, reversed(edge)))
        raise InputError(f"the edge of {label} must be one of {shown}; got {got}")
    if edge and not edges:
        raise InputError(f"{label} is a choice and has no edges; leave the edge out")
    row = edges.index(edge) if edges else 0
    ax = diagram(ax)
    operations = recorded.operations(label)
    _lines(ax, recorded, recorded.gates(label)[:, row], operations, looks_of(recorded))
    over_epochs(ax, recorded)
    ax.set_ylabel(gate_word(recorded))
    ax.set_title(f"{label}: {edge[1]} → {edge[0]}" if edges else shortened(label, 60))
    ax.legend(
        handles=_handles(operations, looks_of(recorded), len(recorded.epochs)),
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
    )
    return ax.figure


@styled()
def trajectories(recorded: Recorded, label: str, figure: Figure | None = None) -> Figure:
    """The gates of all edges of the cells ``label``, or of all "choices", over the epochs: a panel for each.

    An edge's row is its node, its column its source. Choices with the same candidates stand together.
    """
    known = sheets(recorded)
    if label not in known:
        raise InputError(f"unknown label {label!r}; known: {', '.join(known)}")
    figure = blank(WIDE, TITLE + sum(strip[0].height(strip) for strip in _strips(known[label])), figure)
    write(figure, 0.1, 0.1, f"{gate_word(recorded).capitalize()}s of {title_of(label)} over the epochs", fontsize=10)
    top = TITLE
    for strip in _strips(known[label]):
        legend = max(grid.legend for grid in strip)
        for grid in strip:
            grid.draw(figure, recorded, top, legend)
        top += grid.height(strip)
    return figure


class _Grid:
    """Where the panels of a group stand, and their legend: above them, or in the corner that a cell leaves free.

    first: the column that the group begins in, of those that all choices stand in.
    """

    def __init__(self, group: Group, first: int = 0):
        self.group, self.first = group, first
        if group.edges:
            self.places = [(node - 2, source) for node, source in group.edges]
        else:
            self.places = [divmod(row, COLUMNS) for row in range(len(group.rows))]
        self.rows = 1 + max(row for row, _ in self.places)
        self.columns = 1 + max(column for _, column in self.places)
        self.width = (WIDE - LEFT - RIGHT) / max(COLUMNS, self.columns) - GAP
        self.in_corner = bool(group.edges) and self.rows > 3 and len(group.operations) <= 15
        entry = 0.5 + LETTER * max(len(shortened(name, NAME)) for name in group.operations)
        fitting = 3 if self.in_corner else max(1, int(self.columns * (self.width + GAP) / entry))
        self.lines = -(-len(group.operations) // fitting)

    @property
    def legend(self) -> float:
        """Inches that the legend needs above the panels."""
        return 0 if self.in_corner else LINE * self.lines + 0.04

    @staticmethod
    def height(strip: list["_Grid"]) -> float:
        """Inches that grids side by side need."""
        return max(grid.legend for grid in strip) + max(grid.rows for grid in strip) * (HEADING + PANEL) + FOOT

    def draw(self, figure: Figure, recorded: Recorded, top: float, legend: float) -> None:
        """Draw the panels ``legend`` inches below ``top``."""
        group, looks = self.group, looks_of(recorded)
        left = LEFT + self.first * (self.width + GAP)
        for number, (row, column) in enumerate(self.places):
            down = top + legend + row * (HEADING + PANEL) + HEADING
            ax = place(figure, left + column * (self.width + GAP), down, self.width, PANEL)
            _lines(ax, recorded, group.gates[:, number], group.operations, looks)
            lowest = (row + 1, column) not in self.places
            over_epochs(ax, recorded, label=lowest, most=4)
            leftmost = column == 0 and self.first == 0
            ax.tick_params(labelsize=SMALL, labelbottom=lowest, labelleft=leftmost)
            ax.xaxis.label.set_size(SMALL)
            ax.set_title(shortened(group.rows[number], int(self.width / LETTER)), fontsize=SMALL, pad=3)
        width, height = figure.get_size_inches()
        place_of = {"loc": "upper left", "bbox_to_anchor": (left / width, 1 - top / height)}
        if self.in_corner:
            place_of = {"loc": "upper right", "bbox_to_anchor": (1 - RIGHT / width, 1 - (top + 0.05) / height)}
        handles = _handles(group.operations, looks, len(recorded.epochs))
        columns = -(-len(handles) // self.lines)
        figure.legend(handles=handles, ncols=columns, borderaxespad=0, borderpad=0, columnspacing=1.2, **place_of)


def _strips(groups: tuple[Group, ...]) -> list[list[_Grid]]:
    """The grids of groups, those side by side that fit."""
    strips: list[list[_Grid]] = []
    for group in groups:
        first = sum(grid.columns for grid in strips[-1]) if strips else 0
        if strips and first + _Grid(group).columns <= COLUMNS:
            strips[-1].append(_Grid(group, first))
        else:
            strips.append([_Grid(group)])
    return strips


def _lines(ax: Axes, recorded: Recorded, gates: np.ndarray, operations: tuple[str, ...], looks: dict[str, Look]):
    """A line for each operation; gates: (epochs, operations). A single epoch's are marked, for it has no lines."""
    for operation, values in zip(operations, gates.T, strict=True):
        look = looks[operation]
        marker = look.marker if len(values) == 1 else None
        ax.plot(
            recorded.epochs,
            values,
            color=look.color,
            linestyle=look.dashes,
            marker=marker,
            markersize=4,
            linewidth=1.3,
            label=operation,
        )
    gate_axis(ax, recorded)


def _handles(operations: tuple[str, ...], looks: dict[str, Look], epochs: int) -> list[Line2D]:
    handles = []
    for name in operations:
        look = looks[name]
        marker = {"marker": look.marker, "markersize": 4} if epochs == 1 else {}
        label = shortened(name, NAME)
        handles.append(Line2D([], [], color=look.color, linestyle=look.dashes, linewidth=1.6, label=label, **marker))
    return handles
