"""Stages of a search, each with a supernet of its own: P-DARTS, arXiv 1904.12760, and DrNAS, arXiv 2006.10355."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from nni_fairdarts.errors import InputError


@dataclass(frozen=True, repr=False)
class Stage:
    """A part of a search's epochs. What is None is as in the space and in the strategy's own settings.

    Args:
        cells: how many the supernet has, of a space of NNI's hub.
        width: channels of its first cells, of a space of NNI's hub.
        operations: how many every edge of a cell keeps, those of the largest gates at the end of the stage before;
            "none", where the relaxation has it, counts as one. The first stage has all.
        partial_channels: K, operations see 1/K of the channels.
        skip_dropout: share of what skip connections put out that is dropped, at the stage's start.
        keep: weights, α, optimizers and schedules are taken over from the stage before, as far as there are such;
            layers that see more channels repeat their own, from the first one. Else all begin afresh, schedules over
            the stage's epochs.
        share: of the epochs, relative to that of the other stages.

    Raises InputError for values out of range.
    """

    cells: int | None = None
    width: int | None = None
    operations: int | None = None
    partial_channels: int | None = None
    skip_dropout: float | None = None
    keep: bool = False
    share: float = 1.0

    def __post_init__(self):
        for name in ("cells", "width", "operations", "partial_channels"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise InputError(f"a stage's {name} must be a whole number from 1, or None, got {value!r}")
        if self.skip_dropout is not None and not 0 <= self.skip_dropout < 1:
            raise InputError(f"a stage's skip_dropout must be in [0, 1), or None, got {self.skip_dropout}")
        if not 0 < self.share < math.inf:
            raise InputError(f"a stage's share must be a number over 0, got {self.share}; 1 for equal shares")

    def __repr__(self) -> str:
        given = ((field.name, getattr(self, field.name)) for field in fields(self))
        return f"Stage({', '.join(f'{name}={value!r}' for name, value in given if value not in (None, False))})"


def first_epochs(stages: Sequence[Stage], epochs: int | None) -> list[int]:
    """The epoch, counted from 0, that each stage of a search of ``epochs`` begins with, and ``epochs``.

    Raises InputError where a stage would have no epoch.
    """
    if epochs is None or epochs < len(stages):
        raise InputError(
            f"a search of {len(stages)} stages needs at least as many epochs, which its trainer must know, got "
            f"max_epochs={epochs}"
        )
    total, done, firsts = sum(stage.share for stage in stages), 0.0, [0]
    for stage in stages:
        done += stage.share
        firsts.append(round(epochs * done / total))
    if any(later <= earlier for earlier, later in zip(firsts, firsts[1:], strict=False)):
        raise InputError(
            f"the shares {', '.join(f'{stage.share:g}' for stage in stages)} of {epochs} epochs leave a stage without "
            "any; give more epochs, or larger shares"
        )
    return firsts
