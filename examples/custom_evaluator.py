"""An evaluator of your own: a model of two inputs that returns a dict, and a loss on both of its entries.

The model sees the left and the right half of scikit-learn's digits; its embedding is to lie near those of the same
digit. Shows NNI's ``Lightning`` evaluator around your own Lightning module (dict batches, a dict from
``training_step``, optimizer, schedule per step, metrics), a ``LayerChoice`` over modules of two inputs that return
dicts, and one choice shared by two places. To change it: ``Halves`` is the training, ``TwoHalves`` the model. Run:
python examples/custom_evaluator.py (--help for sizes)
"""

import nni
import pytorch_lightning as pl
import torch
from jsonargparse import CLI
from nni.nas.evaluator.pytorch import DataLoader, Lightning, LightningModule, Trainer
from nni.nas.experiment import NasExperiment
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from nni_fairdarts import FairDARTS

CLASSES = 10


def stem(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width))


def convolution(width: int, kernel: int) -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, kernel, padding=kernel // 2), nn.BatchNorm2d(width))


def concatenated(left: Tensor, right: Tensor) -> Tensor:
    return torch.cat([left, right], dim=1)


class Join(nn.Module):
    """Two views (N, size) → {"logits": (N, 10), "embedding": (N, 16)}; ``merge`` makes one view of the two."""

    def __init__(self, merge, size: int):
        super().__init__()
        self.merge = merge
        self.embed = nn.Linear(size, 16)
        self.classify = nn.Linear(16, CLASSES)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        embedding = self.embed(self.merge(left, right)).tanh()
        return {"logits": self.classify(embedding), "embedding": embedding}


class TwoHalves(ModelSpace):
    """Two images (N, 1, 8, 4) → what ``Join`` returns; the operations of both branches and the join are chosen."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.stems = nn.ModuleList(stem(width) for _ in range(2))
        # The same label: both branches choose the same operation, each with weights of its own.
        self.branches = nn.ModuleList(
            LayerChoice(
                {
                    "conv_3x3": convolution(width, 3),
                    "conv_5x5": convolution(width, 5),
                    "max_pool_3x3": nn.MaxPool2d(3, stride=1, padding=1),
                    "skip_connect": nn.Identity(),
                },
                label="branch",
            )
            for _ in range(2)
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d((4, 2)), nn.Flatten())
        size = width * 4 * 2  # channels, height and width of a branch's pooled maps
        self.join = LayerChoice(
            {
                "concatenate": Join(concatenated, 2 * size),
                "add": Join(torch.add, size),
                "multiply": Join(torch.mul, size),
            },
            label="join",
        )

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        views = [
            self.pool(branch(first(half)))  # (N, size)
            for first, branch, half in zip(self.stems, self.branches, (left, right), strict=True)
        ]
        return self.join(*views)


def spread(embedding: Tensor, labels: Tensor) -> Tensor:
    """Mean of (e - c)^2 over a batch and its embeddings' entries, c the mean embedding of e's class; 0 or more."""
    member = one_hot(labels, CLASSES).to(embedding.dtype)  # (N, classes)
    centres = member.T @ embedding / member.sum(0).clamp(min=1).unsqueeze(1)
    return (embedding - centres[labels]).square().mean()


@nni.trace
class Halves(LightningModule):
    """How the model is trained, in a search and afterwards: cross entropy + ``spread_weight`` · spread."""

    def __init__(self, learning_rate: float = 0.1, spread_weight: float = 0.1):
        super().__init__()
        self.learning_rate = learning_rate
        self.spread_weight = spread_weight

    def measured(self, batch: dict) -> dict[str, Tensor]:
        outputs = self.model(batch["left"], batch["right"])  # self.model is what NNI trains: supernet or derived
        apart = spread(outputs["embedding"], batch["label"])
        return {
            "loss": cross_entropy(outputs["logits"], batch["label"]) + self.spread_weight * apart,
            "spread": apart.detach(),
            "acc": (outputs["logits"].argmax(1) == batch["label"]).float().mean(),
        }

    def training_step(self, batch, batch_idx):
        return self.measured(batch)  # "loss" is what is minimised, by the weights and, on batches of its own, by α

    def validation_step(self, batch, batch_idx):
        # Names that begin with val_ are in the history and the line of each epoch.
        values = {f"val_{name}": value for name, value in self.measured(batch).items()}
        self.log_dict(values, batch_size=len(batch["label"]))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), self.learning_rate, momentum=0.9, nesterov=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.learning_rate, total_steps=int(self.trainer.estimated_stepping_batches)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def digits(images: int | None) -> list[dict[str, Tensor]]:
    """The first ``images`` digits, or all 1797, each as {"left": (1, 8, 4), "right": (1, 8, 4), "label": ()}."""
    data = load_digits()
    pixels = torch.tensor(data.images[:images], dtype=torch.float32).unsqueeze(1) / 8 - 1  # (N, 1, 8, 8) in [-1, 1]
    left, right = pixels.split(4, dim=3)
    labels = torch.tensor(data.target[:images])
    return [{"left": one, "right": two, "label": label} for one, two, label in zip(left, right, labels, strict=True)]


def evaluator(train: list, val: list, epochs: int) -> Lightning:
    """A new one for each training: NNI's evaluators remember theirs."""
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return Lightning(Halves(), trainer, DataLoader(train, batch_size=64, shuffle=True), DataLoader(val, batch_size=256))


def main(search_epochs: int = 12, retrain_epochs: int = 12, width: int = 16, images: int | None = None, seed: int = 0):
    """Search, export, freeze, retrain. Returns the exported dict, the network and its metrics on the images held out.

    Args:
        search_epochs: epochs of the search
        retrain_epochs: epochs in which the derived network is trained from scratch
        width: channels of both branches
        images: how many digits to use; all 1797 by default
        seed: of the weights and the order of the data
    """
    pl.seed_everything(seed, verbose=False)
    data = digits(images)
    rest, held = data[: len(data) * 3 // 4], data[len(data) * 3 // 4 :]
    weights, alpha = rest[: len(rest) // 2], rest[len(rest) // 2 :]

    # A search of so few steps needs a larger step for α than the published one.
    strategy = FairDARTS(arc_learning_rate=0.05)
    experiment = NasExperiment(TwoHalves(width), evaluator(weights, alpha, search_epochs), strategy)
    experiment.run()
    sample = experiment.export_top_models(formatter="dict")[0]
    experiment.stop()

    network = TwoHalves(width).freeze(sample)  # the dict is all that is needed; fresh weights
    training = evaluator(rest, held, retrain_epochs)
    training.evaluate(network)
    metrics = {name: value.item() for name, value in training.trainer.callback_metrics.items()}
    print(sample)
    print("  ".join(f"{name} {value:.3f}" for name, value in metrics.items()), f"on {len(held)} images held out")
    return sample, network, metrics


if __name__ == "__main__":
    torch.set_num_threads(1)  # on images this small, threads only wait for each other
    CLI(main, as_positional=False)
