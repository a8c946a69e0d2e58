"""Searches in stages: what each stage keeps, drops, carries over and begins anew, fused or not, and across a kill."""

import copy
import math

import pytest
import torch
from nni.nas.hub.pytorch.nasnet import NDS
from test_family import untimed
from test_fused import CLOSE, gradients, images
from test_nni_strategies import tiny
from torch import nn

from nni_fairdarts import FairDARTS, Genotype, InputError, experiment
from nni_fairdarts.arguments import read_config
from nni_fairdarts.config import PartsConfig, RunConfig, SearchConfig, to_yaml
from nni_fairdarts.config.parts import StageConfig
from nni_fairdarts.early import EarlyStopping
from nni_fairdarts.family import PDARTS, DrNAS
from nni_fairdarts.folder import read_json
from nni_fairdarts.gates import RELAXATIONS, of_some
from nni_fairdarts.history import read_history
from nni_fairdarts.nni_strategies import build
from nni_fairdarts.parameters import applied
from nni_fairdarts.spaces import DARTS, resized
from nni_fairdarts.stages import Stage, first_epochs
from nni_fairdarts.supernet import GatedCell
from nni_fairdarts.supernet.carrying import widened
from nni_fairdarts.supernet.fused import FusedEdges
from nni_fairdarts.supernet.moving import DECAYS, Disturbance

OPERATIONS = ["max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_5x5"]
SOFT = {"relaxation": "softmax", "zero_one_weight": 0, "discretization": "darts", "alpha_spread": 1.0}


def space(width=4, num_cells=3):
    return NDS(OPERATIONS, "all", 2, width, num_cells, "cifar")


def left_over(columns, edges=5, keep=3, seed=0):
    """α's columns that are left on each edge, drawn."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(columns, generator=generator)[:keep].sort().values for _ in range(edges)])


# -- gates of what is left ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, relaxation in RELAXATIONS.items() if relaxation.shared])
def test_what_is_left_shares_what_was_shared_by_all(name):
    alpha = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    left = left_over(6)
    gates = of_some(RELAXATIONS[name].gates, alpha, left)
    for row, columns, values in zip(gates, left.tolist(), alpha, strict=True):
        assert torch.equal(row[columns], RELAXATIONS[name].gates(values[columns]))
        assert sum(row[k] for k in range(6) if k not in columns) == 0
    (gates**2).sum().backward()
    others = torch.ones(5, 6).scatter(-1, left, 0).bool()
    assert torch.equal(alpha.grad[others], torch.zeros(15, dtype=torch.float64))
    assert of_some(torch.sigmoid, alpha, None).equal(torch.sigmoid(alpha))


@pytest.mark.parametrize("settings", [SOFT, {**SOFT, "partial_channels": 2, "edge_normalization": True}, {}])
def test_fused_cells_agree_where_edges_have_different_operations(settings):
    """Some in common, some not, an operation that no edge from a state has."""
    columns = len(OPERATIONS) + bool(settings)
    left, built = {"normal": left_over(columns), "reduce": left_over(columns, seed=1)}, []
    for fused in (False, True):
        torch.manual_seed(0)
        strategy = FairDARTS(stages=(Stage(), Stage()), fused=fused, **settings)
        strategy.mutate_model(space())
        built.append(strategy.supernet_of(1, left).double())
    plain, fused = built
    assert sum(isinstance(m, FusedEdges) for m in fused.modules()) == 3
    state = plain.state_dict()
    assert sum(".edges." in name for name in state) < sum(
        ".edges." in name for name in FairDARTS(**settings, fused=False).mutate_model(space()).state_dict()
    )
    for name, tensor in state.items():
        if "alpha" in name or "beta" in name:
            tensor.normal_()
    plain.load_state_dict(state)
    fused.load_state_dict(state)  # strict: the names of what there is
    outputs = [supernet(images()) for supernet in built]
    torch.testing.assert_close(*outputs, **CLOSE)
    for output in outputs:
        output.square().sum().backward()
    expected, found = gradients(plain), gradients(fused)
    assert expected.keys() == found.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **CLOSE)
    for name, tensor in fused.state_dict().items():
        torch.testing.assert_close(tensor, plain.state_dict()[name], **CLOSE)


def test_a_gate_that_is_gone_is_neither_rounded_up_nor_counted():
    strategy = FairDARTS(stages=(Stage(), Stage()), **SOFT)
    strategy.mutate_model(space())
    left = left_over(6)
    supernet = strategy.supernet_of(1, {"normal": left})
    (choice,) = next(m for m in supernet.modules() if isinstance(m, GatedCell) and m.label == "normal").choices()
    with torch.no_grad():
        choice.alpha.fill_(-50)  # "none", and what is gone, weigh as much as the others
    rounded = choice.rounded()
    for row, columns in zip(rounded.tolist(), left.tolist(), strict=True):
        assert row.index(max(row)) in columns
    assert choice.present().numel() == sum(column > 0 for row in left.tolist() for column in row)
    assert sorted(choice.strongest(2)[0].tolist()) == left[0, :2].tolist()  # the earlier of equals


# -- what a search does -----------------------------------------------------------------------------------------------


def searched(search, lightning, training, strategy, epochs, make=space, **data):
    """What the strategy's module was before and behind each change of stage, by ``noted``, and the module."""
    configure, notes = strategy.configure_oneshot_module, []

    def configured(training_module):
        module = configure(training_module)
        kind = type(module)

        def next_stage(self):
            notes.append(noted(self))
            kind._next_stage(self)
            notes.append(noted(self))

        module.__class__ = type("Noting", (kind,), {"_next_stage": next_stage})
        return module

    strategy.configure_oneshot_module = configured
    torch.manual_seed(0)
    search(make(), lightning(training(momentum=0.9), max_epochs=epochs, **data), strategy)
    return notes, strategy.oneshot_module


def noted(module) -> dict:
    """The supernet, a copy of its state, and of what its optimizers keep of it: by name, and of α in its order."""
    supernet = module.training_module.model
    weights, alphas = module.trainer.optimizers
    names = {parameter: name for name, parameter in supernet.named_parameters()}
    return {
        "supernet": supernet,
        "state": {name: tensor.detach().clone() for name, tensor in supernet.state_dict().items()},
        "momentum": {names[p]: kept["momentum_buffer"].clone() for p, kept in weights.state.items()},
        "adam": [{key: value.clone() for key, value in alphas.state[p].items()} for p in module.arch_parameters()],
        "rate": weights.param_groups[0]["lr"],
    }


def cells(supernet):
    return [module for module in supernet.modules() if isinstance(module, GatedCell)]


def test_stages_have_their_sizes_and_what_was_strongest(search, lightning, training):
    stages = (Stage(cells=3), Stage(cells=4, width=8, operations=4), Stage(cells=5, operations=3, partial_channels=2))
    strategy = FairDARTS(stages=stages, arc_learning_rate=0.3, **SOFT)
    original = space()
    (first, second, also_second, third), module = searched(search, lightning, training, strategy, 3, lambda: original)
    assert second["supernet"] is also_second["supernet"]
    assert not cells(original)  # the space that came in is as it was
    at = [note["supernet"] for note in (first, second, third)]
    assert [len(cells(supernet)) for supernet in at] == [3, 4, 5]
    assert [supernet.stem[0].out_channels for supernet in at] == [12, 24, 12]
    assert [cells(supernet)[0].options.partial_channels for supernet in at] == [1, 1, 2]
    for before, behind, count in ((*at[:2], 4), (*at[1:], 3)):
        for label in ("normal", "reduce"):
            old, new = (next(c for c in cells(supernet) if c.label == label) for supernet in (before, behind))
            shares = old.options.gates(old.alpha, old.left).tolist()
            for row, kept, edge in zip(shares, new.left.tolist(), new.edges.plain(), strict=True):
                assert kept == sorted(sorted(range(6), key=row.__getitem__)[-count:])
                assert list(edge) == [OPERATIONS[k - 1] for k in kept if k]  # 0 is "none"
    assert module.training_module.model is strategy.supernet is at[2]
    last = next(cell for cell in cells(at[2]) if cell.label == "normal")
    left = dict(zip(last.edge_indices(), map(set, last.edges.plain()), strict=True))
    for edge in Genotype.from_sample(module.export(), nodes=2, style="darts").normal:
        assert edge.operation in left[edge.node, edge.source]
    for note in (second, third):  # afresh
        assert note["momentum"] == {}
        assert note["adam"] == [{}, {}]
    assert not torch.equal(second["state"]["stages.0.blocks.0.alpha"], also_second["state"]["stages.0.blocks.0.alpha"])


def test_a_stage_that_keeps_goes_on_with_weights_and_optimizers(search, lightning, training):
    """Wider by partial channels: every tensor of the second is the first's, repeated; so is the momentum."""
    stages = (Stage(partial_channels=4), Stage(partial_channels=2, operations=3, keep=True))
    strategy = FairDARTS(stages=stages, fused=False, **SOFT)
    (before, behind), _ = searched(search, lightning, training, strategy, 2)
    assert len(behind["state"]) < len(before["state"])
    wider = 0
    for kind in ("state", "momentum"):
        assert behind[kind]
        for name, tensor in behind[kind].items():
            was = before[kind].get(name, torch.zeros_like(before["state"][name]))
            wider += tensor.shape != was.shape
            for dim, size in enumerate(tensor.shape):
                was = torch.stack([was.select(dim, k % was.shape[dim]) for k in range(size)], dim)
            assert torch.equal(tensor, was), (kind, name)
    assert wider > 20
    assert any(buffer.abs().sum() > 0 for buffer in behind["momentum"].values())
    assert [sorted(kept) for kept in behind["adam"]] == [["exp_avg", "exp_avg_sq", "step"]] * 2
    for one, other in zip(before["adam"], behind["adam"], strict=True):
        assert float(one["step"]) == 1
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_fused_cells_carry_over_what_plain_ones_do(search, lightning, training, loader):
    """Two epochs each side of the change, in float64: what optimizers keep of stacked weights is taken apart for it."""
    states = []
    for fused in (False, True):
        stages = (Stage(), Stage(cells=4, operations=3, keep=True))
        strategy = FairDARTS(stages=stages, fused=fused, arc_learning_rate=0.1, **SOFT)
        data = {name: loader(2, seed=seed, dtype=torch.float64) for name, seed in (("train", 1), ("val", 2))}
        _, module = searched(search, lightning, training, strategy, 4, lambda: space(2).double(), **data)
        states.append(module.training_module.model.state_dict())
    plain, fused = states
    assert plain.keys() == fused.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(fused[name], tensor, rtol=1e-8, atol=1e-8, msg=name)


def test_schedules_and_warm_up_are_of_the_stages(search, lightning, training, tmp_path):
    """Learning rates start anew with a stage that does, and go on with one that keeps; α rests at each one's start."""

    class Cosine(training):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs)]

    stages = (Stage(), Stage(keep=True), Stage(share=2))
    strategy = FairDARTS(stages=stages, warmup_epochs=1, history=tmp_path / "history.jsonl")
    searched(search, lightning, Cosine, strategy, 8)
    records = read_history(tmp_path / "history.jsonl")
    cosine = [0.1 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)]
    assert [record["learning_rate"] for record in records] == pytest.approx(cosine * 2)
    assert [record["stage"] for record in records] == [1, 1, 2, 2, 3, 3, 3, 3]
    assert [record["arch_loss"] is None for record in records] == [True, False, True, False, True, False, False, False]


def test_a_search_killed_in_a_stage_goes_on_exactly(tmp_path):
    """P-DARTS, from a checkpoint within its second stage and from the one at the end of the first."""
    stages = [{"cells": 3}, {"cells": 4, "operations": 5, "skip_dropout": 0.4}]
    values = {"search.strategy": "p_darts", "search.parts.stages": stages, "search.epochs": 3, "checkpoint_steps": 1}
    rest = {"search.warmup_epochs": 0, "search.gap_batches": 0, "space.operations": OPERATIONS}
    config = tiny(tmp_path, **values, **rest)
    whole = experiment.search(config)
    history = [untimed(record) for record in read_history(config.folder / "history.jsonl")]
    assert [record["stage"] for record in history] == [1, 1, 2]
    assert [sum(map(bool, row)) for row in history[0]["gates"]["normal"]] == [5] * 14
    assert all(4 <= sum(map(bool, row)) <= 5 for row in history[2]["gates"]["normal"])
    checkpoints = sorted((config.folder / "checkpoints").iterdir())
    checkpoints[-1].unlink()  # the one before is within the last epoch
    for name in ("result.json", "genotype.json"):
        (config.folder / name).unlink()
    assert untimed(experiment.resume(config.folder)) == untimed(whole)
    assert [untimed(record) for record in read_history(config.folder / "history.jsonl")] == history
    assert read_json(config.folder / "result.json")["genotype"] == whole["genotype"]
    gap = experiment.analyse(config.folder, gap_batches=1)["discretization_gap"]  # of the last stage's supernet
    assert -1 <= gap <= 1


def test_strengths_of_what_is_gone_are_below_all_others(search, lightning, training):
    settings = {**SOFT, "selection": "strength", "strength_batches": 1, "stages": (Stage(), Stage(operations=3))}
    strategy = FairDARTS(**settings)
    _, module = searched(search, lightning, training, strategy, 2, lambda: space(2))
    for choice in module.choices().values():
        strengths = torch.tensor(strategy.moving.ranked[choice.label])
        assert strengths[~choice.there()].eq(0).all()
        assert strengths[choice.there()].ge(0.5).all()
        assert strengths.max() == 1


# -- settings ---------------------------------------------------------------------------------------------------------


def test_epochs_are_shared_out():
    assert first_epochs(PDARTS().stages, 75) == [0, 25, 50, 75]
    assert first_epochs((Stage(), Stage(share=3)), 6) == [0, 2, 6]
    with pytest.raises(InputError, match="3 stages needs at least as many epochs, .* got max_epochs=2"):
        first_epochs(PDARTS().stages, 2)
    with pytest.raises(InputError, match="needs at least as many epochs, which its trainer must know"):
        first_epochs(PDARTS().stages, None)
    with pytest.raises(InputError, match="the shares 1, 9 of 3 epochs leave a stage without any"):
        first_epochs((Stage(), Stage(share=9)), 3)


def test_the_published_dropout_falls_in_two_parts():
    published = [(25 - e - 1) / 25 if e < 10 else math.exp(-0.2 * (e - 10)) for e in range(25)]
    assert [DECAYS["p_darts"](epoch, 25) for epoch in range(25)] == pytest.approx(published)


def test_widened():
    tensor = torch.arange(6.0).view(2, 3)
    assert widened(tensor, torch.Size((3, 4))).tolist() == [[0, 1, 2, 0], [3, 4, 5, 3], [0, 1, 2, 0]]
    assert widened(tensor, torch.Size((1, 3))) is None
    assert widened(tensor, torch.Size((2, 3, 1))) is None


def test_published_stages():
    p, dr = PDARTS(), DrNAS()
    assert [(s.cells, s.operations, s.skip_dropout, s.keep) for s in p.stages] == [
        (5, 8, 0.0, False),
        (11, 5, 0.4, False),
        (17, 3, 0.7, False),
    ]
    assert (p.discretization.max_skips, p.warmup_epochs, p.arc_learning_rate, p.arc_gradient_clip_val) == (
        2,
        10,
        6e-4,
        5,
    )
    assert p.disturbance == Disturbance(decay="p_darts")
    assert [(s.partial_channels, s.operations, s.keep) for s in dr.stages] == [(6, None, False), (4, 4, True)]
    assert (dr.relaxation, dr.candidate_norm, dr.warmup_epochs) == ("dirichlet", "unscaled", 10)
    norms = [m for m in dr.mutate_model(DARTS(12, 3)).modules() if isinstance(m, nn.BatchNorm2d)]
    assert sum(norm.affine for norm in norms) == 1  # the stem's
    pooled = DrNAS(fused=False).mutate_model(DARTS(12, 3)).stages[0].blocks[0].edges[0]["max_pool_3x3"]
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in pooled.modules())


def test_a_configuration_has_stages():
    parts = {"stages": [{"cells": 3}, {"operations": 4, "keep": True, "share": 2.0}]}
    strategy = build(SearchConfig(strategy="p_darts", parts=PartsConfig(**parts)))
    assert strategy.stages == (Stage(cells=3), Stage(operations=4, keep=True, share=2.0))
    assert build(SearchConfig(strategy="p_darts", parts=PartsConfig(stages=[]))).stages == ()


def test_a_trials_parameters_have_stages(tmp_path):
    """From a trial's parameters, which stay as they are, into a configuration's file, and back."""
    given = {"strategy": {"_name": "p_darts", "parts.stages": [{"cells": 3}, {"operations": 4, "keep": True}]}}
    before = copy.deepcopy(given)
    config = applied(RunConfig(), given)
    assert given == before
    assert config.search.parts.stages == [StageConfig(cells=3), StageConfig(operations=4, keep=True)]
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert read_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"early_stopping": EarlyStopping()}, "early stopping returns to may be of a stage with other operations"),
        ({"inherit_weights": True}, "the last stage's supernet has other sizes than the network"),
        ({**SOFT, "relaxation": "sparsemax"}, "sparsemax makes gates exactly 0, as those of dropped operations are"),
        ({**SOFT, "stages": (Stage(), Stage(operations=1))}, "at least 2 here, one to derive and 'none', got 1"),
        ({"max_skips": 1, "stages": (Stage(), Stage(operations=1))}, "at least 2 here, .* where max_skips bars it"),
        (
            {"stages": (Stage(), Stage(width=8, keep=True))},
            "a stage of width 8 cannot keep the weights of one of width None",
        ),
        (
            {"stages": (Stage(operations=3), Stage(operations=5))},
            "cannot have 5 operations on each edge behind one with 3",
        ),
        ({"stages": Stage()}, "stages must be a list of nni_fairdarts.stages.Stage, got Stage"),
        ({"stages": ({"cells": 3},)}, "stages must be a list of nni_fairdarts.stages.Stage, got dict"),
    ],
)
def test_what_does_not_go_with_stages(settings, reason):
    with pytest.raises(InputError, match=reason):
        FairDARTS(**{"stages": (Stage(), Stage(operations=3)), **settings})


@pytest.mark.parametrize(
    ("stages", "reason"),
    [
        ((Stage(operations=3), Stage()), "the first stage has nothing to choose by"),
        ((Stage(), Stage(partial_channels=3)), "partial_channels=3 must divide the channels of every cell"),
    ],
)
def test_every_stage_is_looked_at_before_the_first(stages, reason):
    with pytest.raises(InputError, match=reason):
        FairDARTS(stages=stages).mutate_model(space())


def test_other_spaces_have_no_other_sizes(choices, classification, search):
    with pytest.raises(InputError, match="cells and width of a stage are of NNI's hub spaces"):
        FairDARTS(stages=(Stage(cells=3),)).mutate_model(choices())

    class Other(DARTS):
        def __init__(self, secret=3):
            super().__init__(4, secret)

    with pytest.raises(InputError, match="makes Other anew, but its argument 'secret' is not to be found in it"):
        resized(Other(), num_cells=5)

    class Same(DARTS):
        pass

    made = resized(Same(4, 3, num_classes=7, in_channels=1, operations=["skip_connect", "sep_conv_3x3"]), num_cells=4)
    assert (type(made), made.num_cells, made.num_labels, made.in_channels) == (Same, 4, 7, 1)
    assert made.op_candidates == ["skip_connect", "sep_conv_3x3"]
    strategy = FairDARTS(stages=(Stage(), Stage(keep=True)))  # such stages only go on
    search(choices(), classification(max_epochs=2), strategy)
    assert strategy.oneshot_module.stage == 1


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"cells": 0}, "a stage's cells must be a whole number from 1, or None, got 0"),
        ({"operations": 2.5}, "a stage's operations must be a whole number from 1, or None, got 2.5"),
        ({"skip_dropout": 1.0}, r"a stage's skip_dropout must be in \[0, 1\), or None, got 1.0"),
        ({"share": 0}, "a stage's share must be a number over 0, got 0"),
    ],
)
def test_stages_out_of_range(settings, reason):
    with pytest.raises(InputError, match=reason):
        Stage(**settings)


def test_alpha_has_epochs_to_learn_in(classification, search):
    with pytest.raises(InputError, match="warmup_epochs=10 leaves α no epoch to learn in: stage 1 has 10 epochs"):
        search(space(), classification(max_epochs=30), PDARTS(stages=(Stage(), Stage(), Stage())))
    with pytest.raises(InputError, match="warmup_epochs=2 leaves α no epoch to learn in: the search has 2; give more"):
        search(space(), classification(max_epochs=2), FairDARTS(warmup_epochs=2))


def test_a_divergence_takes_the_place_of_weight_decay():
    assert DrNAS().arc_weight_decay == 1e-3
    assert DrNAS(divergence_weight=1e-3).arc_weight_decay == 0
    assert DrNAS(divergence_weight=1e-3, arc_weight_decay=0.1).arc_weight_decay == 0.1


@pytest.mark.parametrize(
    "settings",
    [{"partial_channels": 2}, {"stages": (Stage(), Stage(operations=2))}, {"stages": [Stage(partial_channels=2)]}],
)
def test_what_is_of_cells_is_refused_where_there_are_none(settings, choices):
    with pytest.raises(InputError, match="is of the cells of NNI's hub spaces, but Choices has none"):
        FairDARTS(**settings).mutate_model(choices())
