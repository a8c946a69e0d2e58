"""A run as a trial of NNI's manager: its parameters in, a record each epoch and the retrained accuracy out."""

import json
import math
import os
import shutil
from pathlib import Path

from nni.runtime.trial_command_channel import get_default_trial_command_channel, set_default_trial_command_channel
from nni.runtime.trial_command_channel.base import TrialCommandChannel

from nni_fairdarts.arguments import changed
from nni_fairdarts.config import RunConfig
from nni_fairdarts.edges import shortened
from nni_fairdarts.errors import InputError, NonFiniteLoss
from nni_fairdarts.experiment.run import go_on
from nni_fairdarts.folder import read_json, unfinished, write_json
from nni_fairdarts.genotype import Genotype
from nni_fairdarts.parameters import applied, flat

# -- what is reported ----------------------------------------------------------------------------------------------


def epoch_metrics(record: dict, metric: str = "val_acc") -> dict[str, float]:
    """An epoch's record as NNI's UI can show it: flat, finite numbers, with ``default`` first.

    ``default`` is the supernet's ``metric`` in validation. Then losses and metrics, the discretisation gap, the share
    of decided gates, the number of open ones, and skip connections of each kind of cell, or of all choices of layers
    together. What the strategy does not have is left out.
    """
    numbers = {"default": record.get(metric)}
    numbers |= {key: value for key, value in record.items() if key.endswith("_loss") or key.startswith("val_")}
    for key in ("expected_cost", "discretization_gap", "decided_gates", "open_gates"):
        numbers[key] = record.get(key)
    if (skips := record.get("skip_connections")) is not None:
        numbers |= _skip_numbers(skips)
    return {key: value for key, value in numbers.items() if value is not None and math.isfinite(value)}


def _skip_numbers(skips: dict[str, int]) -> dict[str, int]:
    # NNI's UI shows the first ten letters of a name: these are told apart by them.
    cells = {f"{kind}_skips": skips[kind] for kind in ("normal", "reduce") if kind in skips}
    return cells or {"skips": sum(skips.values())}


def final_metrics(config: RunConfig, searched: dict, retrained: dict, parameters: dict, parameter_id) -> dict:
    """What a trial is judged by, ``default``: the accuracy of the retrained network; and what came out of it.

    Strings beside the numbers are no trouble to NNI in a final result, as long as ``default`` is a number.
    """
    skips = searched["skip_connections"]
    if "genotype" in searched:
        architecture = Genotype.from_json(searched["genotype"]).to_text()
    else:
        architecture = _compact(searched["nni_sample"])
    found = {
        "default": retrained["test_accuracy"],
        "metric": None if config.metric == "val_acc" else config.metric,
        "strategy": config.search.strategy,
        "seed": config.seed,
        "parameters": retrained["parameters"],
        "multiply_adds": retrained["multiply_adds"],
        "skip_connections": sum(skips.values()),
        **(_skip_numbers(skips) if "normal" in skips else {}),
        "supernet_accuracy": searched["supernet_accuracy"],
        **{key: searched.get(key) for key in ("discretization_gap", "decided_gates", "open_gates")},
        "seconds": searched["seconds"] + retrained["seconds"],
        "genotype": architecture,
        "hyperparameters": _compact(parameters),
        "parameter_id": parameter_id,
    }
    if not math.isfinite(found["default"]):
        raise NonFiniteLoss(f"the retrained network's {config.metric} is {found['default']}; there is no final result")
    return {k: v for k, v in found.items() if v is not None and not (isinstance(v, float) and not math.isfinite(v))}


def _compact(values: dict) -> str:
    return json.dumps(values)


# -- NNI ---------------------------------------------------------------------------------------------------------------


class Silent(TrialCommandChannel):
    """Swallows what evaluators report to NNI by themselves: their numbers are in the trial's own reports."""

    def receive_parameter(self):
        return None

    def send_metric(self, type, parameter_id, trial_job_id, sequence, value):  # noqa: A002 (NNI's names)
        pass


class Reports:
    """The line to NNI's manager. It is taken before NNI's sequential search puts its own in the place of it.

    Every report carries the id of the parameters that the trial really runs: which trial NNI itself believes to run
    them may be another (its local service hands parameters to whichever trial asks first).
    """

    def __init__(self, output: Path):
        self._channel = get_default_trial_command_channel()
        self._file = output / "reported.json"
        # Of an earlier life of the trial, whose last epoch may come again: a search goes on from its last checkpoint.
        known = read_json(self._file, "epochs", "last") if self._file.is_file() else {"epochs": 0, "last": {}}
        self._epochs, self._last = known["epochs"], known["last"]
        self.trial = os.environ["NNI_TRIAL_JOB_ID"]
        self.parameter_id: int | None = None

    def receive(self) -> dict:
        """The parameters that the manager has for this trial. Raises InputError where there are none."""
        try:
            received = self._channel.receive_parameter()
        except ValueError as error:
            raise InputError(
                f"cannot read the parameters from NNI: {error}. NNI takes // and # for the beginning of a comment: "
                "paths and URLs belong into the configuration file, not into the search space"
            ) from error
        if received is None:
            raise InputError("NNI's manager has no parameters for this trial; it has been stopped, or is at its end")
        self.parameter_id = received["parameter_id"]
        set_default_trial_command_channel(Silent())
        return _mapping(received["parameters"] or {}, "NNI's manager")

    def epoch(self, epoch: int, numbers: dict[str, float]) -> None:
        """An epoch's intermediate result, once, with the keys of the first one: NNI's UI knows and needs just these."""
        if epoch < self._epochs or "default" not in numbers:  # without it NNI's UI breaks
            return
        self._last = {key: numbers.get(key, self._last[key]) for key in self._last} or numbers
        self._epochs = epoch + 1
        self._send("PERIODICAL", epoch, self._last)
        write_json(self._file, {"epochs": self._epochs, "last": self._last})

    def final(self, result: dict) -> None:
        self._send("FINAL", 0, result)

    def _send(self, kind: str, sequence: int, value: dict) -> None:
        self._channel.send_metric(kind, self.parameter_id, self.trial, sequence, value)


def trial(config: RunConfig) -> dict:
    """Run one trial of an NNI experiment; returns its final result, which is in ``result.json`` too.

    Everything is in the trial's NNI_OUTPUT_DIR: ``trial.json`` (what it runs), ``run/``, ``tensorboard/``. A trial that
    NNI starts again, when its experiment is resumed, goes on with what it had begun. Raises InputError outside NNI.
    """
    output = _output()
    if config.devices > 1:  # the others would ask NNI for parameters too
        raise InputError(
            f"a trial is one process on one device, but devices is {config.devices}; leave it out, and let several "
            "trials run at a time (trialConcurrency, trialGpuNumber: 1)"
        )
    reports = Reports(output)
    parameters = reports.receive()
    if (output / "trial.json").is_file():
        # Its parameters were somebody's, and are still: which set NNI hands out now may be another trial's by now.
        earlier = read_json(output / "trial.json", "parameters", "parameter_id")
        parameters = _mapping(earlier["parameters"], output / "trial.json")
        reports.parameter_id = earlier["parameter_id"]
    config = applied(changed(config, {"runs": str(output), "name": "run"}), parameters)
    write_json(output / "trial.json", _begun(config, reports, parameters))
    _show_tensorboard(output)

    if config.search.strategy == "enas" and unfinished(config.folder):
        shutil.rmtree(config.folder)  # it cannot be gone on with, see resume

    def report(record: dict) -> None:
        reports.epoch(record["epoch"], epoch_metrics(record, config.metric))

    searched, retrained = go_on(config, report, output / "tensorboard")
    result = final_metrics(config, searched, retrained, flat(parameters), reports.parameter_id)
    write_json(output / "result.json", result)
    reports.final(result)
    return result


def _output() -> Path:
    """The trial's folder, as NNI says. Raises InputError outside NNI, and where it cannot be written to."""
    if missing := [name for name in ("NNI_OUTPUT_DIR", "NNI_TRIAL_JOB_ID") if not os.environ.get(name)]:
        raise InputError(
            f"{' and '.join(missing)} is not set: a trial is started by NNI's manager: nni-fairdarts launch --config "
            "EXPERIMENT.yaml; to run this configuration by itself: nni-fairdarts run --config FILE"
        )
    output = os.environ["NNI_OUTPUT_DIR"]
    if not (os.path.isdir(output) and os.access(output, os.W_OK | os.X_OK)):
        raise InputError(
            f"NNI_OUTPUT_DIR must be a folder that can be written to, got {output!r}; NNI sets it: choose another "
            "experimentWorkingDirectory, or make that writable"
        )
    return Path(output)


def _mapping(parameters, source) -> dict:
    if not isinstance(parameters, dict):
        raise InputError(
            f"the parameters from {source} must be names and values, got {shortened(parameters)}; mend the search space"
        )
    return parameters


def _begun(config: RunConfig, reports: Reports, parameters: dict) -> dict:
    return {
        "trial": reports.trial,
        "parameter_id": reports.parameter_id,
        "parameters": parameters,
        "strategy": config.search.strategy,
        "seed": config.seed,
        "hyperparameters": flat(parameters),
    }


def _show_tensorboard(output: Path) -> None:
    """Let NNI's TensorBoard find this trial's logs: it looks for them in EXPERIMENT/trials/TRIAL/output.

    NNI_OUTPUT_DIR is EXPERIMENT/environments/local-env/trials/TRIAL since NNI 3.0's local service; the other place is
    the one of its older services (ts/ training_service/v3/compat.ts, getTrialOutputLocalPath).
    """
    (output / "tensorboard").mkdir(exist_ok=True)
    if os.environ.get("NNI_PLATFORM") != "local" or len(output.parents) < 4:
        return
    expected = output.parents[3] / "trials" / output.name / "output"
    if not expected.exists():
        expected.parent.mkdir(parents=True, exist_ok=True)
        expected.symlink_to(output, target_is_directory=True)
