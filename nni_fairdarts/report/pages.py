"""The page: what its template is given, and the file that it becomes."""

import os
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from nni_fairdarts.errors import InputError
from nni_fairdarts.files import write_text
from nni_fairdarts.report.comparing import compared
from nni_fairdarts.report.runs import Source, read_sources
from nni_fairdarts.report.sections import section

MARK = "<!doctype html>\n<!-- a report of nni-fairdarts -->\n"
"""How every page begins: a file that begins otherwise is none, and is not replaced."""


def write_report(named: Sequence[str], output: Path | None = None) -> Path:
    """Write a page about the runs or experiments that are named, by folder or id; returns its file.

    Args:
        named: one run for its report, several runs or an experiment for a comparison.
        output: the file; by default report.html in the folder of what is named, in the current one where that is
            more than one. An earlier report there is replaced, any other file is not.

    Raises InputError where there is nothing to show, where a file is damaged, or the page cannot be written.
    """
    sources = read_sources(named)
    file = output or (sources[0].folder if len(sources) == 1 else Path()) / "report.html"
    _check_free(file)
    text = page(sources)
    try:
        write_text(file, text)
    except OSError as error:
        raise InputError(f"cannot write {file}: {error.strerror}; choose another place with --output") from error
    return file


def _check_free(file: Path) -> None:
    """Raise InputError, before anything is drawn, where the page cannot be written or something else is there."""
    if file.is_dir():
        raise InputError(f"{file} is a folder; give --output a file's name")
    if not os.access(file.parent, os.W_OK | os.X_OK):
        raise InputError(f"cannot write into the folder {file.parent}; choose another place with --output")
    if os.path.lexists(file):
        try:
            ours = file.read_bytes()[: len(MARK)] == MARK.encode()
        except OSError:
            ours = False
        if not ours:
            raise InputError(f"{file} exists already and is no report; choose another --output")


def page(sources: Sequence[Source]) -> str:
    """The HTML of a report: of one run, or of several runs or an experiment."""
    environment = Environment(
        loader=PackageLoader("nni_fairdarts", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    runs = [run for source in sources for run in source.runs]
    titles = [source.title for source in sources if source.title]
    titles = titles if len(titles) == len(sources) else []  # of several experiments, not of runs beside them
    if len(runs) == 1 and not titles:
        return MARK + environment.get_template("run.html").render(section=section(runs[0]))
    return MARK + environment.get_template("comparison.html").render(compared(runs, titles))
