"""Ctrl-C and SIGTERM: the first one asks a training to stop behind its step, the second one stops at once."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from nni_fairdarts.errors import LostProcess
from nni_fairdarts.launched import launched_rank

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A training was asked to stop, and did so behind a step, with a checkpoint saved.

    No Exception: nothing failed, and nothing on the way out should take it for a failure. ``signal``: its number.
    ``checkpoint``: empty where the signal went to the loaders' workers too, as Slurm and systemd send SIGTERM: there
    are no batches then to finish the step with.
    """

    def __init__(self, signum: int, checkpoint: str = ""):
        saved = f"saved in {checkpoint}" if checkpoint else "nothing new is saved: the workers that load were ended too"
        super().__init__(f"stopped; {saved}")
        self.signal = signum
        self.checkpoint = checkpoint


class _Request:
    """Takes signals. ``signal`` is the one that asked to stop, None before."""

    def __init__(self):
        self.signal: int | None = None
        self._process = os.getpid()
        self._earlier: dict = {}

    def install(self) -> None:
        self._earlier = {signum: signal.getsignal(signum) for signum in SIGNALS}
        self.take_over()

    def remove(self) -> None:
        for signum, earlier in self._earlier.items():
            signal.signal(signum, signal.SIG_DFL if earlier is None else earlier)

    def _take(self, signum: int, frame) -> None:
        if os.getpid() != self._process:  # a loader's worker, forked with the handlers of its parent, which decides
            if signum == signal.SIGTERM:
                os._exit(128 + signum)
            return
        if self.signal is None:
            self.signal = signum
            if launched_rank() == 0:
                print("\nstopping behind this step; once more stops at once", file=sys.stderr, flush=True)
            return
        self.remove()
        if signum == signal.SIGINT:
            raise SystemExit(128 + signum)  # NNI would swallow a KeyboardInterrupt, and take the search for done
        os.kill(os.getpid(), signum)

    def take_over(self) -> None:
        for signum in SIGNALS:
            signal.signal(signum, self._take)


_current: _Request | None = None


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM wait for a training to save; inside another, or another thread, it changes nothing.

    Raises Stopped, and LostProcess where a worker that loads data was ended by something else.
    """
    global _current
    if _current is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _current = request = _Request()
    request.install()
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        if request.signal is not None:
            raise Stopped(request.signal) from error
        reason = str(error).split(". ")[0]
        raise LostProcess(f"{reason}; where memory was short, use fewer data.workers") from error
    finally:
        request.remove()
        _current = None


def take_over() -> None:
    """Take signals again that Lightning has come to take first.

    Its handler of SIGTERM talks to the other processes of a group from wherever this one is interrupted, and waits for
    ever where they talk of something else.
    """
    if _current is not None:
        _current.take_over()


def requested() -> int | None:
    """The number of the signal that asked to stop; None where none did."""
    return None if _current is None else _current.signal
