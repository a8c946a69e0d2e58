"""Image classification as the published code trains it: the part of an evaluator that NNI hands to Lightning."""

import math

import torch
import torchmetrics
from nni.nas.evaluator.pytorch.lightning import SupervisedLearningModule
from torch import nn
from torch.optim import lr_scheduler

from nni_fairdarts.distributed import AmongProcesses, mean, processes
from nni_fairdarts.errors import InputError
from nni_fairdarts.scaling import unscaled
from nni_fairdarts.watch import LossWatch


def _cosine(optimizer: torch.optim.Optimizer, training: "ImageTraining", epochs: int) -> lr_scheduler.LRScheduler:
    return lr_scheduler.CosineAnnealingLR(optimizer, epochs, eta_min=training.learning_rate_min)


def _exponential(optimizer: torch.optim.Optimizer, training: "ImageTraining", epochs: int) -> lr_scheduler.LRScheduler:
    return lr_scheduler.ExponentialLR(optimizer, training.learning_rate_decay)


SCHEDULES = {"cosine": _cosine, "exponential": _exponential}


class ImageTraining(AmongProcesses, SupervisedLearningModule):
    """NNI's supervised module (``val_loss``, ``val_acc``, reports to NNI) with SGD and a schedule per epoch.

    ``schedule`` "cosine" takes the learning rate to ``learning_rate_min`` in the last epoch's end; "exponential"
    trains epoch e with learning_rate · learning_rate_decay^e, as DARTS does on ImageNet (0.97).

    The loss is cross entropy, plus ``auxiliary_weight`` times that of the auxiliary logits where the network returns
    them. ``drop_path_prob`` grows linearly from 0 over the epochs: epoch e of E trains with drop_path_prob · e / E.
    Settings and schedules are those of DARTS (arXiv 1806.09055) and Fair DARTS (arXiv 1911.12126).
    """

    def __init__(
        self,
        num_classes: int,
        learning_rate: float,
        learning_rate_min: float = 0.0,
        momentum: float = 0.9,
        weight_decay: float = 3e-4,
        label_smoothing: float = 0.0,
        auxiliary_weight: float = 0.0,
        drop_path_prob: float = 0.0,
        schedule: str = "cosine",
        learning_rate_decay: float = 0.97,
    ):
        if schedule not in SCHEDULES:
            raise InputError(f"unknown schedule {schedule!r}; known: {', '.join(SCHEDULES)}")
        accuracy = torchmetrics.Accuracy("multiclass", num_classes=num_classes)
        super().__init__(nn.CrossEntropyLoss, {"acc": accuracy}, learning_rate, weight_decay, export_onnx=False)
        # NNI keeps classes among the hyper-parameters; torch.load(weights_only=True) would refuse such a checkpoint.
        self.hparams.clear()
        self.learning_rate = learning_rate
        self.learning_rate_min = learning_rate_min
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.training_criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self.auxiliary_weight = auxiliary_weight
        self.drop_path_prob = drop_path_prob
        self.schedule = schedule
        self.learning_rate_decay = learning_rate_decay
        self._watch = LossWatch()

    def on_train_epoch_start(self):
        if self.drop_path_prob:
            self.model.set_drop_path_prob(self.drop_path_prob * self.trainer.current_epoch / self.trainer.max_epochs)

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        auxiliary = None
        if isinstance(logits, tuple):
            logits, auxiliary = logits
        loss = self.training_criterion(logits, y)
        if auxiliary is not None:
            loss = loss + self.auxiliary_weight * self.training_criterion(auxiliary, y)
        # Lightning reads what is for the progress bar at every step; of a CUDA device the watch shows it.
        self.log("train_loss", loss, prog_bar=not loss.is_cuda)
        return loss

    # -- a loss that is no number ------------------------------------------------------------------------------------

    def on_before_backward(self, loss):
        # Not in training_step, which in a search runs for α too; a search watches itself and says whose loss it was.
        if self.trainer.lightning_module is self:
            loss = mean(unscaled(loss.detach(), self.trainer))
            self._watch.see("train_loss", loss, self.trainer, self.trainer.fit_loop.epoch_loop.batch_idx)

    def on_fit_start(self):
        self._watch = LossWatch(together=processes() > 1)  # what an earlier training has found is its own
        return super().on_fit_start()

    def on_validation_start(self):
        self._watch.look(wait=True)

    def on_train_epoch_end(self):
        self._watch.look(wait=True)

    def on_save_checkpoint(self, checkpoint):
        self._watch.look(wait=True)

    def on_load_checkpoint(self, checkpoint):
        """Where the training has become longer since, go on along the longer cosine: with the rate it has there."""
        for scheduler, optimizer in zip(checkpoint["lr_schedulers"], checkpoint["optimizer_states"], strict=False):
            epochs = max(1, self.trainer.max_epochs)
            if scheduler.get("T_max", epochs) == epochs:
                continue
            scheduler["T_max"] = epochs
            low, done = self.learning_rate_min, scheduler["last_epoch"]
            rates = [low + (high - low) * (1 + math.cos(math.pi * done / epochs)) / 2 for high in scheduler["base_lrs"]]
            scheduler["_last_lr"] = rates
            for group, rate in zip(optimizer["param_groups"], rates, strict=True):
                group["lr"] = rate

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(
            self.parameters(), self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
        )
        scheduler = SCHEDULES[self.schedule](optimizer, self, max(1, self.trainer.max_epochs))
        return {"optimizer": optimizer, "lr_scheduler": scheduler}
