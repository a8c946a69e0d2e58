"""What the strategies of this package are put together from, where it is to be otherwise than a strategy has it."""

from dataclasses import dataclass, fields
from typing import Literal, Optional

from nni_fairdarts.config.checks import check_values


@dataclass(frozen=True)
class StageConfig:
    """A part of the epochs with a supernet of its own; what is unset is the space's, or the strategy's.

    Args:
        cells: how many the supernet has.
        width: channels of its first cells.
        operations: how many every edge of a cell keeps of those before, "none" counted; the first stage has all.
        partial_channels: K, the operations of cells see 1/K of the channels.
        skip_dropout: share of what skip connections put out that is dropped, at the stage's start.
        keep: weights, α and schedules go on from the stage before; else they begin afresh.
        share: of the epochs, relative to that of the other stages.
    """

    cells: Optional[int] = None  # noqa: UP045
    width: Optional[int] = None  # noqa: UP045
    operations: Optional[int] = None  # noqa: UP045
    partial_channels: Optional[int] = None  # noqa: UP045
    skip_dropout: Optional[float] = None  # noqa: UP045
    keep: bool = False
    share: float = 1.0

    def __post_init__(self):
        check_values("search.parts.stages", self)


@dataclass(frozen=True)
class PartsConfig:
    """Parts of fairdarts and its kin; unset is the strategy's own. What does not go together is refused.

    Args:
        relaxation: how α becomes gates: sigmoid, softmax, sparsemax or dirichlet.
        temperature: what α is divided by before, in the first epoch and in the last one.
        divergence_weight: of dirichlet: weight of its divergence from the uniform distribution.
        alpha_spread: standard deviation of what α is drawn from at the start.
        alpha_gradient: α's gradient: of first order, second (a finite difference), exact (of second order), zeroth.
        partial_channels: K, the operations of cells see 1/K of the channels.
        edge_normalization: edges into a node have weights that share 1.
        skip_noise: standard deviation of noise on skip connections.
        noise_relative: it is in units of their input's own.
        skip_dropout: share of what skip connections put out that is dropped.
        operation_dropout: probability with which an operation is left out of a pass.
        edge_dropout: probability with which an edge is.
        decay: how noise and dropout fall over the epochs: constant, linear, cosine or p_darts.
        decay_epochs: the epochs that they fall over.
        early_stopping: rules that end the search: skips, ranking, eigenvalue; an empty list for none.
        early_skips: so many skip connections in the normal cell end it.
        early_ranking: so many epochs without a change in the ranking of operations end it.
        early_factor: so much larger an eigenvalue ends it.
        early_first: the earliest epoch that the rule eigenvalue returns, counted from 0.
        selection: operations are kept by their gates, or by their strength.
        strength_batches: batches that strengths are measured on.
        max_skips: most skip connections of the normal cell.
        arc_gradient_clip_val: bound on the norm of α's gradient.
        stages: parts of the epochs with supernets of their own, see StageConfig; an empty list for none.
    """

    relaxation: Optional[Literal["sigmoid", "softmax", "sparsemax", "dirichlet"]] = None  # noqa: UP045
    temperature: Optional[tuple[float, float]] = None  # noqa: UP045
    divergence_weight: Optional[float] = None  # noqa: UP045
    alpha_spread: Optional[float] = None  # noqa: UP045
    alpha_gradient: Optional[Literal["first", "second", "exact", "zeroth"]] = None  # noqa: UP045
    partial_channels: Optional[int] = None  # noqa: UP045
    edge_normalization: Optional[bool] = None  # noqa: UP045
    skip_noise: Optional[float] = None  # noqa: UP045
    noise_relative: Optional[bool] = None  # noqa: UP045
    skip_dropout: Optional[float] = None  # noqa: UP045
    operation_dropout: Optional[float] = None  # noqa: UP045
    edge_dropout: Optional[float] = None  # noqa: UP045
    decay: Optional[Literal["constant", "linear", "cosine", "p_darts"]] = None  # noqa: UP045
    decay_epochs: Optional[int] = None  # noqa: UP045
    early_stopping: Optional[list[Literal["skips", "ranking", "eigenvalue"]]] = None  # noqa: UP045
    early_skips: Optional[int] = None  # noqa: UP045
    early_ranking: Optional[int] = None  # noqa: UP045
    early_factor: Optional[float] = None  # noqa: UP045
    early_first: Optional[int] = None  # noqa: UP045
    selection: Optional[Literal["gates", "strength"]] = None  # noqa: UP045
    strength_batches: Optional[int] = None  # noqa: UP045
    max_skips: Optional[int] = None  # noqa: UP045
    arc_gradient_clip_val: Optional[float] = None  # noqa: UP045
    stages: Optional[list[StageConfig]] = None  # noqa: UP045

    def __post_init__(self):
        check_values("search.parts", self)
        if self.stages is not None:  # read from a file they are mappings
            stages = [StageConfig(**stage) if isinstance(stage, dict) else stage for stage in self.stages]
            object.__setattr__(self, "stages", stages)

    def given(self) -> dict:
        """What is set."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
