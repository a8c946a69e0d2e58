"""A searched supernet's weights in the network: what is kept behind poolings, and what does not fit."""

import warnings

import pytest
import torch
from handwritten import CLOSE, Space, conv, export, images, open_only, supernet
from nni.nas.nn.pytorch import LayerChoice, ModelSpace, Repeat
from torch import nn

from nni_fairdarts import FairDARTS, InputError, freeze, inherit
from nni_fairdarts.penalty import profiler


def pooled():
    def candidates():
        return {
            "conv": nn.Sequential(conv(), nn.BatchNorm2d(4)),
            "pool": nn.MaxPool2d(3, 1, 1),
            "avg": nn.AvgPool2d(3, 1, 1),
        }

    return [lambda label=label: LayerChoice(candidates(), label=label) for label in ("first", "second", "third")]


@pytest.fixture
def trained():
    """A supernet whose batch norms have seen batches, with all its choices decided."""
    model, _ = supernet(*pooled())
    for _ in range(3):
        model.train()(3 + 2 * images())
    open_only(model, first=1, second=0, third=2)
    return model.eval()


def test_poolings_keep_the_batch_norm_of_the_search(trained):
    sample, x = export(trained), 3 + 2 * images()
    assert sample == {"first": "pool", "second": "conv", "third": "avg"}
    network = freeze(Space(*pooled()), sample, candidate_norm="paper").double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inherit(network, trained, sample)
    torch.testing.assert_close(network.eval()(x), trained(x), **CLOSE)
    multi = {label: [choice] for label, choice in sample.items()}
    network = freeze(Space(*pooled()), multi, candidate_norm="paper").double()
    inherit(network, trained, multi)
    torch.testing.assert_close(network.eval()(x), trained(x), **CLOSE)


def test_without_it_one_is_told(trained):
    sample = export(trained)
    network = freeze(Space(*pooled()), sample).double()
    assert not [m for m in (*network.body[0].modules(), *network.body[2].modules()) if isinstance(m, nn.BatchNorm2d)]
    with pytest.warns(RuntimeWarning, match=r"batch norms behind poolings.*candidate_norm='paper'\) to keep them"):
        inherit(network, trained, sample)


def test_a_search_exports_it_with_inherited_weights_only(search, classification):
    class Pooled(ModelSpace):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3)
            self.layer = LayerChoice([conv(), nn.MaxPool2d(3, 1, 1)], label="layer")
            self.head = nn.Linear(4, 10)

        def forward(self, x):
            return self.head(self.layer(self.stem(x)).mean((2, 3)))

    for inherit_weights in (True, False):
        strategy = FairDARTS(inherit_weights=inherit_weights)
        experiment = search(Pooled(), classification(), strategy)
        strategy.supernet.layer.alpha.data = torch.tensor([-1e4, 1e4])
        (network,) = experiment.export_top_models(formatter="instance")
        kinds = [type(m) for m in network.layer.modules() if not isinstance(m, nn.Sequential)]
        assert kinds == ([nn.MaxPool2d, nn.BatchNorm2d] if inherit_weights else [nn.MaxPool2d])
    x = torch.randn(2, 3, 8, 8)
    assert network(x).shape == (2, 10)


def test_a_network_of_another_sample_and_a_space_without_gates(trained):
    deep = [lambda: Repeat(nn.Linear(7, 7), (1, 2), label="depth")]
    model, _ = supernet(*deep)
    network = freeze(Space(*deep), {"depth": 2}).double()
    with pytest.raises(InputError, match=r"the supernet has no weights for body\.0\.1\.weight"):
        inherit(network, model, {"depth": 1})
    wide = [lambda: LayerChoice([nn.Linear(7, 7), nn.Linear(7, 7, bias=False), nn.Conv2d(4, 4, 1)], label="a")]
    model, _ = supernet(*wide)
    network = freeze(Space(*wide), {"a": 0}).double()
    with pytest.raises(InputError, match="(?s)not the one of this sample: .*derive it with the same one"):
        inherit(network, model, {"a": 2})
    with pytest.raises(InputError, match="inherit takes the searched supernet .* second; this space has no gates"):
        inherit(network, Space(*wide), {"a": 0})


def test_norms_that_are_not_known():
    with pytest.raises(InputError, match="unknown candidate_norm 'papr'; known: paper, unscaled, space"):
        freeze(Space(*pooled()), {}, candidate_norm="papr")


def test_candidates_that_cannot_be_summed_are_named():
    model, _ = supernet(lambda: LayerChoice([nn.Conv2d(4, 4, 1), nn.Conv2d(4, 5, 1)], label="odd"))
    with pytest.raises(InputError, match="what the candidates of 'odd' put out cannot be summed"):
        model(images())


def test_a_profiler_of_no_space():
    with pytest.raises(InputError, match="a profiler takes a model space of NNI's, got Linear"):
        profiler("flops", nn.Linear(2, 2), torch.zeros(1, 2))
