"""DARTS' other cures beside Fair DARTS, each with the settings of its authors' CIFAR-10 search; all are options too.

Any setting can be given otherwise, and those of one method to another: ``PCDARTS(alpha_gradient="second")``,
``FairDARTS(disturbance=Disturbance(skip_noise=0.2))``. What contradicts itself is refused. The weights' learning rates,
batch sizes and epochs are the evaluator's, for all of them.
"""

from itertools import islice
from typing import ClassVar

import torch
from torch import Tensor

from nni_fairdarts.analysis import loss_curvature
from nni_fairdarts.distributed import mean
from nni_fairdarts.early import EarlyStopping
from nni_fairdarts.gap import as_before, logged_by, same_random_numbers
from nni_fairdarts.guests import loss_of, transferred, validation_batches
from nni_fairdarts.mended.random_search import RandomSearch
from nni_fairdarts.requirements import check_number
from nni_fairdarts.stages import Stage
from nni_fairdarts.strategy import GatedSearch
from nni_fairdarts.supernet.moving import Disturbance

__all__ = [
    "DARTSPlus",
    "DrNAS",
    "NoisyDARTS",
    "OperationStrengthDARTS",
    "PDARTS",
    "PCDARTS",
    "RandomSearch",
    "RobustDARTS",
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


class PDARTS(Published):
    """P-DARTS, arXiv 1904.12760: three stages of growing depth, with fewer operations and dropout on skip connections.

    5, 11 and 17 cells; 8, 5 and 3 operations on every edge, "none" among them; each stage begins afresh. At most two
    skip connections in the normal cell.
    """

    published: ClassVar[dict] = {
        **DARTS,
        "stages": (
            Stage(cells=5, operations=8, skip_dropout=0.0),
            Stage(cells=11, operations=5, skip_dropout=0.4),
            Stage(cells=17, operations=3, skip_dropout=0.7),
        ),
        "disturbance": Disturbance(decay="p_darts"),
        "max_skips": 2,
        "warmup_epochs": 10,
        "arc_learning_rate": 6e-4,
        "arc_gradient_clip_val": 5.0,
    }


class DrNAS(Published):
    """DrNAS, arXiv 2006.10355: gates drawn from Dirichlet distributions; two stages, the second one wider.

    Operations see a sixth of the channels, then a quarter with the four strongest left on every edge; the second stage
    goes on with the weights of the first. α is kept small by Adam's weight decay or, with ``divergence_weight=1e-3``,
    by the paper's divergence in its place.
    """

    published: ClassVar[dict] = {
        **DARTS,
        "relaxation": "dirichlet",
        "candidate_norm": "unscaled",
        "stages": (Stage(partial_channels=6), Stage(partial_channels=4, operations=4, keep=True)),
        "warmup_epochs": 10,
        "arc_learning_rate": 6e-4,
    }

    def __init__(self, **settings):
        if settings.get("divergence_weight"):
            settings = {"arc_weight_decay": 0.0, **settings}
        super().__init__(**settings)


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


class RobustDARTS(Published):
    """RobustDARTS' early stopping, arXiv 1909.09656: derives what there was before the loss became sharp in α.

    ``curvature_batches``: how many of the batches that α learns from the Hessian is of.
    """

    published: ClassVar[dict] = {**DARTS, "early_stopping": EarlyStopping(("eigenvalue",))}

    def __init__(self, curvature_batches: int = 1, **settings):
        super().__init__(**settings)
        check_number("curvature_batches", curvature_batches, "at least 1", lambda v: v >= 1, whole=True)
        self.curvature_batches = curvature_batches

    def _sharpness_of(self, evaluator):
        return AlphaEigenvalue(evaluator, self.curvature_batches)


class AlphaEigenvalue:
    """The largest eigenvalue of the Hessian in α of the evaluator's loss, over ``count`` of α's batches."""

    def __init__(self, evaluator, count: int):
        self.evaluator = evaluator
        self.count = count

    def __call__(self, module) -> dict[str, float]:
        """{"alpha_eigenvalue": λ}, of a one-shot module between its epochs, which stays as it is."""
        owner, loader = module.training_module, validation_batches(self.evaluator)

        def loss(supernet, batch) -> Tensor:
            return loss_of(owner.training_step(module.trainer.precision_plugin.convert_input(batch), 0))

        with same_random_numbers(module.device, loader), as_before(owner), logged_by(module):
            batches = [transferred(self.evaluator, batch) for batch in islice(loader, self.count)]
            found = loss_curvature(owner.model, batches, loss, count=self.count, progress=False)
        largest = torch.tensor(found.largest, dtype=torch.float64, device=module.device)
        return {"alpha_eigenvalue": float(mean(largest))}  # all processes must come to the same end


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
