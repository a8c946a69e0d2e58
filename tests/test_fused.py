"""The fused supernet against the plain one: numbers, state dicts, searches, memory, and what it refuses."""

import copy
import functools
import io
import itertools
import pickle

import pytest
import torch
from handwritten import Space
from nni.nas.hub.pytorch.nasnet import NDS, OPS
from nni.nas.nn.pytorch import LayerChoice
from torch import nn
from torch.nn.functional import cross_entropy

from nni_fairdarts import FairDARTS, InputError, freeze, inherit
from nni_fairdarts.config import SearchConfig
from nni_fairdarts.gap import DiscretizationGap
from nni_fairdarts.history import read_history
from nni_fairdarts.inheritance import reestimate_batch_norm
from nni_fairdarts.nni_strategies import build
from nni_fairdarts.spaces import S2
from nni_fairdarts.supernet import GatedCell, GatedLayer
from nni_fairdarts.supernet.fused import FusedEdges, fuse, twice_differentiable, unfuse

pytestmark = [
    pytest.mark.filterwarnings("ignore:Found positional arguments"),
    pytest.mark.filterwarnings("ignore:.*keeps nothing that is connected:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:.*batch norms behind poolings:RuntimeWarning"),
]

CLOSE = {"rtol": 1e-10, "atol": 1e-10}
PAPER = ["max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"]
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def hub(*operations, nodes=2, **space):
    """One of the hub's spaces at its smallest, with these candidates."""
    return NDS(list(operations), "all", nodes, **{"width": 2, "num_cells": 3, "dataset": "cifar", **space})


def paper(**space):
    return hub(*PAPER, **space)


def few(**space):
    """One candidate of each kind."""
    return hub("max_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_5x5", **space)


def pair(make=few, seed=0, **strategy) -> tuple[nn.Module, nn.Module]:
    """(plain, fused) supernets of the same space in float64, with the same random α, weights and statistics."""
    supernets = copy.deepcopy(built(make, seed, **strategy))  # several times faster than building
    torch.manual_seed(seed)
    return supernets


@functools.lru_cache(8)
def built(make, seed, **strategy) -> tuple[nn.Module, nn.Module]:
    """What ``pair`` copies."""
    supernets = []
    for fused in (False, True):
        torch.manual_seed(seed)
        supernets.append(FairDARTS(fused=fused, **strategy).mutate_model(make()).double())
    state = supernets[0].state_dict()
    for name, tensor in state.items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif name.endswith("num_batches_tracked"):
            tensor.random_(1, 9)
        elif tensor.dim() == 1 or "alpha" in name:
            tensor.normal_()
    for supernet in supernets:
        supernet.load_state_dict(state)
    assert not fused_cells(supernets[0])
    return tuple(supernets)


def fused_cells(supernet) -> list[FusedEdges]:
    return [module for module in supernet.modules() if isinstance(module, FusedEdges)]


def images(*size, batch=3):
    height, width = size if len(size) == 2 else (size or (6,)) * 2
    return torch.randn(batch, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradients(supernet) -> dict[str, torch.Tensor]:
    """{name of a weight or α in the plain supernet: its gradient, zeros where it has none}."""
    values = [(parameter, parameter.data) for parameter in supernet.parameters()]
    for parameter, value in values:
        parameter.data = torch.zeros_like(value) if parameter.grad is None else parameter.grad
    state = {k: tensor.clone() for k, tensor in supernet.state_dict().items() if not k.endswith(STATISTICS)}
    for parameter, value in values:
        parameter.data = value
    return state


def step(supernet, x) -> dict[str, torch.Tensor]:
    """What a forward and a backward pass leave behind."""
    supernet.zero_grad()
    output = supernet(x)
    mix = torch.randn(output.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    if output.requires_grad:
        (output * mix + output.square()).sum().backward()
    left = {"output": output.detach()}
    left |= {f"gradient of {name}": tensor for name, tensor in gradients(supernet).items()}
    return left | {f"{name} afterwards": tensor.clone() for name, tensor in supernet.state_dict().items()}


def same(plain: dict, fused: dict, **close):
    assert list(plain) == list(fused)
    for name, expected in plain.items():
        if not torch.allclose(fused[name], expected, **(close or CLOSE)):
            torch.testing.assert_close(
                fused[name], expected, **(close or CLOSE), msg=lambda m, name=name: f"{name}: {m}"
            )


def check(plain, fused, *sizes, batches=(3,)):
    """Steps in training, then batches, one image among them, in evaluation."""
    for size in sizes or ((6, 6),):
        for batch in batches:
            x = images(*size, batch=batch)
            same(step(plain.train(), x), step(fused.train(), x))
    for batch in (1, 2):
        x = images(*(sizes or ((6, 6),))[0], batch=batch)
        same(step(plain.eval(), x), step(fused.eval(), x))


# -- the same numbers ----------------------------------------------------------------------------------------------

SUBSETS = {
    "no skip": PAPER[:2] + PAPER[3:],
    "no pooling": PAPER[2:],
    "pooling and skip": PAPER[:3],
    "pooling": PAPER[:2],
    "in another order": PAPER[::-1],
    "NASNet": ["skip_connect", "conv_3x1_1x3", "conv_7x1_1x7", "dil_conv_3x3", "avg_pool_3x3", "max_pool_3x3",
               "max_pool_5x5", "max_pool_7x7", "conv_1x1", "conv_3x3", "sep_conv_3x3", "sep_conv_5x5", "sep_conv_7x7"],
    "AmoebaNet": ["skip_connect", "sep_conv_3x3", "sep_conv_5x5", "sep_conv_7x7", "avg_pool_3x3", "max_pool_3x3",
                  "dil_sep_conv_3x3", "conv_7x1_1x7"],
}  # fmt: skip
ALONE = [name for name in OPS if name != "none" and not name.endswith("2x2")]  # 2x2: one pixel less at stride 1
norms = pytest.mark.parametrize("norm", ["paper", "space"])


@norms
def test_the_papers_cells(norm):
    plain, fused = pair(lambda: paper(nodes=3), candidate_norm=norm)
    assert len(fused_cells(fused)) == 3
    assert None not in [plan for cell in fused_cells(fused) for plans in cell.plans for plan in plans]
    check(plain, fused, (8, 8), (7, 7), (5, 8), (4, 9))


@norms
@pytest.mark.parametrize("name", SUBSETS)
def test_all_kinds_of_candidates(name, norm):
    plain, fused = pair(lambda: hub(*SUBSETS[name]), candidate_norm=norm)
    assert len(fused_cells(fused)) == 3
    check(plain, fused, (7, 6))


@norms
@pytest.mark.parametrize("name", ALONE)
def test_one_candidate_alone(name, norm):
    plain, fused = pair(lambda: hub(name), candidate_norm=norm)
    assert len(fused_cells(fused)) == (2 if name == "skip_connect" else 3)  # at stride 1 it shares nothing
    check(plain, fused, (7, 6))


def test_the_imagenet_stem_and_deeper_networks():
    check(*pair(lambda: few(dataset="imagenet")), (33, 40))
    check(*pair(lambda: few(num_cells=6)), (9, 8))


@pytest.mark.parametrize("norm", ["paper", "space"])
@pytest.mark.parametrize("make", ["width", "depth", "both"])
def test_spaces_that_choose_widths_and_depths(make, norm):
    space = {"width": (2, 4)} if make != "depth" else {}
    space |= {"num_cells": (3, 4)} if make != "width" else {}
    plain, fused = pair(lambda: few(**space), candidate_norm=norm)
    # Chosen widths have layers of their own, and stay one by one; poolings without batch norm have no width.
    assert bool(fused_cells(fused)) == (make == "depth" or norm == "space")
    check(plain, fused)


def test_drop_paths_stay_one_by_one_and_draw_the_same_numbers():
    plain, fused = pair(lambda: few(drop_path_prob=0.4))
    assert not fused_cells(fused)
    for supernet in (plain, fused):
        torch.manual_seed(3)
        supernet.last = step(supernet.train(), images())
    same(plain.last, fused.last, rtol=0, atol=1e-12)  # the stem's images lie in another order


@pytest.mark.parametrize("mode", ["momentum None", "momentum 0.3", "other eps", "mixed modes"])
def test_batch_norms_with_other_settings(mode):
    """Set by hand in both, after the supernet is built."""
    plain, fused = pair(candidate_norm="space")
    for supernet in (plain, fused):
        supernet.train()
        for module in supernet.modules():
            if isinstance(module, nn.BatchNorm2d):
                if mode == "other eps":
                    module.eps = 0.1
                elif mode == "mixed modes":
                    module.eval()
                else:
                    module.momentum = {"None": None, "0.3": 0.3}[mode.split()[1]]
        if mode == "mixed modes":
            supernet.stem.train()
    for _ in range(3):
        same(step(plain, images()), step(fused, images()))
    same(step(plain.eval(), images()), step(fused.eval(), images()))


def test_settings_of_the_space_are_taken_over():
    originals = {name: OPS[name] for name in OPS}
    try:
        for name in PAPER[3:]:
            OPS[name] = lambda C, stride, affine, name=name: changed(originals[name](C, stride, affine))
        plain, fused = pair(lambda: few())  # not what is kept for the other tests
    finally:
        OPS.update(originals)
    settings = {(m.eps, m.momentum) for m in fused_cells(fused)[0].modules() if isinstance(m, nn.BatchNorm2d)}
    assert settings == {(1e-5, 0.1), (0.2, None)}
    check(plain, fused, batches=(3, 2, 3))


def changed(module):
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eps, norm.momentum = 0.2, None
    return module


def test_training_and_evaluation_take_turns():
    plain, fused = pair()
    optimizers = [torch.optim.SGD(supernet.parameters(), 1e-3, momentum=0.9) for supernet in (plain, fused)]
    for turn in range(3):
        same(step(plain.train(), images(batch=4)), step(fused.train(), images(batch=4)))
        for optimizer in optimizers:
            optimizer.step()
        x = images(5, 7, batch=turn + 1)
        same(step(plain.eval(), x), step(fused.eval(), x))
        with torch.no_grad():
            same(step(plain.train(), x), step(fused.train(), x))


@pytest.mark.parametrize("learning", ["alpha", "weights", "nothing", "some", "the stem"])
def test_what_is_frozen_gets_no_gradient(learning):
    plain, fused = pair(candidate_norm="space")
    for supernet in (plain, fused):
        for name, parameter in supernet.named_parameters():
            alpha = name.endswith("alpha")
            wanted = {"alpha": alpha, "weights": not alpha, "nothing": False, "the stem": name.startswith("stem.")}
            wanted["some"] = "sep_conv_3x3" in name or "conv_2" in name
            parameter.requires_grad_(wanted[learning])
    check(plain, fused)
    assert all(p.requires_grad or p.grad is None for p in fused.parameters())


def test_what_is_frozen_before_the_search_stays_frozen():
    space = few().requires_grad_(False)
    supernet = FairDARTS().mutate_model(space)
    cell = supernet.stages[0].blocks[0]
    for parameter in cell.edges.parameters():  # candidates are built anew, and learn
        parameter.requires_grad_(False)
    unfuse(supernet)
    assert not any(parameter.requires_grad for parameter in cell.edges.parameters())
    fuse(supernet)
    assert not any(parameter.requires_grad for parameter in cell.edges.parameters())


@norms
def test_recomputing_changes_nothing(norm):
    """Outputs and statistics to the bit; gradients of a shared state are summed in another order."""
    results = []
    for recompute in (False, True):
        _, fused = pair(candidate_norm=norm, recompute=recompute)
        assert len(fused_cells(fused)) == 3
        results.append(step(fused.train(), images(7, 6)) | step(fused.train(), images(6, 6)))
    same(*results, rtol=1e-13, atol=1e-13)
    same(*({k: v for k, v in result.items() if "gradient" not in k} for result in results), rtol=0, atol=0)


def test_a_batch_of_one_pixel_is_refused_in_training():
    for supernet in pair():
        with pytest.raises(ValueError, match=r"[Ee]xpected more than 1 value per channel when training"):
            supernet.train()(images(4, 4, batch=1))


# -- precision -----------------------------------------------------------------------------------------------------


def deviation(found, expected) -> float:
    return float((found.double() - expected).norm() / expected.norm())


IMAGES = {
    "as drawn": lambda x: x,
    "one channel": lambda x: x[:, :1].expand(-1, 3, -1, -1),
    "one colour": lambda x: x[:, :1, :1, :1].expand(-1, 3, 8, 8),
    "mean 100": lambda x: x + 100,
    "tiny": lambda x: 1e-3 * x,
}


@norms
def test_float32_loses_no_more_than_the_plain_supernet(norm):
    """Deviations from float64, of outputs and of all gradients together, relative to their sizes.

    Images of a single colour leave channels that are almost the same; there a covariance loses more.
    """
    supernets = pair(paper, candidate_norm=norm)
    exact = copy.deepcopy(supernets[0])
    singles = [supernet.float() for supernet in supernets]
    for change, images_of in IMAGES.items():
        x = images_of(images(8, 8, batch=4).float())
        expected, deviations = step(exact, x.double()), []
        names = [name for name in expected if name == "output" or name.startswith("gradient")]
        for supernet in singles:
            found = step(supernet, x)
            parts = [torch.cat([part[n].flatten() for n in names]) for part in (found, expected)]
            deviations.append((deviation(found["output"], expected["output"]), deviation(*parts)))
        for theirs, ours in zip(*deviations, strict=True):
            assert ours < max((8 if change == "one colour" else 2) * theirs, 3e-6), (change, deviations)


@pytest.mark.parametrize("training", [True, False])
@norms
def test_half_precision_is_close(norm, training):
    """To the float64 supernet, as close as the plain one is; of the model's own, and by autocast."""
    supernets = [supernet.train(training) for supernet in pair(candidate_norm=norm)]
    exact = step(copy.deepcopy(supernets[0]), images())
    for how, dtype in itertools.product(("autocast", "model"), (torch.bfloat16, torch.float16)):
        deviations = []
        for supernet in (copy.deepcopy(supernet).float() for supernet in supernets):
            if how == "model":
                supernet.to(dtype)
                found = step(supernet, images().to(dtype))
            else:
                with torch.autocast("cpu", dtype):
                    output = supernet(images().float())
                    (output.float() ** 2).sum().backward()
                found = {"output": output}
                assert all(p.grad.dtype == torch.float32 for p in supernet.parameters())
            assert all(tensor.isfinite().all() for tensor in gradients(supernet).values())
            deviations.append(deviation(found["output"], exact["output"]))
        assert deviations[1] < max(3 * deviations[0], 0.02), (how, dtype, deviations)


def test_recomputing_under_autocast_changes_nothing_but_what_is_kept():
    results, kept = [], []
    for recompute in (False, True):
        fused = pair(recompute=recompute)[1].float()
        sizes = {}

        def pack(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16):
            output = fused(images(8, 8, batch=4).float())
        output.float().square().sum().backward()
        results.append({"output": output.detach(), **gradients(fused), **fused.state_dict()})
        kept.append(sum(sizes.values()))
    same(*results, rtol=0, atol=0)
    assert kept[1] < kept[0] / 3


def test_second_derivatives_are_refused():
    _, fused = pair()
    alphas = [p for name, p in fused.named_parameters() if name.endswith("alpha")]
    slopes = torch.autograd.grad(fused(images()).sum(), alphas, create_graph=True)
    square = sum(slope.square().sum() for slope in slopes)
    with pytest.raises(NotImplementedError, match=r"first derivatives only.*FairDARTS\(fused=False\)"):
        torch.autograd.grad(square, alphas, retain_graph=True)
    with pytest.raises(NotImplementedError, match=r"first derivatives only.*FairDARTS\(fused=False\)"):
        square.backward()


@pytest.mark.parametrize("recompute", [False, True])
def test_second_derivatives_where_they_are_wanted_are_the_plain_ones(recompute):
    products = []
    for supernet in pair(recompute=recompute):
        alphas = [p for name, p in supernet.named_parameters() if name.endswith("alpha")]
        with twice_differentiable():
            slopes = torch.autograd.grad(supernet(images()).square().sum(), alphas, create_graph=True)
            square = sum(slope.square().sum() for slope in slopes)
            products.append(torch.cat([p.flatten() for p in torch.autograd.grad(square, alphas)]))
    assert products[0].abs().max() > 1
    torch.testing.assert_close(*products, rtol=1e-10, atol=1e-10 * float(products[0].abs().max()))


# -- state dicts ---------------------------------------------------------------------------------------------------


@norms
def test_state_dicts_are_those_of_the_plain_supernet(norm):
    plain, fused = pair(candidate_norm=norm)
    same(plain.state_dict(), fused.state_dict(), rtol=0, atol=0)
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in fused.parameters())
    step(fused.train(), images())
    same(plain.state_dict(), plain.state_dict() | {k: v for k, v in fused.state_dict().items() if "alpha" in k})
    assert not plain.load_state_dict(fused.state_dict()).missing_keys
    same(plain.state_dict(), fused.state_dict(), rtol=0, atol=0)
    written = io.BytesIO()
    torch.save(plain.state_dict(), written)
    written.seek(0)
    _, other = pair(candidate_norm=norm, seed=5)
    other.load_state_dict(torch.load(written, weights_only=True))
    same(plain.state_dict(), other.state_dict(), rtol=0, atol=0)
    check(plain, other)


def test_from_fused_to_plain_and_back_between_steps():
    plain, fused = pair()
    optimizer, theirs = (torch.optim.SGD(supernet.parameters(), 1e-3) for supernet in (fused, plain))
    for _ in range(3):
        for supernet, learner in ((fused, optimizer), (plain, theirs)):
            step(supernet.train(), images())
            learner.step()
        weights = {name: id(parameter) for name, parameter in fused.named_parameters()}
        fused.load_state_dict(fused.state_dict())
        assert weights == {name: id(parameter) for name, parameter in fused.named_parameters()}  # the optimizer's own
    same(plain.state_dict(), fused.state_dict())
    unfuse(fused)
    assert not fused_cells(fused)
    assert str(fused) == str(plain)
    same(plain.state_dict(), fused.state_dict())
    check(plain, fused)
    fuse(fused)
    fuse(fused)
    assert len(fused_cells(fused)) == 3
    check(plain, fused)


@pytest.mark.parametrize("operations", [PAPER[:2], PAPER])
def test_unfusing_keeps_precision_and_mode(operations):
    """Also where edges have no weights, only statistics."""
    _, fused = pair(lambda: hub(*operations))
    state, modes = fused.state_dict(), {True, False}
    for mode in modes:
        twin = copy.deepcopy(fused).train(mode)
        unfuse(twin)
        same(state, twin.state_dict(), rtol=0, atol=0)
        assert {module.training for module in twin.modules()} == {mode}
        fuse(twin)
        assert {module.training for module in twin.modules()} == {mode}


def test_the_entries_of_fused_edges_are_the_plain_ones():
    plain, fused = pair()
    for theirs, ours in zip(plain.modules(), (m for m in fused.modules() if isinstance(m, GatedCell)), strict=False):
        if isinstance(theirs, GatedCell):
            assert len(ours.edges) == len(theirs.edges) == 5
            assert str(ours.edges[-1]) == str(theirs.edges[-1])
            for mine, plain_edge in zip(ours.edges, theirs.edges, strict=True):
                same(plain_edge.state_dict(), mine.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))], ids=["copy", "pickle"]
)
def test_copies_are_whole_and_apart(copied):
    _, fused = pair()
    before = copy.deepcopy(fused.state_dict())
    twin = copied(fused)
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in fused.parameters()}
    same(step(twin, images()), step(pair()[0], images()))
    torch.optim.SGD(twin.parameters(), 1.0).step()
    same(before, fused.state_dict(), rtol=0, atol=0)
    twin.load_state_dict(before)
    same(step(fused, images()), step(twin, images()), rtol=0, atol=0)


def test_what_a_state_dict_lacks_is_named():
    plain, fused = pair()
    names = [name for name in plain.state_dict() if "edges.1.sep_conv_3x3" in name and name.endswith("weight")]
    odd = [name for name in plain.state_dict() if "0.blocks.0.edges.2.dil_conv_5x5" in name and name.endswith("weight")]
    for supernet in (plain, fused):
        whole = supernet.state_dict()
        given = {name: torch.full_like(tensor, 7) for name, tensor in whole.items() if name not in names}
        with pytest.raises(RuntimeError) as error:
            supernet.load_state_dict(given)
        assert "Missing key(s) in state_dict: " + ", ".join(f'"{name}"' for name in names) + ". " in str(error.value)
        assert "Unexpected" not in str(error.value)
        assert "sources" not in str(error.value)
    for supernet in pair():
        before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
        assert supernet.load_state_dict(given, strict=False) == (names, [])
        assert all((tensor == (before[k] if k in names else 7)).all() for k, tensor in supernet.state_dict().items())
        with pytest.raises(RuntimeError) as error:
            supernet.load_state_dict(given | dict.fromkeys(odd, torch.zeros(3, 3)), strict=False)
        assert [f"size mismatch for {name}: " in str(error.value) for name in odd] == [True, True]
        assert str(error.value).count("size mismatch") == 2
        extra = {"stages.0.blocks.0.edges.9.other.weight": torch.zeros(1)}
        with pytest.raises(
            RuntimeError, match=r'Unexpected key\(s\) in state_dict: "stages\.0\.blocks\.0\.edges\.9\.other'
        ):
            supernet.load_state_dict(before | extra)


def test_a_state_dict_without_counts_of_batches_is_taken_as_torch_takes_it():
    for supernet in pair():
        state = {k: v for k, v in supernet.state_dict().items() if not k.endswith("num_batches_tracked")}
        supernet.load_state_dict(state)


# -- what else is done with a supernet -----------------------------------------------------------------------------


def test_networks_inherit_the_same():
    networks = []
    for supernet in pair(paper, discretization="darts"):
        sample = {}
        for module in supernet.modules():
            if isinstance(module, GatedCell):
                sample |= module.export(sample)
        network = freeze(paper(), sample, "darts").double()
        for parameter in network.parameters():
            nn.init.constant_(parameter, 0.1)
        inherit(network, supernet, sample)
        networks.append(network.eval())
    same(networks[0].state_dict(), networks[1].state_dict(), rtol=0, atol=0)


def test_batch_norms_are_estimated_alike():
    supernets = pair()
    batches = [images(batch=n) for n in (2, 3, 4)]
    for supernet in supernets:
        supernet.train()
        reestimate_batch_norm(supernet, batches, 3)
        assert all(module.training for module in supernet.modules())
        momenta = {m.momentum for m in supernet.modules() if isinstance(m, nn.BatchNorm2d)}
        assert momenta == {0.1}
    same(supernets[0].state_dict(), supernets[1].state_dict())
    check(*supernets)


@pytest.mark.parametrize("settings", [{}, {"single_level": True}, {"warmup_epochs": 1}, {"recompute": True}], ids=str)
def test_searches_have_the_same_history(settings, lightning, training, search, loader, tmp_path):
    """Through ``NasExperiment`` in float64, with the discretisation gap measured: every number of every epoch."""
    histories, states = [], []
    for fused in (False, True):
        torch.manual_seed(0)
        train, val = (loader(batches=3, batch=4, shape=(3, 6, 6), seed=s, dtype=torch.float64) for s in (1, 2))
        strategy = build(SearchConfig(strategy="fairdarts", fused=fused, arc_learning_rate=0.3, **settings), "val_loss")
        strategy.history = tmp_path / f"{fused}.jsonl"
        evaluator = lightning(training(momentum=0.9), train, val, max_epochs=2)
        strategy.measure = DiscretizationGap(evaluator, 2, "val_loss")
        search(few().double(), evaluator, strategy)
        assert bool(fused_cells(strategy.supernet)) == fused
        histories.append(read_history(strategy.history))
        states.append(strategy.supernet.state_dict())
    same(*states, rtol=1e-7, atol=1e-7)
    assert len(histories[0]) == 2
    for plain, fused in zip(*map(lambda h: map(flattened, h), histories), strict=True):
        assert plain == pytest.approx(fused, abs=1e-6)
        assert len(plain) > 2 * 5 * 4


def flattened(record, prefix="") -> dict[str, float]:
    """The numbers of a record of the history, but for its times."""
    found = {}
    for key, value in record.items() if isinstance(record, dict) else enumerate(record):
        if isinstance(value, dict | list):
            found |= flattened(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and "second" not in str(key) and "time" not in str(key):
            found[f"{prefix}{key}"] = value
    return found


def test_a_whole_search_in_float32_ends_at_the_same_gates(classification, search, loader):
    gates = []
    for fused in (False, True):
        torch.manual_seed(0)
        data = [loader(batches=4, batch=8, shape=(3, 8, 8), seed=seed) for seed in (1, 2)]
        strategy = FairDARTS(fused=fused)
        search(paper(width=4), classification(*data, max_epochs=2), strategy)
        gates.append(torch.cat([c.gates().flatten() for c in strategy.oneshot_module.choices().values()]).detach())
    assert (gates[0] - 0.5).abs().max() > 4e-3
    torch.testing.assert_close(*gates, rtol=0, atol=1e-4)


# -- layer choices -------------------------------------------------------------------------------------------------


class Hub(Space):
    """A stem, which hub operations need for their channels, and the parts."""

    def __init__(self, *parts):
        super().__init__(*parts)
        self.stem = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        return super().forward(self.stem(x))


def choice(names, stride=1, as_list=False, label="a"):
    operations = {name: OPS[name](4, stride, True) for name in names}
    return LayerChoice(list(operations.values()) if as_list else operations, label=label)


@norms
@pytest.mark.parametrize(("stride", "as_list"), [(1, True), (2, False)])
@pytest.mark.parametrize("names", [PAPER, SUBSETS["NASNet"], ["none", "sep_conv_3x3", "skip_connect"], ["conv_3x3"]])
def test_layers_of_hub_operations(names, stride, as_list, norm):
    plain, fused = pair(
        lambda: Hub(lambda: choice(names, stride, as_list), lambda: choice(names[-3:], label="b")), candidate_norm=norm
    )
    layers = [m for m in fused.modules() if isinstance(m, GatedLayer)]
    assert all(layer.together is not None for layer in layers)
    assert list(dict(plain.named_parameters())) == list(dict(fused.named_parameters()))
    check(plain, fused, (7, 6))
    unfuse(fused)
    assert all(layer.together is None for layer in layers)
    check(plain, fused, (7, 6))


def test_layers_recompute_too():
    results = [
        step(pair(lambda: Hub(lambda: choice(PAPER)), recompute=recompute)[1], images()) for recompute in (False, True)
    ]
    same(*results, rtol=0, atol=0)


OTHERS = {
    "bias": lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
    "ReLU6": lambda: nn.Sequential(nn.ReLU6(), nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)),
    "in place": lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)),
    "no ReLU": lambda: nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)),
    "no batch norm": lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1, bias=False)),
    "no statistics": lambda: nn.Sequential(
        nn.ReLU(), nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4, track_running_stats=False)
    ),
    "reflected": lambda: nn.Sequential(
        nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", bias=False), nn.BatchNorm2d(4)
    ),
    "padding by name": lambda: nn.Sequential(
        nn.ReLU(), nn.Conv2d(4, 4, 3, padding="same", bias=False), nn.BatchNorm2d(4)
    ),
    "ReLU behind": lambda: nn.Sequential(OPS["conv_1x1"](4, 1, True), nn.ReLU()),
    "dropout": lambda: nn.Sequential(OPS["conv_1x1"](4, 1, True), nn.Dropout(0.5)),
    "group norm": lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1, bias=False), nn.GroupNorm(2, 4)),
    "one number for all pixels": lambda: nn.AdaptiveAvgPool2d(1),
    "spectral norm": lambda: nn.Sequential(
        nn.ReLU(), nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 1, bias=False)), nn.BatchNorm2d(4)
    ),
    "a hook": lambda: hooked(),
}


def hooked():
    convolution = nn.Conv2d(4, 4, 1, bias=False)
    convolution.register_forward_hook(twice)
    return nn.Sequential(nn.ReLU(), convolution, nn.BatchNorm2d(4))


def twice(module, inputs, output):
    return 2 * output


@pytest.mark.parametrize("name", OTHERS)
def test_layers_of_another_structure_stay_plain(name):
    plain, fused = pair(lambda: Hub(lambda: LayerChoice([OPS["sep_conv_3x3"](4, 1, True), OTHERS[name]()], label="a")))
    assert fused.body[0].together is None
    results = []
    for supernet in (plain, fused):
        torch.manual_seed(1)
        results.append(step(supernet.train(), images()))
    same(*results, rtol=0, atol=0)


ODD = {
    "even dilated kernel": lambda: [
        nn.Conv2d(4, 4, 2, 2, padding=1, dilation=2, groups=4, bias=False), nn.Conv2d(4, 4, 1, bias=False)
    ],
    "unpadded, stride 2": lambda: [nn.Conv2d(4, 4, 3, 2, 1, groups=4, bias=False), nn.Conv2d(4, 4, 1, bias=False)],
    "two filters": lambda: [
        nn.Conv2d(4, 4, (3, 1), (2, 1), (1, 0), groups=4, bias=False),
        nn.Conv2d(4, 4, (1, 3), (1, 2), (0, 1), groups=4, bias=False),
        nn.Conv2d(4, 4, 1, bias=False),
    ],
    "pointwise first": lambda: [nn.Conv2d(4, 8, 1, 2, bias=False), nn.Conv2d(8, 4, 3, padding=1, bias=False)],
    "groups": lambda: [nn.Conv2d(4, 4, 3, 2, 1, groups=2, bias=False)],
    "wider inside": lambda: [
        nn.Conv2d(4, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1, bias=False)
    ],
    "a chain of three": lambda: [
        nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 3, 2, 1, groups=6, bias=False), nn.Conv2d(6, 6, 1, bias=False), nn.BatchNorm2d(6, affine=False),
        nn.ReLU(), nn.Conv2d(6, 4, 1, bias=False),
    ],
}  # fmt: skip


@norms
@pytest.mark.parametrize("name", ODD)
def test_layers_of_known_parts_in_other_orders(name, norm):
    """What no hub space has, but has the structure."""

    def make():
        odd = nn.Sequential(nn.ReLU(), nn.Sequential(*ODD[name]()), nn.BatchNorm2d(4))
        return LayerChoice({"odd": odd, "conv": OPS["conv_1x1"](4, 2, True), "pool": nn.MaxPool2d(3, 2, 1)}, label="a")

    plain, fused = pair(lambda: Hub(make), candidate_norm=norm)
    assert fused.body[0].together is not None
    check(plain, fused, (7, 6))


def test_s2_stays_plain():
    plain, fused = pair(lambda: S2(num_classes=3, dataset="cifar", depth=3, width=0.25))
    assert all(m.together is None for m in fused.modules() if isinstance(m, GatedLayer))
    check(plain, fused, (8, 8))


def test_layers_whose_outputs_differ_say_so():
    for supernet in pair(
        lambda: Hub(lambda: LayerChoice([OPS["sep_conv_3x3"](4, s, True) for s in (1, 2)], label="a"))
    ):
        with pytest.raises(InputError, match=r"what the candidates of 'a' put out cannot be summed"):
            supernet.train()(images())


# -- memory --------------------------------------------------------------------------------------------------------


def kept_bytes(supernet, x) -> int:
    """Bytes kept for the backward pass; each storage counts once, weights not."""
    own = {t.untyped_storage().data_ptr() for t in (*supernet.parameters(), *supernet.buffers())}
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        kept.append(tensor)  # alive, so that no address is used twice
        return tensor

    kept = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        assert supernet(x).requires_grad
    return sum(size for place, size in storages.items() if place not in own)


def test_less_is_kept_and_least_when_recomputing():
    x = images(16, 16, batch=4)
    kept = {}
    for recompute in (False, True):
        plain, fused = pair(lambda: paper(nodes=4), recompute=recompute)
        kept["plain", recompute], kept["fused", recompute] = (kept_bytes(s.train(), x) for s in (plain, fused))
    assert kept["fused", False] < 0.7 * kept["plain", False], kept
    assert kept["fused", True] < 0.8 * kept["fused", False], kept


@pytest.mark.parametrize("make", [lambda: few(nodes=4), lambda: Hub(lambda: choice(PAPER))], ids=["cells", "layer"])
def test_recomputing_in_half_precision_keeps_less_and_changes_no_bit(make):
    kept, results = [], []
    for recompute in (False, True):
        _, fused = pair(make, recompute=recompute)
        with torch.autocast("cpu", torch.bfloat16):
            kept.append(kept_bytes(fused.float().train(), images(16, 16).float()))
            output = fused(images(7, 6).float())
            output.float().square().sum().backward()
        results.append({"output": output.detach()} | gradients(fused) | fused.state_dict())
    assert kept[1] < 0.7 * kept[0], kept
    same(*results, rtol=0, atol=0)


def test_losses_of_float32_reach_everything():
    """Every weight and every α of a fused supernet has a gradient that is not 0."""
    _, fused = pair()
    fused.float()
    cross_entropy(fused(images(8, 8).float()), torch.tensor([1, 2, 3])).backward()
    assert all((p.grad != 0).any() for p in fused.parameters())
