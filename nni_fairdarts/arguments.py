"""Between ``RunConfig`` and jsonargparse: flags, YAML files, and errors that list what is known."""

import copy
import difflib
import re
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace, get_loader, set_loader

from nni_fairdarts.config import SECTIONS, RunConfig, from_mapping
from nni_fairdarts.edges import shortened
from nni_fairdarts.errors import InputError
from nni_fairdarts.yaml_files import read_mapping

_FIELDS = tuple(f.name for f in fields(RunConfig))


def _load(text: str):
    """YAML, where a configuration's ``space: module:Class`` is short for ``space: {name: module:Class}``."""
    values = get_loader("yaml")(text)
    if isinstance(values, dict) and isinstance(values.get("space"), str):
        values["space"] = {"name": values["space"]}
    return values


FORMAT = "nni_fairdarts"
set_loader(FORMAT, _load, exceptions=(yaml.YAMLError,))


def run_parser(**settings) -> ArgumentParser:
    """A parser with ``--config``, ``--print_config`` and every field of ``RunConfig`` as a flag."""
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, parser_mode=FORMAT, **settings)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of the fields below.")
    parser.add_class_arguments(RunConfig)
    return parser


def run_config(parsed: Namespace) -> RunConfig:
    """The configuration among parsed arguments. Raises InputError for values out of range."""
    return from_mapping({key: value for key, value in parsed.as_dict().items() if key in _FIELDS})


def check_file(path: Path) -> None:
    """Raise InputError, naming it, where ``path`` is no YAML file of a run's settings, as far as that is told from it.

    A parser reads it once more, and knows which settings there are.
    """
    values = read_mapping(path, "the configuration of a run, as --print_config prints one")
    if odd := [name for name in values if not isinstance(name, str)]:
        raise InputError(f"{path} has the name {odd[0]!r}, which must be a word, such as seed; mend it")
    if "config" in values:
        raise InputError(f"{path} has the name config: a file cannot name another; give --config twice instead")
    for name in SECTIONS.keys() & values.keys():
        short = name == "space" and isinstance(values[name], str)
        if not short and not isinstance(values[name], dict):
            raise InputError(
                f"{path}: {name} must be a section with settings of its own, got {shortened(values[name])}; "
                "leave it out for the defaults"
            )


def read_config(path: Path) -> RunConfig:
    """The configuration in a YAML file. Raises InputError for a missing or broken file and unknown keys."""
    parser = run_parser()
    check_file(path)
    try:
        return run_config(parser.parse_path(str(path)))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (ArgumentError, OSError, TypeError, ValueError) as error:
        raise InputError(f"cannot read a configuration from {path}: {explain(error, parser)}") from error


@cache
def _parser() -> ArgumentParser:
    """One for every configuration that is read from values: it takes long to make."""
    return run_parser()


def changed(config: RunConfig, values: dict) -> RunConfig:
    """``config`` with other values, {"search.epochs": 3}, checked as a file's are. Raises InputError."""
    parser, nested = _parser(), asdict(config)
    for name, value in values.items():
        *sections, field = name.split(".")
        section = nested
        for key in sections:
            section = section[key]
        section[field] = copy.deepcopy(value)  # a parser writes into lists
    try:
        return run_config(parser.parse_object(nested))
    except (ArgumentError, TypeError, ValueError) as error:
        raise InputError(explain(error, parser)) from error


def as_fields(config: RunConfig) -> dict:
    """Every field of ``config`` by its dotted name, but those that say where its folder is."""
    found, sections = {}, [("", asdict(config))]
    for prefix, section in sections:
        for name, value in section.items():
            if isinstance(value, dict) and f"{prefix}{name}" != "space.arguments":
                sections.append((f"{prefix}{name}.", value))
            else:
                found[f"{prefix}{name}"] = value
    return {name: value for name, value in found.items() if name not in ("name", "runs")}


def known_fields() -> list[str]:
    """Every field of a configuration by its dotted name."""
    return [key for key in _parser().get_defaults().as_flat().__dict__ if key != "config"]


def explain(error: Exception, parser: ArgumentParser) -> str:
    """What a parser complained about; where it did not know a name, the names it knows are added."""
    text = re.sub(r"^Parser key ", "", str(error)).replace("<class 'float'>", "number")
    text = re.sub(r"a (?:typing\.)?Literal\[([^]]*)\]", r"one of \1", text)
    text = re.sub(r"<class '(\w+)'>", r"\1", " ".join(text.split())).replace(
        "Expected a int.", "Expected a whole number."
    )
    text = re.sub(r"Group '(\w+)' does not accept option '", r"A configuration does not accept option '\1.", text)
    unknown = re.search(r"(?:(?:does not accept option|Key|key) ['\"]|nrecognized arguments: --)([\w.]+)", text)
    if unknown and re.search(r"not accept|nrecognized|not expected|nexpected", text):
        name = unknown.group(1)
        known = [key for key in parser.get_defaults().as_flat().__dict__ if key != "config"]
        near = difflib.get_close_matches(name, known, 1)
        section = name.rpartition(".")[0]
        shown = [key for key in known if section and key.startswith(f"{section}.")] or known
        text += f"; unknown name {name!r}" + (f", did you mean {near[0]}?" if near else "")
        text += f" Known: {', '.join(shown)}"
    return text
