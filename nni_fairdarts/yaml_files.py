"""YAML files that users write: read as plain data, with what YAML itself lets pass refused."""

from collections import Counter
from operator import itemgetter
from pathlib import Path

import yaml

from nni_fairdarts.errors import InputError

LARGEST = 1 << 20  # bytes of a file
MOST = 100_000  # values of a file, those that aliases repeat counted as often as they stand for


def read_mapping(path: Path, what: str) -> dict:
    """The names and values in a YAML file; ``what`` says in errors what the file should be.

    Raises InputError where it cannot be read, is no UTF-8 or no YAML, has a name twice, holds tags other than those of
    plain data, no mapping, or aliases without end or by the thousand.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {path}: {reason}; give {what}") from error
    if len(content) > LARGEST:
        raise InputError(f"{path} has more than {LARGEST:,} bytes; give {what}")
    try:
        text = content.decode("utf-8-sig")
        tree = yaml.compose(text, yaml.SafeLoader)
        _check(tree)
        values = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8 ({error.reason}, byte {error.start}); give {what}") from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is not YAML: {_reason(error)}; mend it, or give {what}") from error
    if not isinstance(values, dict):
        got = "nothing" if values is None else type(values).__name__
        raise InputError(f"{path} must hold names and values (name: value), got {got}; give {what}")
    return values


def _check(tree: yaml.Node | None) -> None:
    """Raise ValueError for a name that a mapping has twice, and for more values than any file of ours has."""
    if tree is not None and _size(tree, {}) > MOST:
        raise ValueError(f"its aliases (*name) stand for more than {MOST:,} values")


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values ``node`` stands for, itself counted."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) in known:
        if not known[id(node)]:
            raise ValueError(f"a value holds itself{_place(node.start_mark)}")
        return known[id(node)]
    known[id(node)] = 0  # while it is being counted
    parts = node.value
    if isinstance(node, yaml.MappingNode):
        name, times = max(Counter(str(key.value) for key, _ in parts).items(), key=itemgetter(1), default=("", 0))
        if times > 1:
            raise ValueError(f"{name!r} is given {times} times{_place(node.start_mark)}")
        parts = [part for pair in parts for part in pair]
    known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "values inside each other without end"
    if isinstance(error, yaml.MarkedYAMLError):
        return f"{error.context or ''} {error.problem}".strip() + _place(error.problem_mark)
    return str(error)


def _place(mark: yaml.Mark | None) -> str:
    return "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
