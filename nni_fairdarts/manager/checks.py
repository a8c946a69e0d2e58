"""What would go wrong in NNI's manager without a word, said before it starts. Every check raises InputError."""

import difflib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

from nni_fairdarts.edges import shortened
from nni_fairdarts.errors import InputError
from nni_fairdarts.manager.environment import LOOPBACK, is_loopback
from nni_fairdarts.yaml_files import read_mapping


def installation() -> None:
    """NNI's manager and what its commands need are installed."""
    spec = importlib.util.find_spec("nni_node")
    folders = spec.submodule_search_locations if spec else None
    if not folders or not Path(folders[0], "node").exists():
        raise InputError(
            "NNI's manager (nni_node/node) is not installed: NNI has it in its wheels for x86-64 only; on such a "
            "machine: pip install --force-reinstall --no-deps --only-binary nni nni==3.0"
        )
    if importlib.util.find_spec("pkg_resources") is None:
        raise InputError(
            "nnictl does not start without pkg_resources, which setuptools has up to version 80: "
            "pip install 'setuptools<81'"
        )


def home() -> None:
    """NNI can keep its list of experiments, which is in the user's home whatever the experiment's own folder."""
    folder = os.path.expanduser("~")
    if not (os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)):
        raise InputError(
            f"HOME must be a folder that can be written to, where NNI keeps its list of experiments, got {folder!r}; "
            "set HOME to one"
        )


def configuration(path: Path):
    """The ExperimentConfig in the YAML file ``path``, complete and with known names only."""
    from nni.experiment.config import ExperimentConfig, utils

    content = _mapping(path)
    _known_names(content, path)
    utils.set_base_path(path.absolute().parent)  # relative paths start from the file
    try:
        config = ExperimentConfig(**content)
        validated(config, str(path))
    finally:
        utils.unset_base_path()
    return config


def validated(config, where: str):
    """``config`` as the manager gets it, with what NNI objects to; ``where`` is what an error names."""
    try:
        return config.canonical_copy()
    except Exception as error:  # NNI raises many kinds
        if "use_active_gpu" in str(error):
            raise InputError(
                f"{where}: trialGpuNumber needs trainingService.useActiveGpu: false gives trials only devices that "
                "nobody else computes on, true any device (say true where a desktop runs on the device)"
            ) from None
        said = str(error) or traceback.extract_tb(error.__traceback__)[-1].line  # of an assertion its line
        raise InputError(f"{where} is not a configuration of an NNI experiment: {said}") from error


def search_space(config) -> None:
    """The search space has names, and neither these nor its values hold // or #."""
    space = config.canonical_copy().search_space
    if not isinstance(space, dict):
        raise InputError(
            f"searchSpace must hold names and what they may be, such as seed: {{_type: choice, _value: [0, 1]}}, got "
            f"{shortened(space)}"
        )
    for where, text in _strings(space, "searchSpace"):
        for mark in ("//", "#"):
            if mark in text:
                raise InputError(
                    f"{where} is {text!r}, but NNI 3.0 hangs on parameters with {mark}: it takes the rest of the line "
                    "for a comment. Put paths and URLs into the configuration file of the trials"
                )


def port(number: int, host: str, config) -> None:
    """``number`` is free for the manager; another training service than the local one wants the next port too."""
    remote = [service.platform for service in services(config) if service.platform != "local"]
    for one in [number, number + 1] if remote else [number]:
        if not 0 < one < 65536:
            raise InputError(f"port must be in 1 to 65535, got {one}")
        for address in {host, LOOPBACK}:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Node does: ended connections may stay
                try:
                    probe.bind((address, one))
                except OSError as error:
                    also = f" (NNI's {remote[0]} service needs two ports)" if one != number else ""
                    raise InputError(
                        f"port {one} of {address} cannot be used: {error.strerror}{also}; choose another with --port, "
                        "or stop what uses it (nnictl experiment list shows NNI's experiments)"
                    ) from None


def reachable(config, host: str) -> None:
    """Machines of a training service other than the local one can reach a manager that listens on ``host``."""
    for service in services(config):
        if service.platform == "local":
            continue
        ip = service.nni_manager_ip
        tunnel = f"nniManagerIp: {LOOPBACK} and a tunnel for each machine: ssh -R PORT:{LOOPBACK}:PORT MACHINE"
        if ip in (None, "localhost"):  # which Node takes for ::1 where it can
            raise InputError(
                f"nniManagerIp is {ip or 'not set'}: the machines would look for the manager on themselves. Set it to "
                f"an address of this machine that they reach, and give the same to --host; or write {tunnel}"
            )
        if not is_loopback(ip) and is_loopback(host):
            raise InputError(
                f"the manager would listen on {host} alone, but nniManagerIp tells the machines to call {ip}. "
                f"Give --host {ip} (no password: whoever reaches it can run code as you), or write {tunnel}"
            )


def devices(config) -> None:
    """The CUDA devices that trials of the local service ask for are there; a warning where all are in use."""
    for service in services(config):
        if service.platform != "local" or not service.trial_gpu_number:
            continue
        found = _devices()
        wanted = service.trial_gpu_number
        if not found["gpuNumber"]:
            raise InputError(
                f"trialGpuNumber is {wanted}, but there is no CUDA device here ({'; '.join(found['failures'])}); "
                "without a device leave it out, or set it to 0"
            )
        indices = _indices(service, found["gpuNumber"])
        if wanted > len(indices):
            raise InputError(
                f"trialGpuNumber is {wanted}, but a trial can get {len(indices)} CUDA device(s) at most: {indices}"
            )
        if wanted > 1 and service.max_trial_number_per_gpu > 1:
            raise InputError(
                f"trialGpuNumber is {wanted} with maxTrialNumberPerGpu {service.max_trial_number_per_gpu}: NNI 3.0 "
                "gives a trial the quotient of the two; set one of them to 1"
            )
        used = {process["gpuIndex"] for process in found["processes"]}
        if not service.use_active_gpu and used.issuperset(indices):
            warnings.warn(
                f"every CUDA device for trials, {indices}, is in use by other processes: with useActiveGpu: false "
                "the trials wait until one is free",
                stacklevel=2,
            )


def services(config) -> list:
    """The training services of ``config``, as the manager gets them."""
    service = config.canonical_copy().training_service
    return service if isinstance(service, list) else [service]


def _mapping(path: Path) -> dict:
    content = read_mapping(path, "an NNI experiment's YAML file (trialCommand: …, searchSpace: …)")
    if "trainingServicePlatform" in content:
        raise InputError(f"{path} has the format of NNI 1; nnictl create --config {path} prints it in today's")
    if content.get("useAnnotation"):
        raise InputError(f"{path}: useAnnotation is not supported since NNI 3.0; write a searchSpace")
    return content


def _known_names(content: dict, path: Path) -> None:
    from nni.experiment.config import ExperimentConfig, algorithm, utils
    from nni.experiment.config.training_services.remote import RemoteMachineConfig

    if content.get("experimentType", "hpo") != "hpo":
        raise InputError(f"{path}: experimentType must be hpo (or absent), got {content['experimentType']!r}")
    _check_names(content, ExperimentConfig, path, "")
    for name in ("tuner", "assessor", "advisor"):
        if not isinstance(content.get(name, {}), dict | None):
            raise InputError(f"{path}: {name} must hold names and values (name: TPE), got {shortened(content[name])}")
        _check_names(content.get(name), algorithm._AlgorithmConfig, path, f"{name}.")
    service = content.get("trainingService")
    for one in service if isinstance(service, list) else [service]:
        if not isinstance(one, dict):
            raise InputError(f"{path}: trainingService must hold names and values (platform: local), got {one!r}")
        try:
            kind = type(utils.training_service_config_factory(one.get("platform")))
        except ValueError:
            raise InputError(
                f"{path}: trainingService.platform must be a training service of NNI, such as local or remote, "
                f"got {one.get('platform')!r}"
            ) from None
        _check_names(one, kind, path, "trainingService.")
        for machine in one.get("machineList") or []:
            _check_names(machine, RemoteMachineConfig, path, "trainingService.machineList: ")


def _check_names(content, kind: type, path: Path, where: str) -> None:
    from nni.experiment.config import utils

    names = {utils.case_insensitive(name): utils.camel_case(name) for name in kind.__dataclass_fields__}
    for name in content if isinstance(content, dict) else []:
        if utils.case_insensitive(str(name)) not in names:
            near = difflib.get_close_matches(str(name), names.values(), 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(names.values())}"
            raise InputError(f"{path}: unknown name {where}{name}; {hint}")


def _strings(value, where: str) -> Iterator[tuple[str, str]]:
    """Every string in ``value``, names among them, with its place."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield f"a name in {where}", str(name)
            yield from _strings(inner, f"{where}.{name}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _strings(inner, f"{where}[{index}]")
    elif isinstance(value, str):
        yield where, value


def _devices() -> dict:
    """What NVML says, by the script that the manager asks too: gpuNumber, gpus, processes, failures."""
    script = importlib.util.find_spec("nni.tools.nni_manager_scripts.collect_gpu_info").origin
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    found = {"gpuNumber": 0, "processes": [], "failures": ["NVML counts none"]}
    try:
        return found | json.loads(done.stdout)
    except ValueError:
        return found | {"failures": [done.stderr.strip().rpartition("\n")[2] or f"{script} said nothing"]}


def _indices(service, count: int) -> list[int]:
    """The devices that ``service`` may use among ``count``."""
    there = list(range(count))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if service.gpu_indices is None:
        if visible is not None:
            warnings.warn(
                f"NNI gives trials any of the CUDA devices {there}, not only CUDA_VISIBLE_DEVICES={visible}; set "
                "trainingService.gpuIndices to restrict it",
                stacklevel=3,
            )
        return there
    if not service.gpu_indices or not set(service.gpu_indices).issubset(there):
        raise InputError(
            f"trainingService.gpuIndices must name some of the CUDA devices that are here, {there}, "
            f"got {service.gpu_indices}"
        )
    return service.gpu_indices
