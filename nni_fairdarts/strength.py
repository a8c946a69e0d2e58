"""Operation strength: what a supernet loses when one of its operations is left out. OStr-DARTS, arXiv 2409.14433."""

from itertools import islice

import torch
from nni.nas.evaluator.pytorch import Lightning
from pytorch_lightning.utilities import move_data_to_device
from torch import Tensor
from tqdm.auto import tqdm

from nni_fairdarts.distributed import mean
from nni_fairdarts.gap import as_before, logged_by, same_random_numbers
from nni_fairdarts.guests import loss_of, size_of, transferred, validation_batches


class OperationStrength:
    """How much the loss in validation rises when the gates of an operation are set to 0, one operation after the other.

    Over the first ``count`` batches of what α learns from, in evaluation mode, weights and other gates as they are: a
    forward pass of each batch for every gate. Statistics and random states are left as they were.
    """

    def __init__(self, evaluator: Lightning, count: int):
        self.evaluator = evaluator
        self.count = count

    def __call__(self, module) -> dict[str, list]:
        """{label: strengths, in the shape of its gates, scaled to [0, 1] over the label}, of a one-shot module."""
        owner, moving, loader = module.training_module, module.moving, validation_batches(self.evaluator)
        with torch.no_grad(), same_random_numbers(module.device, loader), as_before(owner), logged_by(module):
            batches = [self._ready(module, batch) for batch in islice(loader, self.count)]
            owner.eval()
            try:
                whole, found = self._loss(module, batches), {}
                gates = {label: torch.tensor(choice.values()) for label, choice in module.choices().items()}
                there = {label: choice.there().cpu() for label, choice in module.choices().items()}
                total = sum(int(left.sum()) for left in there.values())
                with tqdm(total=total, desc="operation strength", leave=False, disable=not self._shown(module)) as bar:
                    for label, values in gates.items():
                        strength = torch.zeros(values.numel(), dtype=torch.float64)
                        left = there[label].flatten()
                        for place in left.nonzero().flatten().tolist():
                            mask = torch.ones(values.numel(), device=module.device)
                            mask[place] = 0
                            moving.masks = {label: mask.view(values.shape)}
                            strength[place] = self._loss(module, batches) - whole
                            bar.update()
                        strength[left] = _scaled(strength[left])
                        if not left.all():  # what is gone is behind the weakest that is left
                            strength[left], strength[~left] = (1 + strength[left]) / 2, 0.0
                        found[label] = strength.view(values.shape).tolist()
            finally:
                moving.masks = {}
        return found

    def _ready(self, module, batch):
        moved = move_data_to_device(batch, module.device)
        return module.trainer.precision_plugin.convert_input(transferred(self.evaluator, moved))

    def _loss(self, module, batches: list) -> float:
        losses, counts = [], []
        for batch in batches:
            with module.trainer.precision_plugin.val_step_context():
                losses.append(loss_of(module.training_module.training_step(batch, 0)).double() * size_of(batch))
            counts.append(size_of(batch))
        return float(mean(torch.stack(losses).sum() / sum(counts)))

    @staticmethod
    def _shown(module) -> bool:
        return module.trainer.progress_bar_callback is not None


def _scaled(values: Tensor) -> Tensor:
    """From [smallest, largest] to [0, 1]; 1 where all are alike."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else torch.ones_like(values)
