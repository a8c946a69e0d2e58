"""The strategies beside FairDARTS: that each is its settings, searches, derives, goes on, and composes."""

import numpy as np
import pytest
import torch
from nni.nas.hub.pytorch import DARTS as HubDARTS
from test_nni_strategies import tiny

from nni_fairdarts import FairDARTS, Genotype, InputError, experiment, family
from nni_fairdarts.folder import read_json
from nni_fairdarts.history import read_history
from nni_fairdarts.strategy import GatedSearch
from nni_fairdarts.supernet.moving import Disturbance

STRATEGIES = {name: getattr(family, name) for name in family.__all__ if name != "RandomSearch"}  # it has no gates
FEW = ["skip_connect", "avg_pool_3x3", "sep_conv_3x3"]
BY_NAME = {
    "second_order_darts": {},
    "pc_darts": {"space.width": 4, "parts.partial_channels": 2, "warmup_epochs": 1},
    "darts_plus": {"parts.early_stopping": ["ranking"], "parts.early_ranking": 2, "arc_learning_rate": 1e-9},
    "robust_darts": {"space.operations": FEW[:2], "data.search_images_per_class": 8, "batch_size": 12},
    "noisy_darts": {"parts.decay": "cosine"},
    "dr_nas": {"parts.stages": [{"partial_channels": 2}, {"operations": 2, "keep": True}], "warmup_epochs": 0},
    "operation_strength_darts": {"parts.strength_batches": 1},
    "zero_order_darts": {},
    "fairdarts": {"parts.alpha_gradient": "second", "parts.skip_noise": 0.2, "parts.max_skips": 0},
}


@pytest.mark.filterwarnings("ignore:.*keeps nothing that is connected:RuntimeWarning")
@pytest.mark.parametrize("name", BY_NAME)
def test_each_runs_by_its_name(name, tmp_path):
    """Search through NNI's experiment, derivation, and the same once more from the files."""
    settings = {
        key if key.startswith(("space.", "data.")) else f"search.{key}": value for key, value in BY_NAME[name].items()
    }
    few = {"space.operations": FEW, "search.epochs": 3 if name == "darts_plus" else 2, "search.gap_batches": 0}
    config = tiny(tmp_path, **{"search.strategy": name, **few, **settings})
    searched = experiment.search(config)
    genotype = Genotype.load(config.folder / "genotype.json")
    assert experiment.derive(config.folder) == genotype
    assert searched["genotype"] == genotype.to_json()
    if name == "fairdarts":
        assert genotype.skip_connections()["normal"] == 0
    else:
        assert [edge.node for edge in genotype.normal] == [2, 2, 3, 3, 4, 4, 5, 5]
        assert genotype.style == "darts"
    history = read_history(config.folder / "history.jsonl")
    assert len(history) == 2
    assert searched.get("derived_epoch") == (2 if name == "darts_plus" else None)
    assert all(("alpha_eigenvalue" in record) == (name == "robust_darts") for record in history)
    assert ("strengths" in searched) == (name == "operation_strength_darts")
    assert np.load(config.folder / "normal_weight.npy").tolist() == history[-1]["gates"]["normal"]


@pytest.mark.filterwarnings("ignore:.*keeps nothing that is connected:RuntimeWarning")
@pytest.mark.parametrize(
    "settings",
    [
        {"strategy": "zero_order_darts", "parts.skip_noise": 0.2, "parts.decay": "linear"},
        {"parts.relaxation": "dirichlet", "zero_one_weight": 0, "discretization": "darts", "parts.edge_dropout": 0.1}
        | {"parts.early_stopping": ["ranking"], "parts.early_ranking": 3, "arc_learning_rate": 1e-9},
    ],
    ids=["values and noise", "draws and rules"],
)
def test_a_search_that_was_killed_goes_on_exactly(settings, tmp_path):
    """From the checkpoint before the last one, without what the end had written: the same numbers once more."""
    values = {f"search.{key}": value for key, value in settings.items()}
    config = tiny(tmp_path, **{"space.operations": FEW, "search.epochs": 3, **values})
    experiment.search(config)
    whole = read_history(config.folder / "history.jsonl")
    gates, result = np.load(config.folder / "normal_weight.npy"), read_json(config.folder / "result.json")
    max((config.folder / "checkpoints").iterdir(), key=lambda path: path.name).unlink()
    for name in ("result.json", "genotype.json", "normal_weight.npy"):
        (config.folder / name).unlink()
    again = experiment.resume(config.folder)
    assert [untimed(r) for r in read_history(config.folder / "history.jsonl")] == [untimed(r) for r in whole]
    assert np.array_equal(np.load(config.folder / "normal_weight.npy"), gates)
    assert untimed(again) == untimed(result)


def untimed(record: dict) -> dict:
    return {key: value for key, value in record.items() if key != "seconds"}


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
