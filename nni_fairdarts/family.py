"""DARTS' other cures beside Fair DARTS, each with the settings of its authors' CIFAR-10 search; all are options too.

Any setting can be given otherwise, and those of one method to another: ``PCDARTS(alpha_gradient="second")``,
``FairDARTS(disturbance=Disturbance(skip_noise=0.2))``. What contradicts itself is refused. The weights' learning rates,
batch sizes and epochs are the evaluator's, for all of them.
"""

from typing import ClassVar

from nni_fairdarts.early import EarlyStopping
from nni_fairdarts.strategy import GatedSearch
from nni_fairdarts.supernet.moving import Disturbance

__all__ = [
    "DARTSPlus",
    "NoisyDARTS",
    "OperationStrengthDARTS",
    "PCDARTS",
    "SecondOrderDARTS",
    "ZeroOrderDARTS",
]

DARTS = {
    "relaxation": "softmax",
    "zero_one_weight": 0.0,
    "discretization": "darts",
    "alpha_spread": 1e-3,
    "arc_learning_rate": 3e-4,
    "arc_betas": (0.5, 0.999),
}
"""First-order DARTS, arXiv 1806.09055: what the others start from."""


class Published(GatedSearch):
    """``GatedSearch`` with other defaults."""

    published: ClassVar[dict] = DARTS

    def __init__(self, **settings):
        super().__init__(**{**self.published, **settings})


class SecondOrderDARTS(Published):
    """DARTS of second order, arXiv 1806.09055: α descends the loss behind the weights' next step."""

    published: ClassVar[dict] = {**DARTS, "alpha_gradient": "second"}


class PCDARTS(Published):
    """PC-DARTS, arXiv 1907.05737: operations see a quarter of the channels, and edges into a node have weights."""

    published: ClassVar[dict] = {
        **DARTS,
        "partial_channels": 4,
        "edge_normalization": True,
        "warmup_epochs": 15,
        "arc_learning_rate": 6e-4,
    }


class DARTSPlus(Published):
    """DARTS+, arXiv 1909.06035: ends with the second skip connection, or when the operations' ranking has settled."""

    published: ClassVar[dict] = {**DARTS, "early_stopping": EarlyStopping(("skips", "ranking"))}


class NoisyDARTS(Published):
    """NoisyDARTS, arXiv 2005.03566: Gaussian noise on skip connections, a fifth of their input's deviation."""

    published: ClassVar[dict] = {**DARTS, "disturbance": Disturbance(skip_noise=0.2)}


class OperationStrengthDARTS(Published):
    """OStr-DARTS, arXiv 2409.14433: DARTS' supernet, derived by what the loss loses without an operation."""

    published: ClassVar[dict] = {**DARTS, "selection": "strength"}


class ZeroOrderDARTS(Published):
    """ZO-DARTS++, arXiv 2503.06092: sparsemax of falling temperature, and α's gradient estimated from values.

    The temperatures, and how the gradient is estimated, are ours. Its bound on parameters is ``penalty``.
    """

    published: ClassVar[dict] = {
        **DARTS,
        "relaxation": "sparsemax",
        "alpha_gradient": "zeroth",
        "temperature": (1.0, 0.1),
    }
