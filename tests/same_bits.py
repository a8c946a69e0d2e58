"""What a process computes of tiny searches, for ``test_determinism.py``: prints digests.

python same_bits.py FOLDER deterministic|any
"""

import hashlib
import json
import logging
import sys
import warnings
from pathlib import Path

import torch

from nni_fairdarts import experiment
from nni_fairdarts.arguments import changed
from nni_fairdarts.config import RunConfig
from nni_fairdarts.history import read_history

TINY = {
    "device": "cpu", "threads": 1, "figure_epochs": 0,
    "data.name": "digits", "data.crop_padding": 1, "data.search_classes": 3, "data.search_images_per_class": 10,
    "search.batch_size": 8, "search.gap_batches": 1, "search.epochs": 2,
    "search.learning_rate": 0.05, "search.arc_learning_rate": 0.2, "search.cutout": 2,
}  # fmt: skip
CELLS = {"space.width": 2, "space.num_cells": 3, "data.workers": 2, "threads": 2, "search.epochs": 1}
LAYERS = {
    "space.name": "nni_fairdarts.spaces:S2",
    "space.arguments": {"dataset": "cifar", "depth": 2, "width": 0.25},
}
RUNS = {
    "fairdarts": CELLS,
    **{name: {**LAYERS, "search.strategy": name} for name in ("darts", "gumbel_darts", "proxyless", "random")},
}


def digest(folder: Path) -> str:
    """Of α, weights, statistics, optimizers, history and derived architecture, without times."""
    checkpoint = max((folder / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    content = torch.load(checkpoint, weights_only=True)
    found = hashlib.sha256()
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        _add(found, content[part])
    for record in read_history(folder / "history.jsonl"):
        _add(found, {key: value for key, value in record.items() if key != "seconds"})
    _add(found, json.loads((folder / "sample.json").read_text()))
    return found.hexdigest()


def _add(found, value) -> None:
    if isinstance(value, dict):
        for key, part in value.items():  # in its own order, which must be the same too
            found.update(str(key).encode())
            _add(found, part)
    elif isinstance(value, list | tuple):
        for part in value:
            _add(found, part)
    elif isinstance(value, torch.Tensor):
        found.update(value.contiguous().numpy().tobytes())
    else:
        found.update(repr(value).encode())


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for logger in ("nni", "pytorch_lightning"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    digests = {}
    for run, values in RUNS.items():
        names = {"runs": sys.argv[1], "name": run, "deterministic": sys.argv[2] == "deterministic"}
        config = changed(RunConfig(), {**TINY, **values, **names})
        experiment.search(config)
        digests[run] = digest(config.folder)
    print(json.dumps(digests))
