"""Records of searches that were never run: random gates of any shape, for what reads records."""

import numpy as np

from nni_fairdarts.config import RunConfig, SearchConfig
from nni_fairdarts.edges import OPERATIONS
from nni_fairdarts.recorded import Recorded

NASNET = (
    "skip_connect", "conv_3x1_1x3", "conv_7x1_1x7", "dil_conv_3x3", "avg_pool_3x3", "max_pool_3x3", "max_pool_5x5",
    "max_pool_7x7", "conv_1x1", "conv_3x3", "sep_conv_3x3", "sep_conv_5x5", "sep_conv_7x7",
)  # fmt: skip
"""The operations of NNI's NASNet space."""
DARTS = {"normal": (14, OPERATIONS), "reduce": (14, OPERATIONS)}
CHOICES = {
    **{f"layer_{number}": (0, ("k3e3", "k5e3", "k7e3", "k3e6", "k5e6", "k7e6", "skip_connect")) for number in range(7)},
    "stages.0.blocks.3.projection.kernel_size": (0, (3, 5)),
    "depth": (0, (1, 2, 3, 4)),
    "width": (0, (16, 24, 32)),
    "inputs": (0, (0, 1, 2)),
    "a very long label of a choice $1 that somebody has written by hand $2": (
        0, ("_a_convolution_with_a_very_long_name_3x3", "$b$"),
    ),
    "single": (0, ("only",)),
}  # fmt: skip
"""Layers, kernels, depths, widths and inputs to choose from, and names that are hard to write."""


def recorded(shapes: dict = DARTS, epochs: int = 10, strategy: str = "fairdarts", seed: int = 0, **more) -> Recorded:
    """A record of random gates. shapes: {label: (edges of a cell, or 0 for a choice, names of its candidates)}.

    ``more``: entries of every epoch's record, functions of its number from 0.
    """
    random = np.random.default_rng(seed)
    return Recorded(
        name="random",
        history=tuple(_epoch(random, epoch, shapes, strategy, more) for epoch in range(epochs)),
        config=RunConfig(search=SearchConfig(strategy=strategy)),
    )


def _epoch(random, epoch: int, shapes: dict, strategy: str, more: dict) -> dict:
    gates = {}
    for label, (edges, names) in shapes.items():
        values = random.random((max(edges, 1), len(names)))
        if strategy != "fairdarts":
            values /= values.sum(1, keepdims=True)
        gates[label] = values.tolist() if edges else values[0].tolist()
    every = np.concatenate([np.ravel(values) for values in gates.values()])
    return {
        "epoch": epoch,
        "train_loss": 2 / (epoch + 1),
        "arch_loss": 1 - epoch / 10,
        **({"zero_one_loss": -0.2} if strategy == "fairdarts" else {}),
        "val_loss": 1 / (epoch + 1),
        "val_acc": 1 - 0.9 / (epoch + 1),
        "discretization_gap": None if epoch % 3 == 1 else 0.1 / (epoch + 1),
        "decided_gates": float(((every < 0.1) | (every > 0.9)).mean()),
        "open_gates": int((every >= 0.85).sum()),
        "gates_total": every.size,
        "operations": {label: list(names) for label, (_, names) in shapes.items()},
        "gates": gates,
        **{key: value(epoch) for key, value in more.items()},
    }
