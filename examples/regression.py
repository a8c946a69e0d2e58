"""Regression: which layers a small network for a table of numbers should have, on scikit-learn's diabetes data.

Shows a space of your own made of ``LayerChoice``, NNI's ``Regression`` evaluator, and the way from the exported dict to
a network with fresh weights that is trained and compared with linear regression. To change it for your data: what
``diabetes`` returns and the candidates in ``TableSpace``. Run: python examples/regression.py (--help for sizes)
"""

import pytorch_lightning as pl
import torch
from jsonargparse import CLI
from nni.nas.evaluator.pytorch import DataLoader, Regression
from nni.nas.experiment import NasExperiment
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from nni_fairdarts import FairDARTS

TRAINER = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class TableSpace(ModelSpace):
    """(N, features) → (N, 1) through ``depth`` layers, each chosen among kinds of layers and a skip connection."""

    def __init__(self, features: int, width: int = 32, depth: int = 3):
        super().__init__()
        self.stem = nn.Linear(features, width)
        self.layers = nn.Sequential(
            *(
                LayerChoice(
                    {
                        "relu": nn.Sequential(nn.Linear(width, width), nn.ReLU()),
                        "tanh": nn.Sequential(nn.Linear(width, width), nn.Tanh()),
                        "gated": nn.Sequential(nn.Linear(width, 2 * width), nn.GLU()),
                        "skip_connect": nn.Identity(),
                    },
                    label=f"layer_{number}",
                )
                for number in range(depth)
            )
        )
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.stem(x)))


def diabetes(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x (331, 10), y (331, 1) to learn from, then x, y of the 111 patients held out; standardised by the former."""
    x, y = load_diabetes(return_X_y=True)
    x, held_x, y, held_y = train_test_split(x, y.reshape(-1, 1), test_size=0.25, random_state=seed)
    pairs = [((part - of.mean(0)) / of.std(0)) for part, of in ((x, x), (y, y), (held_x, x), (held_y, y))]
    return tuple(torch.tensor(part, dtype=torch.float32) for part in pairs)


def loader(x: Tensor, y: Tensor, shuffle: bool = True) -> DataLoader:
    return DataLoader(TensorDataset(x, y), batch_size=32, shuffle=shuffle)


def main(search_epochs: int = 30, retrain_epochs: int = 10, width: int = 32, depth: int = 3, seed: int = 0):
    """Search, export, freeze, retrain, compare. Returns the exported dict, the network and the errors by name.

    Args:
        search_epochs: epochs of the search
        retrain_epochs: epochs in which the derived network is trained from scratch
        width: size of every layer
        depth: number of layers to choose
        seed: of the split, the weights and the order of the data
    """
    pl.seed_everything(seed, verbose=False)
    x, y, held_x, held_y = diabetes(seed)
    half = len(x) // 2  # one half trains the weights, the other α

    evaluator = Regression(
        learning_rate=3e-3,
        train_dataloaders=loader(x[:half], y[:half]),
        val_dataloaders=loader(x[half:], y[half:]),
        max_epochs=search_epochs,
        **TRAINER,
    )
    # A search of so few steps needs a larger step for α than the published one.
    experiment = NasExperiment(TableSpace(x.shape[1], width, depth), evaluator, FairDARTS(arc_learning_rate=0.05))
    experiment.run()
    sample = experiment.export_top_models(formatter="dict")[0]
    experiment.stop()

    network = TableSpace(x.shape[1], width, depth).freeze(sample)  # the dict is all that is needed; fresh weights
    evaluator = Regression(  # a new one: NNI's evaluators remember their training
        learning_rate=3e-3,
        weight_decay=1e-3,
        train_dataloaders=loader(x, y),
        val_dataloaders=loader(held_x, held_y, shuffle=False),
        max_epochs=retrain_epochs,
        **TRAINER,
    )
    evaluator.evaluate(network)

    linear = LinearRegression().fit(x, y)
    with torch.no_grad():
        predictions = {
            "mean": torch.zeros_like(held_y),  # of standardised targets
            "linear": torch.tensor(linear.predict(held_x), dtype=held_y.dtype),
            "derived": network.eval()(held_x),
        }
    errors = {name: nn.functional.mse_loss(found, held_y).item() for name, found in predictions.items()}
    print(sample)
    for name, error in errors.items():
        print(f"{name:8} mean squared error {error:.3f} on {len(held_y)} patients held out")
    return sample, network, errors


if __name__ == "__main__":
    torch.set_num_threads(1)  # on networks this small, threads only wait for each other
    CLI(main, as_positional=False)
