"""What this package takes from inside NNI's one-shot framework: nothing else imports from ``nni.nas.oneshot``.

NNI 3.0 is the last release; its one-shot internals are no public interface, so the version is checked here, once.
"""

import logging
from collections.abc import Iterator, Set
from contextlib import contextmanager

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
    "without_warnings_about",
]


@contextmanager
def without_warnings_about(names: Set[str]) -> Iterator[None]:
    """Inside, NNI does not warn of layers, by their names, that became plain ones: it would of each, in a line."""
    logger = logging.getLogger(OneShotStrategy.__module__)

    def other(record: logging.LogRecord) -> bool:
        words = record.getMessage().split()
        return "didn't return a BaseSuperNetModule" not in record.getMessage() or words[3] not in names

    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)
