"""Another machine for NNI's remote service: a real sshd on 127.0.0.1 whose sessions have a home of their own."""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

HOST = "127.0.0.1"
FAR_END = "127.0.0.2"  # of a tunnel: where the other machine, being the same one, has the manager's port
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin:/sbin")

# SetEnv replaces HOME, so "~" is the temporary folder for every process that a session starts. Only the first SetEnv
# line counts: all variables are on one.
SSHD_CONFIG = """\
Port {port}
ListenAddress {host}
HostKey {folder}/host_key
PidFile none
AuthorizedKeysFile {folder}/user_key.pub
AuthenticationMethods publickey
AllowUsers {user}
PermitRootLogin prohibit-password
PasswordAuthentication no
StrictModes no
UsePAM no
UseDNS no
PrintMotd no
PrintLastLog no
LogLevel VERBOSE
SetEnv {environment}
GatewayPorts clientspecified
Subsystem sftp internal-sftp
"""


@dataclass(frozen=True)
class RemoteHost:
    """How to reach the machine, and the folder that is its user's home."""

    host: str
    port: int
    user: str
    key: Path
    home: Path
    log: Path  # what sshd says

    def machine(self, **settings) -> dict:
        """This machine as an entry of NNI's ``machineList``; ``settings`` are further fields in NNI's spelling."""
        return {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "sshKeyFile": str(self.key),
            "pythonPath": str(Path(sys.executable).parent),  # the folder, not the interpreter
            **settings,
        }

    def ssh(self, *options: str) -> list[str]:
        """The command that logs in; what follows in it is run over there. None of the user's own settings is read."""
        settings = ["BatchMode=yes", "IdentitiesOnly=yes", "LogLevel=ERROR"]
        settings += ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "ExitOnForwardFailure=yes"]
        command = ["ssh", "-F", "none", "-i", str(self.key), "-p", str(self.port)]
        return [*command, *(f"-o{setting}" for setting in settings), *options, f"{self.user}@{self.host}"]

    def processes(self) -> list[psutil.Process]:
        """Everything that runs on this machine: NNI's trial keeper, its trials, and what they started."""
        return [process for process in psutil.process_iter() if _home_of(process) == str(self.home)]


@contextmanager
def tunnel(machine: RemoteHost, port: int) -> Iterator[str]:
    """ssh -R: the machine reaches 127.0.0.1:``port`` of this one at the address that is yielded, on the same port.

    Between two machines both ends would be 127.0.0.1. Raises RuntimeError with ssh's own words.
    """
    command = machine.ssh("-N", "-R", f"{FAR_END}:{port}:{HOST}:{port}")
    log = machine.log.with_name(f"tunnel-{port}.log")
    with log.open("wb") as stderr:
        ssh = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=stderr)
    try:
        _wait_for(ssh, lambda: _is_listening(FAR_END, port), log)
        yield FAR_END
    finally:
        ssh.terminate()
        ssh.wait(10)


@contextmanager
def remote_host(port: int, key_type: str = "ed25519", passphrase: str = "") -> Iterator[RemoteHost]:
    """Start the machine; at the end stop all that runs on it and remove its folder.

    ``key_type`` and ``passphrase`` are those of the user's key, as ssh-keygen takes them. Raises RuntimeError with
    sshd's own words when it does not start.
    """
    if SSHD is None:
        raise RuntimeError("sshd is not installed (Debian, Ubuntu: apt install openssh-server)")
    with tempfile.TemporaryDirectory(prefix="remote-host-") as name:
        folder = Path(name)
        home = folder / "home"
        home.mkdir()
        _make_key(folder / "host_key")
        _make_key(folder / "user_key", key_type, passphrase)
        machine = RemoteHost(HOST, port, getpass.getuser(), folder / "user_key", home, folder / "sshd.log")
        (folder / "sshd_config").write_text(_sshd_config(machine, folder))
        try:
            with _sshd(machine, folder / "sshd_config"):
                yield machine
        finally:  # after sshd: nobody logs in any more
            _stop(machine)


def _sshd_config(machine: RemoteHost, folder: Path) -> str:
    environment = {
        "HOME": machine.home,
        "OMP_NUM_THREADS": 1,
        "PIP_NO_INDEX": 1,  # NNI runs "pip install nni --upgrade" here: nothing may change
        "PIP_DISABLE_PIP_VERSION_CHECK": 1,
    }
    pairs = " ".join(f'"{name}={value}"' for name, value in environment.items())
    return SSHD_CONFIG.format(port=machine.port, host=machine.host, folder=folder, user=machine.user, environment=pairs)


@contextmanager
def _sshd(machine: RemoteHost, config: Path) -> Iterator[None]:
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd run by root wants it, where no service made it
    with machine.log.open("wb") as log:
        sshd = subprocess.Popen([SSHD, "-D", "-e", "-f", str(config)], stdin=subprocess.DEVNULL, stderr=log)
    try:
        _wait_for(sshd, lambda: f" port {machine.port}." in machine.log.read_text(), machine.log)
        yield
    finally:
        sessions = psutil.Process(sshd.pid).children(recursive=True) if sshd.poll() is None else []
        sshd.terminate()
        sshd.wait(10)
        _end(sessions)


def _wait_for(process: subprocess.Popen, ready: Callable[[], bool], log: Path, seconds: float = 30) -> None:
    """Until ``process`` is ready. Raises RuntimeError with its log when it ends, or takes longer."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        if ready():
            return
        time.sleep(0.05)
    raise RuntimeError(f"{' '.join(process.args)} did not get ready: {log.read_text().strip()}")


def _is_listening(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def _stop(machine: RemoteHost) -> None:
    """End the machine's processes; one that dies may have started another, so look until there is none."""
    while processes := machine.processes():
        _end(processes)


def _end(processes: list[psutil.Process], seconds: float = 5) -> None:
    for signal in (psutil.Process.terminate, psutil.Process.kill):
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                signal(process)
        _, processes = psutil.wait_procs(processes, timeout=seconds)


def _home_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("HOME")
    except (psutil.Error, OSError):  # gone, a zombie, or someone else's
        return None


def _make_key(path: Path, key_type: str = "ed25519", passphrase: str = "") -> None:
    command = ["ssh-keygen", "-q", "-t", key_type, "-N", passphrase, "-C", "nni-fairdarts test", "-f", str(path)]
    subprocess.run(command, check=True)
