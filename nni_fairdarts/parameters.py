"""From the parameters of an NNI trial to a configuration, and what an NNI search space may vary."""

import difflib
from collections.abc import Iterator, Mapping

from nni_fairdarts.arguments import changed, known_fields
from nni_fairdarts.config import RunConfig
from nni_fairdarts.errors import InputError

OWN = ("name", "runs")
"""Fields that are not a trial's to choose: its folder is NNI's."""


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

    Of a choice every value is tried, of a range its ends; nested choices are followed.
    """
    for name, value in _possible(space):
        try:
            applied(config, {name: value})
        except InputError as error:
            raise InputError(f"the search space's {name}: {value!r} does not fit: {error}") from error


def _possible(space: Mapping) -> Iterator[tuple[str, object]]:
    """(name, value) for what the space can give a trial; every value of a choice, the ends of a range."""
    for name, entry in space.items():
        kind, values = (entry.get("_type"), entry.get("_value")) if isinstance(entry, Mapping) else (None, None)
        if not isinstance(values, list) or not values:
            raise InputError(
                f"the search space's {name} must be a mapping with _type and _value as NNI has it, such as "
                f"{{_type: choice, _value: [1, 2]}}, got {entry!r}"
            )
        if kind == "choice":
            for value in values:
                if isinstance(value, Mapping):
                    if "_name" not in value:
                        raise InputError(f"the nested choice {value!r} of {name} needs a _name, as NNI has it")
                    yield name, value["_name"]
                    yield from _possible({key: inner for key, inner in value.items() if key != "_name"})
                else:
                    yield name, value
        elif kind == "randint":
            yield name, values[0]
            yield name, values[1] - 1
        elif str(kind).endswith("uniform"):
            yield name, values[0]
            yield name, values[1]
