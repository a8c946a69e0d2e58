"""``nni-fairdarts plot``: a search's figures as files."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from nni_fairdarts.errors import InputError


def parser() -> ArgumentParser:
    """Of the command's arguments."""
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, description="Draw what a search did.")
    parser.add_argument("run", help="Folder of a search, running or finished, or its history.jsonl.")
    parser.add_argument("--output", metavar="FOLDER", help="For the figures; by default plots in the run's folder.")
    parser.add_argument("--format", nargs="+", default=["png", "svg"], metavar="FORMAT", help="png, svg or both.")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="Figures by name, or all whose name begins with a word."
    )
    parser.add_argument(
        "--edge",
        nargs="+",
        metavar="PART",
        help="The gates of one edge, such as: normal 0 3 (from 0 to node 3), or of a choice: its label.",
    )
    return parser


def run(parsed: Namespace, config: None = None) -> None:
    """Draw, and print what was written."""
    from nni_fairdarts import plots
    from nni_fairdarts.recorded import read_recorded

    recorded = read_recorded(Path(parsed.run))
    folder = Path(parsed.output) if parsed.output else recorded.folder / "plots"
    edge = None if parsed.edge is None else _edge(parsed.edge)
    paths = plots.save(recorded, folder, parsed.format, parsed.only, edge, progress=True)
    names = list(dict.fromkeys(path.stem for path in paths))
    print(f"{folder}: {', '.join(names)} ({', '.join(parsed.format)})")


def _edge(words: list[str]) -> tuple:
    """(label, node, source), or (label,), of what --edge got, which goes from source to node. Raises InputError."""
    label, *ends = words
    if len(ends) not in (0, 2) or not all(end.isdecimal() for end in ends):
        raise InputError(
            f"--edge takes LABEL SOURCE NODE, such as normal 0 3, or a choice's label; got {' '.join(words)}"
        )
    return label, *map(int, reversed(ends))
