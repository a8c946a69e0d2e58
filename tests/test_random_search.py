"""Random search: exactly so many skip connections, the same ones with the same seed, and gone on with as the others."""

import pytest
import pytorch_lightning as pl
import torch
from nni.nas.experiment import NasExperiment
from nni.nas.hub.pytorch import DARTS as HubDARTS
from pytorch_lightning.loggers import CSVLogger
from test_nni_strategies import S2_SPACE, tiny

from nni_fairdarts import Genotype, InputError, experiment, family
from nni_fairdarts.checkpoints import saved
from nni_fairdarts.history import read_history
from nni_fairdarts.nni_strategies import build
from nni_fairdarts.spaces import DARTS

KEPT = ["skip_connect", "max_pool_3x3"]


class Fail(pl.Callback):
    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.current_epoch == 1 and index == 1:
            raise RuntimeError("pulled the plug")


@pytest.fixture
def searching(classification, loader):
    """searching(folder, seed, ...): an experiment of a user's, in two epochs of two steps."""

    def make(folder, seed=0, callbacks=(), **settings) -> NasExperiment:
        torch.manual_seed(seed)
        evaluator = classification(
            loader(2, seed=1),
            max_epochs=2,
            logger=CSVLogger(folder),
            callbacks=list(callbacks),
            enable_checkpointing=True,
        )
        made = NasExperiment(DARTS(2, 3, operations=KEPT), evaluator, family.RandomSearch(**settings), id="random")
        made.config.experiment_working_directory = str(folder)
        return made

    return make


def derived(experiment: NasExperiment) -> dict:
    (sample,) = experiment.export_top_models(formatter="dict")
    return sample


def test_a_killed_one_goes_on_to_the_same_architecture(searching, tmp_path):
    """Under NasExperiment, from its own checkpoint: history, weights and what is drawn in the end."""
    whole = searching(tmp_path / "whole")
    whole.run()
    killed = searching(tmp_path / "killed", callbacks=[Fail()])
    with pytest.raises(RuntimeError, match="pulled the plug"):
        killed.run()
    assert [path.name for path in saved(tmp_path / "killed/lightning_logs/version_0/resume")] == [
        "epoch000-step00000002.ckpt"
    ]
    resumed = searching(tmp_path / "killed", seed=5)  # another one, which the checkpoint overrules
    resumed.resume()
    records = [read_history(tmp_path / name / "lightning_logs/version_0/history.jsonl") for name in ("whole", "killed")]
    without_times = [[{**record, "seconds": None} for record in history] for history in records]
    assert without_times[0] == without_times[1]
    assert len(without_times[0]) == 2
    assert "gates" not in without_times[0][0]
    weights = [each.strategy.supernet.state_dict() for each in (whole, resumed)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    torch.rand(3)  # what is drawn behind the end changes nothing
    assert derived(whole) == derived(whole) == derived(resumed)


def test_as_many_skip_connections_as_asked_for(searching, tmp_path):
    """Of the derived cell and of every one that a step trains; another one with another seed."""
    found = []
    for skips, seed in ((2, 0), (0, 0), (8, 0), (2, 1)):
        settings = {} if skips == 2 else {"skips": skips}
        made, trained = searching(tmp_path / str(len(found)), seed, **settings), []
        resample = made.strategy.configure_oneshot_module

        def noted(training_module, resample=resample, trained=trained):
            module = resample(training_module)
            drawn = module.drawn
            module.drawn = lambda: trained.append(drawn()) or trained[-1]
            return module

        made.strategy.configure_oneshot_module = noted
        made.run()
        assert len(trained) == 2 * (2 + 1) + 1  # two steps and one batch of validation an epoch, and the last one
        for sample in (*trained, derived(made)):
            genotype = Genotype.from_sample(sample)
            assert genotype.skip_connections()["normal"] == skips
            assert len({(edge.node, edge.source) for edge in genotype.normal}) == 8
        found.append(derived(made))
    assert found[0] != found[3]


def test_any_number_in_any_space(choices, classification, search):
    strategy = family.RandomSearch(skips=None)
    found = search(choices(), classification(), strategy)
    assert derived(found) == derived(found)
    assert derived(found).keys() == {"first", "second"}
    assert strategy.oneshot_module.history is None


@pytest.mark.parametrize(
    ("skips", "operations", "said"),
    [
        (9, KEPT, "9 skip .* DARTS has 8 operations in it, each one of skip_connect, max_pool_3x3; take another"),
        (1, ["max_pool_3x3", "sep_conv_3x3"], "1 skip .* of max_pool_3x3, sep_conv_3x3; .* a space with skip_connect"),
        (7, ["skip_connect"], "7 skip .* each one of skip_connect; take another number, or a space with .* and other"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_training(skips, operations, said, search, classification):
    with pytest.raises(InputError, match=said):
        search(DARTS(2, 3, operations=operations), classification(), family.RandomSearch(skips))


def test_what_has_no_cells_is_refused(choices, search, classification, tmp_path):
    said = r"2 skip connections counts those of a normal cell, but Choices has no cells .* RandomSearch\(skips=None\)"
    with pytest.raises(InputError, match=said):
        search(choices(), classification(), family.RandomSearch())
    with pytest.raises(InputError, match="but S2 has no cells .* search.strategy: random"):
        experiment.search(tiny(tmp_path, **S2_SPACE, **{"search.strategy": "random_search"}))
    assert list(tmp_path.iterdir()) == []
    for skips in (-1, 1.5, True):
        with pytest.raises(InputError, match="skips must be .*0 or more, or None for any number, got"):
            family.RandomSearch(skips)


def test_by_name(tmp_path):
    """How many is the configuration's; NNI's own space has as many."""
    config = tiny(tmp_path, **{"search.strategy": "random_search"})
    assert (build(config.search).skips, str(build(config.search))) == (2, "RandomSearch(skips=2)")
    config = tiny(tmp_path, **{"search.strategy": "random_search", "search.random_skips": 5})
    assert build(config.search).skips == 5
    family.RandomSearch(5).check_space(HubDARTS(width=2, num_cells=3, dataset="cifar"))
    own = {"space.name": "nni_fairdarts.spaces:DARTS", "space.arguments": {"width": 2, "num_cells": 3}}
    tiny(tmp_path, **own, **{"search.strategy": "random_search", "search.random_skips": 5})
    with pytest.raises(InputError, match="random_skips must be unset but for the space darts with skip_connect"):
        tiny(tmp_path, **own, **{"search.strategy": "random", "search.random_skips": 5})


def test_several_processes_are_refused(classification, search, choices):
    with pytest.raises(InputError, match="random search runs in one process, .* but the trainer has 2; use devices=1"):
        search(choices(), classification(devices=2, strategy="ddp"), family.RandomSearch(skips=None))
