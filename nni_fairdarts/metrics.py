"""How what a run is judged by is shown: an accuracy in percent, any other metric under its name."""


def is_share(name: str | None) -> bool:
    """Whether a metric is a share of 1, to be shown in percent: accuracies, and what was kept without a name."""
    return name is None or name.endswith(("acc", "accuracy"))


def word(name: str | None) -> str:
    """What a metric is called."""
    return "accuracy" if is_share(name) else name


def written(value: float, name: str | None) -> str:
    """A metric's value, or a difference of two: 97.22%, or 0.834321 of what is no accuracy."""
    return f"{value:.2%}" if is_share(name) else f"{value:.6g}"
