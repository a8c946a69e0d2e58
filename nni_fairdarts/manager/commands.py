"""The command of an experiment's trials: what it runs is read, and the search space held against it."""

import shlex
from importlib.util import find_spec
from pathlib import Path

from jsonargparse import ArgumentError

from nni_fairdarts.arguments import explain, run_config, run_parser
from nni_fairdarts.config import RunConfig
from nni_fairdarts.errors import InputError
from nni_fairdarts.parameters import check_search_space

SHELL = set(";&|<>()$`*?{}")
"""With any of these the shell makes another command of it than its words say."""


def check_command(command: str, folder: Path, search_space: dict) -> None:
    """Raise InputError where a trial of this package could not run what the search space gives it.

    Commands of other programs, and more than one command, are the user's own affair. ``folder``: where the command is
    run, the experiment's trialCodeDirectory.
    """
    config = trial_config(command, folder)
    if config is None:
        return
    if not search_space:
        raise InputError("searchSpace is empty, so there is nothing to run; name what varies, if only the seed")
    check_search_space(config, search_space)
    if "enas" in (config.search.strategy, *strategies(search_space)) and find_spec("tianshou") is None:
        raise InputError(
            "the strategy enas needs tianshou: pip install 'tianshou>=0.5,<0.6' gym; or take it out of the search space"
        )


def strategies(search_space: dict) -> list[str]:
    """The strategies that a search space names."""
    values = search_space.get("strategy", search_space.get("search.strategy", {})).get("_value", [])
    return [value["_name"] if isinstance(value, dict) else value for value in values]


def trial_config(command: str, folder: Path) -> RunConfig | None:
    """The configuration in ``… nni-fairdarts trial --config FILE …``; None for another command."""
    try:
        lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
        lexer.whitespace_split, lexer.commenters = True, ""
        words = list(lexer)
    except ValueError as error:
        raise InputError(f"trialCommand {command!r} is no command: {error}") from error
    ours = any(Path(word).name in ("nni-fairdarts", "nni_fairdarts") for word in words)
    if not ours or any(SHELL & set(word) or word.startswith("~") for word in words):
        return None
    if "trial" not in words:
        raise InputError(
            f"trialCommand {command!r} is no trial: it would neither ask for its parameters nor report; write "
            "nni-fairdarts trial --config FILE"
        )
    arguments, parser = words[words.index("trial") + 1 :], run_parser()
    for i, word in enumerate(arguments):
        if word == "--config" and i + 1 < len(arguments):
            arguments[i + 1] = str(folder / arguments[i + 1])
        elif word.startswith("--config="):
            arguments[i] = f"--config={folder / word.removeprefix('--config=')}"
    try:
        return run_config(parser.parse_args(arguments))
    except (ArgumentError, InputError, OSError, TypeError, ValueError) as error:
        raise InputError(f"trialCommand {command!r}, run in {folder}: {explain(error, parser)}") from error
