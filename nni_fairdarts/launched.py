"""Which of several processes on this machine this is; nothing here needs torch."""

import os
import sys
import threading
import time


def launched_rank() -> int:
    """The number of this process among those that train together on this machine; 0 is the one that writes and prints.

    Lightning's launcher starts the others with the same command line and LOCAL_RANK in the environment; so does
    torchrun, for all of them.
    """
    rank = os.environ.get("LOCAL_RANK", "0")
    return int(rank) if rank.isdecimal() else 0  # what is no number is refused by ``variables.nonsense``


def end_with_parent(every: float = 1.0, grace: float = 5.0) -> None:
    """End this process, with an error, some seconds after the one that started it is gone.

    On CUDA devices what waits for a lost process waits for NCCL's timeout, half an hour in Lightning. Lightning watches
    the processes that it has started, every 5 seconds, but nothing watches the first.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every)
        time.sleep(grace)  # for an end of its own: the parent may just be done
        print(f"nni-fairdarts: error: process {launched_rank()}: the first process is gone", file=sys.stderr)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()
