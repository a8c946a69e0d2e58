"""What a command says when it ends without success: one line on standard error, and the traceback where it is asked."""

import os
import sys
import tempfile
import traceback

DEBUG = "NNI_FAIRDARTS_DEBUG"
"""The environment variable that, set to 1, shows tracebacks."""
LONGEST = 2000  # characters of a message


def complain(message: str, code: int = 2, error: BaseException | None = None) -> int:
    """Print ``message`` in one line, behind the traceback of ``error`` where that is asked for; returns ``code``."""
    if error is not None and os.environ.get(DEBUG) == "1":
        traceback.print_exception(error)
    print(f"nni-fairdarts: error: {one_line(message)}", file=sys.stderr)
    return code


def unexpected(error: Exception) -> int:
    """Say that ``error`` was not foreseen, and where its traceback is; returns the exit code, 1."""
    if _out_of_memory(error):
        message = f"not enough memory: {error}; make batch_size, width, num_cells or image_size smaller"
        return complain(message, 1, error)
    said = f"{type(error).__name__}: {error}"
    if "\nOriginal Traceback " in said:  # torch's words about a loader's worker process, the error itself last
        said = said.rstrip().rpartition("\n")[2]
    place = traceback.extract_tb(error.__traceback__)[-1]
    return complain(
        f"{said} ({place.filename}, line {place.lineno}). This is a bug in nni-fairdarts, "
        f"or in code of yours that it ran; {_kept(error)}",
        1,
        error,
    )


def one_line(text: str) -> str:
    """``text`` on one line, without characters that move a terminal's cursor; its middle is left out if it is long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}"


def _out_of_memory(error: Exception) -> bool:
    name = type(error).__name__  # of torch, which need not have been imported
    return isinstance(error, MemoryError) or name == "OutOfMemoryError" or "can't allocate memory" in str(error)


def _kept(error: Exception) -> str:
    """Write the traceback to a file; says where it is."""
    if os.environ.get(DEBUG) == "1":
        return "its traceback is above"
    try:
        handle, path = tempfile.mkstemp(prefix="nni-fairdarts-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            traceback.print_exception(error, file=file)
    except OSError:
        return f"{DEBUG}=1 shows its traceback"
    return f"its traceback is in {path}, and {DEBUG}=1 shows it"
