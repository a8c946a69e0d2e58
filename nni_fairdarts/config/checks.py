"""What holds for the values of every section."""

import dataclasses
import math
from typing import get_args

from nni_fairdarts.errors import InputError

MOST = {
    "width": 4096, "num_cells": 1000, "image_size": 8192, "workers": 1024, "threads": 4096, "seed": 2**32 - 1,
}  # fmt: skip
"""The largest whole number that a field takes where it is not 10⁹: beyond it no machine has the memory, or no library
takes it."""


def check_values(owner: str, config) -> None:
    """Raise InputError for what is no number where one is meant, and for numbers without end."""
    for one in dataclasses.fields(config):
        value = getattr(config, one.name)
        optional = type(None) in get_args(one.type)
        check(owner, value is not None or optional, one.name, "null", "given", "; leave it out for the default")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float):
                check(owner, math.isfinite(number), one.name, number, "a finite number")
            elif isinstance(number, int):
                most = MOST.get(one.name, 10**9)
                check(owner, number <= most, one.name, number, f"at most {most}")


def check(owner: str, ok: bool, name: str, value, expected: str, hint: str = "") -> None:
    if not ok:
        raise InputError(f"{owner}.{name} must be {expected}, got {value}{hint}")


def check_sgd(owner: str, config) -> None:
    check_values(owner, config)
    for name in ("epochs", "batch_size"):
        check(owner, getattr(config, name) >= 1, name, getattr(config, name), "at least 1")
    check(owner, config.learning_rate > 0, "learning_rate", config.learning_rate, "more than 0")
    for name in ("learning_rate_min", "weight_decay", "gradient_clip_val", "cutout"):
        check(owner, getattr(config, name) >= 0, name, getattr(config, name), "0 or more")
    check(owner, 0 <= config.momentum < 1, "momentum", config.momentum, "in [0, 1)")
