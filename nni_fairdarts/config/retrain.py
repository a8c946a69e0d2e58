"""How a derived network is trained."""

from dataclasses import dataclass
from typing import Literal

from nni_fairdarts.config.checks import check, check_sgd


@dataclass(frozen=True)
class RetrainConfig:
    """Training of the derived network from scratch, on the whole training set.

    Args:
        width: channels of the first cells.
        num_cells: cells in a row.
        epochs: passes over the training set.
        batch_size: images per step; of each process where devices is more than 1.
        learning_rate: of SGD at the start.
        schedule: of the learning rate: cosine (down to learning_rate_min) or exponential (times
            learning_rate_decay after each epoch).
        learning_rate_min: of SGD at the end of its cosine.
        learning_rate_decay: factor of the exponential schedule.
        momentum: of SGD.
        weight_decay: of SGD.
        gradient_clip_val: bound on the gradient's norm; 0 for none.
        cutout: side of the blanked square in training images, in pixels; 0 for none.
        auxiliary_weight: weight of the auxiliary head's loss; 0 for no head (it needs images of 32 or 224 pixels).
        drop_path_prob: probability that a path is dropped in the last epoch; it grows linearly from 0.
        label_smoothing: of the cross entropy.
    """

    width: int = 36
    num_cells: int = 20
    epochs: int = 600
    batch_size: int = 96
    learning_rate: float = 0.025
    schedule: Literal["cosine", "exponential"] = "cosine"
    learning_rate_min: float = 0.0
    learning_rate_decay: float = 0.97
    momentum: float = 0.9
    weight_decay: float = 3e-4
    gradient_clip_val: float = 5.0
    cutout: int = 16
    auxiliary_weight: float = 0.4
    drop_path_prob: float = 0.2
    label_smoothing: float = 0.0

    def __post_init__(self):
        check_sgd("retrain", self)
        check("retrain", self.width >= 2 and self.width % 2 == 0, "width", self.width, "an even number, at least 2")
        check("retrain", self.num_cells >= 3, "num_cells", self.num_cells, "at least 3 (normal, reduction, reduction)")
        decay = self.learning_rate_decay
        check("retrain", 0 < decay <= 1, "learning_rate_decay", decay, "in (0, 1]", "; DARTS uses 0.97 on ImageNet")
        check("retrain", self.auxiliary_weight >= 0, "auxiliary_weight", self.auxiliary_weight, "0 or more")
        for name in ("drop_path_prob", "label_smoothing"):
            check("retrain", 0 <= getattr(self, name) < 1, name, getattr(self, name), "in [0, 1)")
