"""FairDARTS in NNI's place: evaluators, arguments, exports, validation, and what users see of a wrong input."""

import copy
import inspect
import math
import re
import subprocess
import sys
import warnings

import nni.nas.strategy
import pytest
import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import Classification, Lightning, Regression, Trainer
from nni.nas.hub.pytorch import DARTS as HubDARTS
from nni.nas.nn.pytorch import LayerChoice
from nni.nas.space import model_context
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from reference import OPERATIONS
from torch import nn

from nni_fairdarts import DerivedNetwork, FairDARTS, Genotype, InputError, derive_network
from nni_fairdarts.history import read_history
from nni_fairdarts.network import stem_channels
from nni_fairdarts.spaces import DARTS

pytestmark = pytest.mark.filterwarnings("ignore:.*keeps nothing that is connected:RuntimeWarning")
CLOSE = {"rtol": 0, "atol": 1e-10}


def raises(*texts):
    return pytest.raises(InputError, match="(?s)" + ".*".join(map(re.escape, texts)))


def metrics(strategy):
    """What NNI's sequential engine was told of the one model it ran."""
    (model,) = strategy.engine.list_models()
    return model.metrics


# -- in NNI's place ------------------------------------------------------------------------------------------------


def test_it_is_nnis_darts_with_its_argument_names():
    assert isinstance(FairDARTS(), nni.nas.strategy.DARTS)
    theirs = inspect.signature(nni.nas.strategy.DARTS.__init__).parameters
    ours = inspect.signature(FairDARTS.__init__).parameters
    assert {name for name in theirs if name != "kwargs"} | {"mutation_hooks"} <= set(ours)


IMPORTS = """
import nni.nas.strategy
before = set(dir(nni.nas.strategy))
import nni_fairdarts
assert set(dir(nni.nas.strategy)) == before, set(dir(nni.nas.strategy)) - before
try:
    from nni.nas.strategy import FairDARTS
except ImportError:
    pass
else:
    raise SystemExit("importing the package was enough")
nni_fairdarts.register()
from nni.nas.strategy import FairDARTS
assert FairDARTS is nni_fairdarts.FairDARTS
print("registered")
"""


def test_register_makes_it_importable_from_nni_and_importing_does_not():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", IMPORTS], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "registered\n"), done.stderr


def test_defaults_are_the_published_values():
    found = {name: p.default for name, p in inspect.signature(FairDARTS).parameters.items()}
    published = {
        "arc_learning_rate": 3e-3, "arc_betas": (0.9, 0.999), "arc_weight_decay": 1e-3, "zero_one_weight": 10,
        "zero_one_loss": "l2", "threshold": 0.85, "discretization": "sparse", "alpha_init": 0, "single_level": False,
        "warmup_epochs": 0, "gradient_clip_val": 5, "candidate_norm": "paper",
    }  # fmt: skip
    assert {name: found[name] for name in published} == published
    assert FairDARTS().discretization.rule == "sparse"
    assert "zero_one_loss='l2', zero_one_weight=10.0" in repr(FairDARTS())


@pytest.mark.parametrize(
    ("wrong", "texts"),
    [
        ({"threshold": 0}, ["threshold must be in (0, 1), got 0; the paper uses 0.85"]),
        ({"threshold": 1.5}, ["threshold must be in (0, 1), got 1.5; the paper uses 0.85"]),
        ({"threshold": math.nan}, ["threshold must be in (0, 1), got nan"]),
        ({"threshold": "high"}, ["threshold must be in (0, 1), got 'high'"]),
        ({"discretization": "dense"}, ["unknown rule 'dense'; known: darts, sparse, edge"]),
        ({"zero_one_loss": "l3"}, ["unknown zero_one_loss 'l3'; known: l2, l1, none"]),
        ({"candidate_norm": "batch"}, ["unknown candidate_norm 'batch'; known: paper, unscaled, space"]),
        ({"zero_one_weight": -1}, ["zero_one_weight must be 0 or more, got -1"]),
        ({"zero_one_weight": math.nan}, ["zero_one_weight must be 0 or more, got nan"]),
        ({"arc_weight_decay": -1e-3}, ["arc_weight_decay must be 0 or more, got -0.001"]),
        ({"warmup_epochs": -1}, ["warmup_epochs must be a whole number, 0 or more, got -1"]),
        ({"log_prob_every_n_step": -5}, ["log_prob_every_n_step must be a whole number, 0 or more, got -5"]),
        ({"arc_learning_rate": 0}, ["arc_learning_rate must be more than 0, got 0"]),
        ({"gradient_clip_val": 0}, ["gradient_clip_val must be more than 0, got 0"]),
        ({"arc_betas": (0.9, 1.0)}, ["arc_betas must be two numbers in [0, 1), got (0.9, 1.0); the paper uses"]),
        ({"arc_betas": (0.9,)}, ["arc_betas must be two numbers in [0, 1), got (0.9,)"]),
        ({"arc_betas": 0.9}, ["arc_betas must be two numbers in [0, 1), got 0.9"]),
        ({"alpha_init": math.nan}, ["alpha_init must be a finite number, got nan"]),
        ({"arc_learning_rate": math.inf}, ["arc_learning_rate must be more than 0, got inf"]),
        ({"arc_learning_rate": "3e-3"}, ["arc_learning_rate must be more than 0, got '3e-3'"]),
        ({"warmup_epochs": 1.5}, ["warmup_epochs must be a whole number, 0 or more, got 1.5"]),
        ({"penalty": {"profiler": None, "baseline": 1}}, ["profiler must be an ExpressionProfiler", "got NoneType"]),
        ({"export": "both"}, ["unknown export 'both'; known: single, multi"]),
        ({"reestimate_batches": -1}, ["reestimate_batches must be a whole number, 0 or more, got -1"]),
        ({"reestimate_batches": 2}, ["give inherit_weights=True"]),
    ],
    ids=str,
)
def test_bad_arguments(wrong, texts):
    with raises(*texts):
        FairDARTS(**wrong)


class Data(pl.LightningDataModule):
    def __init__(self, train, val):
        super().__init__()
        self.halves = train, val

    def train_dataloader(self):
        return self.halves[0]

    def val_dataloader(self):
        return self.halves[1]


@pytest.fixture
def evaluators(quiet, loader, training, classification):
    trainer = {**quiet, "max_epochs": 2}
    train, val = loader(2, seed=1), loader(seed=2)
    numbers = {"train_dataloaders": loader(2, target=(1,)), "val_dataloaders": loader(target=(1,), seed=2)}
    return {
        "classification": lambda: (classification(train, val, max_epochs=2), "val_acc", 10),
        "regression": lambda: (Regression(**numbers, **trainer), "val_mse", 1),
        "own": lambda: (Lightning(training(), Trainer(**trainer), train, val), None, 10),
        "datamodule": lambda: (Classification(num_classes=10, datamodule=Data(train, val), **trainer), "val_acc", 10),
    }


@pytest.mark.parametrize("kind", ["classification", "regression", "own", "datamodule"])
def test_every_kind_of_evaluator(evaluators, choices, search, tmp_path, kind):
    evaluator, metric, outputs = evaluators[kind]()
    strategy = FairDARTS(history=tmp_path / "h.jsonl")
    space = choices(outputs)
    before = {name: p.detach().clone() for name, p in space.named_parameters()}
    experiment = search(space, evaluator, strategy)
    records = read_history(tmp_path / "h.jsonl")
    assert len(records) == 2
    assert all(math.isfinite(record["val_loss"]) for record in records)
    assert all((alpha != 0).all() for alpha in alphas(strategy).values())
    assert not torch.equal(before["stem.0.weight"], space.stem[0].weight)
    if metric is not None:  # NNI's modules report to NNI: a value an epoch, and the last one as the result
        values = pytest.approx([record[metric] for record in records])
        assert metrics(strategy).intermediates == values
        assert metrics(strategy).final == pytest.approx(records[-1][metric])
    (sample,) = experiment.export_top_models(formatter="dict")
    assert set(sample) == {"first", "second"}


def alphas(strategy):
    return {label: module.alpha for label, module in strategy.oneshot_module.choices().items()}


# -- export --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched(search, classification):
    """searched(rule): an experiment after a search of one step in NNI's DARTS space, the same for all tests."""
    experiments = {}

    def get(rule):
        if rule not in experiments:
            strategy = FairDARTS(discretization=rule)
            experiments[rule] = search(HubDARTS(4, 3, "cifar"), classification(), strategy)
        return experiments[rule]

    return get


def set_gates(strategy, **cells):
    """Every gate 0.1, but those given as {(operation, node, source): gate} for a cell."""
    for label, alpha in alphas(strategy).items():
        gates = torch.full((14, 7), 0.1, dtype=torch.float64)
        for (operation, node, source), gate in cells.get(label, {}).items():
            gates[sum(range(2, node)) + source, OPERATIONS.index(operation)] = gate
        alpha.data = torch.logit(gates).to(alpha.dtype)


def slots(cell, *edges):
    """{cell/op_N_K: operation, cell/input_N_K: [source]} of (operation, "N_K", source)."""
    return {
        f"{cell}/{kind}_{slot}": value
        for operation, slot, source in edges
        for kind, value in (("op", operation), ("input", [source]))
    }


ONE_NONE_TWO = {
    ("sep_conv_3x3", 2, 0): 0.86,
    ("dil_conv_3x3", 2, 1): 0.84,  # below the threshold
    ("max_pool_3x3", 3, 2): 0.9,
    ("dil_conv_5x5", 3, 1): 0.99,
    ("skip_connect", 5, 3): 0.95,
    ("avg_pool_3x3", 5, 4): 0.97,  # from a node without inputs
}
MANY = {
    ("sep_conv_3x3", 2, 1): 0.9,
    ("skip_connect", 3, 0): 0.9,
    ("sep_conv_5x5", 4, 0): 0.95,
    ("sep_conv_3x3", 4, 0): 0.9,
    ("max_pool_3x3", 4, 0): 0.86,  # third of its edge
    ("dil_conv_3x3", 4, 1): 0.99,
    ("skip_connect", 4, 3): 0.88,
}
CASES = {
    "one, none or two inputs": (
        "sparse",
        {"normal": ONE_NONE_TWO, "reduce": {("skip_connect", 2, 0): 0.86}},
        {
            **slots("normal", ("sep_conv_3x3", "2_0", 0), ("dil_conv_5x5", "3_0", 1), ("max_pool_3x3", "3_1", 2),
                    ("avg_pool_3x3", "5_0", 4), ("skip_connect", "5_1", 3)),
            **slots("reduce", ("skip_connect", "2_0", 0)),
        },
        {"normal": [2, 3, 5], "reduce": [2]},
    ),
    "more than two": (
        "edge",
        {"normal": MANY, "reduce": MANY},
        {
            key: value
            for cell in ("normal", "reduce")
            for key, value in slots(cell, ("sep_conv_3x3", "2_0", 1), ("skip_connect", "3_0", 0),
                                    ("sep_conv_3x3", "4_0", 0), ("sep_conv_5x5", "4_1", 0), ("dil_conv_3x3", "4_2", 1),
                                    ("skip_connect", "4_3", 3)).items()
        },
        {"normal": [2, 3, 4], "reduce": [2, 3, 4]},
    ),
    "nothing reaches the threshold": (
        "sparse",
        {"normal": {("sep_conv_5x5", 4, 1): 0.6, ("max_pool_3x3", 4, 3): 0.8}, "reduce": {("skip_connect", 5, 0): 0.9}},
        {**slots("normal", ("sep_conv_5x5", "4_0", 1)), **slots("reduce", ("skip_connect", "5_0", 0))},
        {"normal": [4], "reduce": [5]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_exports_agree_with_the_threshold_and_each_other(searched, case):
    rule, gates, expected, nodes = CASES[case]
    experiment = searched(rule)
    set_gates(experiment.strategy, **gates)
    (sample,) = experiment.export_top_models(formatter="dict")
    (network,) = experiment.export_top_models(formatter="instance")
    (model,) = experiment.export_top_models()
    assert sample == model.sample == expected
    assert list(sample) == list(expected)
    assert type(network) is DerivedNetwork
    rebuilt = derive_network(HubDARTS(4, 3, "cifar"), sample)  # from the dict alone
    assert str(rebuilt) == str(network) == str(model.executable_model())
    assert network.genotype == rebuilt.genotype == model.executable_model().genotype
    assert network.genotype.to_sample() == sample
    assert list(network.cells[0].concat) == nodes["normal"]
    assert list(network.cells[1].concat) == nodes["reduce"]
    assert network.classifier.in_features == 16 * len(nodes["reduce"])
    assert network(torch.randn(2, 3, 8, 8)).isfinite().all()


def test_an_empty_cell_is_told_of(searched):
    experiment = searched("sparse")
    set_gates(experiment.strategy, normal={("sep_conv_5x5", 4, 1): 0.6}, reduce={("skip_connect", 5, 0): 0.9})
    with pytest.warns(RuntimeWarning, match=re.escape("normal cell: rule sparse with threshold 0.85 keeps nothing")):
        experiment.export_top_models(formatter="dict")


@pytest.mark.parametrize("rule", ["darts", "sparse"])
def test_two_inputs_for_every_node_are_nnis_own_architecture(searched, rule):
    """NNI's context and freeze take the dict, and with the same weights, in order, the logits are the same."""
    torch.manual_seed(6)
    strategy = searched(rule).strategy
    for alpha in alphas(strategy).values():
        nn.init.uniform_(alpha, 2, 6)  # gates over 0.85
    (sample,) = searched(rule).export_top_models(formatter="dict")
    (network,) = searched(rule).export_top_models(formatter="instance")
    assert len(sample) == 2 * 4 * 2 * 2
    assert network.genotype.style == ("darts" if rule == "darts" else "fairdarts")
    with model_context(sample):
        in_context = HubDARTS(4, 3, "cifar")
    network.double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for theirs in (in_context, HubDARTS(4, 3, "cifar").freeze(sample), strategy.supernet.freeze(sample)):
        values = list(theirs.double().eval().state_dict().values())
        network.load_state_dict(dict(zip(network.state_dict(), values, strict=True)))
        torch.testing.assert_close(network(x), theirs(x), **CLOSE)


@pytest.mark.parametrize("strongest", [("conv", 0, "a"), ("pool", 1, "b"), ("skip", 2, "b")])
def test_exports_of_layer_choices(choices, classification, search, strongest):
    name, first, second = strongest
    strategy = FairDARTS()
    experiment = search(choices(), classification(), strategy)
    alphas(strategy)["first"].data = torch.eye(3)[first] - 4  # the strongest is taken, however weak
    alphas(strategy)["second"].data = torch.tensor([1.0, 1.0 if second == "a" else 1.1])
    (sample,) = experiment.export_top_models(formatter="dict")
    (network,) = experiment.export_top_models(formatter="instance")
    (model,) = experiment.export_top_models()
    assert sample == model.sample == {"first": first, "second": second}
    with model_context(sample):
        rebuilt = choices()
    kinds = {"conv": nn.Conv2d, "pool": nn.MaxPool2d, "skip": nn.Identity}
    for made in (network, rebuilt, model.executable_model()):
        assert isinstance(made.first, kinds[name])
        assert made.second.kernel_size == made.third.kernel_size == ((1, 1) if second == "a" else (3, 3))
        assert not [m for m in made.modules() if isinstance(m, LayerChoice)]
        assert [m for m in made.modules() if isinstance(m, nn.BatchNorm2d)] == [made.stem[1]]
        assert made(torch.randn(2, 3, 8, 8)).shape == (2, 10)
    rebuilt.load_state_dict(network.state_dict())


def test_an_exported_model_keeps_what_was_trained_while_it_is_held(searched):
    (model,) = searched("darts").export_top_models()
    network = model.executable_model()
    assert model.executable_model() is network


def test_two_exports_of_layer_choices_have_weights_of_their_own(choices, classification, search):
    experiment = search(choices(), classification(), FairDARTS())
    alphas(experiment.strategy)["first"].data = torch.tensor([1.0, 0.0, 0.0])
    one, other = (experiment.export_top_models(formatter="instance")[0] for _ in range(2))
    nn.init.constant_(one.first.weight, 7)
    assert not (other.first.weight == 7).any()


# -- other sizes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", ["cifar", "imagenet"])
def test_own_space_through_search_freeze_and_derivation(classification, loader, search, dataset):
    size = 8 if dataset == "cifar" else 32

    def images(seed):
        return loader(shape=(1, size, size), classes=7, seed=seed)

    strategy = FairDARTS(discretization="darts")
    space = DARTS(4, 3, dataset, num_classes=7, in_channels=1)
    experiment = search(space, classification(images(1), images(2), num_classes=7), strategy)
    (sample,) = experiment.export_top_models(formatter="dict")
    (network,) = experiment.export_top_models(formatter="instance")
    fresh = DARTS(4, 3, dataset, num_classes=7, in_channels=1)
    made = [network, derive_network(fresh, sample), fresh.freeze(sample), strategy.supernet.freeze(sample), space]
    for one in made:
        assert one(torch.randn(2, 1, size, size)).shape == (2, 7)
        assert one.classifier.out_features == 7
        assert stem_channels(one) == 1


@pytest.mark.parametrize(
    ("shape", "texts"),
    [
        ((1, 8, 8), ["takes images (N, 3, H, W), but the evaluator's loader gives (2, 1, 8, 8)", "spaces.DARTS(in_ch"]),
        ((8, 8), ["takes images (N, 3, H, W), but the evaluator's loader gives (2, 8, 8)"]),
        ((3, 2, 8), ["images of 2×2 are too small for the cifar stem and two reduction cells, which need 4×4 or more"]),
    ],
)
def test_images_that_the_space_cannot_take(classification, loader, search, shape, texts):
    space = HubDARTS(4, 3, "cifar")
    before = copy.deepcopy(space.state_dict())
    with raises(*texts):
        search(space, classification(loader(shape=shape), loader(shape=shape)), FairDARTS())
    assert torch.equal(before["stem.0.weight"], space.stem[0].weight)


# -- validation ----------------------------------------------------------------------------------------------------


def test_the_supernet_is_validated_every_epoch_on_what_alpha_learns_from(choices, training, lightning, loader, search):
    check_validation(choices, training, lightning, loader, search, None)


def test_the_supernet_is_validated_on_a_set_of_the_users(choices, training, lightning, loader, search):
    check_validation(choices, training, lightning, loader, search, loader(3, seed=9))


def check_validation(choices, training, lightning, loader, search, own):
    class Noting(training):
        def validation_step(self, batch, batch_idx):
            assert not self.model.training
            assert not torch.is_grad_enabled()
            seen.append((self.trainer.current_epoch, batch[0]))
            super().validation_step(batch, batch_idx)

        def on_validation_epoch_start(self):
            order.append("validation")

        def on_train_epoch_start(self):
            order.append("training")

    seen, order, val = [], [], loader(2, seed=2)
    evaluator = lightning(Noting(), loader(2, seed=1), val, max_epochs=2)
    search(choices(), evaluator, FairDARTS(validation_dataloaders=own))
    expected = [(epoch, x) for epoch in (0, 1) for x, _ in (own or val)]
    assert order == ["training", "validation"] * 2
    assert [epoch for epoch, _ in seen] == [epoch for epoch, _ in expected]
    assert all(torch.equal(x, y) for (_, x), (_, y) in zip(seen, expected, strict=True))


def test_validation_loss_is_that_of_the_supernet(choices, training, lightning, loader, search, tmp_path):
    """In evaluation mode, after the epoch's last step."""
    space, val = choices(), loader(2, 4, seed=2)
    search(space, lightning(training(), val=val), FairDARTS(history=tmp_path / "h.jsonl"))
    images, labels = val.dataset.tensors
    with torch.no_grad():
        expected = nn.functional.cross_entropy(space.eval()(images), labels)
    assert read_history(tmp_path / "h.jsonl")[-1]["val_loss"] == pytest.approx(float(expected), abs=1e-6)


def test_checkpoints_by_validation_accuracy_and_reports_to_nni(choices, classification, loader, search, tmp_path):
    best = ModelCheckpoint(dirpath=tmp_path, monitor="val_acc", mode="max", filename="{epoch}", save_top_k=-1)
    strategy = FairDARTS(history=tmp_path / "h.jsonl")
    evaluator = classification(
        loader(4, 8), loader(2, 8, seed=2), max_epochs=3, enable_checkpointing=True, callbacks=[best],
        num_sanity_val_steps=1,
    )  # fmt: skip
    search(choices(), evaluator, strategy)
    records = read_history(tmp_path / "h.jsonl")
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == [f"epoch={epoch}.ckpt" for epoch in range(3)]
    assert float(best.best_model_score) == pytest.approx(max(record["val_acc"] for record in records))
    assert metrics(strategy).intermediates == pytest.approx([record["val_acc"] for record in records])
    assert metrics(strategy).final == metrics(strategy).intermediates[-1]


def test_early_stopping_by_validation_loss(choices, classification, search, tmp_path):
    stop = EarlyStopping("val_loss", patience=2, min_delta=1e6)  # nothing is an improvement
    strategy = FairDARTS(history=tmp_path / "h.jsonl")
    search(choices(), classification(max_epochs=9, callbacks=[stop]), strategy)
    assert [record["epoch"] for record in read_history(tmp_path / "h.jsonl")] == [0, 1, 2]
    assert stop.stopped_epoch == 2


def test_an_epoch_without_validation_has_no_validation_metric(choices, classification, search, tmp_path):
    strategy = FairDARTS(history=tmp_path / "h.jsonl")
    search(choices(), classification(max_epochs=3, check_val_every_n_epoch=2), strategy)
    assert ["val_acc" in record for record in read_history(tmp_path / "h.jsonl")] == [False, True, False]


def test_nothing_is_warned_about_in_an_ordinary_search(choices, classification, search):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        warnings.simplefilter("error", DeprecationWarning)
        search(choices(), classification(), FairDARTS())


def test_own_space_survives_nnis_resume(classification, loader, tmp_path):
    """A second process, so to speak: everything new but the experiment's id."""
    from nni.nas.experiment import NasExperiment
    from pytorch_lightning.callbacks import ModelCheckpoint

    def experiment(epochs):
        space = DARTS(4, 3, num_classes=7, in_channels=1)
        evaluator = classification(
            loader(shape=(1, 8, 8), classes=7, seed=1),
            loader(shape=(1, 8, 8), classes=7, seed=2),
            num_classes=7,
            max_epochs=epochs,
            enable_checkpointing=True,
            callbacks=[ModelCheckpoint(tmp_path, save_last=True)],
        )
        strategy = FairDARTS(history=tmp_path / "history.jsonl", discretization="darts")
        return NasExperiment(space, evaluator, strategy, id="resumed")

    first = experiment(1)
    first.run()
    first.stop()
    second = experiment(3)
    try:
        second.resume()
        (network,) = second.export_top_models(formatter="instance")
    finally:
        second.stop()
    assert [record["epoch"] for record in read_history(tmp_path / "history.jsonl")] == [0, 1, 2]
    assert second.strategy.supernet.num_labels == 7
    assert network(torch.randn(2, 1, 8, 8)).shape == (2, 7)
    assert second.strategy.supernet.freeze(network.genotype.to_sample())(torch.randn(2, 1, 8, 8)).shape == (2, 7)


@pytest.mark.parametrize(
    "trainer", [{"max_epochs": -1, "max_steps": 2}, {"check_val_every_n_epoch": 2, "num_sanity_val_steps": 1}]
)
def test_a_search_that_ends_without_a_validation_keeps_its_result(choices, classification, loader, search, trainer):
    with pytest.warns(RuntimeWarning, match="no final result is reported to NNI: no validation has given 'val_acc'"):
        experiment = search(choices(), classification(loader(4, seed=1), **trainer), FairDARTS())
    assert experiment.export_top_models(formatter="dict")[0].keys() == {"first", "second"}


def test_a_history_file_is_not_overwritten(choices, classification, search, tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text("{}\n")
    with pytest.raises(InputError, match=r"history\.jsonl exists already; give another, or remove it"):
        search(choices(), classification(), FairDARTS(history=path))
    assert path.read_text() == "{}\n"
    with pytest.raises(InputError, match="cannot write the history file"):
        search(choices(), classification(), FairDARTS(history="/proc/nothere/history.jsonl"))


@pytest.mark.parametrize("rule", ["edge", "sparse"])
def test_own_space_refuses_to_freeze_what_nni_cannot_say(rule):
    edges = {"edge": [("skip_connect", 2, 0)] * 3, "sparse": [("skip_connect", 2, 0)]}[rule]
    sample = Genotype(edges, edges).to_sample()
    with pytest.raises(InputError, match=f"node 2 has {len(edges)}; build the network with nni_fairdarts.derive_net"):
        DARTS(4, 3).freeze(sample)


def test_derive_network_asks_for_a_hub_space(choices):
    with pytest.raises(InputError, match="got Choices; use space.freeze"):
        derive_network(choices(), {})
