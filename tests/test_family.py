"""The strategies beside FairDARTS: that each is its settings, searches, derives, goes on, and composes."""

import pytest
import torch
from nni.nas.hub.pytorch import DARTS as HubDARTS

from nni_fairdarts import FairDARTS, Genotype, InputError, derive_network, family
from nni_fairdarts.history import read_history
from nni_fairdarts.strategy import GatedSearch
from nni_fairdarts.supernet.moving import Disturbance

STRATEGIES = {name: getattr(family, name) for name in family.__all__}


@pytest.mark.filterwarnings("ignore:.*keeps nothing that is connected:RuntimeWarning")
@pytest.mark.parametrize("name", STRATEGIES)
def test_each_searches_and_derives(name, lightning, training, loader, search, tmp_path):
    """NNI's DARTS space through NNI's experiment, with a history, and a network of what is derived."""
    settings = {"partial_channels": 2} if name == "PCDARTS" else {}
    strategy = STRATEGIES[name](history=tmp_path / "history.jsonl", warmup_epochs=1, **settings)
    torch.manual_seed(0)
    evaluator = lightning(training(lr=0.05), loader(2, seed=1), loader(2, seed=2), max_epochs=2)
    space = HubDARTS(width=4, num_cells=3, dataset="cifar")
    experiment = search(space, evaluator, strategy)
    first, last = read_history(tmp_path / "history.jsonl")
    assert first["gates"]["normal"] != last["gates"]["normal"]
    (sample,) = experiment.export_top_models(formatter="dict")
    genotype = Genotype.from_sample(sample, style="darts")
    assert [edge.node for edge in genotype.normal] == [2, 2, 3, 3, 4, 4, 5, 5]
    network = derive_network(HubDARTS(width=4, num_cells=3, dataset="cifar"), sample, style="darts")
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("name", STRATEGIES)
def test_none_is_fairdarts_but_any_setting_can_be_given(name):
    strategy = STRATEGIES[name](arc_learning_rate=0.01)
    assert isinstance(strategy, GatedSearch)
    assert not isinstance(strategy, FairDARTS)
    assert strategy.arc_learning_rate == 0.01
    assert strategy.zero_one_weight == 0
    with pytest.raises(InputError, match="the zero-one loss pushes each gate"):
        STRATEGIES[name](zero_one_weight=10.0)


def test_published_settings():
    pc = family.PCDARTS()
    assert (pc.partial_channels, pc.edge_normalization, pc.warmup_epochs, pc.arc_learning_rate) == (4, True, 15, 6e-4)
    assert family.SecondOrderDARTS().alpha_gradient == "second"
    assert family.NoisyDARTS().moving.disturbance == Disturbance(skip_noise=0.2)
    assert family.DARTSPlus().early_stopping.rules == ("skips", "ranking")
    for strategy in (pc, family.SecondOrderDARTS(), family.NoisyDARTS()):
        assert (strategy.relaxation, strategy.arc_betas, strategy.arc_weight_decay) == ("softmax", (0.5, 0.999), 1e-3)


def test_settings_of_several_compose(choices, classification, search):
    """Of FairDARTS too: sigmoids, zero-one loss, α by second order, noise, partial draws of operations."""
    torch.manual_seed(0)
    strategy = FairDARTS(
        alpha_gradient="second",
        disturbance=Disturbance(skip_noise=0.2, operation_dropout=0.1, decay="linear"),
        max_skips=1,
    )
    evaluator = classification(max_epochs=2)
    evaluator.module.configure_optimizers = lambda: torch.optim.SGD(evaluator.module.parameters(), 0.1)
    search(choices(), evaluator, strategy)
    assert strategy.moving.strength == 0.5
    assert all(choice.alpha.abs().sum() > 0 for choice in strategy.oneshot_module.choices().values())


def test_what_starts_at_random_starts_with_the_seed():
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        supernet = family.SecondOrderDARTS().mutate_model(HubDARTS(width=4, num_cells=3, dataset="cifar"))
        found.append(supernet.stages[0].blocks[0].alpha.detach())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert 0.5e-3 < float(found[0].std()) < 2e-3
