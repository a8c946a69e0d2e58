"""FairDARTS on the paper's second space, S2, made small for scikit-learn's digits: search, derive, print the chain.

Run: python examples/s2_search.py [epochs]. Every number here is ours; S2's docstring has settings for ImageNet.
"""

import sys

import torch
from nni.nas.evaluator.pytorch import Classification
from nni.nas.experiment import NasExperiment

from nni_fairdarts import FairDARTS
from nni_fairdarts.data import Augmentation, search_loaders
from nni_fairdarts.datasets import load
from nni_fairdarts.network import count_multiply_adds, count_parameters
from nni_fairdarts.spaces import S2

torch.set_num_threads(1)  # on images this small, threads only wait for each other
torch.manual_seed(0)
data = load("digits")
weights, alpha, validation = search_loaders(data, batch_size=96, augmentation=Augmentation(crop_padding=1, flip=False))
space = S2(data.num_classes, data.in_channels, dataset="cifar", depth=8, width=0.25)
epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 6
evaluator = Classification(
    learning_rate=1e-2, num_classes=10, train_dataloaders=weights, val_dataloaders=alpha, max_epochs=epochs
)
# recompute=True would save memory, which small images do not need.
strategy = FairDARTS(arc_learning_rate=0.2, validation_dataloaders=validation)
experiment = NasExperiment(space, evaluator, strategy)
experiment.run()
sample = experiment.export_top_models(formatter="dict")[0]
experiment.stop()

network = S2(data.num_classes, data.in_channels, dataset="cifar", depth=8, width=0.25).freeze(sample)
for label, choice in sample.items():
    print(f"{label:8} {choice}")
shape = (data.in_channels, data.image_size, data.image_size)
print(f"{count_parameters(network):,} parameters, {count_multiply_adds(network, shape):,} multiply-adds")
