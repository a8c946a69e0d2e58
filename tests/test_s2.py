"""S2: its layers and choices, sizes against the published FairNAS-A and a closed form, the scale of its supernet."""

import math
import re

import pytest
import torch
from nni.nas.space import model_context
from torch import nn

from nni_fairdarts import FairDARTS, InputError, freeze
from nni_fairdarts.network import count_multiply_adds, count_parameters
from nni_fairdarts.spaces import S2
from nni_fairdarts.spaces.s2 import scaled, stage_depths
from nni_fairdarts.supernet import GatedLayer

NAMES = ["k3e3", "k3e6", "k5e3", "k5e6", "k7e3", "k7e6", "skip_connect"]
# In channels, out channels, and the stride for ImageNet, of the 19 layers: written out, not computed.
CHAIN = [
    *[(16, 32, 2), (32, 32, 1)],
    *[(32, 40, 2), (40, 40, 1), (40, 40, 1), (40, 40, 1)],
    *[(40, 80, 2), (80, 80, 1), (80, 80, 1), (80, 80, 1)],
    *[(80, 96, 1), (96, 96, 1), (96, 96, 1), (96, 96, 1)],
    *[(96, 192, 2), (192, 192, 1), (192, 192, 1), (192, 192, 1)],
    (192, 320, 1),
]
# FairNAS-A, arXiv 1907.01845, as its authors published it, and its parameters.
FAIRNAS_A = [
    *["k7e3", "k3e3"],
    *["k7e3", "k3e6", "k7e6", "k3e3"],
    *["k3e3", "k7e6", "k7e6", "k5e3"],
    *["k3e6", "k5e3", "k5e3", "k3e6"],
    *["k3e6", "k7e6", "k3e6", "k7e6"],
    "k5e6",
]
FAIRNAS_A_PARAMETERS = 4_651_352
SMALL = {"num_classes": 5, "dataset": "cifar", "width": 0.25}


def raises(*texts):
    return pytest.raises(InputError, match="(?s)" + ".*".join(map(re.escape, texts)))


def sample_of(choices) -> dict:
    return {f"layer_{i}": choice for i, choice in enumerate(choices)}


def skips(count: int) -> dict:
    return sample_of(["skip_connect"] * count)


def norm_parameters(channels: int) -> int:
    return 2 * channels


def layer_parameters(name: str, channels: int, out: int, stride: int) -> int:
    if name == "skip_connect":
        return 0 if (channels, stride) == (out, 1) else channels * out + norm_parameters(out)
    kernel, expansion = int(name[1]), int(name[3])
    hidden = expansion * channels
    convolutions = channels * hidden + kernel**2 * hidden + hidden * out
    return convolutions + 2 * norm_parameters(hidden) + norm_parameters(out)


def chain_parameters(choices, classes=1000, in_channels=3) -> int:
    stem = 9 * in_channels * 32 + norm_parameters(32) + 9 * 32 + norm_parameters(32) + 32 * 16 + norm_parameters(16)
    head = 320 * 1280 + norm_parameters(1280) + 1280 * classes + classes
    return stem + sum(layer_parameters(n, *layer) for n, layer in zip(choices, CHAIN, strict=True)) + head


@pytest.fixture(scope="module")
def full():
    return S2()


# -- the space -----------------------------------------------------------------------------------------------------


def test_nineteen_layers_of_seven_choices(full):
    choices = full.simplify()
    assert list(choices) == [f"layer_{i}" for i in range(19)]
    assert all(choice.values == NAMES for choice in choices.values())


def test_the_skip_is_the_identity_where_the_shape_is_kept_and_a_projection_elsewhere(full):
    for layer, (channels, out, stride) in zip(full.layers, CHAIN, strict=True):
        skip = layer["skip_connect"]
        assert isinstance(skip, nn.Identity) == ((channels, stride) == (out, 1))
        assert count_parameters(skip) == layer_parameters("skip_connect", channels, out, stride)


def test_fairnas_a_is_in_the_space_parameter_for_parameter(full):
    network = full.freeze(sample_of(FAIRNAS_A))
    assert count_parameters(network) == FAIRNAS_A_PARAMETERS == chain_parameters(FAIRNAS_A)


@pytest.mark.parametrize("shift", range(3))
def test_parameters_of_other_chains(shift, full):
    choices = [NAMES[(3 * i + shift) % 7] for i in range(19)]
    assert count_parameters(full.freeze(sample_of(choices))) == chain_parameters(choices)


def test_classes_and_input_channels_are_counted():
    with model_context(skips(19)):
        network = S2(num_classes=7, in_channels=1)
    assert count_parameters(network) == chain_parameters(["skip_connect"] * 19, classes=7, in_channels=1)


@pytest.mark.parametrize(
    ("dataset", "side", "left"),
    [("imagenet", 224, 7), ("imagenet", 65, 3), ("cifar", 32, 4), ("cifar", 8, 1), ("cifar", 13, 2)],
)
def test_resolution_that_remains(dataset, side, left):
    """Sides of odd length too: every candidate of a layer rounds up."""
    space = S2(num_classes=5, dataset=dataset, depth=6, width=0.1).eval()
    supernet = FairDARTS().mutate_model(space)
    seen = []
    supernet.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    with torch.no_grad():
        assert supernet(torch.randn(1, 3, side, side)).shape == (1, 5)
    assert seen == [(1, scaled(320, 0.1), left, left)]


@pytest.mark.parametrize(
    ("depth", "stages"),
    [
        (19, [2, 4, 4, 4, 4, 1]),
        (14, [2, 3, 3, 3, 2, 1]),
        (11, [2, 2, 2, 2, 2, 1]),
        (6, [1] * 6),
        (2, [1, 1]),
        (1, [1]),
    ],
)
def test_depth_is_dealt_to_the_stages_in_turn(depth, stages):
    assert stage_depths(depth) == stages
    assert len(S2(depth=depth, width=0.1).layers) == depth


def test_width_multiplies_channels_in_steps_of_8():
    assert [scaled(channels, 0.5) for channels in (16, 32, 40, 80, 96, 192, 320)] == [8, 16, 24, 40, 48, 96, 160]
    assert [scaled(16, width) for width in (0.01, 1, 1.4, 2)] == [8, 16, 24, 32]


@pytest.mark.parametrize(
    ("wrong", "texts"),
    [
        ({"num_classes": 0}, ["num_classes must be a whole number, at least 1, got 0"]),
        ({"in_channels": 1.5}, ["in_channels must be a whole number, at least 1, got 1.5"]),
        ({"dataset": "svhn"}, ["unknown dataset 'svhn'; known: imagenet, cifar"]),
        ({"depth": 0}, ["depth must be a whole number, at least 1, got 0"]),
        ({"depth": True}, ["depth must be a whole number, at least 1, got True"]),
        ({"depth": 20}, ["depth must be at most 19", "got 20"]),
        ({"width": 0}, ["width must be a factor over 0", "got 0; 1 is the full S2"]),
        ({"width": math.nan}, ["width must be a factor over 0", "got nan"]),
        ({"width": "half"}, ["width must be a factor over 0", "got 'half'"]),
    ],
    ids=str,
)
def test_bad_arguments(wrong, texts):
    with raises(*texts):
        S2(**wrong)


def test_images_with_other_channels_are_refused():
    with raises("takes images (N, 3, H, W), got (2, 1, 8, 8)", "S2(in_channels=...)"):
        S2(**SMALL, depth=1)(torch.zeros(2, 1, 8, 8))


# -- frozen --------------------------------------------------------------------------------------------------------


def test_a_frozen_space_is_a_plain_chain_with_the_chosen_weights():
    space = S2(**SMALL, depth=8).eval()
    choices = ["k3e3", "skip_connect", "k5e6", "k7e3", "skip_connect", "k3e6", "k7e6", "k5e3"]
    network = space.freeze(sample_of(choices))
    chain = nn.Sequential(
        space.stem,
        *[layer[name] for layer, name in zip(space.layers, choices, strict=True)],
        space.head,
        space.classifier,
    )
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(network(images), chain(images))
    assert len(space.norms) == 8, "freezing takes the space's own norms away"


def test_a_fresh_instance_freezes_alike():
    sample = sample_of(["k3e3", "skip_connect", "k5e6"])
    frozen = S2(**SMALL, depth=3).freeze(sample)
    with model_context(sample):
        fresh = S2(**SMALL, depth=3)
    shapes = [{name: tensor.shape for name, tensor in net.state_dict().items()} for net in (frozen, fresh)]
    assert shapes[0] == shapes[1]
    fresh.load_state_dict(frozen.state_dict())
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(frozen.eval()(images), fresh.eval()(images))


def test_several_operations_of_a_layer_freeze_to_their_sum():
    space = S2(**SMALL, depth=2).eval()
    network = freeze(space, {"layer_0": ["k3e3", "skip_connect"], "layer_1": ["k5e3"]})
    images = torch.randn(2, 3, 8, 8)
    first, second = space.layers
    x = space.stem(images)
    x = second["k5e3"](first["k3e3"](x) + first["skip_connect"](x))
    torch.testing.assert_close(network(images), space.classifier(space.head(x)), rtol=0, atol=1e-6)


# -- supernet ------------------------------------------------------------------------------------------------------


def test_the_supernet_sums_gated_candidates_and_normalizes():
    space = S2(**SMALL, depth=8).double()
    supernet = FairDARTS().mutate_model(space)
    for layer in supernet.layers:
        assert isinstance(layer, GatedLayer)
        torch.nn.init.normal_(layer.alpha)
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    x = supernet.stem(images)
    for layer in supernet.layers:
        x = sum(1 / (1 + torch.exp(-alpha)) * layer[name](x) for alpha, name in zip(layer.alpha, NAMES, strict=True))
        deviation = x.var((0, 2, 3), correction=0) + 1e-5
        x = (x - x.mean((0, 2, 3))[:, None, None]) / deviation.sqrt()[:, None, None]
    expected = supernet.classifier(supernet.head(x))
    torch.testing.assert_close(supernet(images), expected, rtol=0, atol=1e-10)


def scales(normalize: bool, alpha: float = 0.0):
    """Standard deviation of each layer's sum, and mean |gradient| of each layer's α, at depth 19 in float32."""
    torch.manual_seed(0)
    # Narrower than this, the stages of 80 and 96 channels are of one width, and seven residuals follow each other.
    space = S2(num_classes=5, dataset="cifar", width=0.5, normalize=normalize)
    supernet = FairDARTS(alpha_init=alpha).mutate_model(space)
    spread = []
    for layer in supernet.layers:
        layer.register_forward_hook(lambda module, inputs, output: spread.append(float(output.detach().std())))
    logits = supernet(torch.randn(8, 3, 32, 32))
    nn.functional.cross_entropy(logits, torch.arange(8) % 5).backward()
    assert logits.isfinite().all()
    assert logits.abs().max() < 10
    assert all(p.grad.isfinite().all() for p in supernet.parameters())
    return spread, [float(layer.alpha.grad.abs().mean()) for layer in supernet.layers]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 8.0])
def test_nineteen_layers_neither_explode_nor_vanish(normalize, alpha):
    """Residuals multiply by Σg within a stage; where the shape changes, and with ``normalize`` everywhere, by 1."""
    spread, gradients = scales(normalize, alpha)
    gain = 7 * torch.tensor(alpha).sigmoid().item()
    start = math.sqrt(7) * gain / 7  # seven candidates of variance 1, of independent weights
    firsts = [spread[i] for i, (channels, out, stride) in enumerate(CHAIN) if (channels, stride) != (out, 1)]
    assert all(value == pytest.approx(start, rel=0.2) for value in firsts)
    assert max(spread) < 1.5 * start * (gain if normalize else gain**3)
    # Layers of one stage: the four of 96 channels.
    first, *_, last = gradients[10:14]
    assert last > 1e-8
    if alpha == 0 and normalize:
        assert first / last < 10
    if alpha == 0 and not normalize:
        assert first / last > 20, "the reason for normalize is gone"
        assert max(spread) > start * gain**3


def test_it_is_searched_and_exported(search, classification, loader, tmp_path):
    space = S2(num_classes=10, dataset="cifar", depth=3, width=0.1)
    evaluator = classification(loader(2, batch=4, seed=1), loader(2, batch=4, seed=2))
    strategy = FairDARTS(arc_learning_rate=0.1, recompute=True, history=tmp_path / "history.jsonl")
    experiment = search(space, evaluator, strategy)
    sample = experiment.export_top_models(formatter="dict")[0]
    strongest = [NAMES[int(layer.alpha.argmax())] for layer in strategy.supernet.layers]
    assert sample == sample_of(strongest)
    assert all(layer.alpha.detach().abs().max() > 0.05 for layer in strategy.supernet.layers)
    network = experiment.export_top_models(formatter="instance")[0]
    derived = S2(num_classes=10, dataset="cifar", depth=3, width=0.1).freeze(sample)
    assert network.state_dict().keys() == derived.state_dict().keys()
    assert count_multiply_adds(network, (3, 8, 8)) == count_multiply_adds(derived, (3, 8, 8)) > 0


@pytest.mark.parametrize(("dataset", "least"), [("imagenet", 64), ("cifar", 8)])
def test_images_too_small_for_the_strides(dataset, least):
    space = S2(dataset=dataset, depth=6, width=0.25)
    assert space(torch.randn(2, 3, least, least)).shape == (2, 1000)
    with raises(f"images of {least}×{least - 1} are too small for S2(dataset={dataset!r})", f"needs {least}×{least}"):
        space(torch.randn(2, 3, least, least - 1))
