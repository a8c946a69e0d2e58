"""NNI's own strategies: the same search as NNI's, but validated, recorded and in an order that can be resumed."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from nni.nas import strategy as nni_strategies
from nni.nas.hub.pytorch import DARTS as HubDARTS
from torch.nn.functional import cross_entropy

from nni_fairdarts import FairDARTS, Genotype, InputError, experiment, freeze
from nni_fairdarts.arguments import changed
from nni_fairdarts.config import RunConfig, SearchConfig
from nni_fairdarts.history import read_history
from nni_fairdarts.mended.repairs import with_skips
from nni_fairdarts.nni_strategies import STRATEGIES, build
from nni_fairdarts.spaces import S2

TINY = {
    "device": "cpu",
    "threads": 1,
    "figure_epochs": 0,
    "data.name": "digits",
    "data.flip": False,
    "data.crop_padding": 1,
    "data.search_classes": 3,
    "data.search_images_per_class": 20,
    "space.width": 2,
    "space.num_cells": 3,
    "search.epochs": 2,
    "search.batch_size": 15,
    "search.learning_rate": 0.05,
    "search.arc_learning_rate": 0.2,
    "search.gap_batches": 2,
    "retrain.width": 2,
    "retrain.num_cells": 3,
    "retrain.epochs": 1,
    "retrain.batch_size": 500,
    "retrain.cutout": 0,
    "retrain.auxiliary_weight": 0,
    "retrain.drop_path_prob": 0,
}
ARGUMENTS = {"dataset": "cifar", "depth": 2, "width": 0.25}
S2_SPACE = {"space.name": "nni_fairdarts.spaces:S2", "space.arguments": ARGUMENTS}
GATED = {"decided_gates", "open_gates", "gates_total", "skip_connections", "operations", "gates", "discretization_gap"}


def tiny(tmp_path, **values) -> RunConfig:
    return changed(RunConfig(), {**TINY, "runs": str(tmp_path), **values})


@pytest.mark.parametrize("name", ["fairdarts", "darts", "random_search"])
def test_cells_are_searched_derived_and_retrained(name, tmp_path, capsys):
    config = tiny(tmp_path, **{"search.strategy": name})
    heard = []
    searched, retrained = experiment.run(config, heard.append)
    records = read_history(config.folder / "history.jsonl")
    assert heard == records
    assert [record["epoch"] for record in records] == [0, 1]
    assert all(record.keys() == records[0].keys() for record in records)
    assert records[0].keys() >= {"train_loss", "val_loss", "val_acc", "learning_rate", "seconds"}
    gated = name != "random_search"
    assert (records[0].keys() >= GATED) == gated
    assert not gated or np.array(records[-1]["gates"]["normal"]).shape == (14, 7)
    assert ("arch_loss" in records[0]) == gated
    assert ("zero_one_loss" in records[0]) == (name == "fairdarts")
    assert searched["strategy"] == name
    assert searched["supernet_accuracy"] == records[-1]["val_acc"]
    genotype = Genotype.load(config.folder / "genotype.json")
    assert searched["skip_connections"] == genotype.skip_connections()
    assert genotype.style == ("fairdarts" if name == "fairdarts" else "darts")
    assert retrained["genotype"] == genotype.to_json()
    assert 0 <= retrained["test_accuracy"] <= 1
    summary = experiment.summary(searched, retrained)
    assert ("discretisation gap" in summary) == gated
    printed = capsys.readouterr().out
    assert printed.count("epoch 1/2") == 1
    assert ("gap" in printed) == gated


@pytest.mark.parametrize("name", ["fairdarts", "darts", "gumbel_darts", "proxyless", "random"])
def test_a_space_of_layers_is_searched_derived_and_retrained(name, tmp_path):
    config = tiny(tmp_path, **S2_SPACE, **{"search.strategy": name})
    searched, retrained = experiment.run(config)
    sample = json.loads((config.folder / "sample.json").read_text())
    assert sample == searched["nni_sample"] == retrained["nni_sample"]
    network = freeze(S2(num_classes=10, in_channels=1, **ARGUMENTS), sample)  # the search saw three classes
    assert retrained["parameters"] == sum(p.numel() for p in network.parameters())
    assert searched["skip_connections"] == {"layers": sum("skip" in str(choice) for choice in sample.values())}
    assert not (config.folder / "genotype.json").exists()
    assert experiment.summary(searched, retrained).count("layer_") == 2


def test_they_search_as_nni_does(lightning, search, training, tmp_path):
    """The same weights and α as NNI's own DARTS without validation and records, bit for bit."""
    from nni.nas.evaluator.pytorch import DataLoader
    from torch.utils.data import TensorDataset

    def loader(seed):
        generator = torch.Generator().manual_seed(seed)
        images, classes = torch.randn(8, 3, 8, 8, generator=generator), torch.randint(10, (8,), generator=generator)
        return DataLoader(TensorDataset(images, classes), batch_size=4, shuffle=True, generator=generator)

    def run(strategy):
        torch.manual_seed(0)
        space = HubDARTS(width=2, num_cells=3, dataset="cifar")
        search(space, lightning(training(), loader(1), loader(2), max_epochs=2), strategy)
        return strategy, dict(strategy.supernet.state_dict())

    ours = build(SearchConfig(strategy="darts", gradient_clip_val=0, warmup_epochs=1))
    ours.history = tmp_path / "h.jsonl"
    ours.validation_dataloaders = loader(3)
    _, expected = run(nni_strategies.DARTS(warmup_epochs=1))
    strategy, weights = run(ours)
    assert expected.keys() == weights.keys()
    for name, value in expected.items():
        assert torch.equal(value, weights[name]), name
    records = read_history(tmp_path / "h.jsonl")
    assert [record["arch_loss"] is None for record in records] == [True, False]  # the first epoch warms up


def test_the_order_of_alpha_is_that_of_the_space(lightning, search, training):
    strategy = build(SearchConfig(strategy="darts"))
    strategy.history = None
    search(HubDARTS(width=2, num_cells=3, dataset="cifar"), lightning(training()), strategy)
    module = strategy.oneshot_module
    cells = {m.label: m for m in strategy.supernet.modules() if type(m).__name__ == "DifferentiableMixedCell"}
    expected = [alpha for cell in cells.values() for alpha in cell._arch_alpha.values()]
    assert [id(p) for p in module.arch_parameters()] == [id(p) for p in expected]
    optimizer = module.configure_architecture_optimizers()
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in expected]


def test_gates_of_a_softmax_are_its_shares(lightning, search, training, choices, tmp_path):
    strategy = build(SearchConfig(strategy="darts", arc_learning_rate=0.3))
    strategy.history = tmp_path / "h.jsonl"
    search(choices(), lightning(training()), strategy)
    (record,) = read_history(tmp_path / "h.jsonl")
    layers = [module for module in strategy.supernet.modules() if hasattr(module, "_arch_alpha")]
    alphas = {module.label: module._arch_alpha for module in layers if hasattr(module, "label")}
    for label, alpha in alphas.items():
        expected = np.exp(alpha.detach().numpy()) / np.exp(alpha.detach().numpy()).sum()
        np.testing.assert_allclose(record["gates"][label], expected, rtol=1e-6)
    assert record["operations"] == {"first": [0, 1, 2], "second": ["a", "b"]}
    everything = [gate for gates in record["gates"].values() for gate in gates]
    assert record["gates_total"] == len(everything) == 5
    assert record["decided_gates"] == sum(g < 0.1 or g > 0.9 for g in everything) / 5
    assert record["skip_connections"] == {"first": int(alphas["first"].argmax() == 2), "second": 0}


def test_a_run_is_not_on_nnis_list_of_experiments(tmp_path):
    from nni.tools.nnictl.config_utils import Experiments

    before = set(Experiments().get_all_experiments())
    experiment.search(tiny(tmp_path, **S2_SPACE, **{"search.epochs": 1, "search.gap_batches": 0}))
    assert set(Experiments().get_all_experiments()) == before
    assert (tmp_path / "search" / "nni").is_dir()


def test_sampled_networks_are_validated_one_each_batch(lightning, search, loader, training, choices):
    """The mean over batches of networks drawn anew, as Lightning means it."""
    drawn = []

    class Training(training):
        def validation_step(self, batch, batch_idx):
            sampled = {m.label: m._sampled for m in self.model.modules() if hasattr(m, "_sampled")}
            drawn.append(sampled)
            assert not self.model.training
            self.log("val_loss", cross_entropy(self.model(batch[0]), batch[1]))

    strategy = build(SearchConfig(strategy="random"))
    strategy.history = None
    torch.manual_seed(0)
    search(choices(), lightning(Training(), val=loader(12)), strategy)
    assert len(drawn) == 12
    assert len({json.dumps(sample) for sample in drawn}) > 1


def test_proxyless_derives_the_strongest_path(tmp_path):
    config = tiny(tmp_path, **S2_SPACE, **{"search.strategy": "proxyless"})
    searched = experiment.search(config)
    record = read_history(config.folder / "history.jsonl")[-1]
    for label, chosen in searched["nni_sample"].items():
        gates = dict(zip(record["operations"][label], record["gates"][label], strict=True))
        assert gates[chosen] == max(gates.values())


@pytest.mark.parametrize("space", [{}, S2_SPACE], ids=["cells", "layers"])
def test_enas(space, tmp_path):
    """Only where tianshou is installed: pip install '.[enas]'."""
    pytest.importorskip("tianshou")
    results = []
    for name in ("a", "b"):
        config = tiny(tmp_path, **{"search.strategy": "enas", "search.batches_per_update": 2, "name": name, **space})
        searched, retrained = experiment.run(config)
        records = read_history(config.folder / "history.jsonl")
        assert all(not record.keys() & GATED for record in records)
        assert "discretization_gap" not in searched
        results.append([searched["nni_sample"], retrained["test_accuracy"], *(r["train_loss"] for r in records)])
    assert results[0] == results[1]
    (tmp_path / "a" / "result.json").unlink()
    with pytest.raises(InputError, match="NNI's ENAS keeps neither its controller nor its replay buffer"):
        experiment.resume(tmp_path / "a")


def test_enas_updates_one_controller_when_it_is_due(lightning, search, training, loader, choices):
    pytest.importorskip("tianshou")

    class Training(training):
        def validation_step(self, batch, batch_idx):
            self.log("val_acc", cross_entropy(self.model(batch[0]), batch[1]))

    strategy = build(SearchConfig(strategy="enas", batches_per_update=3))
    strategy.history = None
    policies, updates = [], []
    evaluator = lightning(Training(), train=loader(5), val=loader(7))
    configure = strategy.configure_oneshot_module

    def watched(training_module):
        module = configure(training_module)
        set_model = module.set_model

        def counted(model):
            set_model(model)
            if module._policy not in policies:
                policies.append(module._policy)
                update = module._policy.update
                module._policy.update = lambda *a, **k: (updates.append(module._trajectory_counter), update(*a, **k))[1]

        module.set_model = counted
        return module

    strategy.configure_oneshot_module = watched
    search(choices(), evaluator, strategy).export_top_models(formatter="dict")
    assert len(policies) == 1
    times = strategy.update_kwargs["update_times"]
    assert updates == [3] * times + [6] * times  # of seven batches for the controller


@pytest.mark.parametrize("name", STRATEGIES)
def test_defaults_are_each_strategys_own(name):
    strategy = build(SearchConfig(strategy=name))
    base = STRATEGIES[name][0]
    assert isinstance(strategy, base)
    plain = base() if name != "fairdarts" else FairDARTS()
    for setting in ("arc_learning_rate", "temperature", "batches_per_update", "warmup_epochs", "arc_betas"):
        if hasattr(plain, setting):
            assert getattr(strategy, setting) == getattr(plain, setting), setting


def test_settings_reach_them():
    settings = SearchConfig(
        strategy="gumbel_darts", arc_learning_rate=0.01, temperature=(2.0, 0.1), gradient_clip_val=3, warmup_epochs=4
    )
    strategy = build(settings)
    assert (strategy.arc_learning_rate, strategy.temperature) == (0.01, (2.0, 0.1))
    assert (strategy.gradient_clip_val, strategy.warmup_epochs) == (3, 4)
    strategy = build(SearchConfig(strategy="enas", batches_per_update=7), metric="val_f1")
    assert (strategy.batches_per_update, strategy.reward_metric_name) == (7, "val_f1")


def test_what_nni_cannot_search_is_refused_before_training(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="search.strategy must be another strategy, or a space of LayerChoice"):
        tiny(tmp_path, **{"search.strategy": "proxyless"})
    cells = {"space.name": "nni_fairdarts.spaces:DARTS", "space.arguments": {"width": 2, "num_cells": 3}}
    with pytest.raises(InputError, match="NNI's Proxyless cannot search cells .* nni_fairdarts.spaces:S2"):
        experiment.search(tiny(tmp_path, **{"search.strategy": "proxyless", **cells}))
    monkeypatch.setitem(__import__("sys").modules, "tianshou", None)
    with pytest.raises(InputError, match="NNI's ENAS needs tianshou"):
        experiment.search(tiny(tmp_path, **{"search.strategy": "enas"}))
    assert list(tmp_path.iterdir()) == []


def test_a_space_that_nnis_strategy_refuses_is_named(lightning, search, training):
    from nni.nas.hub.pytorch import ShuffleNetSpace

    strategy = build(SearchConfig(strategy="proxyless"))
    with pytest.raises(InputError, match="NNI's Proxyless cannot search this space: .*; take another strategy"):
        search(ShuffleNetSpace(num_labels=10, channel_search=True), lightning(training()), strategy)


def test_a_penalty_is_fairdarts_own():
    with pytest.raises(InputError, match="search.penalty.profiler must be none with darts; NNI's reaches no α"):
        changed(RunConfig(), {"search.strategy": "darts", "search.penalty": {"profiler": "flops", "baseline": 1.0}})


def test_the_same_seed_draws_the_same_cells(tmp_path):
    """Of the random strategy; what else a seed governs: ``test_determinism.py``."""
    results = []
    for run in ("a", "b"):
        experiment.search(tiny(tmp_path, **{"search.strategy": "random", "name": run}))
        records = read_history(tmp_path / run / "history.jsonl")
        results.append([{k: v for k, v in record.items() if k != "seconds"} for record in records])
        results.append(json.loads((tmp_path / run / "sample.json").read_text()))
    assert results[:2] == results[2:]


def test_random_cells_with_so_many_skip_connections(tmp_path):
    """Exactly as asked for, where a cell keeps them at random, and no node takes an input twice."""
    kept = ["skip_connect", "max_pool_3x3", "sep_conv_3x3"]
    settings = {"search.strategy": "random", "search.random_skips": 2, "space.operations": kept}
    searched = experiment.search(tiny(tmp_path, **settings, **{"search.epochs": 1}))
    assert searched["skip_connections"]["normal"] == 2
    space = HubDARTS(width=2, num_cells=3, dataset="cifar").simplify()
    generator, places, others, reduced = np.random.RandomState(0), Counter(), Counter(), Counter()
    for _ in range(300):
        drawn = {label: choice.random(random_state=generator) for label, choice in space.items()}
        genotype = Genotype.from_sample(with_skips(drawn, 2, kept, generator))
        for edges in (genotype.normal, genotype.reduce):
            assert len({(edge.node, edge.source) for edge in edges}) == 8
        skips = [index for index, edge in enumerate(genotype.normal) if edge.operation == "skip_connect"]
        assert len(skips) == 2
        places.update(skips)
        others.update(edge.operation for edge in genotype.normal if edge.operation != "skip_connect")
        reduced[genotype.skip_connections()["reduce"]] += 1
    assert all(45 < places[index] < 105 for index in range(8))  # 75 expected, standard deviation 7.5
    assert all(800 < others[name] < 1000 for name in kept[1:])  # 900 expected, standard deviation 21
    assert len(reduced) > 3  # of the reduction cell as many as are drawn


def test_operations_left_out_of_the_space(tmp_path):
    kept = ["max_pool_3x3", "sep_conv_3x3", "dil_conv_5x5"]
    config = tiny(tmp_path, **{"space.operations": kept})
    experiment.run(config)
    record = read_history(config.folder / "history.jsonl")[-1]
    assert record["operations"]["normal"] == kept
    assert np.array(record["gates"]["normal"]).shape == (14, 3)
    assert np.load(config.folder / "normal_weight.npy").shape == (14, 3)
    genotype = Genotype.load(config.folder / "genotype.json")
    assert {edge.operation for edge in (*genotype.normal, *genotype.reduce)} <= set(kept)
    assert experiment.derive(config.folder) == genotype
    with pytest.raises(InputError, match="operations must be some of max_pool_3x3, .*, each once, got skip"):
        experiment.search(tiny(tmp_path, **{"space.operations": ["skip"]}))
