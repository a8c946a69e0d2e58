"""The commands ``evaluate`` and ``export``; torch is loaded when they run."""

import os
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from nni_fairdarts.arguments import run_parser
from nni_fairdarts.config import RunConfig
from nni_fairdarts.errors import InputError
from nni_fairdarts.folder import write_json


def evaluate_parser() -> ArgumentParser:
    parser = _parser("Accuracy and loss of a trained derived network on the test set.")
    parser.add_argument("--json", metavar="FILE", help="A new file for the numbers in full.")
    return parser


def export_parser() -> ArgumentParser:
    parser = _parser("Write a trained derived network to a file, and compare what that puts out.")
    parser.add_argument("--format", default="onnx", help="onnx, or torch (torch.export).")
    parser.add_argument("--output", metavar="FILE", help="A new file, .onnx or .pt2.")
    return parser


def _parser(description: str) -> ArgumentParser:
    parser = run_parser(description=description)
    # Not required, or a run's configuration could not be parsed for this parser's defaults; see ``_check_given``.
    parser.add_argument(
        "trained",
        nargs="?",
        help="Folder of a run, or of a retraining; or a genotype: a file, a published name or text.",
    )
    parser.add_argument("--weights", metavar="FILE", help="The network's state dict; of a run network.pt by default.")
    return parser


def _check_given(parsed: Namespace) -> None:
    if parsed.trained is None:
        raise InputError("give the folder of a run, such as runs/NAME, or a genotype with --weights FILE")


def evaluate(parsed: Namespace, config: RunConfig) -> None:
    from nni_fairdarts import trained

    _check_given(parsed)
    if parsed.json is not None and os.path.lexists(parsed.json):
        raise InputError(f"{parsed.json} exists already; choose another --json")
    evaluation = trained.evaluate(trained.load(parsed.trained, parsed.weights, config))
    print(evaluation)
    if parsed.json is not None:
        write_json(Path(parsed.json), evaluation.to_json())


def export(parsed: Namespace, config: RunConfig) -> None:
    from nni_fairdarts import trained

    _check_given(parsed)
    if parsed.output is None:
        raise InputError("export needs --output FILE, a new file for the network")
    # Before anything is loaded: what is asked for may not be possible.
    trained.check_export(parsed.output, parsed.format)
    print(trained.export(trained.load(parsed.trained, parsed.weights, config), parsed.output, parsed.format))
