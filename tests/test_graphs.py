"""CUDA graphs of the training steps: when a pass is a replay, and what a capture leaves alone.

There is no device here. What stands for a graph computes eagerly and, like one, puts all outputs into the same memory.
"""

import collections

import pytest
import torch
from torch import nn

from nni_fairdarts import FairDARTS, InputError, graphs, search
from nni_fairdarts.graphs import GraphedNetwork, check_graphable, unchanged
from nni_fairdarts.history import read_history

CUDA = torch.device("cuda")


class Graphed(FairDARTS):
    def configure_oneshot_module(self, training_module):
        module = super().configure_oneshot_module(training_module)
        module.cuda_graphs = True
        return module


class Stand:
    """In a graph's place: notes what is captured and replayed."""

    def __init__(self):
        self.captured, self.replays = [], collections.Counter()

    def __call__(self, network, forward, args):
        learns = frozenset(name for name, p in network.named_parameters() if p.requires_grad)
        self.captured.append((learns, [tuple(x.shape) for x in args]))
        memory = []

        def replay(*args):
            assert [tuple(x.shape) for x in args] == self.captured[0][1]
            self.replays[learns] += 1
            output = forward(*args)
            if not memory:
                memory.append(torch.empty_like(output))
            return _Into.apply(output, memory[0])

        return replay


class _Into(torch.autograd.Function):
    @staticmethod
    def forward(ctx, output, memory):
        return memory.copy_(output).detach()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


@pytest.fixture
def stand(monkeypatch):
    stand = Stand()
    monkeypatch.setattr(graphs, "captured", stand)
    monkeypatch.setattr(search, "check_graphable", lambda *args: None)
    return stand


@pytest.mark.parametrize("single_level", [False, True])
def test_a_search_replays_whole_batches_and_nothing_else(
    choices, classification, loader, search, stand, tmp_path, single_level
):
    def run(strategy, name):
        torch.manual_seed(0)
        train, val = (loader(3, 4, seed=seed) for seed in (1, 2))
        for half in (train, val):  # a smaller last batch
            half.dataset.tensors = tuple(t[:-1] for t in half.dataset.tensors)
        space = choices()
        search(
            space,
            classification(train, val, max_epochs=2),
            strategy(history=tmp_path / name, single_level=single_level, arc_learning_rate=0.1),
        )
        assert "forward" not in vars(space)
        return [{k: v for k, v in r.items() if k != "seconds"} for r in read_history(tmp_path / name)]

    assert run(Graphed, "graphed") == run(FairDARTS, "eager")
    alphas = {"first.alpha", "second.alpha"}
    learned = [learns & {*alphas, "stem.0.weight"} for learns, _ in stand.captured]
    expected = [{*alphas, "stem.0.weight"}] if single_level else [alphas, {"stem.0.weight"}]
    assert learned == expected
    assert set(stand.replays.values()) == {4}  # two batches of four, two epochs; the third batch is smaller


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x, scale=1.0):
        return self.norm(x) * self.weight * scale


def test_which_calls_are_replays():
    stand, network = Stand(), Scaled()
    graphed, x = GraphedNetwork(network, stand), torch.randn(4, 3)

    def replayed(*args, mode=torch.enable_grad, **kwargs):
        before = sum(stand.replays.values())
        with graphed.step(), mode():
            network(*args, **kwargs)
        return sum(stand.replays.values()) - before

    assert replayed(x) == 1
    assert replayed(torch.randn(4, 3)) == 1
    assert replayed(torch.randn(5, 3)) == 0
    assert replayed(x.t().contiguous().t()) == 0  # other strides
    assert replayed(x, scale=2.0) == 0
    assert replayed(x, 2.0) == 0
    assert replayed(x.clone().requires_grad_()) == 0
    assert replayed(x, mode=torch.no_grad) == 0
    network.eval()
    assert replayed(x) == 0
    network.train()
    network.weight.requires_grad_(False)
    assert replayed(x) == 1
    assert len(stand.captured) == 2  # other gradients, another graph
    network(x)  # outside of a step
    assert sum(stand.replays.values()) == 3


def test_a_second_call_in_a_step_is_eager_and_outputs_are_kept():
    stand, network = Stand(), Scaled()
    graphed = GraphedNetwork(network, stand)
    kept = []
    for _ in range(2):
        with graphed.step():
            kept += [network(torch.randn(4, 3)), network(torch.randn(4, 3))]
    assert sum(stand.replays.values()) == 2
    assert len({y.data_ptr() for y in kept}) == 4
    assert not torch.equal(kept[0], kept[2])


def test_a_forward_of_the_networks_own_comes_back():
    network = Scaled()
    network.forward = own = lambda x: x * 2
    graphed = GraphedNetwork(network, Stand())
    with graphed.step():
        assert network.forward is not own
    assert network.forward is own


def test_warming_up_leaves_no_trace():
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    network(torch.randn(4, 3))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    places = [buffer.data_ptr() for buffer in network.buffers()]
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with unchanged(network):
        network(torch.randn(4, 3))
        assert not torch.equal(network[1].running_mean, before["1.running_mean"])
    assert torch.equal(torch.rand(2), expected)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert [buffer.data_ptr() for buffer in network.buffers()] == places


def test_without_a_cuda_device_it_is_refused(choices, training, lightning, search):
    with pytest.raises(InputError, match="cuda_graphs needs a CUDA device, but the search runs on cpu; leave it out"):
        search(choices(), lightning(training()), Graphed())


def test_what_a_graph_would_pass_over_is_refused(choices, training, lightning):
    class Zeroing(training):
        def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
            optimizer.zero_grad(set_to_none=False)

    for module, hooked, text in (
        (Zeroing(), None, "the evaluator's module has an optimizer_zero_grad of its own"),
        (training(), "stem.0", "the network's module 'stem.0' has hooks, which a CUDA graph would pass over"),
    ):
        trainer, space = lightning(module).trainer, choices()
        module.set_model(space)
        if hooked:
            space.get_submodule(hooked).register_forward_hook(lambda *args: None)
        with pytest.raises(InputError, match=text):
            check_graphable(module, trainer, CUDA)
    plain = training()
    plain.set_model(choices())
    check_graphable(plain, lightning(plain).trainer, CUDA)
    trainer = lightning(plain, devices=2, strategy="ddp").trainer
    with pytest.raises(InputError, match="cuda_graphs is for one device, but the trainer has 2; leave it out, or give"):
        check_graphable(plain, trainer, CUDA)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_on_a_device_graphs_change_no_number(choices, classification, loader, search, tmp_path, precision):
    def run(strategy, name):
        torch.manual_seed(0)
        evaluator = classification(
            loader(5, seed=1), loader(5, seed=2), max_epochs=2, accelerator="gpu", precision=precision
        )
        search(choices(), evaluator, strategy(history=tmp_path / name, arc_learning_rate=0.1))
        return read_history(tmp_path / name)

    for graphed, eager in zip(run(Graphed, "graphed"), run(FairDARTS, "eager"), strict=True):
        assert graphed["train_loss"] == pytest.approx(eager["train_loss"], rel=1e-4)
        assert graphed["gates"]["first"] == pytest.approx(eager["gates"]["first"], rel=1e-4)
