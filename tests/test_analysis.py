"""Numbers about a search: entropy, agreement, skip connections by epoch, and the curvature of the loss in α."""

import copy
import json
import math
import sys
from functools import partial
from pathlib import Path

import nni.nas.strategy
import numpy as np
import pytest
import torch
import yaml
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from test_trained import CONFIG, MODULE
from torch import nn
from torch.func import functional_call

from nni_fairdarts import FairDARTS, Genotype, InputError, analysis
from nni_fairdarts.cli import main
from nni_fairdarts.experiment import supernet_of
from nni_fairdarts.history import read_history
from nni_fairdarts.recorded import Recorded
from nni_fairdarts.supernet import alphas_of

# -- gates and records ------------------------------------------------------------------------------------------------


def test_entropy_of_sigmoid_gates_is_that_of_coins():
    assert analysis.sigmoid_entropy([[0.5, 0.5], [0.5, 0.5]]) == 1
    assert analysis.sigmoid_entropy([[0.0, 1.0], [1.0, 1.0]]) == 0
    tenth = -(0.1 * math.log2(0.1) + 0.9 * math.log2(0.9))
    epochs = analysis.sigmoid_entropy([[[0.1, 0.9]], [[0.5, 1.0]]])
    np.testing.assert_allclose(epochs, [tenth, 0.5], rtol=1e-12)


def test_entropy_of_shares_is_a_part_of_the_largest():
    assert analysis.softmax_entropy([[1 / 3] * 3]) == pytest.approx(1, abs=1e-12)
    assert analysis.softmax_entropy([[0.0, 1.0, 0.0]]) == 0
    assert analysis.softmax_entropy([[1.0]]) == 0
    half = (math.log(2) / math.log(3) + 0) / 2  # the mean of two edges; with a share of "none" left out
    assert analysis.softmax_entropy([[0.4, 0.4, 0.0], [0.0, 0.0, 0.2]]) == pytest.approx(half, abs=1e-12)


@pytest.mark.parametrize("entropy", [analysis.sigmoid_entropy, analysis.softmax_entropy])
@pytest.mark.parametrize("gates", [[[-0.1, 0.5]], [[2.0]], [0.5], [[math.nan]]])
def test_what_is_no_gate_has_no_entropy(entropy, gates):
    with pytest.raises(InputError, match=r"gates must be numbers in \[0, 1\] of the shape .* not alpha"):
        entropy(gates)
    with pytest.raises(InputError, match="sum over 0, got 0"):
        analysis.softmax_entropy([[0.0, 0.0]])


def test_a_record_is_read_epoch_by_epoch():
    cell = np.full((2, 7), 0.5)
    led = cell.copy()
    led[0, 2] = 0.9
    history = [
        {"epoch": epoch, "gates": {"normal": gates.tolist(), "depth": [0.25, 0.75], "layer": [0.5, 0.5, 1.0]},
         "operations": {"normal": list("abcdefg"), "depth": [1, 2], "layer": list("xyz")}}
        for epoch, gates in enumerate((cell, led))
    ]  # fmt: skip
    for record in history:
        record["operations"]["normal"][2] = "skip_connect"
    recorded = Recorded("mine", tuple(history))
    assert {label: counts.tolist() for label, counts in analysis.dominant_by_epoch(recorded).items()} == {
        "normal": [0, 1]
    }
    entropy = analysis.entropy_by_epoch(recorded)
    quarter = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    np.testing.assert_allclose(entropy["depth"], [quarter] * 2, rtol=1e-12)  # its shares sum to 1
    np.testing.assert_allclose(entropy["layer"], [2 / 3] * 2, rtol=1e-12)
    tenth = -(0.1 * math.log2(0.1) + 0.9 * math.log2(0.9))
    np.testing.assert_allclose(entropy["normal"], [1, (13 + tenth) / 14], rtol=1e-12)


# -- agreement --------------------------------------------------------------------------------------------------------


def test_edges_agree_by_their_jaccard_index():
    skip, pool, conv = ("skip_connect", 2, 0), ("max_pool_3x3", 2, 1), ("sep_conv_3x3", 3, 0)
    lost = ("sep_conv_3x3", 5, 4)  # from a node without inputs: it is not built
    genotypes = [Genotype([skip, pool], [skip]), Genotype([skip, conv, lost], [pool]), Genotype([], [])]
    found = analysis.edge_agreement(genotypes)
    assert found.keys() == {"normal", "reduce", "together"}
    np.testing.assert_allclose(found["normal"], [[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose(found["reduce"], [[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose(found["together"][0], [1, 1 / 5, 0])
    assert analysis.between_pairs(found["normal"]).tolist() == [1 / 3, 0, 0]
    with pytest.raises(InputError, match="two architectures or more, got 1"):
        analysis.between_pairs(analysis.edge_agreement(genotypes[:1])["normal"])


def test_choices_agree_by_their_share():
    samples = [{"a": "x", "b": [0, 1], "c": 3, "d": 1}, {"a": "x", "b": [1, 0], "c": 4, "d": 1}, {"a": "x"}]
    np.testing.assert_allclose(analysis.choice_agreement(samples), [[1, 0.75, 0.25], [0.75, 1, 0.25], [0.25, 0.25, 1]])


# -- curvature --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "eigenvalues",
    [
        [5, 3, -4, 0, 1],
        [2, -5, 1, -4, 0.5],
        [3, -3, 1, 0, -1],
        [-1, -2, -3, -4, -5],
        [0, 0, 0, 0, 0],
        [1e-9, 0, 0, 0, 0],
    ],
)
def test_the_largest_eigenvalue_is_found_whatever_the_largest_in_absolute_value_is(eigenvalues):
    generator = torch.Generator().manual_seed(1)
    vectors, _ = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64))
    matrix = vectors @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ vectors.T
    start = torch.randn(5, generator=generator, dtype=torch.float64)
    found = analysis.largest_eigenvalue(lambda v: matrix @ v, start, tolerance=1e-7, most=2000)
    assert found.converged
    assert found.largest == pytest.approx(max(eigenvalues), abs=1e-10)
    assert found.residual <= 1e-7 * found.scale
    assert found.scale == pytest.approx(max(map(abs, eigenvalues)), rel=1e-3)


@pytest.mark.parametrize("values", [(-3.7, 1.1), (1.0, 2.0), (-1.0,), (0.5,)])
def test_a_start_that_is_nearly_another_eigenvalues_vector_does_not_stay_there(values):
    start = torch.tensor([1.0, 1e-3][: len(values)])
    matrix = torch.diag(torch.tensor(values))
    found = analysis.largest_eigenvalue(lambda v: matrix @ v, start)
    assert found.largest == pytest.approx(max(values), rel=1e-5)
    assert found.converged


def test_what_has_not_converged_says_so():
    values = torch.linspace(-1, 1, 100, dtype=torch.float64)
    found = analysis.largest_eigenvalue(
        lambda v: values * v, torch.ones(100, dtype=torch.float64), tolerance=1e-6, most=20
    )
    assert (found.products, found.to_json()["converged"]) == (20, False)
    assert 1e-6 < 1 - found.largest <= found.residual
    enough = analysis.largest_eigenvalue(lambda v: values * v, torch.ones(100, dtype=torch.float64), tolerance=1e-6)
    assert enough.converged
    assert 1 - 1e-6 <= enough.largest < 1 + 1e-10
    with pytest.raises(InputError, match="no finite second derivatives"):
        analysis.largest_eigenvalue(lambda v: v / 0, torch.ones(3))


class Layers(ModelSpace):
    """Two choices between operations with smooth parts, so that the loss is curved in α."""

    def __init__(self):
        super().__init__()
        body = {"deep": nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Tanh()), "skip_connect": nn.Identity()}
        self.first = LayerChoice(body, label="first")
        self.norm = nn.BatchNorm2d(3)
        self.second = LayerChoice([nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)], label="second")
        self.dropout, self.head = nn.Dropout(0.3), nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.dropout(self.second(self.norm(self.first(x)))).tanh().mean((2, 3)))


def batches():
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(5, 3, 6, 6, generator=generator, dtype=torch.float64)
    classes = torch.randint(0, 5, (5,), generator=generator)
    return [(images[:3], classes[:3]), (images[3:], classes[3:]), "not looked at"]


def hessian(supernet, sign):
    """All second derivatives of the batches' mean loss, by torch's own function of a function of α."""
    names = {parameter: name for name, parameter in supernet.named_parameters()}
    alphas = alphas_of(supernet)
    sizes = [alpha.numel() for alpha in alphas]

    def mean(flat):
        parts = (part.view_as(alpha) for part, alpha in zip(flat.split(sizes), alphas, strict=True))
        values = dict(zip((names[alpha] for alpha in alphas), parts, strict=True))
        total = 0
        for images, classes in batches()[:2]:
            torch.manual_seed(0)
            scores = functional_call(supernet, values, (images,), tie_weights=True)
            total = total + sign * nn.functional.cross_entropy(scores, classes, reduction="sum")
        return total / 5

    flat = torch.cat([alpha.detach().flatten() for alpha in alphas])
    return torch.autograd.functional.hessian(mean, flat)


def signed(sign, network, batch):
    images, classes = batch
    return sign * nn.functional.cross_entropy(network(images), classes)


@pytest.mark.parametrize("strategy", [FairDARTS, nni.nas.strategy.DARTS])
def test_the_curvature_is_the_full_hessians_largest_eigenvalue(strategy):
    """Of the loss and of its negative: one of them has a dominant eigenvalue below 0."""
    torch.manual_seed(4)
    supernet = strategy().mutate_model(Layers()).double()
    for alpha in alphas_of(supernet):
        nn.init.normal_(alpha)
    before = {key: value.clone() for key, value in supernet.state_dict().items()}
    supernet.eval()
    positive = []
    for sign in (1, -1):
        values = torch.linalg.eigvalsh(hessian(copy.deepcopy(supernet).train(), sign))
        positive.append(bool(values[-1] > -values[0]))
        state = torch.get_rng_state()
        measure = partial(analysis.loss_curvature, supernet, batches(), partial(signed, sign), count=2, progress=False)
        found = measure(tolerance=1e-6, most=3000)
        assert found.converged
        assert found.largest == pytest.approx(float(values[-1]), abs=1e-10)
        assert measure(most=20) == measure(most=20)  # bit for bit
        after = supernet.state_dict()
        assert all(torch.equal(after[key], before[key]) for key in before)
        assert torch.equal(torch.get_rng_state(), state)
        assert not supernet.training
        assert all(p.requires_grad and p.grad is None for p in supernet.parameters())
    assert sorted(positive) == [False, True]


def test_a_network_without_alpha_and_loaders_without_batches_are_refused():
    with pytest.raises(InputError, match="there is no α to differentiate in: give a supernet"):
        analysis.loss_curvature(nn.Linear(2, 2), batches())
    supernet = FairDARTS().mutate_model(Layers()).double()
    with pytest.raises(InputError, match="no batch to compute the loss of"):
        analysis.loss_curvature(supernet, [])
    with pytest.raises(InputError, match="the loss does not depend on any α"):
        analysis.loss_curvature(supernet, batches(), lambda net, batch: net.head.weight.sum() ** 2, progress=False)


# -- of a run ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["fairdarts", "darts"])
def test_a_finished_run_is_analysed(strategy, tmp_path, monkeypatch, capsys):
    (tmp_path / "twelve.py").write_text(MODULE)
    search = {"epochs": 2, "batch_size": 48, "gap_batches": 1, "arc_learning_rate": 0.5, "strategy": strategy}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**CONFIG, "space": "twelve:Space", "search": search}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "twelve", raising=False)
    assert main(["search", "--config", "mine.yaml", "--name", "mine"]) == 0, capsys.readouterr().err
    files = sorted(Path("runs/mine").rglob("*"))
    state = torch.get_rng_state()
    assert main(["analyse", "runs/mine", "--hessian_batches", "1", "--json", "out.json"]) == 0, capsys.readouterr().err
    assert torch.equal(torch.get_rng_state(), state)
    assert sorted(Path("runs/mine").rglob("*")) == files
    found, last = json.loads(Path("out.json").read_text()), read_history(Path("runs/mine/history.jsonl"))[-1]
    assert found["accuracy"] == last["val_acc"]
    # One batch has all images of the weights' half, in whatever order.
    assert found["discretization_gap"] == pytest.approx(last["discretization_gap"], abs=1e-6)
    entropy = analysis.softmax_entropy if strategy == "darts" else analysis.sigmoid_entropy
    assert found["entropy"]["first"][-1] == pytest.approx(float(entropy([last["gates"]["first"]])), abs=1e-12)
    assert found["dominant_skips"] == {}  # no cells
    printed = capsys.readouterr().out
    assert f"curvature in α      {found['curvature']['largest']:.4g} ± " in printed

    searched = supernet_of(Path("runs/mine"))
    shares = searched.module.export_probs()["first"]
    np.testing.assert_allclose(list(shares.values()), last["gates"]["first"], rtol=1e-6)
    (alpha,) = alphas_of(searched.supernet)
    images, classes = next(iter(searched.validation))
    name = next(name for name, parameter in searched.supernet.named_parameters() if parameter is alpha)

    def loss(values):
        scores = functional_call(searched.supernet.train(), {name: values}, (images,))
        return nn.functional.cross_entropy(scores, classes)

    values = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, alpha.detach()))
    assert found["curvature"]["converged"]
    assert found["curvature"]["largest"] == pytest.approx(float(values[-1]), abs=0.01 * float(values.abs().max()))


def test_what_cannot_be_analysed_is_named(tmp_path, capsys):
    assert main(["analyse", str(tmp_path), "--hessian_batches", "-1"]) == 2
    assert "hessian_batches must be 0 (none) or a number of batches, got -1" in capsys.readouterr().err
    assert main(["analyse", str(tmp_path)]) == 2
    assert "there is no history.jsonl in" in capsys.readouterr().err
    (tmp_path / "history.jsonl").write_text('{"epoch": 0}\n')
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    assert main(["analyse", str(tmp_path)]) == 2
    assert f"{tmp_path / 'checkpoints'} has no checkpoint; give the folder of a search" in capsys.readouterr().err
