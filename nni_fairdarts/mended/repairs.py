"""Faults of NNI 3.0's sampling strategies, mended where this package uses them.

- Its random strategy draws from a generator that nobody can seed (nni/mutable/mutable.py, ``Mutable.random``).
- Proxyless derives a network drawn at random from its shares; the paper (arXiv 1812.00332) derives the strongest path.
- ENAS takes a pair (images, classes) for its own pair (batch, "train" or "val"), since Lightning 2 no longer hands a
  loader's number on; makes a new, untrained controller when the result is asked for; and updates the controller again
  on every batch for the weights that follows an update.
"""

import math
from collections.abc import Iterator

import nni.nas.strategy
import numpy as np
import torch

from nni_fairdarts.gap import at, same_random_numbers

SKIP = "skip_connect"


class SeededSampling:
    """Mixed into the module of the random strategy: networks are drawn with torch's generator."""

    def resample(self) -> dict:
        sample = self.drawn()
        for module in self.supernet_modules():
            module.resample(memo=sample)
        return sample

    def export(self) -> dict:
        """A network drawn at random: the strategy learns nothing of which is good."""
        return self.drawn()

    def drawn(self) -> dict:
        generator = np.random.RandomState(int(torch.randint(2**31, ())))
        return {label: choice.random(random_state=generator) for label, choice in self.model.simplify().items()}


class ExactSkips(SeededSampling):
    """Draws cells as ``with_skips`` makes them; ``skips``: how many skip connections the normal cell has."""

    skips: int

    def drawn(self) -> dict:
        sample = super().drawn()
        cell = next(module for module in self.supernet_modules() if getattr(module, "label", None) == "normal")
        return with_skips(sample, self.skips, cell.op_names, np.random.RandomState(int(torch.randint(2**31, ()))))


def with_skips(sample: dict, skips: int, operations: list[str], generator: np.random.RandomState) -> dict:
    """A sample with exactly ``skips`` skip connections in the normal cell, drawn uniformly among all such ones.

    No node takes an input twice. The baseline of random search under a prior on skip connections.
    """
    sample = dict(sample)
    for label in sample:
        kind, _, slot = label.partition("/input_")
        if slot.endswith("_1"):
            (first,), node = sample[f"{kind}/input_{slot[:-1]}0"], int(slot.partition("_")[0])
            sample[label] = [int(generator.choice([source for source in range(node) if source != first]))]
    slots = [label for label in sample if label.startswith("normal/op_")]
    skipped = generator.choice(len(slots), skips, replace=False)
    others = [name for name in operations if name != SKIP]
    for index, label in enumerate(slots):
        sample[label] = SKIP if index in skipped else others[generator.randint(len(others))]
    return sample


class DrawnOnce:
    """Mixed in before ``SeededSampling``: what is derived is drawn when the training ends, and stays."""

    derived: dict | None = None

    def on_fit_end(self):
        self.derived = self.drawn()  # where the random state is that of the checkpoint, after an interruption too
        return super().on_fit_end()

    def export(self) -> dict:
        if self.derived is None:
            self.derived = self.drawn()
        return dict(self.derived)


class StrongestPath:
    """Mixed into the module of proxyless: the derived network is the path of the largest shares."""

    def export(self) -> dict:
        with same_random_numbers(), at(self.rounded_alphas()):
            return super().export()


class OneController:
    """Mixed into the module of enas: one controller from the beginning to the result, updated when it is due."""

    def set_model(self, model) -> None:
        if self._policy is None:
            super().set_model(model)
        else:
            self.training_module.set_model(model)

    def training_step(self, batch, batch_idx):
        every, (_, mode) = self.batches_per_update, batch
        self.batches_per_update = every if mode == "val" else math.inf
        try:
            return super().training_step(batch, batch_idx)
        finally:
            self.batches_per_update = every


class InTurn:
    """(batch, "train") for every batch of one loader, then (batch, "val") for every batch of the other."""

    def __init__(self, train, val):
        self.train, self.val = train, val

    def __len__(self) -> int:
        return len(self.train) + len(self.val)

    def __iter__(self) -> Iterator:
        for loader, mode in ((self.train, "train"), (self.val, "val")):
            for batch in loader:
                yield batch, mode


class ENAS(nni.nas.strategy.ENAS):
    """NNI's ENAS with the batches that its module understands."""

    def train_dataloader(self, train_dataloader_fn, val_dataloader_fn):
        return InTurn(train_dataloader_fn(), val_dataloader_fn())
