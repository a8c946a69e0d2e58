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
COLUMNS = 5


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
        raise InputError(f"{label} has no edge {_arrow(edge)}; it has: {shown}")
    row = edges.index(edge) if edges else 0
    ax = diagram(ax)
    operations = recorded.operations(label)
    _lines(ax, recorded, recorded.gates(label)[:, row], operations, looks_of(recorded))
    over_epochs(ax, recorded)
    ax.set_ylabel(gate_word(recorded))
    ax.set_title(f"{label}: {edge[1]} → {edge[0]}" if edges else shortened(label, 60))
    ax.legend(handles=_handles(operations, looks_of(recorded)), loc="center left", bbox_to_anchor=(1.01, 0.5))
    return ax.figure


@styled()
def trajectories(recorded: Recorded, label: str, figure: Figure | None = None) -> Figure:
    """The gates of all edges of the cells ``label``, or of all "choices", over the epochs: a panel for each.

    An edge's row is its node, its column its source. Choices with the same candidates stand together.
    """
    known = sheets(recorded)
    if label not in known:
        raise InputError(f"unknown label {label!r}; known: {', '.join(known)}")
    grids = [_Grid(group) for group in known[label]]
    figure = blank(WIDE, TITLE + sum(grid.height for grid in grids), figure)
    write(figure, 0.1, 0.1, f"{gate_word(recorded).capitalize()}s of {title_of(label)} over the epochs", fontsize=10)
    top = TITLE
    for grid in grids:
        grid.draw(figure, recorded, top)
        top += grid.height
    return figure


class _Grid:
    """Where the panels of a group stand, and their legend: above them, or in the corner that a cell leaves free."""

    def __init__(self, group: Group):
        self.group = group
        if group.edges:
            self.places = [(node - 2, source) for node, source in group.edges]
        else:
            self.places = [divmod(row, COLUMNS) for row in range(len(group.rows))]
        self.rows = 1 + max(row for row, _ in self.places)
        self.columns = max(COLUMNS, 1 + max(column for _, column in self.places))
        self.in_corner = self.rows > 3 and bool(group.edges)
        self.width = (WIDE - LEFT - RIGHT - GAP * (self.columns - 1)) / self.columns
        longest = max(len(shortened(name, 24)) for name in group.operations)
        self.legend_columns = max(1, int((WIDE - LEFT) / (0.45 + LETTER * longest)))
        if self.in_corner:
            self.legend_columns = -(-len(group.operations) // 5)

    @property
    def legend(self) -> float:
        """Inches that the legend needs above the panels."""
        return 0 if self.in_corner else LINE * -(-len(self.group.operations) // self.legend_columns) + 0.1

    @property
    def height(self) -> float:
        return self.legend + self.rows * (HEADING + PANEL) + FOOT

    def draw(self, figure: Figure, recorded: Recorded, top: float) -> None:
        group, looks = self.group, looks_of(recorded)
        for number, (row, column) in enumerate(self.places):
            ax = place(
                figure,
                LEFT + column * (self.width + GAP),
                top + self.legend + row * (HEADING + PANEL) + HEADING,
                self.width,
                PANEL,
            )
            _lines(ax, recorded, group.gates[:, number], group.operations, looks)
            lowest = (row + 1, column) not in self.places
            over_epochs(ax, recorded, label=lowest)
            ax.tick_params(labelsize=SMALL, labelbottom=lowest, labelleft=column == 0)
            ax.xaxis.label.set_size(SMALL)
            ax.set_title(shortened(group.rows[number], int(self.width / LETTER)), fontsize=SMALL, pad=3)
        width, height = figure.get_size_inches()
        corner = {"loc": "upper right", "bbox_to_anchor": (1 - RIGHT / width, 1 - (top + 0.05) / height)}
        strip = {"loc": "upper left", "bbox_to_anchor": (LEFT / width, 1 - top / height)}
        figure.legend(
            handles=_handles(group.operations, looks),
            ncols=self.legend_columns,
            borderaxespad=0,
            **(corner if self.in_corner else strip),
        )


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


def _arrow(edge: tuple | None) -> str:
    return "without ends" if edge is None or len(edge) != 2 else f"{edge[1]} → {edge[0]}"


def _handles(operations: tuple[str, ...], looks: dict[str, Look]) -> list[Line2D]:
    return [
        Line2D([], [], color=look.color, linestyle=look.dashes, linewidth=1.6, label=shortened(name, 24))
        for name, look in ((name, looks[name]) for name in operations)
    ]
