"""The paper's experiments, one after the other, and a report of each: python examples/paper/run.py [--digits] RECIPE…

Without a RECIPE all of them. On CIFAR-10, which needs CUDA devices and days, or with --digits on two CPU cores in an
hour. A report is reports/RECIPE.html; what the experiments leave is in NNI's own folder, ~/nni-experiments.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from nni_fairdarts.manager.launching import launch

HERE = Path(__file__).parent
RECIPES = ("dominance", "without_skips", "loss", "weight", "random")

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=f"some of {', '.join(RECIPES)}; all by default")
parser.add_argument("--digits", action="store_true", help="scikit-learn's digits in place of CIFAR-10")
parser.add_argument("--port", type=int, default=8080, help="of the web UI, while an experiment runs")
parser.add_argument("--reports", type=Path, default=Path("reports"), help="folder for the reports")
given = parser.parse_args()
if unknown := set(given.recipes) - set(RECIPES):
    parser.error(f"unknown recipe {', '.join(sorted(unknown))}; known: {', '.join(RECIPES)}")
given.reports.mkdir(parents=True, exist_ok=True)
for recipe in given.recipes or RECIPES:
    name = f"{recipe}_digits" if given.digits else recipe
    experiment = launch(HERE / f"{name}.yaml", given.port, wait=True)
    command = [sys.executable, "-m", "nni_fairdarts", "report", experiment]
    subprocess.run([*command, "--output", given.reports / f"{name}.html"], check=True)
