"""How to retrain what a search derived, as commands and as Python, for where its files are now."""

import json
import shlex
from dataclasses import dataclass

from nni_fairdarts.folder import going_on, unfinished
from nni_fairdarts.report.runs import Run


@dataclass(frozen=True)
class Guide:
    """A heading, a sentence, shell commands, and the same in Python (may be empty)."""

    title: str
    about: str
    commands: str
    python: str = ""


def guide(run: Run) -> Guide | None:
    """What goes on from where the run is; None where nothing is known that could be run."""
    recorded = run.recorded
    if recorded.config is None:
        return None
    folder = recorded.folder.resolve()
    if run.experiment is not None and (unfinished(folder) or unfinished(folder / "retrain")):
        command = f"nni-fairdarts launch --resume {shlex.quote(run.experiment)}"
        return Guide("Going on", "The trial is not finished; once its experiment is stopped, this goes on:", command)
    if unfinished(folder):
        command = going_on(folder).replace(str(folder), shlex.quote(str(folder)))
        return Guide("Going on", "The search is not finished; this goes on with it:", _in_its_place(run, command))
    name, retraining = _free(folder), folder / "retrain"
    about = "The derived network from scratch, with the settings of the run; flags change any of them:"
    commands = []
    if unfinished(retraining):
        about = "The retraining is not finished; the first command goes on with it, the second begins another one:"
        commands.append(f"nni-fairdarts retrain --resume {shlex.quote(str(retraining))}")
    into = "" if name == "retrain" else f" --into {name}"
    commands.append(f"nni-fairdarts retrain {shlex.quote(str(folder))}{into}")
    python = (
        "from pathlib import Path\n\n"
        "from nni_fairdarts.experiment import architecture_of, retrain\n"
        "from nni_fairdarts.folder import run_of\n\n"
        f"run = Path({json.dumps(str(folder), ensure_ascii=False)})\n"
        f'result = retrain(run_of(run), architecture_of(run), run / "{name}")\n'
        'print(result["test_accuracy"], result["parameters"], result["multiply_adds"])\n'
    )
    return Guide("Retraining", about, _in_its_place(run, *commands), python)


def _in_its_place(run: Run, *commands: str) -> str:
    """The commands, begun in the folder that the run was started in: the data's may be named relative to it."""
    started = starts(run)[-1].get("folder") if starts(run) else None
    before = [f"cd {shlex.quote(started)}"] if isinstance(started, str) and started else []
    return "\n".join([*before, *commands])


def _free(folder) -> str:
    """A name for another retraining in a run's folder."""
    name, number = "retrain", 1
    while (folder / name).exists():
        number += 1
        name = f"retrain-{number}"
    return name


def starts(run: Run) -> list[dict]:
    """What ``environment.json`` says of each time that the run was started or gone on with, the first one first."""
    found = run.recorded.environment.get("starts")
    return [start for start in found if isinstance(start, dict)] if isinstance(found, list) else []
