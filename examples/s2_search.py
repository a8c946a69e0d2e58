"""FairDARTS on the paper's second space, S2, made small for scikit-learn's digits: search, derive, print the chain.

Run: python examples/s2_search.py (--help for sizes). Every number here is ours; the docstring of S2 has settings for
ImageNet.
"""

import torch
from jsonargparse import CLI
from nni.nas.evaluator.pytorch import Classification
from nni.nas.experiment import NasExperiment
from pytorch_lightning import seed_everything

from nni_fairdarts import FairDARTS
from nni_fairdarts.data import Augmentation, search_loaders
from nni_fairdarts.datasets import load
from nni_fairdarts.network import count_multiply_adds, count_parameters
from nni_fairdarts.spaces import S2


def main(epochs: int = 6, depth: int = 8, width: float = 0.25, seed: int = 0):
    """Search, export, freeze. Returns the exported dict and the network.

    Args:
        epochs: epochs of the search
        depth: layers to choose, of at most 19
        width: factor for the numbers of channels
        seed: of the weights and the order of the data
    """
    seed_everything(seed, verbose=False)
    data = load("digits")
    augmentation = Augmentation(crop_padding=1, flip=False)
    weights, alpha, validation = search_loaders(data, batch_size=96, augmentation=augmentation)
    sizes = {"num_classes": data.num_classes, "in_channels": data.in_channels, "depth": depth, "width": width}
    evaluator = Classification(
        learning_rate=1e-2,
        num_classes=data.num_classes,
        train_dataloaders=weights,
        val_dataloaders=alpha,
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
    )
    # recompute=True would save memory, which small images do not need.
    strategy = FairDARTS(arc_learning_rate=0.2, validation_dataloaders=validation)
    experiment = NasExperiment(S2(dataset="cifar", **sizes), evaluator, strategy)
    experiment.run()
    sample = experiment.export_top_models(formatter="dict")[0]
    experiment.stop()

    network = S2(dataset="cifar", **sizes).freeze(sample)
    for label, choice in sample.items():
        print(f"{label:8} {choice}")
    shape = (data.in_channels, data.image_size, data.image_size)
    print(f"{count_parameters(network):,} parameters, {count_multiply_adds(network, shape):,} multiply-adds")
    return sample, network


if __name__ == "__main__":
    torch.set_num_threads(1)  # on images this small, threads only wait for each other
    CLI(main, as_positional=False)
