"""What this package takes from inside NNI's one-shot framework: nothing else imports from ``nni.nas.oneshot``.

NNI 3.0 is the last release; its one-shot internals are no public interface, so the version is checked here, once.
"""

import nni

if not nni.__version__.startswith("3.0"):
    raise ImportError(
        f"nni-fairdarts works with NNI 3.0.x, but NNI {nni.__version__} is installed; run: pip install 'nni>=3.0,<3.1'"
    )

# First: imported by way of nni.nas.oneshot, nni.nas.strategy catches its own circular import and puts stand-ins in the
# place of DARTS and its kin that only raise.
import nni.nas.strategy  # noqa: E402
from nni.nas.oneshot.pytorch.differentiable import DartsLightningModule
from nni.nas.oneshot.pytorch.profiler import ExpectationProfilerPenalty
from nni.nas.oneshot.pytorch.strategy import OneShotStrategy
from nni.nas.oneshot.pytorch.supermodule._expression_utils import weighted_sum
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from nni.nas.oneshot.pytorch.supermodule.operation import (
    MixedBatchNorm2d,
    MixedConv2d,
    MixedLayerNorm,
    MixedLinear,
    MixedMultiHeadAttention,
    MixedOperation,
    MixedOperationSamplingPolicy,
)

__all__ = [
    "BaseSuperNetModule",
    "DartsLightningModule",
    "ExpectationProfilerPenalty",
    "MixedBatchNorm2d",
    "MixedConv2d",
    "MixedLayerNorm",
    "MixedLinear",
    "MixedMultiHeadAttention",
    "MixedOperation",
    "MixedOperationSamplingPolicy",
    "OneShotStrategy",
    "weighted_sum",
]
