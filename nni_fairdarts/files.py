"""Files that are whole or not there."""

import os
from contextlib import suppress
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` in one move: a reader, or a crash, never meets half a file. Raises OSError."""
    # Not tempfile: its files can be read by their owner alone, also after the move.
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        with suppress(OSError):  # gone after the move
            temporary.unlink()
