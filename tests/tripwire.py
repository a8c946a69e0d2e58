"""``nni-fairdarts`` that kills itself, with its workers, where it writes: at any file, as often as asked.

python tripwire.py PATTERN COUNT DELAY ARGUMENT…: the command line with the ARGUMENTs; DELAY seconds after the
COUNTth time that a file whose path PATTERN matches is about to be opened for writing, renamed, made or removed, its
process group ends by SIGKILL. Python tells of all these (``sys.addaudithook``), so nothing of the package is replaced;
files that C++ opens are not seen.
"""

import os
import re
import runpy
import signal
import sys
import threading

PATHS = {"open": 0, "os.rename": 1, "os.remove": 0, "os.mkdir": 0, "os.link": 1, "os.truncate": 0}
"""Events of Python's that change files: which of their arguments is the path."""


def set_up(pattern: str, count: int, delay: float) -> None:
    """Kill this process group ``delay`` seconds after the ``count``th change of a path that ``pattern`` matches."""
    wanted, seen = re.compile(pattern), []

    def watch(event: str, given: tuple) -> None:
        if event not in PATHS or (event == "open" and not given[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if not wanted.search(str(given[PATHS[event]])):
            return
        seen.append(event)
        if len(seen) == count:
            if delay:
                threading.Timer(delay, os.killpg, (0, signal.SIGKILL)).start()
            else:
                os.killpg(0, signal.SIGKILL)

    sys.addaudithook(watch)


if __name__ == "__main__":
    set_up(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
    sys.argv[1:] = sys.argv[4:]
    runpy.run_module("nni_fairdarts", run_name="__main__", alter_sys=True)
