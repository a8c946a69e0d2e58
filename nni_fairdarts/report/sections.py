"""What the page says of one run: its numbers, its architecture, how to retrain it, its figures, where it ran."""

import json
from dataclasses import dataclass

from nni_fairdarts.arguments import as_fields
from nni_fairdarts.config import to_yaml
from nni_fairdarts.genotype import Genotype
from nni_fairdarts.plots import figures
from nni_fairdarts.recorded import Recorded
from nni_fairdarts.report.groups import worded
from nni_fairdarts.report.numbers import Number, heading, shown
from nni_fairdarts.report.pictures import Picture, picture
from nni_fairdarts.report.retraining import Guide, guide, starts
from nni_fairdarts.report.runs import MEASURED, RETRAINED, Run


@dataclass(frozen=True)
class Section:
    """All that the page says of a run; ``anchor`` is where. What is empty is left out of the page."""

    anchor: str
    run: Run
    tiles: tuple[tuple[str, Number | None, str], ...]
    missing: tuple[str, ...]
    cells: tuple[Picture, ...] = ()
    figures: tuple[Picture, ...] = ()
    architecture: str = ""
    genotype: str = ""
    sample: str = ""
    guide: Guide | None = None
    configuration: str = ""
    retrained_otherwise: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def label(self) -> str:
        """The run's strategy and seed."""
        known = [self.run.strategy, None if self.run.seed is None else f"seed {self.run.seed}"]
        return ", ".join(word for word in known if word) or "of unknown settings"

    @property
    def parts(self) -> list[tuple[str, str]]:
        """(anchor, heading) of every part that the run has."""
        there = {
            "architecture": ("Architecture", self.cells or self.sample),
            "retraining": (self.guide.title if self.guide else "", self.guide),
            "figures": ("Figures", self.figures),
            "configuration": ("Configuration", self.configuration),
            "environment": ("Environment", self.environment),
        }
        return [(f"{self.anchor}-{name}", title) for name, (title, content) in there.items() if content]


def section(run: Run, anchor: str = "run") -> Section:
    """The section of a run."""
    recorded, tiles = run.recorded, tuple(_tile(run, key) for key in MEASURED)
    if recorded is None:
        return Section(anchor, run, tiles, run.notes)
    cells, others = _pictures(recorded)
    return Section(
        anchor,
        run,
        tiles,
        (*run.notes, *missing(run)),
        cells,
        others,
        architecture="" if recorded.genotype is None else str(recorded.genotype),
        genotype="" if recorded.genotype is None else _genotype_json(recorded.genotype),
        sample=_sample(recorded),
        guide=guide(run),
        configuration="" if recorded.config is None else to_yaml(recorded.config),
        retrained_otherwise=_otherwise(run),
        environment=_environment(run),
    )


def _tile(run: Run, key: str) -> tuple[str, Number | None, str]:
    """(heading, number, a note): a final number, or an unfinished search's last, or none and why."""
    name = heading(key, run.metric)
    if key in run.measured:
        return name, shown(key, run.measured[key], run.metric, whole=True), NOTES.get(key, "")
    if key in run.latest:
        return name, shown(key, run.latest[key], run.metric, whole=True), by_now(run, key)
    return name, None, "not retrained" if key in RETRAINED else "not recorded"


def by_now(run: Run, key: str) -> str:
    """What a number of an unfinished run is of."""
    return "of the search" if key == "seconds" else f"epoch {run.recorded.epochs[-1]}"


NOTES = {
    "test_accuracy": "of the derived network, on the test set",
    "supernet_accuracy": "in validation, after the last epoch",
    "discretization_gap": "lost when gates are rounded",
    "decided_gates": "under 0.1 or over 0.9",
    "skip_connections": "in the derived cells",
    "parameters": "of the derived network",
    "multiply_adds": "of the derived network, for one image",
    "seconds": "of search and retraining",
}


def missing(run: Run) -> list[str]:
    """Sentences about what the page cannot show of a run, and why."""
    recorded, said = run.recorded, []
    if recorded.config is None:
        said.append(
            "There is no config.yaml beside the history, so its settings are not known, and there is no result: the "
            "search was started from Python, or the file was copied. Its architecture is what NNI's "
            'experiment.export_top_models(formatter="dict") returned there.'
        )
    elif recorded.result is None:
        epochs = f"{len(recorded.history)} of {recorded.config.search.epochs} epochs"
        said.append(f"The search is not finished ({epochs}): nothing is derived yet, and numbers are the last epoch's.")
    elif recorded.retrained is None:
        said.append(
            "It is not retrained: the accuracy, parameters and multiply-adds of the derived network are unknown."
        )
    if recorded.derived_epoch != recorded.epochs[-1]:
        said.append(
            f"The search was stopped early: the architecture is that of epoch {recorded.derived_epoch} of "
            f"{recorded.epochs[-1]}, and so are the gates in the heat maps."
        )
    if recorded.by_strength:
        said.append("Operations were kept by their strength, what the loss loses without them, not by their gates.")
    if not recorded.labels:
        why = "samples networks and has no gates" if recorded.softmax else "has recorded none"
        said.append(f"There are no figures of gates: {recorded.strategy} {why}.")
    if recorded.result is not None and recorded.genotype is None:
        said.append(
            "There are no derived cells to draw: the space is not of cells. What was chosen is in NNI's sample below."
        )
    if "discretization_gap" not in {**run.measured, **run.latest}:
        off = recorded.config is not None and not recorded.config.search.gap_batches
        said.append(f"The discretisation gap was not measured{' (search.gap_batches is 0)' if off else ''}.")
    return said


def _genotype_json(genotype: Genotype) -> str:
    """The genotype as JSON, an edge to a line."""
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in genotype.to_json().items()]
    return "{\n" + ",\n".join(lines).replace("], [", "],\n    [") + "\n}"


def _sample(recorded: Recorded) -> str:
    """NNI's sample, a choice to a line."""
    sample = (recorded.result or {}).get("nni_sample")
    if not isinstance(sample, dict):
        return ""
    return "{\n" + ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in sample.items()) + "\n}"


def _otherwise(run: Run) -> tuple[str, ...]:
    """The settings that the retraining had other than the run's own."""
    own = {} if run.recorded.config is None else as_fields(run.recorded.config)
    return tuple(f"{name} {worded(run.settings[name])}" for name in own if run.settings[name] != own[name])


def _environment(run: Run) -> tuple[tuple[str, str], ...]:
    """What environment.json tells of the last start, as (name, text)."""
    known = starts(run)
    if not known:
        return ()
    last = known[-1]
    told = [
        ("started", " · ".join(str(start.get("time")) for start in known)),
        ("command", " ".join(map(str, last["command"])) if isinstance(last.get("command"), list) else None),
        ("in the folder", last.get("folder")),
        ("git", _git(last.get("git"))),
        ("device", " ".join(str(last[key]) for key in ("device", "device_name") if last.get(key))),
        ("deterministic", worded(last.get("deterministic"))),
        ("threads", last.get("threads")),
        ("python", last.get("python")),
        ("platform", last.get("platform")),
        *(last["versions"].items() if isinstance(last.get("versions"), dict) else ()),
    ]
    return tuple((name, str(value)) for name, value in told if value not in (None, ""))


def _git(state) -> str:
    if not isinstance(state, dict):
        return "not in a repository"
    return f"{state.get('commit')}{', with changes that are not committed' if state.get('dirty') else ''}"


# -- figures ---------------------------------------------------------------------------------------------------------

CAPTIONS = {
    "cell": ("The derived {} cell", "Its inputs are on the left, its output on the right."),
    "gates": ("Every gate of {} at the end", "After the last epoch, or the one that early stopping derives from."),
    "trajectories": ("The gates of {} over the epochs", "A panel for every edge."),
    "histogram": ("How many gates are where between 0 and 1, over the epochs", ""),
    "decided": ("Decided and open gates over the epochs", ""),
    "skips": (
        "Dominant skip connections over the epochs",
        "Counted as the paper does: where one is the strongest operation on one of a node's two strongest edges.",
    ),
    "accuracy": ("The supernet in validation, over the epochs", ""),
    "losses": ("Losses over the epochs", ""),
    "gap": ("Discretisation gap over the epochs", "What the supernet loses when its gates are rounded."),
}
"""{a figure's name up to its label: (what it shows, with the label, and more about it)}."""


def _pictures(recorded: Recorded) -> tuple[tuple[Picture, ...], tuple[Picture, ...]]:
    """(the derived cells, all other figures) of a record."""
    made = []
    for name, figure in figures(recorded).items():
        kind, _, label = name.partition("_")
        title, more = CAPTIONS.get(kind, (name, ""))
        if kind == "cell" and recorded.genotype is None:
            title = f"What the {{}} cell would keep after epoch {recorded.epochs[-1]}"
        word = {"reduce": "reduction"}.get(label, label)
        named = word if kind == "cell" or label == "choices" else f"the {word} cells"
        made.append(picture(name, figure, title.format(named), more))
    cells = tuple(one for one in made if one.name.startswith("cell_"))
    return cells, tuple(one for one in made if one not in cells)
