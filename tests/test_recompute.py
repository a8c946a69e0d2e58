"""Recomputation: less is kept, and nothing else changes, to the last bit."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from nni_fairdarts import FairDARTS
from nni_fairdarts.spaces import S2
from nni_fairdarts.supernet.recompute import recomputed


def network() -> nn.Module:
    """Batch norms of every kind, dropout, a module in two places, and buffers that outputs depend on."""
    torch.manual_seed(0)
    inner = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU6(inplace=True), nn.Dropout(0.3), nn.BatchNorm2d(4)
    )
    return nn.Sequential(
        nn.Conv2d(4, 4, 1),
        nn.BatchNorm2d(4, momentum=None),
        inner,
        inner,
        nn.BatchNorm2d(4, affine=False, track_running_stats=False),
        nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 1)),  # every forward pass turns its buffers further
    ).double()


def plain(module, *args, **kwargs):
    return module(*args, **kwargs)


def steps(call, *, training=True, frozen=False, autocast=False, passes=1) -> list[torch.Tensor]:
    """Everything that two forward and backward passes leave behind."""
    module = network().train(training)
    module.requires_grad_(not frozen)
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    left = []
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            y = call(module, x)
        for i in range(passes):
            y.square().sum().backward(retain_graph=i < passes - 1)
        left += [y, x.grad.clone(), torch.rand(1)]
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    assert len(grads) == (0 if frozen else len(list(module.parameters())))
    return [*left, *grads, *module.buffers()]


@pytest.mark.parametrize(
    "options",
    [{}, {"training": False}, {"frozen": True}, {"autocast": True}, {"passes": 2}],
    ids=str,
)
def test_outputs_gradients_buffers_and_random_numbers_are_those_of_a_plain_call(options):
    for ours, expected in zip(steps(recomputed, **options), steps(plain, **options), strict=True):
        assert torch.equal(ours, expected)


def test_torchs_checkpoint_alone_would_count_batches_twice():
    """What ``recomputed`` is there for: if this fails, torch has learnt it."""
    counts = {}
    for call in (recomputed, lambda module, x: checkpoint(module, x, use_reentrant=False)):
        norm = nn.BatchNorm2d(4)
        convolution = nn.Sequential(norm, nn.Conv2d(4, 4, 1))  # torch stops behind the last tensor that it needs
        call(convolution, torch.randn(2, 4, 3, 3, requires_grad=True)).sum().backward()
        counts[call] = int(norm.num_batches_tracked)
    assert list(counts.values()) == [1, 2]


class Counted(nn.Module):
    def __init__(self, fail_at=None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("same", self.calls)
        self.register_buffer("last", torch.zeros(()))
        self.runs, self.fail_at = 0, fail_at

    def forward(self, x, *, scale):
        self.runs += 1
        self.same += 1
        self.last = x.mean()
        if self.runs == self.fail_at:
            raise RuntimeError("no second time")
        return {"out": (x * self.weight).tanh() * scale, "in": [x]}


def test_it_runs_twice_with_its_keywords_and_once_where_no_gradient_is_wanted():
    module, x = Counted(), torch.tensor([0.5, 2.0])
    output = recomputed(module, x, scale=3)["out"]
    assert module.runs == 1
    output.sum().backward()
    assert (module.runs, module.calls, module.last) == (2, 1, 1.25)
    assert module.same is module.calls
    assert torch.equal(module.weight.grad, 3 * x * (1 - x.tanh() ** 2))
    with torch.no_grad():
        assert torch.equal(recomputed(module, x, scale=1)["out"], x.tanh())
    assert (module.runs, module.calls) == (3, 2)


def test_the_buffers_are_back_when_the_second_time_fails():
    module = Counted(fail_at=2)
    buffer = module.calls
    output = recomputed(module, torch.ones(2), scale=1)["out"]
    with pytest.raises(RuntimeError, match="no second time"):
        output.sum().backward()
    assert module.calls is buffer
    assert buffer == 1


def test_an_identity_is_not_worth_it():
    x = torch.ones(2, requires_grad=True)
    assert recomputed(nn.Identity(), x) is x


def kept_bytes(call) -> int:
    """Bytes kept for the backward pass of ``call`` on one image batch; each storage counts once."""
    storages = {}
    x = torch.randn(4, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    module = network()

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = call(module, x)
    assert output.requires_grad
    return sum(storages.values())


def test_only_the_input_is_kept():
    one = 4 * 4 * 8 * 8 * 8
    assert kept_bytes(recomputed) == one
    assert kept_bytes(plain) > 8 * one


@pytest.mark.parametrize("learning", ["weights", "alpha"])
def test_a_supernet_learns_the_same(learning):
    """S2 in float64, whole: logits, gradients of what learns, and every batch norm's statistics."""
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        space = S2(num_classes=3, dataset="cifar", depth=3, width=0.25).double()
        supernet = FairDARTS(recompute=recompute).mutate_model(space)
        for name, parameter in supernet.named_parameters():
            parameter.requires_grad_(name.endswith("alpha") == (learning == "alpha"))
        logits = supernet(torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
        logits.square().sum().backward()
        grads = [p.grad for p in supernet.parameters() if p.grad is not None]
        assert len(grads) == sum(p.requires_grad for p in supernet.parameters()) > 0
        results.append([logits, *grads, *supernet.buffers()])
    for kept, again in zip(*results, strict=True):
        assert torch.equal(kept, again)
