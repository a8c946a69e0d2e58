"""``nni-fairdarts report``: its flags, and what it does with them."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace


def parser() -> ArgumentParser:
    """The command's parser."""
    made = ArgumentParser(
        exit_on_error=False,
        allow_abbrev=False,
        description="Write a page, one HTML file, about a search; of several, or of an NNI experiment, a comparison.",
    )
    made.add_argument("runs", nargs="+", metavar="RUN", help="Folder of a search, or id or folder of an experiment.")
    made.add_argument(
        "--output", metavar="FILE", help="By default report.html in the one folder given, or in the current one."
    )
    return made


def run(parsed: Namespace, config: None) -> None:
    """Write the page and say where it is."""
    from nni_fairdarts.report.pages import write_report

    file = write_report(parsed.runs, None if parsed.output is None else Path(parsed.output))
    print(f"report in {file}")
