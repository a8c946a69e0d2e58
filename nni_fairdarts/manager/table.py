"""An experiment's trials and their means as a text for people, as wide as their terminal."""

import json
import re
import textwrap
from collections import Counter

from nni_fairdarts.errors import InputError
from nni_fairdarts.genotype import CELLS, parse
from nni_fairdarts.manager.records import Experiment, Trial
from nni_fairdarts.manager.spread import (
    MEASURED,
    SCORE,
    Group,
    groups,
    hyperparameter,
    number,
    score_name,
    varying_names,
)

HEADERS = {
    "parameters": "params",
    "multiply_adds": "mult-adds",
    "skip_connections": "skips",
    "discretization_gap": "gap",
}
UNKNOWN = "?"
LONGEST = 14  # characters of a value in a column


def as_text(experiment: Experiment, width: int) -> str:
    """The trials, means over them, genotypes and remarks, in lines of ``width`` characters where that can be."""
    name = f" ({_shown(experiment.name, 60)})" if experiment.name else ""
    title = f"experiment {_shown(experiment.id, None)}{name}: "
    if not experiment.trials:
        return f"{title}no trial yet"
    counts = Counter(trial.status for trial in experiment.trials)
    title += ", ".join(f"{count} {status}" for status, count in counts.items())
    parts = [title, _table(_trials(experiment), 1, width)]
    if made := groups(experiment):
        parts.append("mean ± standard deviation over trials\n\n" + _table(*_means(experiment, made), width))
    parts += [_genotypes(experiment, width), _remarks(experiment, width)]
    return "\n\n".join(part for part in parts if part)


def _trials(experiment: Experiment) -> dict[str, list[str]]:
    """The table's columns."""
    trials, score = experiment.trials, score_name(experiment)
    columns = {
        "trial": list(_names(experiment).values()),
        "strategy": [_known(trial.strategy, trial) for trial in trials],
        "seed": [_known(trial.seed, trial) for trial in trials],
    }
    for name in varying_names(experiment):
        columns[name] = [_known(hyperparameter(trial, name), trial) for trial in trials]
    for key in MEASURED:
        columns[score if key == SCORE else HEADERS[key]] = [_measured(trial, key, score) for trial in trials]
    columns["time"] = ["" if (n := number(trial, "seconds")) is None else clock(n) for trial in trials]
    columns["status"] = [trial.status for trial in trials]
    return columns


def _means(experiment: Experiment, made: list[Group]) -> tuple[dict[str, list[str]], int]:
    """The columns of the table of means, and how many of them say what a line is about."""
    score = score_name(experiment)
    columns = {"strategy": [_shown(group.strategy) for group in made]}
    for name in varying_names(experiment):
        columns[name] = [_shown(group.hyperparameters[name]) for group in made]
    about = sum(any(cells) for cells in columns.values())
    columns["n"] = [str(group.measured[SCORE].n) for group in made]
    for key in MEASURED:
        columns[score if key == SCORE else HEADERS[key]] = [_mean(group, key, score) for group in made]
    return columns, about


def _measured(trial: Trial, key: str, score: str) -> str:
    value = number(trial, key)
    if value is not None:
        return formatted(key, score, value)
    text = (trial.result or {}).get(key)
    return _shown(text) if isinstance(text, str) else ""  # a script that is not ours may report any


def _mean(group: Group, key: str, score: str) -> str:
    if key not in group.measured:
        return ""
    found = group.measured[key]
    text = formatted(key, score, found.mean, found.standard_deviation)
    return text if found.n == group.measured[SCORE].n else f"{text} (n {found.n})"


def formatted(key: str, score: str, value: float, deviation: float | None = None) -> str:
    """A number, or mean ± standard deviation: accuracies in percent, counts from a million on in millions."""
    unit, digits, end = 1, ",.0f" if deviation is None or value >= 1000 else ".1f", ""
    if key in (SCORE, "discretization_gap"):
        unit, digits, end = (0.01, ".2f", "%") if score == "accuracy" else (1, ".6g", "")
    elif value >= 1e6:
        unit, digits, end = 1e6, ".2f" if value < 1e7 else ".1f" if value < 1e8 else ",.0f", " M"
    spread = "" if deviation is None else f" ± {deviation / unit:{digits}}"
    return f"{value / unit:{digits}}{spread}{end}"


def clock(seconds: float) -> str:
    """Minutes and seconds, 1:05, or from an hour on hours, 1.5 h."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{seconds / 3600:,.1f} h"


def _genotypes(experiment: Experiment, width: int) -> str:
    """What the trials found."""
    lines, names, cells = [], _names(experiment), False
    margin = max(len(name) for name in names.values()) + 2
    for trial in experiment.trials:
        text = (trial.result or {}).get("genotype")
        if isinstance(text, str):
            name = names[trial.id]
            for cell, line in brief(text):
                cells = cells or bool(cell)
                lines += _paragraph(f"{name:{margin}}{cell:8}" if cell else f"{name:{margin}}", line, width, most=3)
                name = ""
    title = "genotypes" + (" (2=sep3(0): node 2 is sep_conv_3x3 of node 0)" if cells else "")
    return "\n".join([title, "", *lines]) if lines else ""


def brief(genotype: str) -> list[tuple[str, str]]:
    """The cells of a DARTS genotype as they are built, each with its nodes; any other text with no cell's name."""
    try:
        pruned = parse(genotype).pruned()
    except InputError:
        return [("", _shown(genotype, None))]
    lines = []
    for cell in CELLS:
        nodes: dict[int, list[str]] = {}
        for edge in sorted(getattr(pruned, cell), key=lambda edge: edge.node):
            name = re.sub(r"^([a-z]+)_(?:conv|pool|connect)(?:_(\d)x\2)?$", r"\1\2", edge.operation)
            nodes.setdefault(edge.node, []).append(f"{name}({edge.source})")
        lines.append((cell, "  ".join(f"{node}={'+'.join(inputs)}" for node, inputs in nodes.items()) or "empty"))
    return lines


def _remarks(experiment: Experiment, width: int) -> str:
    """What there is to say besides, each remark once with the trials that it is about."""
    about: dict[str, list[str]] = {}
    names = _names(experiment)
    for trial in experiment.trials:
        for remark in trial.remarks:
            about.setdefault(remark, []).append(names[trial.id])
    lines = []
    for remark, those in about.items():
        lines += _paragraph("", f"trial{'s' * (len(those) > 1)} {', '.join(those)}: {_shown(remark, None)}", width)
    return "\n".join(lines)


def _paragraph(start: str, text: str, width: int, most: int | None = None) -> list[str]:
    return textwrap.wrap(
        text,
        max(width, 40),
        initial_indent=start,
        subsequent_indent=" " * (len(start) or 2),
        max_lines=most,
        placeholder=" …",
        break_on_hyphens=False,
    )


def _names(experiment: Experiment) -> dict[str, str]:
    """The trials' numbers by their ids, with the id where a resumed experiment gave a number twice."""
    times = Counter(trial.number for trial in experiment.trials)
    names = {}
    for trial in experiment.trials:
        plain = trial.number is not None and times[trial.number] == 1
        names[trial.id] = str(trial.number) if plain else f"{_shown(trial.number)} {trial.id}".strip()
    return names


def _known(value, trial: Trial) -> str:
    """A hyper-parameter's value; a question mark where nobody knows what the trial ran."""
    return UNKNOWN if value is None and trial.hyperparameters is None else _shown(value)


def _shown(value, longest: int | None = LONGEST) -> str:
    """Any value on one line, without characters that move a terminal's cursor, cut where it is too long."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else json.dumps(value)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if longest is None or len(text) <= longest else text[: longest - 1] + "…"


def _table(columns: dict[str, list[str]], about: int, width: int) -> str:
    """Columns side by side, closer where they would not fit.

    What still does not fit follows below, where the first ``about`` columns are shown again.
    """
    made = [_column(name, cells) for name, cells in columns.items() if any(cells)]
    gap = "  " if sum(2 + len(column[-1]) for column in made) - 2 <= width else " "
    blocks = [made[:about]]
    for column in made[about:]:
        used = sum(len(c[-1]) + len(gap) for c in blocks[-1])
        if used + len(column[-1]) > width and len(blocks[-1]) > about:
            blocks.append(made[:about])
        blocks[-1] = [*blocks[-1], column]
    return "\n\n".join(_side_by_side(block, gap) for block in blocks)


def _side_by_side(columns: list[list[str]], gap: str) -> str:
    height = max(len(column) for column in columns)
    level = [[" " * len(column[-1])] * (height - len(column)) + column for column in columns]
    return "\n".join(gap.join(line).rstrip() for line in zip(*level, strict=True))


def _column(name: str, cells: list[str]) -> list[str]:
    """A column's lines, all of one length: its heading, which may be broken after _, . and -, a rule, its cells."""
    longest = max(len(cell) for cell in cells)
    heading = textwrap.wrap(re.sub(r"(?<=[_.-])", " ", name), max(longest, 8), break_long_words=False)
    heading = [line.replace("_ ", "_").replace(". ", ".").replace("- ", "-") for line in heading]
    width = max(longest, *(len(line) for line in heading))
    align = str.ljust if name in ("strategy", "status") else str.rjust
    return [align(line, width) for line in (*heading, "-" * width, *cells)]
