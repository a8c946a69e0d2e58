"""From NNI's DARTS to FairDARTS: the script of an NNI user, on scikit-learn's digits.

Compare the two lines marked with #; everything else is the same. Run: python examples/swap_darts.py [epochs]
"""

import sys

import torch
from nni.nas.evaluator.pytorch import Classification
from nni.nas.experiment import NasExperiment

# from nni.nas.strategy import DARTS
from nni_fairdarts import FairDARTS
from nni_fairdarts.data import Augmentation, search_loaders
from nni_fairdarts.datasets import load
from nni_fairdarts.spaces import DARTS as DARTSSpace  # NNI's space; its own takes 3 channels and 10 or 1000 classes

torch.set_num_threads(1)  # on images this small, threads only wait for each other
data = load("digits")
weights, alpha, validation = search_loaders(data, batch_size=96, augmentation=Augmentation(crop_padding=1, flip=False))
space = DARTSSpace(width=8, num_cells=3, num_classes=data.num_classes, in_channels=data.in_channels)
epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 10
evaluator = Classification(
    learning_rate=1e-2, num_classes=10, train_dataloaders=weights, val_dataloaders=alpha, max_epochs=epochs
)

# strategy = DARTS()
strategy = FairDARTS(arc_learning_rate=0.2, validation_dataloaders=validation)
experiment = NasExperiment(space, evaluator, strategy)
experiment.run()
print(experiment.export_top_models(formatter="dict")[0])
network = experiment.export_top_models(formatter="instance")[0]  # ready to be retrained
print(network.genotype)
experiment.stop()
