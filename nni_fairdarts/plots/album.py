"""All figures of a record, and their files."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure
from tqdm import tqdm

from nni_fairdarts.errors import InputError
from nni_fairdarts.genotype import CELLS
from nni_fairdarts.plots import cells, curves, matrices
from nni_fairdarts.plots.canvas import stem, styled
from nni_fairdarts.plots.derived import kept
from nni_fairdarts.plots.groups import looks_of, sheets, title_of
from nni_fairdarts.plots.panels import trajectories, trajectory
from nni_fairdarts.recorded import Recorded

FORMATS = ("png", "svg")


def figures(recorded: Recorded, only: Sequence[str] = ()) -> dict[str, Figure]:
    """All figures that a record has, by the stems of their files' names.

    only: names, or their first words, of those that are wanted. Raises InputError for an unknown one.
    """
    return {name: draw() for name, draw in chosen(recorded, only).items()}


def save(
    recorded: Recorded,
    folder: Path | str,
    formats: Sequence[str] = FORMATS,
    only: Sequence[str] = (),
    edge: tuple | None = None,
    progress: bool = False,
) -> list[Path]:
    """Write a record's figures into ``folder``; earlier ones of the same names are replaced. Returns the files.

    edge: (label, node, source), or (label,) of a choice: instead of all figures, or beside ``only``, the gates of that.
    Raises InputError for unknown formats, names and edges, and where nothing can be drawn or written.
    """
    if unknown := [name for name in formats if name not in FORMATS]:
        raise InputError(f"unknown format {unknown[0]!r}; known: {', '.join(FORMATS)}")
    drawn = chosen(recorded, only) if only or edge is None else {}
    if edge is not None:
        label, *ends = edge
        name = "_".join(["trajectory", stem(label), *map(str, reversed(ends))])
        drawn[name] = partial(trajectory, recorded, label, tuple(ends) or None)
    if not drawn:
        raise InputError(f"the history of {recorded.name} has neither gates nor losses, so there is nothing to draw")
    folder, paths = Path(folder), []
    try:
        # A bar after a second, and none where nobody looks.
        for name, draw in tqdm(drawn.items(), "figures", leave=False, delay=1, disable=None if progress else True):
            figure = draw()
            folder.mkdir(parents=True, exist_ok=True)
            for format in formats:
                paths.append(folder / f"{name}.{format}")
                with styled():  # without the date the same record gives the same file
                    figure.savefig(paths[-1], metadata={"Date": None} if format == "svg" else None)
    except OSError as error:
        raise InputError(f"cannot write figures to {folder}: {error.strerror or error}; give another folder") from error
    return paths


def chosen(recorded: Recorded, only: Sequence[str] = ()) -> dict[str, Callable[[], Figure]]:
    """{name of a figure: what draws it}, as ``figures`` has it."""
    known = dict(_all(recorded))
    words = {name.partition("_")[0] for name in known}
    if unknown := [name for name in only if name not in known.keys() | words]:
        raise InputError(f"{recorded.name} has no figure {unknown[0]!r}; it has: {', '.join(known)}")
    return {name: draw for name, draw in known.items() if not only or {name, name.partition("_")[0]} & set(only)}


def _all(recorded: Recorded) -> Iterator[tuple[str, Callable[[], Figure]]]:
    """(name, what draws it) of every figure that a record has."""
    labels = list(sheets(recorded))
    gateless = [] if recorded.genotype is None else [label for label in CELLS if label not in labels]
    for label in [label for label in labels if label in recorded.labels] + gateless:  # not "choices"
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
    found = recorded.genotype is not None and label in CELLS
    if found:
        concat = getattr(recorded.genotype, f"{label}_concat")
    else:
        concat = sorted({node for node, _ in recorded.edges(label)})
    title = (
        f"Derived: {title_of(label)}" if found else f"What {title_of(label)} keeps after epoch {recorded.epochs[-1]}"
    )
    return cells.cell(edges, concat, title=title, palette=looks_of(recorded))
