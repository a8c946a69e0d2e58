"""``nni-fairdarts results``: what an experiment's trials came to, as a table, as CSV and as JSON."""

import csv
import io
import json
import shutil
from dataclasses import asdict
from pathlib import Path

from nni_fairdarts.errors import InputError
from nni_fairdarts.files import write_text
from nni_fairdarts.manager.listing import find
from nni_fairdarts.manager.records import Experiment, Trial, read
from nni_fairdarts.manager.spread import MEASURED, SCORE, groups, is_number, other_names, score_name
from nni_fairdarts.manager.table import as_text


def results(
    experiment: str, csv_file: Path | None = None, json_file: Path | None = None, width: int | None = None
) -> str:
    """Write the results of an experiment as CSV and JSON, and return them as a text for people.

    Args:
        experiment: id, or folder.
        csv_file: ``results.csv`` in the experiment's folder by default; replaced where it is there.
        json_file: ``results.json`` likewise.
        width: of the text in characters; the terminal's by default, 100 where there is none.

    Raises InputError where there is no such experiment, or a file cannot be written.
    """
    record = read(find(experiment))
    csv_file = Path(csv_file or record.folder / "results.csv")
    json_file = Path(json_file or record.folder / "results.json")
    for file, text, option in ((csv_file, as_csv(record), "--csv"), (json_file, as_json(record), "--json")):
        try:
            write_text(file, text)
        except OSError as error:
            raise InputError(f"cannot write {file}: {error.strerror}; choose another place with {option}") from error
    text = as_text(record, width or shutil.get_terminal_size((100, 24)).columns)
    return f"{text}\n\nin full  {csv_file}\n         {json_file}"


def as_csv(experiment: Experiment) -> str:
    """One line per trial with its numbers in full; blank is what is not known, or not a finite number."""
    rows = [_row(trial, score_name(experiment)) for trial in experiment.trials]
    names = ["number", "id", "strategy", "seed", *(f"hyperparameters.{name}" for name in other_names(experiment))]
    names += [score_name(experiment), *MEASURED[1:], "seconds", "status", *(name for row in rows for name in row)]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(names)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_json(experiment: Experiment) -> str:
    """The trials with their whole results, and the statistics; null is what is not known, or not a finite number."""
    content = {
        "experiment": experiment.id,
        "name": experiment.name,
        "folder": str(experiment.folder),
        "trials": [asdict(trial) for trial in experiment.trials],
        "statistics": [asdict(group) for group in groups(experiment)],
    }
    return json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"


def _row(trial: Trial, score: str) -> dict:
    """A trial's line of the CSV: what is known of it, then its result.

    Where a script that is not ours reports under a name that is taken, "result." goes before it.
    """
    row = {"number": trial.number, "id": trial.id, "strategy": trial.strategy, "seed": trial.seed}
    hyperparameters = trial.hyperparameters or {}
    row |= {f"hyperparameters.{k}": value for k, value in hyperparameters.items() if k not in ("strategy", "seed")}
    row |= {"status": trial.status, "source": trial.source, "parameter_id": trial.parameter_id}
    row["remarks"] = "; ".join(trial.remarks)
    own = {"hyperparameters", *(key for key in ("strategy", "seed", "parameter_id") if row[key] is not None)}
    for key, value in (trial.result or {}).items():
        name = score if key == SCORE else key
        if key not in own:
            row[f"result.{name}" if name in row else name] = value
    return {name: _cell(value) for name, value in row.items()}


def _cell(value):
    value = _finite(value)
    return json.dumps(value) if isinstance(value, dict | list) else value


def _finite(value):
    """The same with None in the place of every number that JSON does not have."""
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not is_number(value) else value
