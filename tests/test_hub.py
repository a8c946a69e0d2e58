"""Every model space of NNI's hub: searched, exported, frozen, instantiated, inherited, at its smallest sizes."""

import json

import pytest
import torch
from nni.nas.hub.pytorch import (
    DARTS,
    ENAS,
    PNAS,
    AmoebaNet,
    AutoFormer,
    MobileNetV3Space,
    NasBench201,
    NASNet,
    ProxylessNAS,
    ShuffleNetSpace,
)
from torch.nn.modules.batchnorm import _BatchNorm

from nni_fairdarts import FairDARTS, freeze
from nni_fairdarts._nni import BaseSuperNetModule
from nni_fairdarts.inheritance import inherit
from nni_fairdarts.spaces import S2
from nni_fairdarts.supernet import choices_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*keeps nothing that is connected:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:.*no gate reaches the threshold:RuntimeWarning"),
]

SPACES = {
    "DARTS": (lambda: DARTS(4, 3, "cifar"), 8),
    "DARTS depth": (lambda: DARTS(4, (3, 4, 6), "cifar"), 8),
    "DARTS width depth": (lambda: DARTS((4, 8), (3, 5), "cifar"), 8),
    "DARTS ImageNet stem": (lambda: DARTS(4, 3, "imagenet"), 32),
    "NASNet": (lambda: NASNet((4, 8), (3, 4), "cifar"), 8),
    "ENAS": (lambda: ENAS(4, 3, "cifar"), 8),
    "AmoebaNet": (lambda: AmoebaNet(4, 3, "cifar"), 8),
    "PNAS": (lambda: PNAS(4, 3, "cifar"), 8),
    "MobileNetV3Space": (
        lambda: MobileNetV3Space(
            num_labels=10,
            base_widths=(16,) * 9,
            width_multipliers=(0.5, 1.0),
            expand_ratios=(1.0, 2.0),
            depth_range=(1, 2),
        ),
        160,  # smaller, and the last kernels would see nothing but padding around one pixel
    ),
    "ProxylessNAS": (lambda: ProxylessNAS(10, base_widths=(8,) * 8 + (16,)), 160),
    "ShuffleNetSpace": (lambda: ShuffleNetSpace(num_labels=10, channel_search=True), 32),
    "AutoFormer": (
        lambda: AutoFormer((64, 128), (1.0, 2.0), (1, 2), (1, 2), img_size=32, patch_size=16, num_labels=10),
        32,
    ),
    "NasBench201": (lambda: NasBench201(4, 1), 8),
    "S2": (lambda: S2(10, dataset="cifar", depth=6, width=0.25, normalize=False), 32),
}
LOOSE_ENDS = ("NASNet", "ENAS", "AmoebaNet")  # the supernet concatenates every node, their networks only loose ends
each = pytest.mark.parametrize("name", SPACES)


def choices(supernet) -> dict:
    return {choice.label: choice for module in supernet.modules() for choice in choices_of(module)}


def exported(supernet) -> dict:
    sample = {}
    for module in supernet.modules():
        if isinstance(module, BaseSuperNetModule):
            sample |= module.export(sample)
    return sample


def harden(supernet, seed: int) -> None:
    """Gates of exactly 0 and 1 that stand for one drawn network: two inputs a node, one of everything else."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count):
        return int(torch.randint(count, (), generator=generator))

    for choice in choices(supernet).values():
        alpha = choice.alpha.data.fill_(-1e4)
        if alpha.ndim == 1:
            alpha[draw(len(alpha))] = 1e4
            continue
        row, node = 0, 2
        while row < len(alpha):
            for source in torch.randperm(node, generator=generator)[:2].tolist():
                alpha[row + source, draw(alpha.shape[1])] = 1e4
            row, node = row + node, node + 1


@each
def test_one_epoch_and_every_export(name, search, classification, loader):
    build, side = SPACES[name]
    torch.manual_seed(0)
    strategy = FairDARTS(export="multi", inherit_weights=True, reestimate_batches=1, threshold=0.5)
    data = {"train": loader(shape=(3, side, side), batch=4), "val": loader(shape=(3, side, side), batch=4, seed=3)}
    num_classes = 1000 if "ImageNet" in name else 10
    experiment = search(build(), classification(num_classes=num_classes, **data), strategy)
    (sample,) = experiment.export_top_models(formatter="dict")
    (network,) = experiment.export_top_models(formatter="instance")
    images = torch.randn(2, 3, side, side)
    assert network.train()(images).shape[0] == 2
    # The dict alone, also by way of JSON, is enough for a network of the same weights' shapes.
    fresh = freeze(build(), json.loads(json.dumps(sample)))
    assert {k: v.shape for k, v in fresh.state_dict().items()} == {k: v.shape for k, v in network.state_dict().items()}
    assert fresh.train()(images).isfinite().all()
    # With "single" NNI's own freeze takes the same dict, or ours where a node has other than two inputs.
    strategy.export = "single"
    for module in strategy.supernet.modules():
        if hasattr(module, "options"):
            module.options = type(module.options)(**{**vars(module.options), "export": "single"})
    single = exported(strategy.supernet)
    assert freeze(build(), single).train()(images).isfinite().all()
    if not name.startswith(("DARTS", "PNAS", *LOOSE_ENDS)):
        assert build().freeze(single).train()(images).isfinite().all()


@each
def test_every_alpha_has_a_gradient(name):
    build, side = SPACES[name]
    torch.manual_seed(0)
    supernet = FairDARTS().mutate_model(build())
    logits = supernet(torch.randn(4, 3, side, side))
    (logits * torch.randn_like(logits)).sum().backward()
    for label, choice in choices(supernet).items():
        assert choice.alpha.grad is not None, label
        assert choice.alpha.grad.abs().min() > 0, label


@each
def test_with_gates_of_0_and_1_the_supernet_is_the_network_that_inherits_its_weights(name):
    build, side = SPACES[name]
    torch.manual_seed(0)
    supernet = FairDARTS(candidate_norm="space", discretization="darts").mutate_model(build()).double()
    for module in supernet.modules():  # statistics and scales that a mix-up would show in
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            for parameter in module.parameters():
                parameter.data.normal_()
    images = torch.randn(2, 3, side, side, dtype=torch.float64)
    for seed in range(2):
        harden(supernet, seed)
        sample = exported(supernet)
        network = freeze(build(), sample, "darts").double()
        fresh = {k: v.clone() for k, v in network.state_dict().items()}
        inherit(network, supernet, sample)
        assert any(not torch.equal(v, fresh[k]) for k, v in network.state_dict().items())
        if name.startswith(LOOSE_ENDS) or sample.get("depth") in (3, 4):
            continue  # stages cut to one cell, after which one layer is fresh: see inherit
        with torch.no_grad():
            expected, found = supernet.eval()(images), network.eval()(images)
        scale = expected.abs().max()
        torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-10)
