"""From the parameters of an NNI trial to a configuration, and what an NNI search space may vary."""

import difflib
import math
from collections.abc import Iterator, Mapping

from nni_fairdarts.arguments import changed, known_fields
from nni_fairdarts.config import RunConfig
from nni_fairdarts.errors import InputError

OWN = ("name", "runs", "devices")
"""Fields that are not a trial's to choose: its folder is NNI's, and it is one process."""


def flat(parameters: Mapping) -> dict:
    """NNI's parameters without nesting: {"strategy": {"_name": "darts", "epochs": 9}} has strategy and epochs."""
    found = {}
    for name, value in parameters.items():
        if isinstance(value, Mapping) and "_name" in value:
            found[name] = value["_name"]
            found.update(flat({key: inner for key, inner in value.items() if key != "_name"}))
        else:
            found[name] = value
    return found


def applied(config: RunConfig, parameters: Mapping) -> RunConfig:
    """``config`` with a trial's parameters in it.

    A name is a field of the configuration (``seed``, ``retrain.width``); for fields of ``search`` its own name is
    enough (``strategy``, ``zero_one_weight``). Raises InputError for unknown names, listing the known, and for values
    that do not fit.
    """
    known = known_fields()
    values = {}
    for name, value in flat(parameters).items():
        field = name if name in known else f"search.{name}"
        if field not in known or field in OWN:
            raise InputError(_unknown(name, known))
        # NNI's quniform and its kin give 3.0 where 3 is meant.
        values[field] = int(value) if isinstance(value, float) and value.is_integer() else value
    return changed(config, values)


def _unknown(name: str, known: list[str]) -> str:
    usable = [field.removeprefix("search.") for field in known if field not in OWN]
    near = difflib.get_close_matches(name, usable, 1)
    return (
        f"a trial cannot vary {name!r}"
        + (f", did you mean {near[0]}?" if near else ";")
        + f" known: {', '.join(usable)}"
    )


def check_search_space(config: RunConfig, space: Mapping) -> None:
    """Raise InputError where an NNI search space names what a trial does not have, or values that it would refuse.

    Every value of a choice is tried, and the ends of a range, each beside the first values of all the others; nested
    choices are followed.
    """
    tries = list(_tries(space))
    for name, value, others in tries:  # what is wrong by itself is told of first, by its own name
        if _error(config, {name: value}) and (error := _error(config, {**others, name: value})):
            raise InputError(f"the search space's {name}: {value!r} does not fit: {error}")
    for name, value, others in tries:
        if error := _error(config, {**others, name: value}):
            raise InputError(f"the search space's {name}: {value!r} does not fit beside {others}: {error}")


def _error(config: RunConfig, parameters: Mapping) -> InputError | None:
    """Why a trial would refuse the parameters; None where it would not."""
    try:
        applied(config, parameters)
    except InputError as error:
        return error
    return None


def _tries(space: Mapping, around: Mapping | None = None) -> Iterator[tuple[str, object, dict]]:
    """(name, value, what the other names have beside it) for what the space can give a trial."""
    possible = {name: _values(name, entry) for name, entry in space.items()}
    first = {**(around or {}), **{name: _first(values[0]) for name, values in possible.items()}}
    for name, values in possible.items():
        others = {key: value for key, value in first.items() if key != name}
        for value in values:
            if isinstance(value, Mapping) and "_name" in value:
                inner = {key: entry for key, entry in value.items() if key != "_name"}
                yield name, value["_name"], others
                yield from _tries(inner, {**others, name: value["_name"]})
            else:
                yield name, value, others


def _first(value):
    """A value as a trial gets it: of a nested choice its name, and the first value of each of its own."""
    if not (isinstance(value, Mapping) and "_name" in value):
        return value
    inner = {key: _first(_values(key, entry)[0]) for key, entry in value.items() if key != "_name"}
    return {"_name": value["_name"], **inner}


RANGES = {
    "randint": 2, "uniform": 2, "loguniform": 2, "quniform": 3, "qloguniform": 3,
    "normal": 2, "lognormal": 2, "qnormal": 3, "qlognormal": 3,
}  # fmt: skip
"""NNI's kinds of ranges, and how many numbers describe one."""


def _values(name: str, entry) -> list:
    """What NNI may draw: every value of a choice, the ends of a range, the middle of a distribution."""
    kind, given = (entry.get("_type"), entry.get("_value")) if isinstance(entry, Mapping) else (None, None)
    if not isinstance(given, list) or not given:
        raise InputError(
            f"the search space's {name} must be a mapping with _type and _value as NNI has it, such as "
            f"{{_type: choice, _value: [1, 2]}}, got {entry!r}"
        )
    if kind == "choice":
        if unnamed := [value for value in given if isinstance(value, Mapping) and "_name" not in value]:
            raise InputError(f"the nested choice {unnamed[0]!r} of {name} needs a _name, as NNI has it")
        return given
    if kind not in RANGES:
        raise InputError(f"the search space's {name} has the _type {kind!r}; NNI knows choice, {', '.join(RANGES)}")
    if len(given) != RANGES[kind] or not all(isinstance(n, int | float) and not isinstance(n, bool) for n in given):
        raise InputError(f"the search space's {name}: {kind} takes {RANGES[kind]} numbers as _value, got {given!r}")
    if kind == "randint":
        return [given[0], given[1] - 1]
    within = [] if kind.startswith("q") else [given[0] + (given[1] - given[0]) * 0.4142]  # no whole number
    if kind.startswith("log") or "loguniform" in kind:
        if kind.endswith("uniform") and given[0] <= 0:
            raise InputError(f"the search space's {name}: {kind} begins above 0, got {given!r}")
        return [*given[:2], *within] if kind.endswith("uniform") else [_exp(name, kind, given[0])]
    return [*given[:2], *within] if kind.endswith("uniform") else [given[0]]


def _exp(name: str, kind: str, power: float) -> float:
    """The middle of a distribution that is normal in its logarithm."""
    try:
        return math.exp(power)
    except OverflowError:
        raise InputError(
            f"the search space's {name}: {kind} takes the mean of the logarithm, and e^{power} is no number; give less"
        ) from None
