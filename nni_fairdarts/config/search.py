"""How it is searched."""

from dataclasses import dataclass, field
from typing import Literal, Optional

from nni_fairdarts.config.checks import check, check_sgd, check_values
from nni_fairdarts.config.parts import PartsConfig

OURS = (
    "fairdarts",
    "second_order_darts",
    "p_darts",
    "pc_darts",
    "dr_nas",
    "darts_plus",
    "robust_darts",
    "noisy_darts",
    "operation_strength_darts",
    "zero_order_darts",
)
"""Strategies of this package, put together from the same parts."""


@dataclass(frozen=True)
class PenaltyConfig:
    """A penalty on what the searched network costs; names and formulas are NNI's, see ``nni_fairdarts.penalty``.

    Args:
        profiler: flops (multiply-adds), params, or none for no penalty.
        baseline: the cost at which the penalty is zero, at the search's own width and number of cells. Every gate's
            share is counted, so a search begins far above what it derives; expected_cost in the history tells.
        scale: weight (add) or exponent (mul) of the penalty.
        nonlinear: linear, positive (nothing below the baseline), negative or absolute.
        aggregate: add to the loss, or mul it.
    """

    profiler: Literal["none", "flops", "params"] = "none"
    baseline: float = 0.0
    scale: float = 1.0
    nonlinear: Literal["linear", "positive", "negative", "absolute"] = "linear"
    aggregate: Literal["add", "mul"] = "add"

    def __post_init__(self):
        check_values("search.penalty", self)
        used = self.profiler != "none"
        check("search.penalty", used or not self.baseline, "profiler", "none beside a baseline", "flops or params")
        check("search.penalty", not used or self.baseline > 0, "baseline", self.baseline, "more than 0")


@dataclass(frozen=True)
class SearchConfig:
    """The search. NNI's strategies have fewer settings than fairdarts; they pass over what they do not have.

    Args:
        strategy: fairdarts; one of its kin: second_order_darts, p_darts, pc_darts, dr_nas, darts_plus, robust_darts,
            noisy_darts, operation_strength_darts, zero_order_darts; random_search; or one of NNI's own, for comparison:
            darts, gumbel_darts, proxyless, enas or random.
        epochs: passes over the weights' half of the training set.
        batch_size: images per step, for weights and α alike; of each process where devices is more than 1.
        learning_rate: of SGD at the start.
        learning_rate_min: of SGD at the end of its cosine.
        momentum: of SGD.
        weight_decay: of SGD.
        gradient_clip_val: bound on the norm of the weights' gradient; 0 for none.
        cutout: side of the blanked square in training images, in pixels; 0 for none.
        train_portion: share of the training set for the weights; α learns from the rest.
        arc_learning_rate: Adam's for α; unset for the strategy's own, 3e-3 of fairdarts and 3e-4 of NNI's.
        parts: see PartsConfig; of fairdarts and its kin.
        arc_betas: of fairdarts: Adam's for α (NNI's have 0.5 and 0.999).
        arc_weight_decay: of fairdarts: Adam's for α (NNI's have 1e-3).
        zero_one_weight: weight of the zero-one loss.
        zero_one_loss: l2 (the method), l1 (the paper's negative example) or none.
        threshold: a gate at or over it is kept.
        discretization: sparse (the method), edge or darts.
        alpha_init: where every α starts; 0 is a gate of one half.
        single_level: one batch updates weights and α.
        warmup_epochs: epochs at the start in which α rests; unset for the strategy's own: 15 of pc_darts, 10 of
            each stage of p_darts and dr_nas, else 0.
        candidate_norm: paper (no learnable scales in cells, a batch norm behind pooling), unscaled (the first alone) or
            space (as built); unset for the strategy's own, paper but of dr_nas (unscaled).
        recompute: of fairdarts: compute candidates again in the backward pass; less memory, more time, same numbers.
        fused: of fairdarts: compute together what candidates share; the same mathematics in less time and memory.
        compile: of fairdarts: compile the cells (torch.compile); for CUDA, on a CPU it takes many minutes.
        cuda_graphs: of fairdarts: launch the supernet's passes as CUDA graphs; not yet run on a device.
        precision: 32-true, bf16-mixed or 16-mixed: convolutions in bfloat16 or float16, with α, losses and optimizers
            in float32. bfloat16 changes numbers in their third digit, float16 in their fourth, and skips steps whose
            gradients overflow. For CUDA: on a CPU it is slower.
        penalty: see PenaltyConfig; of fairdarts.
        temperature: of gumbel_darts: in the first epoch, and the one that it falls to.
        random_skips: of random_search and, on the space darts, of random: exactly so many skip connections in the
            normal cell, of its 8 operations, and two different inputs for every node; unset for 2 of random_search,
            and for whatever is drawn of random.
        batches_per_update: of enas: sampled networks between two updates of its controller.
        gap_batches: batches from which batch norms are estimated to measure the discretisation gap after each epoch;
            0 does not measure it.
    """

    strategy: Literal[(*OURS, "random_search", "darts", "gumbel_darts", "proxyless", "enas", "random")] = "fairdarts"
    epochs: int = 50
    batch_size: int = 128
    learning_rate: float = 0.005
    learning_rate_min: float = 0.001
    momentum: float = 0.9
    weight_decay: float = 3e-4
    gradient_clip_val: float = 5.0
    cutout: int = 0
    train_portion: float = 0.5
    arc_learning_rate: Optional[float] = None  # noqa: UP045
    arc_betas: tuple[float, float] = (0.9, 0.999)
    arc_weight_decay: float = 1e-3
    zero_one_weight: float = 10.0
    zero_one_loss: Literal["l2", "l1", "none"] = "l2"
    threshold: float = 0.85
    discretization: Literal["sparse", "edge", "darts"] = "sparse"
    alpha_init: float = 0.0
    single_level: bool = False
    warmup_epochs: Optional[int] = None  # noqa: UP045
    candidate_norm: Optional[Literal["paper", "unscaled", "space"]] = None  # noqa: UP045
    recompute: bool = False
    fused: bool = True
    compile: bool = False
    cuda_graphs: bool = False
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    parts: PartsConfig = field(default_factory=PartsConfig)
    penalty: PenaltyConfig = field(default_factory=PenaltyConfig)
    temperature: tuple[float, float] = (1.0, 0.33)
    random_skips: Optional[int] = None  # noqa: UP045
    batches_per_update: int = 20
    gap_batches: int = 20

    def __post_init__(self):
        check_sgd("search", self)
        check(
            "search",
            0 < self.train_portion < 1,
            "train_portion",
            self.train_portion,
            "in (0, 1)",
            "; the paper uses 0.5",
        )
        for name in ("arc_weight_decay", "zero_one_weight", "warmup_epochs", "gap_batches"):
            value = getattr(self, name)
            check("search", value is None or value >= 0, name, value, "0 or more")
        given = self.parts.given()
        whose = f"unset with {self.strategy}; parts are of {', '.join(OURS)}"
        check("search.parts", self.strategy in OURS or not given, next(iter(given), ""), "", whose)
        rate, (start, end) = self.arc_learning_rate, self.temperature
        check("search", rate is None or rate > 0, "arc_learning_rate", rate, "more than 0")
        check("search", start >= end > 0, "temperature", self.temperature, "two numbers over 0, the larger first")
        alone = self.strategy == "enas" and self.precision == "16-mixed"
        expected = "32-true or bf16-mixed with enas; NNI trains its controller without a scale"
        check("search", not alone, "precision", self.precision, expected)
        check("search", self.batches_per_update >= 1, "batches_per_update", self.batches_per_update, "at least 1")
        skips = self.random_skips
        check("search", skips is None or 0 <= skips <= 8, "random_skips", skips, "0 to 8, or unset")
        meant = skips is None or self.strategy in ("random", "random_search")
        check("search", meant, "random_skips", skips, f"unset with {self.strategy}; it is of random_search and random")
        graphs = self.cuda_graphs and self.recompute
        check("search", not graphs, "cuda_graphs", True, "false with recompute, which looks at the random state")
        penalized, reaches = self.penalty.profiler, self.strategy in OURS or self.penalty.profiler == "none"
        expected = f"none with {self.strategy}; NNI's reaches no α"
        check("search", reaches, "penalty.profiler", penalized, expected)
        check("search", all(0 <= b < 1 for b in self.arc_betas), "arc_betas", self.arc_betas, "two numbers in [0, 1)")
        check("search", 0 < self.threshold < 1, "threshold", self.threshold, "in (0, 1)", "; the paper uses 0.85")
