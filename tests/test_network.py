"""Derived networks: sizes, drop path, stems, auxiliary head, published weights, and those of NNI's samples."""

import copy
import re

import pytest
import torch
from nni.nas.hub.pytorch import DARTS as HubDARTS
from nni.nas.hub.pytorch import PNAS, AmoebaNet, NASNet
from nni.nas.space import model_context
from reference import derived_cell
from torch import nn

from nni_fairdarts import DerivedNetwork, Genotype, InputError, derive_network, load_published
from nni_fairdarts.genotype import PUBLISHED_NAMES, published
from nni_fairdarts.network import auxiliary_map_size, check_image_size, count_multiply_adds, count_parameters
from nni_fairdarts.spaces import DARTS

CLOSE = {"rtol": 0, "atol": 1e-10}
CHAIN = (("sep_conv_3x3", 2, 0), ("skip_connect", 3, 2), ("max_pool_3x3", 4, 3), ("dil_conv_3x3", 5, 1))


def genotype(normal=CHAIN, reduce=CHAIN, **rest):
    return Genotype(normal, reduce, **rest)


def small(name="FairDARTS_a", **changes):
    torch.manual_seed(0)
    which = published(name) if isinstance(name, str) else name
    return DerivedNetwork(which, **{"width": 4, "num_cells": 3, **changes}).double()


def images(size=8, channels=3, count=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, channels, size, size, dtype=torch.float64, generator=generator)


def kernels(network):
    """Shape of every parameter, in order."""
    return [tuple(p.shape) for p in network.parameters()]


def raises(*texts):
    return pytest.raises(InputError, match="(?s)" + ".*".join(map(re.escape, texts)))


# -- sizes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "millions", "multiply_adds", "head"),
    [
        ("FairDARTS_a", 2.83, 373, True),
        ("FairDARTS_b", 3.88, 536, True),
        ("FairDARTS_c", 2.59, 400, False),
        ("FairDARTS_d", 3.84, 532, True),
        ("FairDARTS_e", 3.12, 414, True),
        ("FairDARTS_f", 3.62, 497, True),
        ("FairDARTS_g", 3.38, 453, True),
    ],
)
def test_published_sizes(name, millions, multiply_adds, head):
    network = DerivedNetwork(published(name), auxiliary_loss=True)  # the defaults are 36 channels and 20 cells
    assert count_parameters(network, auxiliary_head=head) / 1e6 == pytest.approx(millions, abs=0.01)
    assert count_multiply_adds(network, (3, 32, 32)) / 1e6 == pytest.approx(multiply_adds, rel=0.01)
    assert network.training  # counting leaves the mode as it was


@pytest.mark.parametrize("name", PUBLISHED_NAMES)
def test_every_published_architecture_trains(name):
    network = small(name, num_cells=5, drop_path_prob=0.1)
    logits = network(images(16))
    assert logits.shape == (2, 10)
    nn.functional.cross_entropy(logits, torch.tensor([1, 8])).backward()
    without = [n for n, p in network.named_parameters() if p.grad is None]
    assert without == []


@pytest.mark.parametrize(("classes", "channels"), [(7, 1), (100, 3), (2, 4)])
def test_classes_and_channels(classes, channels):
    for dataset, size in (("cifar", 8), ("imagenet", 32)):
        network = small(num_classes=classes, in_channels=channels, dataset=dataset)
        assert network(images(size, channels)).shape == (2, classes)


@pytest.mark.parametrize(
    ("dataset", "stem", "cells"),
    [
        ("cifar", {"stem": (12, 32)}, [(16, 32), (32, 16), (32, 16), (64, 8), (64, 8)]),
        ("imagenet", {"stem0": (4, 8), "stem1": (4, 4)}, [(16, 4), (32, 2), (32, 2), (64, 1), (64, 1)]),
    ],
)
def test_stems_and_cells_put_out(dataset, stem, cells):
    """(channels, side) after the stems, an eighth of the side with the ImageNet stem, and after each cell."""
    network, seen = small(genotype(), num_cells=5, dataset=dataset), {}
    for name, module in network.named_modules():
        if name in stem or name.startswith("cells.") and name.count(".") == 1:
            module.register_forward_hook(lambda m, i, output, name=name: seen.update({name: tuple(output.shape[1:])}))
    network(images(32))
    expected = {**stem, **{f"cells.{i}": size for i, size in enumerate(cells)}}
    assert seen == {name: (channels, side, side) for name, (channels, side) in expected.items()}


@pytest.mark.parametrize(("cells", "reductions"), [(3, [1, 2]), (8, [2, 5]), (14, [4, 9]), (20, [6, 13])])
def test_reduction_cells_stand_at_a_third_and_two_thirds(cells, reductions):
    network = small(genotype(reduce=CHAIN[:1]), num_cells=cells)  # reduction cells keep one node
    assert [i for i, cell in enumerate(network.cells) if len(cell.ops) == 1] == reductions


# -- pruning -------------------------------------------------------------------------------------------------------


def test_pruned_nodes_narrow_the_next_cell():
    """Node 3 has no input, so the edge from it goes, and with it node 4: two of four nodes are left."""
    normal = (("sep_conv_3x3", 2, 0), ("skip_connect", 4, 3), ("dil_conv_3x3", 5, 1), ("skip_connect", 5, 4))
    network = small(genotype(normal=normal), num_cells=6)
    assert [cell.out_channels for cell in network.cells] == [8, 8, 32, 16, 64, 32]
    assert [cell.preprocessor.pre1[1].in_channels for cell in network.cells] == [12, 8, 8, 32, 16, 64]
    assert network.classifier.in_features == 32
    assert [edge.node for edge in network.cells[0].edges] == [2, 5]
    assert network(images()).shape == (2, 10)
    assert network.genotype == genotype(normal=normal)  # as it was given


@pytest.mark.parametrize(
    ("cells", "text"),
    [
        ({"normal": ()}, "the normal cell of this genotype keeps no operation that its inputs reach"),
        ({"reduce": (("skip_connect", 4, 3), ("skip_connect", 3, 2))}, "the reduce cell of this genotype keeps no"),
        ({"normal_concat": ()}, "derive it at a lower threshold, or give the cell an edge from node 0 or 1"),
    ],
)
def test_an_empty_cell_is_refused(cells, text):
    with raises(text):
        small(genotype(**cells))


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ({"num_cells": 2}, "num_cells must be at least 3 (normal, reduction, reduction), got 2"),
        ({"width": 5}, "width must be an even number of channels, at least 2, got 5"),
        ({"width": 0}, "width must be an even number of channels, at least 2, got 0"),
        ({"dataset": "svhn"}, "unknown stem 'svhn'; known: cifar, imagenet"),
        ({"image_size": 3}, "images of 3×3 are too small for the cifar stem"),
        ({"image_size": 28, "dataset": "imagenet"}, "need 32×32 or more; resize them (data.image_size), or use the "),
    ],
)
def test_sizes_that_cannot_be_built(sizes, text):
    with raises(text):
        small(**sizes)


@pytest.mark.parametrize(("dataset", "least"), [("cifar", 4), ("imagenet", 32)])
def test_the_smallest_images_that_are_taken_go_through(dataset, least):
    check_image_size(least, dataset)
    with raises(f"need {least}×{least} or more"):
        check_image_size(least - 1, dataset)
    assert small(genotype(), dataset=dataset)(images(least)).shape == (2, 10)


# -- drop path -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("name", ["FairDARTS_a", "FairDARTS_e", "DARTS_V2", "SNAS"])
def test_drop_path_of_a_cell(name, index):
    """3-tuples: on the sum of a node; 2-tuples: on each operation that is no identity. The naive version, seeded."""
    which = published(name)
    network = small(which, drop_path_prob=0.4)
    cell, style = network.cells[index], "darts" if name in ("DARTS_V2", "SNAS") else "fairdarts"
    edges = [(e.operation, e.node, e.source) for e in (which.reduce if index else which.normal)]
    x = images(8, 12, count=16), images(8, 12 if index == 0 else network.cells[0].out_channels, count=16)
    torch.manual_seed(5)
    output = cell(*x)
    torch.manual_seed(5)
    torch.testing.assert_close(output, derived_cell(cell, edges, index == 1, style, 0.4, *x), **CLOSE)
    assert not torch.equal(output, cell(*x))  # by chance anew


@pytest.mark.parametrize(("style", "survives"), [("darts", [0, 1]), ("fairdarts", [])])
def test_paths_dropped_for_certain(style, survives):
    """As good as all paths drop: only the identities of a 2-tuple cell are left."""
    edges = [("skip_connect", 2, 0), ("sep_conv_3x3", 2, 1), ("skip_connect", 3, 0), ("skip_connect", 3, 1)]
    edges += [("sep_conv_3x3", 4, 0), ("max_pool_3x3", 4, 1), ("dil_conv_3x3", 5, 0), ("dil_conv_3x3", 5, 1)]
    network = small(genotype(edges, edges, style=style), drop_path_prob=1 - 1e-12)
    nodes = network.cells[0](images(channels=12), images(channels=12)).chunk(4, 1)
    assert [i for i, node in enumerate(nodes) if node.any()] == survives


def test_no_path_drops_in_evaluation_nor_at_0():
    network = small(drop_path_prob=0.9)
    plain = small()
    torch.testing.assert_close(network.eval()(images()), plain.eval()(images()), **CLOSE)
    network.set_drop_path_prob(0.0)
    torch.testing.assert_close(network.train()(images()), plain.train()(images()), **CLOSE)
    network.set_drop_path_prob(0.9)
    assert not torch.equal(network(images()), plain(images()))


# -- auxiliary head ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dataset", "size"), [("cifar", 32), ("cifar", 40), ("imagenet", 224)])
def test_auxiliary_head(dataset, size):
    network = small(genotype(), dataset=dataset, auxiliary_loss=True, num_classes=7, image_size=size)
    plain = small(genotype(), dataset=dataset, num_classes=7)
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("auxiliary_head.")})
    logits, auxiliary = network(images(size))
    assert logits.shape == auxiliary.shape == (2, 7)
    torch.testing.assert_close(logits, plain(images(size)), **CLOSE)  # the head changes nothing it reads
    auxiliary.sum().backward()
    assert network.stem1[1].weight.grad is not None if dataset == "imagenet" else network.stem[0].weight.grad.any()
    assert network.classifier.weight.grad is None
    norms = [m for m in network.auxiliary_head.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == (2 if dataset == "cifar" else 1)  # the published ImageNet head lacks the second
    assert network.eval()(images(size)).shape == (2, 7)


@pytest.mark.parametrize(
    ("dataset", "size", "text"),
    [
        ("cifar", 8, "needs a map of 8×8 behind the second reduction cell (images of 32×32), but it is 2×2"),
        ("cifar", 64, "but it is 16×16; turn the auxiliary loss off (auxiliary_weight 0), or resize the images"),
        ("imagenet", 64, "the imagenet stem needs a map of 7×7 behind the second reduction cell (images of 224×224)"),
    ],
)
def test_auxiliary_head_needs_its_map(dataset, size, text):
    with raises(text):
        small(genotype(), dataset=dataset, auxiliary_loss=True, image_size=size)
    network = small(genotype(), dataset=dataset, auxiliary_loss=True)
    with raises(text):
        network(images(size))
    assert network.eval()(images(size)).shape == (2, 10)


@pytest.mark.parametrize("size", [4, 5, 7, 31, 32, 33, 38])
def test_auxiliary_map_size_is_that_of_the_network(size):
    network, seen = small(genotype()), []
    network.cells[2].register_forward_hook(lambda m, i, output: seen.append(output.shape[-1]))
    network(images(size))
    assert seen == [auxiliary_map_size(size, "cifar")]


# -- published weights ---------------------------------------------------------------------------------------------


def published_names(network):
    """The network's weights as the published code names them: 3-tuples by node, source and place, 2-tuples by number.

    Convolutions sit in an ``op``; a factorized reduction (conv_1, conv_2, bn) and what is no cell's does not.
    """
    found = {}
    for name, value in network.state_dict().items():
        parts = name.split(".")
        if parts[0] == "cells":
            cell, kind, which, rest = parts[1], parts[2], parts[3], parts[4:]
            rest = rest if rest[0] in ("conv_1", "conv_2", "bn") else ["op", *rest]
            if kind == "ops":
                edges = network.cells[int(cell)].edges
                edge = edges[int(which)]
                place = [e for e in edges if (e.node, e.source) == (edge.node, edge.source)].index(edge)
                label = which if network.genotype.style == "darts" else f"{edge.node}.{edge.source}.{place}"
                parts = ["cells", cell, "_ops", label, *rest]
            else:
                parts = ["cells", cell, f"preprocess{which[-1]}", *rest]
        found[".".join(parts)] = value.clone()
    return found


TWO_ON_AN_EDGE = (*CHAIN, ("sep_conv_5x5", 2, 0), ("sep_conv_3x3", 5, 1))


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("which", ["DARTS_V2", "PDARTS", "FairDARTS_b", "FairDARTS_c", genotype(TWO_ON_AN_EDGE)])
def test_published_weights_come_back(which, prefix):
    trained, fresh = small(which, num_cells=5, auxiliary_loss=True), small(which, num_cells=5, auxiliary_loss=True)
    for value in trained.state_dict().values():
        if value.is_floating_point():
            nn.init.uniform_(value, 0.5, 2)
    weights = {prefix + name: value for name, value in published_names(trained).items()}
    assert load_published(fresh, weights) is fresh
    for name, value in trained.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(fresh.state_dict()[name], value), name
    plain = load_published(small(which, num_cells=5), weights)  # without the auxiliary head
    torch.testing.assert_close(plain.eval()(images()), trained.eval()(images()), **CLOSE)


def test_published_weights_of_pruned_edges_are_left_out():
    with_dead_ends = (("skip_connect", 4, 3), *CHAIN[:1], CHAIN[3], ("sep_conv_3x3", 5, 4), ("sep_conv_5x5", 5, 3))
    network = small(genotype(normal=with_dead_ends))
    weights = published_names(network)
    dead = {
        f"cells.0._ops.5.{source}.0.op.{place}.weight": torch.zeros(1) for source in (3, 4) for place in (1, 2, 5, 6)
    }
    load_published(network, {**weights, **dead})
    with raises("1 unknown, such as cells.0._ops.2.1.0.op.1.weight"):
        load_published(network, {**weights, "cells.0._ops.2.1.0.op.1.weight": torch.zeros(1)})


def without(name):
    return lambda weights: weights.pop(name)


def other_shape(weights):
    weights["classifier.weight"] = torch.zeros(10, 3)


@pytest.mark.parametrize(
    ("change", "texts"),
    [
        (without("stem.0.weight"), ["not of this network: 1 missing, such as stem.0.weight. Give the width, depth"]),
        (without("cells.1.preprocess0.op.1.weight"), ["1 missing, such as cells.1.preprocessor.pre0.1.weight"]),
        (lambda w: w.update({"head.bias": torch.zeros(1)}), ["1 unknown, such as head.bias"]),
        (lambda w: w.update({"cells.7._ops.0.op.1.weight": torch.zeros(1)}), ["1 unknown, such as cells.7._ops.0.op"]),
        (
            lambda w: (w.pop("classifier.bias"), w.update(x=torch.ones(1))),
            ["1 missing, such as", "; 1 unknown, such as x"],
        ),
        (other_shape, ["classifier.weight has shape (10, 3) in these weights and (10, 64) in the network; give the"]),
    ],
)
def test_published_weights_that_do_not_fit(change, texts):
    network = small("DARTS_V2")
    weights, before = published_names(network), copy.deepcopy(network.state_dict())
    change(weights)
    for name in weights:
        weights[name] = weights[name] + 1
    with raises(*texts):
        load_published(network, weights)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


# -- NNI's spaces --------------------------------------------------------------------------------------------------


def nni_sample(space, seed=0):
    """A random sample of NNI's own: two operations for every node."""
    generator = torch.Generator().manual_seed(seed)
    sample = {}
    for label, mutable in space.simplify().items():
        value = mutable.values[int(torch.randint(len(mutable.values), (1,), generator=generator))]
        sample[label] = [value] if "/input_" in label else value
    return sample


@pytest.mark.parametrize(
    "make",
    [
        lambda: HubDARTS(width=4, num_cells=5),
        lambda: DARTS(width=4, num_cells=3, num_classes=7, in_channels=1),
        lambda: DARTS(width=4, num_cells=3, dataset="imagenet", num_classes=5),
        lambda: PNAS(width=4, num_cells=3),
        lambda: NASNet(width=16, num_cells=3),
        lambda: AmoebaNet(width=4, num_cells=4),
    ],
    ids=["DARTS", "own", "imagenet", "PNAS", "NASNet", "AmoebaNet"],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_nnis_own_samples_give_nnis_own_networks(make, seed):
    """NNI's frozen space and the derived network: the same weights, in order, give the same logits."""
    space = make()
    sample = nni_sample(space, seed)
    with model_context(sample):
        theirs = make().double().eval()
    network = derive_network(space, sample).double().eval()
    values = list(theirs.state_dict().values())
    assert [v.shape for v in values] == [v.shape for v in network.state_dict().values()]
    network.load_state_dict(dict(zip(network.state_dict(), values, strict=True)))
    size = 8 if space.dataset == "cifar" else 32
    x = images(size, derived_channels(network))
    torch.testing.assert_close(network(x), theirs(x), **CLOSE)


def derived_channels(network):
    return next(m.in_channels for m in network.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize("dataset", ["cifar", "imagenet"])
def test_own_space_keeps_classes_channels_and_head_when_frozen(dataset):
    space = DARTS(4, 3, dataset, num_classes=7, in_channels=1)
    sample = nni_sample(space)
    size = 32 if dataset == "cifar" else 224
    with model_context(sample):
        built = DARTS(4, 3, dataset, True, num_classes=7, in_channels=1)
    again = built.freeze(sample)
    assert type(space.freeze(sample)) is DARTS
    for network in (space.freeze(sample), space.freeze(sample).freeze(sample), built, again):
        assert network.classifier.out_features == network.num_labels == 7
        assert derived_channels(network) == 1
        if network.auxiliary_loss:
            logits, auxiliary = network(torch.randn(2, 1, size, size))
            assert auxiliary.shape == (2, 7)
        else:
            logits = network(torch.randn(2, 1, size, size))
        assert logits.shape == (2, 7)
    assert built.auxiliary_loss
    assert again.auxiliary_loss
    derived = derive_network(built, sample)
    assert derived.auxiliary_loss
    assert derived.auxiliary_head.classifier.out_features == 7
    assert kernels(derived) == kernels(built) or dataset == "imagenet"


def test_own_space_with_nnis_numbers_is_nnis():
    torch.manual_seed(3)
    theirs = HubDARTS(width=4, num_cells=3, dataset="cifar")
    own = DARTS(width=4, num_cells=3)
    assert list(own.simplify()) == list(theirs.simplify())
    assert {k: v.shape for k, v in own.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert (DARTS().width, DARTS().num_cells) == (16, 8)


@pytest.mark.parametrize("wrong", [{"num_classes": 0}, {"in_channels": -1}])
def test_own_space_refuses(wrong):
    (name, value), *_ = wrong.items()
    with raises(f"{name} must be at least 1, got {value}"):
        DARTS(4, 3, **wrong)
