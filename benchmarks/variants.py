"""What is compared, and at which sizes: the one place to add a line to. Imports nothing heavy."""

import re
from dataclasses import dataclass, field
from functools import cached_property

CANDIDATES = (
    "sep_conv_3x3",
    "skip_connect",
    "dil_conv_3x3",
    "max_pool_3x3",
    "sep_conv_5x5",
    "avg_pool_3x3",
    "dil_conv_5x5",
)
"""A space with n candidates has the first n of these: convolutions and cheap operations in turn."""


@dataclass(frozen=True)
class Variant:
    """A row of the table: a supernet, and how its step is taken.

    arguments: of ``FairDARTS(...)``; None for NNI's own DARTS. The others say what is done to the finished supernet:
    weights and images in channels_last, forward passes under bf16 autocast, both steps recorded once and replayed
    as one CUDA graph (in the bare loop alone), only operations that give the same bits in every run.
    """

    title: str
    arguments: dict | None = field(default_factory=dict)
    channels_last: bool = False
    bf16: bool = False
    graph: bool = False
    deterministic: bool = False

    @property
    def compiled(self) -> bool:
        """Whether its cells are compiled."""
        return bool((self.arguments or {}).get("compile"))

    @property
    def lightning(self) -> bool:
        """Whether the variant can be had through NNI's experiment and Lightning."""
        return not self.graph


VARIANTS = {
    "nni": Variant("NNI's DARTS", None),
    "plain": Variant("plain", {"fused": False}),
    "plain-recompute": Variant("plain, recompute", {"fused": False, "recompute": True}),
    "plain-channels-last": Variant("plain, channels_last", {"fused": False}, channels_last=True),
    "fused": Variant("fused", {"fused": True}),
    "fused-recompute": Variant("fused, recompute", {"fused": True, "recompute": True}),
    "fused-channels-last": Variant("fused, channels_last", {"fused": True}, channels_last=True),
    "fused-compile": Variant("fused, compiled", {"fused": True, "compile": True}),
    "nni-bf16": Variant("NNI's DARTS, bf16", None, bf16=True),
    "fused-bf16": Variant("fused, bf16", {"fused": True}, bf16=True),
    "fused-bf16-compile": Variant("fused, bf16, compiled", {"fused": True, "compile": True}, bf16=True),
    "fused-bf16-all": Variant(
        "fused, bf16, channels_last, compiled", {"fused": True, "compile": True}, bf16=True, channels_last=True
    ),
    "fused-deterministic": Variant("fused, deterministic", {"fused": True}, deterministic=True),
    "fused-graph": Variant("fused, CUDA graph", {"fused": True}, graph=True),
    "fused-bf16-graph": Variant("fused, bf16, CUDA graph", {"fused": True}, bf16=True, graph=True),
    "fused-bf16-compile-graph": Variant(
        "fused, bf16, compiled, CUDA graph", {"fused": True, "compile": True}, bf16=True, graph=True
    ),
}
BASE = "nni"
"""What every ratio is against."""

LINES = ("nni", "plain", "fused", "fused-recompute")
"""What the figures draw."""


@dataclass(frozen=True)
class Size:
    """Channels of the first cells, cells, images in a batch, candidates on an edge: ``16x8x16`` or ``16x8x16x3``."""

    channels: int
    cells: int
    batch: int
    candidates: int = len(CANDIDATES)

    @classmethod
    def parse(cls, text: str) -> "Size":
        """Raises ValueError for another form, an odd number of channels, under 3 cells or too many candidates."""
        if not re.fullmatch(r"\d+(x\d+){2,3}", text):
            raise ValueError(f"a size is CHANNELSxCELLSxBATCH or CHANNELSxCELLSxBATCHxCANDIDATES, got {text!r}")
        size = cls(*map(int, text.split("x")))
        if size.channels < 2 or size.channels % 2 or size.cells < 3 or size.batch < 1:
            raise ValueError(f"{text}: channels must be even, cells at least 3 and the batch at least 1")
        if not 1 <= size.candidates <= len(CANDIDATES):
            raise ValueError(f"{text}: an edge has 1 to {len(CANDIDATES)} candidates")
        return size

    @cached_property
    def operations(self) -> tuple[str, ...] | None:
        """The candidates' names; None for all, in the space's own order."""
        return None if self.candidates == len(CANDIDATES) else CANDIDATES[: self.candidates]

    def __str__(self) -> str:
        more = "" if self.operations is None else f"x{self.candidates}"
        return f"{self.channels}x{self.cells}x{self.batch}{more}"


SWEEPS = {
    "width": ("8x8x16", "16x8x16", "24x8x16", "36x8x16"),
    "cells": ("16x5x16", "16x8x16", "16x11x16", "16x14x16"),
    "batch": ("16x8x16", "16x8x32", "16x8x64", "16x8x128", "16x8x256"),
    "candidates": ("16x8x16x1", "16x8x16x3", "16x8x16x5", "16x8x16"),
    "corners": ("8x5x16", "8x5x256", "36x8x128", "36x8x256"),
}
"""``--sizes all``: one size varied at a time around the published width and depth, and the smallest and largest."""

PUBLISHED = "16x8x128"
PUBLISHED_STEPS = 9800
"""The published search on CIFAR-10: 50 epochs of 196 steps (25,000 images for the weights, 128 at a time)."""


def sizes_of(words: list[str]) -> list[Size]:
    """Sizes, each once; a word is a size, the name of a sweep, or ``all``. Raises ValueError for others."""
    texts: list[str] = []
    for word in words:
        if word == "all":
            texts += [text for sweep in SWEEPS.values() for text in sweep]
        else:
            texts += SWEEPS.get(word, (word,))
    return [Size.parse(text) for text in dict.fromkeys(texts)]


def variants_of(words: list[str] | None, device: str) -> list[str]:
    """Names of variants, NNI's first; None for all but, on a CPU, graphs, what takes hours to compile there, and what
    is deterministic anyway.

    Raises ValueError for unknown ones.
    """
    for_cuda = {
        name for name, variant in VARIANTS.items() if variant.graph or variant.compiled or variant.deterministic
    }
    known = [name for name in VARIANTS if device == "cuda" or name not in for_cuda]
    if words is None:
        return known
    for word in words:
        if word not in VARIANTS:
            raise ValueError(f"unknown variant {word!r}; known: {', '.join(VARIANTS)}")
    return list(dict.fromkeys([BASE, *words]))
