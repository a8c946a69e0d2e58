"""Smaller networks by a penalty on the expected multiply-adds: a search without it and one with it, on digits.

Each derived network is retrained from scratch; the script prints its test accuracy and its size. The penalty takes
NNI's names; ``profiler("params", ...)`` aims at parameters instead.
Run: python examples/small_network.py (--help for sizes)
"""

import torch
from jsonargparse import CLI
from nni.nas.evaluator.pytorch import Classification, Lightning, Trainer
from nni.nas.experiment import NasExperiment
from pytorch_lightning import seed_everything

from nni_fairdarts import DerivedNetwork, FairDARTS
from nni_fairdarts.data import Augmentation, retrain_loaders, search_loaders
from nni_fairdarts.datasets import load
from nni_fairdarts.network import count_multiply_adds, count_parameters
from nni_fairdarts.penalty import profiler
from nni_fairdarts.spaces import DARTS
from nni_fairdarts.training import ImageTraining

TRAINER = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
AUGMENTATION = Augmentation(crop_padding=1, flip=False)


def search(data, epochs: int, width: int, scale: float, seed: int) -> DerivedNetwork:
    """The network derived from a search with a penalty of ``scale``; 0 for none."""
    seed_everything(seed, verbose=False)
    weights, alpha, validation = search_loaders(data, batch_size=96, augmentation=AUGMENTATION)
    space = DARTS(width=width, num_cells=3, num_classes=data.num_classes, in_channels=data.in_channels)
    penalty = None
    if scale:
        image = torch.zeros(1, data.in_channels, data.image_size, data.image_size)
        # The baseline is where the penalty is zero; under the default nonlinear="linear" it only sets the unit.
        penalty = {"profiler": profiler("flops", space, image), "baseline": 400_000, "scale": scale}
    evaluator = Classification(
        learning_rate=1e-2,
        num_classes=data.num_classes,
        train_dataloaders=weights,
        val_dataloaders=alpha,
        max_epochs=epochs,
        **TRAINER,
    )
    strategy = FairDARTS(arc_learning_rate=0.2, penalty=penalty, validation_dataloaders=validation)
    experiment = NasExperiment(space, evaluator, strategy)
    try:
        experiment.run()
        return experiment.export_top_models(formatter="instance")[0]
    finally:
        experiment.stop()


def retrain(network: DerivedNetwork, data, epochs: int, seed: int) -> float:
    """Test accuracy of ``network``, trained from scratch."""
    seed_everything(seed, verbose=False)
    train, test = retrain_loaders(data, batch_size=64, augmentation=AUGMENTATION)
    trainer = Trainer(max_epochs=epochs, **TRAINER)
    training = ImageTraining(data.num_classes, learning_rate=0.05)
    Lightning(training, trainer, train_dataloaders=train, val_dataloaders=test).evaluate(network)
    return float(trainer.callback_metrics["val_acc"])


def main(search_epochs: int = 10, retrain_epochs: int = 16, width: int = 8, scale: float = 0.3, seed: int = 0) -> dict:
    """Search without and with the penalty, retrain both; returns and prints accuracies and sizes.

    Args:
        search_epochs: epochs of each search
        retrain_epochs: epochs in which each derived network is trained from scratch
        width: channels of the first cells
        scale: weight of the penalty
        seed: of the weights and the order of the data
    """
    torch.set_num_threads(1)  # on images this small, threads only wait for each other
    data, results = load("digits"), {}
    for name, weight in (("without penalty", 0.0), ("with penalty", scale)):
        network = search(data, search_epochs, width, weight, seed)
        results[name] = {
            "accuracy": retrain(network, data, retrain_epochs, seed),
            "parameters": count_parameters(network),
            "multiply_adds": count_multiply_adds(network, (data.in_channels, data.image_size, data.image_size)),
        }
    for name, found in results.items():
        print(
            f"{name:15}  {found['accuracy']:.2%} (test), {found['parameters']:,} parameters, "
            f"{found['multiply_adds']:,} multiply-adds"
        )
    return results


if __name__ == "__main__":
    CLI(main, as_positional=False)
