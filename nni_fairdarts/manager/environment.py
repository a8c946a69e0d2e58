"""The environment in which NNI's manager is to be started: bound to one address, and repaired."""

import ipaddress
import logging
import os
import socket
import sys
import warnings
from pathlib import Path

from nni_fairdarts.errors import InputError

PRELOAD = Path(__file__).with_name("preload.js")
LOOPBACK = "127.0.0.1"


def guard(host: str = LOOPBACK) -> None:
    """Let managers started from this process listen on ``host`` alone, with the repairs of preload.js.

    ``nni.experiment.Experiment`` and ``nnictl`` start NNI 3.0's manager without a host: it listens on every interface,
    without a password, and can be made to run code. Call this once before ``Experiment(config).run(port)``. It changes
    ``os.environ``, from where the manager takes it: Node is told to load preload.js, beside whatever NODE_OPTIONS
    says; the folder of this Python comes first on PATH, so that ``python``, ``tensorboard`` and ``nni-fairdarts`` in a
    trial's command are of this environment; and calls to this machine pass by an HTTP proxy, if there is one.

    ``host`` is an address of this machine; "0.0.0.0" stands for all of them. Anything but the loopback draws a warning.
    The loopback is always among the addresses: NNI's own parts use it.

    Raises InputError for what is not an address of this machine.
    """
    host = address(host)
    if not is_loopback(host):
        warnings.warn(
            f"NNI's manager will listen on {host} without a password: whoever reaches it can run code as you. To look "
            "at it from another machine, the default and an ssh tunnel do: ssh -L 8080:127.0.0.1:8080 THIS_MACHINE",
            stacklevel=2,
        )
    logging.getLogger("nni.experiment").addFilter(_no_urls)
    os.environ["NNI_FAIRDARTS_HOST"] = host
    os.environ["NODE_OPTIONS"] = _with_preload(os.environ.get("NODE_OPTIONS", ""))
    os.environ["PATH"] = _first(str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))
    if any(name in os.environ for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")):
        for name in ("no_proxy", "NO_PROXY"):
            given = os.environ.get(name, "")
            missing = [one for one in ("localhost", LOOPBACK) if one not in given.split(",")]
            os.environ[name] = ",".join([given, *missing]).strip(",")


def address(host: str) -> str:
    """``host`` as a numeric address; raises InputError unless this machine can listen on it."""
    host = LOOPBACK if host == "localhost" else host
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
        with socket.socket(family) as probe:
            probe.bind((host, 0))
    except (ValueError, OSError) as error:
        raise InputError(
            f"host must be an address of this machine, got {host!r} ({error}); 127.0.0.1 is for this machine alone, "
            "0.0.0.0 for everybody who can reach it"
        ) from None
    return host


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``; a name other than localhost counts as reachable by others."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _no_urls(record: logging.LogRecord) -> bool:
    """Keeps back NNI's line of URLs: it names every address of the machine, bound or not."""
    return not record.getMessage().startswith("Web portal URLs")


def _with_preload(options: str) -> str:
    """The user's NODE_OPTIONS and ours behind them, once; Node takes quotes and backslashes as escapes."""
    quoted = str(PRELOAD).replace("\\", "\\\\").replace('"', '\\"')
    ours = f'--require "{quoted}"'
    return options if ours in options else f"{options} {ours}".strip()


def _first(folder: str, folders: str) -> str:
    rest = [one for one in folders.split(os.pathsep) if one != folder]
    return os.pathsep.join([folder, *rest])
