"""The penalty: a loss that grows, or shrinks, with the expected cost."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from numbers import Real

from nni.nas.profiler import ExpressionProfiler, Profiler
from torch import Tensor

from nni_fairdarts._nni import ExpectationProfilerPenalty
from nni_fairdarts.errors import InputError
from nni_fairdarts.penalty.expected import ExpectedCost, Weights

NONLINEAR: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda excess: excess,
    "positive": lambda excess: excess.clamp(min=0),
    "negative": lambda excess: excess.clamp(max=0),
    "absolute": lambda excess: excess.abs(),
}
"""By name: what becomes of cost / baseline - 1. Below the baseline "positive" is zero, and so is its gradient."""

AGGREGATE: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "add": lambda loss, normalized, scale: loss + scale * normalized,
    "mul": lambda loss, normalized, scale: loss * (1 + normalized) ** scale,
}
"""By name: what the loss becomes."""


@dataclass(frozen=True, eq=False)
class ResourcePenalty:
    """loss' = aggregate(loss, nonlinear(E / baseline - 1)), with E the expected cost under the gates.

    Names, formulas and defaults are those of NNI's ``ProfilerPenalty``; NNI feeds it detached numbers, here the
    gradient dE/dα passes through the gates.

    Parameters
    ----------
    profiler
        An NNI ``ExpressionProfiler`` of the space that is searched, or ``nni_fairdarts.penalty.profiler(...)``.
    baseline
        The cost at which the penalty is zero, in the profiler's unit, more than 0.
    scale
        Weight ("add") or exponent ("mul").
    nonlinear
        "linear": the excess as it is; "positive": max(0, ·), which lets go of α where the cost is below the baseline;
        "negative": min(0, ·); "absolute": |·|, which draws the cost to the baseline.
    aggregate
        "add": loss + scale · normalized. "mul": loss · (1 + normalized)^scale; for costs the base is never negative
        (E / baseline under "linear"), and it is meant for a loss that is positive: of one below zero it makes more.

    Raises InputError for other values, and for a profiler whose cost does not depend on any choice.
    """

    profiler: ExpressionProfiler
    baseline: float
    scale: float = 1.0
    nonlinear: str = "linear"
    aggregate: str = "add"

    def settings(self) -> dict:
        """What it is made of but its profiler, as plain values."""
        return {name: getattr(self, name) for name in ("baseline", "scale", "nonlinear", "aggregate")}

    def __post_init__(self):
        _check_profiler(self.profiler)
        _check_number("baseline", self.baseline, "more than 0", "the cost you aim at", lambda v: v > 0)
        _check_number("scale", self.scale, "a finite number", "the weight of the penalty", lambda v: True)
        for name, known in (("nonlinear", NONLINEAR), ("aggregate", AGGREGATE)):
            value = getattr(self, name)
            if value not in known:
                raise InputError(f"unknown {name} {value!r} of the penalty; known: {', '.join(known)}")
        if not self.cost.values:
            raise InputError(
                "the profiler's cost is the same for every architecture of its space, so no penalty on it can reach α; "
                "make the profiler from the space that is searched, with its choices"
            )

    @classmethod
    def of(cls, value) -> "ResourcePenalty":
        """A penalty from what NNI's strategies take: a dict of the parameters, or an ``ExpectationProfilerPenalty``.

        A ``ResourcePenalty`` comes back as it is. Raises InputError for anything else.
        """
        names = [field.name for field in fields(cls)]
        if isinstance(value, cls):
            return value
        if isinstance(value, ExpectationProfilerPenalty):
            return cls(*(getattr(value, name) for name in names))
        if not isinstance(value, Mapping):
            raise InputError(
                f"penalty must be a dict with {', '.join(names)}, NNI's ExpectationProfilerPenalty, or a "
                f"ResourcePenalty, got {type(value).__name__}"
            )
        if unknown := [key for key in value if key not in names]:
            raise InputError(f"unknown penalty keys: {', '.join(map(str, unknown))}; known: {', '.join(names)}")
        if missing := [name for name in ("profiler", "baseline") if name not in value]:
            raise InputError(f"the penalty lacks {' and '.join(missing)}; it takes {', '.join(names)}")
        return cls(**value)

    @cached_property
    def cost(self) -> ExpectedCost:
        """The expected cost as a function of the gates, made once."""
        return ExpectedCost(self.profiler.expression)

    def forward(self, loss: Tensor, weights: Weights) -> tuple[Tensor, dict[str, Tensor]]:
        """The new loss, and NNI's details, detached: loss_original, penalty (E), normalized_penalty, loss_final.

        ``weights``: label -> its values and their gates (1-D), for every label of the supernet.
        """
        expected = self.cost(weights)
        normalized = NONLINEAR[self.nonlinear](expected / self.baseline - 1)
        final = AGGREGATE[self.aggregate](loss, normalized, self.scale)
        details = {
            "loss_original": loss,
            "penalty": expected,
            "normalized_penalty": normalized,
            "loss_final": final,
        }
        return final, {name: value.detach() for name, value in details.items()}


def _check_profiler(profiler) -> None:
    if isinstance(profiler, ExpressionProfiler):
        return
    hint = (
        "it gives no single cost as an expression; for NNI's FlopsParamsProfiler use FlopsProfiler or NumParamsProfiler"
        if isinstance(profiler, Profiler)
        else "make one with nni_fairdarts.penalty.profiler('flops', space, inputs)"
    )
    raise InputError(
        f"the penalty's profiler must be an ExpressionProfiler of NNI, got {type(profiler).__name__}; {hint}"
    )


def _check_number(name: str, value, expected: str, hint: str, within: Callable[[float], bool]) -> None:
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not within(value):
        raise InputError(f"the penalty's {name} must be {expected}, got {value!r}; it is {hint}")
