"""Shared fixtures: NNI's files in a home of their own, tiny random images, quiet trainers, real experiments."""

import logging
import os
import tempfile
from pathlib import Path

HOME = tempfile.TemporaryDirectory(prefix="nni-fairdarts-tests-")
os.environ["HOME"] = HOME.name  # NNI reads it when it is imported, and writes to ~/nni-experiments
os.environ["NNI_CONFIG_DIR"] = f"{HOME.name}/nni-config"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start, too; see ``silence``

import pytest  # noqa: E402
import torch  # noqa: E402

# Tests that one worker runs, in their order: they start NNI's managers, for two at a time, and what else then runs,
# could be too slow for NNI: it gives a manager 3 seconds to answer, and a tuner 10 to connect.
MANAGERS = ("test_browser.py", "test_launch.py", "test_remote.py", "test_results.py", "test_trial.py")
# Files of which one worker runs all tests: they share a run that takes long to make, and that each worker would make.
WHOLE = (
    "test_benchmarks.py", "test_cli.py", "test_determinism.py", "test_distributed.py", "test_docs.py",
    "test_imagenet.py", "test_load.py", "test_report.py", "test_resume.py", "test_strategy.py", "test_trained.py",
    "test_wheel.py",
)  # fmt: skip
QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "accelerator": "cpu",
    "devices": 1,
}


def pytest_configure(config):
    for module in ("pytorch_lightning", "nni.nas.nn.pytorch.layers"):
        config.addinivalue_line("filterwarnings", f"ignore:::{module}")


def pytest_unconfigure(config):
    HOME.cleanup()


@pytest.hookimpl(optionalhook=True)  # where pytest-xdist is not installed
def pytest_xdist_make_scheduler(config, log):
    """With ``-n`` and no ``--dist``: ``MANAGERS``, each file of ``WHOLE``, and by themselves all other tests.

    The marks of ``--dist loadgroup`` would do, but pytest-xdist 3.8 ignores them with pytest 9.2 (its issue 1386).
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # begins with the groups of most tests; single ones fill up the end
        def _split_scope(self, nodeid):
            file = Path(nodeid.partition("::")[0]).name
            return "managers" if file in MANAGERS else file if file in WHOLE else nodeid

    return Scheduling(config, log) if config.getvalue("dist") == "load" else None


@pytest.fixture(autouse=True, scope="session")
def silence():
    """No log lines of NNI and Lightning; two threads would only wait for each other on images this small."""
    import nni  # noqa: F401

    for name in ("nni", "pytorch_lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def quiet():
    """Keywords for a Lightning trainer that writes nothing and stays on the CPU."""
    return dict(QUIET)


@pytest.fixture(scope="session")
def loader():
    """loader(batches, ...): random images and classes, or targets of ``target``'s shape, in NNI's DataLoader."""
    from nni.nas.evaluator.pytorch import DataLoader
    from torch.utils.data import TensorDataset

    def make(batches=1, batch=2, shape=(3, 8, 8), classes=10, seed=0, target=None, dtype=None):
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(batches * batch, *shape, generator=generator, dtype=dtype)
        if target is None:
            targets = torch.randint(classes, (batches * batch,), generator=generator)
        else:
            targets = torch.randn(batches * batch, *target, generator=generator, dtype=dtype)
        return DataLoader(TensorDataset(images, targets), batch_size=batch, shuffle=False)

    return make


@pytest.fixture(scope="session")
def classification(loader):
    """classification(...): NNI's evaluator for random images; keywords go to its trainer."""
    from nni.nas.evaluator.pytorch import Classification

    def make(train=None, val=None, num_classes=10, **trainer):
        return Classification(
            train_dataloaders=train or loader(seed=1),
            val_dataloaders=val or loader(seed=2),
            num_classes=num_classes,
            **{**QUIET, "max_epochs": 1, **trainer},
        )

    return make


@pytest.fixture(scope="session")
def lightning(loader):
    """lightning(module, ...): NNI's evaluator around a module of the test's own; keywords go to its trainer."""
    from nni.nas.evaluator.pytorch import Lightning, Trainer

    def make(module, train=None, val=None, **trainer):
        return Lightning(
            module,
            Trainer(**{**QUIET, "max_epochs": 1, **trainer}),
            train_dataloaders=train or loader(seed=1),
            val_dataloaders=val or loader(seed=2),
        )

    return make


@pytest.fixture(scope="session")
def search():
    """search(space, evaluator, strategy): run a NasExperiment to its end and return it, stopped."""
    from nni.nas.experiment import NasExperiment

    def run(space, evaluator, strategy):
        experiment = NasExperiment(space, evaluator, strategy)
        try:
            experiment.run()
        finally:
            experiment.stop()
        return experiment

    return run


@pytest.fixture(scope="session")
def choices():
    """choices(): a small space of LayerChoices, two of one label; see ``reference.choices_logits``."""
    from nni.nas.nn.pytorch import LayerChoice, ModelSpace
    from torch import nn

    class Choices(ModelSpace):
        def __init__(self, outputs=10):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
            convolution = nn.Conv2d(4, 4, 3, padding=1)
            self.first = LayerChoice([convolution, nn.MaxPool2d(3, 1, 1), nn.Identity()], label="first")
            for name in ("second", "third"):
                candidates = {"a": nn.Conv2d(4, 4, 1), "b": nn.Conv2d(4, 4, 3, padding=1)}
                setattr(self, name, LayerChoice(candidates, label="second"))
            self.classifier = nn.Linear(4, outputs)

        def forward(self, x):
            return self.classifier(self.third(self.second(self.first(self.stem(x)))).mean((2, 3)))

    return Choices


@pytest.fixture(scope="session")
def training():
    """The class of an evaluator's own module: cross entropy and SGD."""
    from nni.nas.evaluator.pytorch import LightningModule
    from torch.nn.functional import cross_entropy

    class Training(LightningModule):
        def __init__(self, **sgd):
            super().__init__()
            self.sgd = {"lr": 0.1, **sgd}

        def training_step(self, batch, batch_idx):
            return cross_entropy(self.model(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            logits = self.model(batch[0])
            self.log("val_loss", cross_entropy(logits, batch[1]))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), **self.sgd)

    return Training


@pytest.fixture(scope="session")
def compared(tmp_path_factory):
    """A finished experiment in a running manager: fairdarts and darts, two seeds each; see ``experiments.Running``.

    It takes a minute: files that use it are together, in ``MANAGERS``.
    """
    from experiments import choice, free_port, started, write

    folder = tmp_path_factory.mktemp("compared")
    space = {"strategy": choice("fairdarts", "darts"), "seed": choice(0, 1)}
    config, port = write(folder, space, maxTrialNumber=4), free_port()
    with started(["nni-fairdarts", "launch", "--config", config, "--port", port], port, folder / "nni") as experiment:
        experiment.wait_for_end(4)
        yield experiment
