"""All figures of a record, and their files."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from nni_fairdarts.errors import InputError
from nni_fairdarts.genotype import CELLS
from nni_fairdarts.plots import cells, curves, matrices
from nni_fairdarts.plots.canvas import stem, styled
from nni_fairdarts.plots.derived import kept
from nni_fairdarts.plots.groups import sheets, title_of
from nni_fairdarts.plots.trajectories import trajectories
from nni_fairdarts.recorded import Recorded

FORMATS = ("png", "svg")


def figures(recorded: Recorded, only: Sequence[str] = ()) -> dict[str, Figure]:
    """All figures that a record has, by the stems of their files' names; with ``only`` those."""
    return {name: draw() for name, draw in _chosen(recorded, only).items()}


def save(recorded: Recorded, folder: Path, formats: Sequence[str] = FORMATS, only: Sequence[str] = ()) -> list[Path]:
    """Write a record's figures into ``folder``; an earlier one of the same name is replaced. Returns the files.

    Raises InputError for unknown formats and names, and where nothing can be written.
    """
    if unknown := [name for name in formats if name not in FORMATS]:
        raise InputError(f"unknown format {unknown[0]!r}; known: {', '.join(FORMATS)}")
    chosen = _chosen(recorded, only)
    folder = Path(folder)
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, draw in chosen.items():
            figure = draw()
            for format in formats:
                paths.append(folder / f"{name}.{format}")
                with styled():
                    figure.savefig(paths[-1], metadata={"Date": None} if format == "svg" else None)
    except OSError as error:
        raise InputError(f"cannot write figures to {folder}: {error.strerror or error}; give another folder") from error
    return paths


def _chosen(recorded: Recorded, only: Sequence[str]) -> dict[str, Callable[[], Figure]]:
    known = dict(_all(recorded))
    if unknown := [name for name in only if name not in known]:
        raise InputError(f"{recorded.name} has no figure {unknown[0]!r}; it has: {', '.join(known)}")
    return {name: draw for name, draw in known.items() if name in only or not only}


def _all(recorded: Recorded) -> Iterator[tuple[str, Callable[[], Figure]]]:
    """(name, what draws it) of every figure that a record has."""
    labels = list(sheets(recorded))
    for label in labels:
        if label in recorded.labels:  # not "choices"
            yield f"cell_{stem(label)}", partial(derived, recorded, label)
    for label in labels:
        yield f"gates_{stem(label)}", partial(matrices.gates, recorded, label)
    for label in labels:
        yield f"trajectories_{stem(label)}", partial(trajectories, recorded, label)
    if labels:
        yield "histogram", partial(matrices.histogram, recorded)
        yield "decided", partial(curves.decided, recorded)
    if curves.skip_counts(recorded):
        yield "skips", partial(curves.skips, recorded)
    if curves.metric(recorded) is not None:
        yield "accuracy", partial(curves.accuracy, recorded)
    if curves.loss_names(recorded):
        yield "losses", partial(curves.losses, recorded)
    if any(record.get("discretization_gap") is not None for record in recorded.history):
        yield "gap", partial(curves.gap, recorded)


def derived(recorded: Recorded, label: str) -> Figure:
    """The cell that was derived, or that would be from the last epoch's gates."""
    edges = kept(recorded, label)
    nodes = {node for node, _ in recorded.edges(label)}
    found = recorded.genotype is not None and label in CELLS
    concat = getattr(recorded.genotype, f"{label}_concat") if found else sorted(nodes)
    title = (
        f"Derived: {title_of(label)}" if found else f"What {title_of(label)} keeps behind epoch {recorded.epochs[-1]}"
    )
    return cells.cell(edges, concat, title=title)
