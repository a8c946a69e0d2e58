"""Every strategy on scikit-learn's digits, with a report and a table: python examples/family/run.py [ID]

Runs digits.yaml, or takes the experiment ID that has run. What it writes is reports/family_digits.html, and the rows
of results.md as reports/family_digits.md, with the costs of benchmarks/results/family.json where that is there.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from nni_fairdarts.manager.launching import launch
from nni_fairdarts.manager.listing import find
from nni_fairdarts.manager.records import Experiment, read
from nni_fairdarts.manager.spread import SCORE, is_number, spread

HERE = Path(__file__).parent
COSTS = HERE.parents[1] / "benchmarks/results/family.json"
COLUMNS = {
    SCORE: ("accuracy", 100, ".2f", " %"),
    "normal_skips": ("skips, normal", 1, ".1f", ""),
    "discretization_gap": ("gap", 100, ".2f", " %"),
    "parameters": ("parameters", 1, ",.0f", ""),
    "supernet_accuracy": ("supernet", 100, ".2f", " %"),
}
"""{key of a trial's result: (its column's head, factor, digits, unit)}."""


def table(experiment: Experiment, costs: dict[str, list[str]]) -> str:
    """A row for each strategy, mean ± sample standard deviation over its trials, in Markdown."""
    found: dict[str, list[dict]] = {}
    for trial in experiment.trials:
        if trial.result is not None and is_number(trial.result.get(SCORE)):
            found.setdefault(trial.strategy, []).append(trial.result)
    heads = ["strategy", "n", *(head for head, *_ in COLUMNS.values()), "a step", "memory"]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for strategy, results in found.items():
        numbers = [[result[key] for result in results if is_number(result.get(key))] for key in COLUMNS]
        cells = [cell(*column[1:], values) for column, values in zip(COLUMNS.values(), numbers, strict=True)]
        lines.append([f"`{strategy}`", str(len(results)), *cells, *costs.get(strategy, ["", ""])])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def cell(factor: int, digits: str, unit: str, values: list) -> str:
    if not values:
        return "–"
    of = spread([factor * value for value in values])
    deviation = "" if of.standard_deviation is None else f" ± {of.standard_deviation:{digits}}"
    return f"{of.mean:{digits}}{deviation}{unit}"


def costs() -> dict[str, list[str]]:
    """{strategy: [seconds, MiB of a step]}, of one in stages from the first to the last."""
    found: dict[str, list] = {}
    if COSTS.exists():
        for row in json.loads(COSTS.read_text())["rows"]:
            if row["status"] == "measured":
                found.setdefault(row["strategy"].split(",")[0], []).append(row)
    return {
        name: [
            " to ".join(f"{row['step']['seconds']:.2f}" for row in rows) + " s",
            " to ".join(f"{row['peak_bytes'] / 2**20:,.0f}" for row in rows) + " MiB",
        ]
        for name, rows in ((name, rows[:1] + rows[1:][-1:]) for name, rows in found.items())
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("id", nargs="?", help="an experiment that has run; a new one is run without")
    parser.add_argument("--port", type=int, default=8080, help="of the web UI, while an experiment runs")
    parser.add_argument("--reports", type=Path, default=Path("reports"), help="folder for report and table")
    given = parser.parse_args()
    given.reports.mkdir(parents=True, exist_ok=True)
    experiment = given.id or launch(HERE / "digits.yaml", given.port, wait=True)
    (given.reports / "family_digits.md").write_text(table(read(find(experiment)), costs()))
    command = [sys.executable, "-m", "nni_fairdarts", "report", experiment]
    subprocess.run([*command, "--output", given.reports / "family_digits.html"], check=True)
