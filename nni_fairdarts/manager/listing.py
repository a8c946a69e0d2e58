"""Where an experiment is, and whether a manager looks after it: NNI's list of experiments, and the processes."""

import json
import os
import time
from pathlib import Path

from nni_fairdarts.errors import InputError

RECENT = 5  # how many known experiments an error names


def find(experiment: str) -> Path:
    """The folder of an experiment that is named by its id, or by that folder. Raises InputError."""
    if os.sep in experiment:
        return _checked(Path(experiment).expanduser())
    listed = _listed()
    if experiment in listed:
        return _checked(Path(listed[experiment].get("logDir") or "", experiment), f" (from NNI's list, {_list_file()})")
    if Path(experiment).is_dir():
        return _checked(Path(experiment))
    recent = sorted(listed, key=lambda id: str(listed[id].get("startTime")), reverse=True)
    known = ", ".join(recent[:RECENT]) + (f" and {len(recent) - RECENT} older ones" if len(recent) > RECENT else "")
    raise InputError(
        f"there is no experiment {experiment!r}; give an experiment's folder, or an id from NNI's list "
        f"({_list_file()}), the latest first: {known or 'none, the list is empty'}"
    )


def is_managed(id: str) -> bool:
    """Whether a manager of the experiment runs on this machine, other than one that only shows it (nnictl view)."""
    import psutil  # NNI needs it

    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        arguments = dict(zip(command, command[1:], strict=False))
        if arguments.get("--experiment-id") == id and arguments.get("--action") != "view":
            return True
    return False


def _list_file() -> Path:
    return Path.home() / "nni-experiments" / ".experiment"


def _listed() -> dict[str, dict]:
    """NNI's list of experiments, by id; empty where there is none."""
    for tries_left in (2, 1, 0):
        try:
            listed = json.loads(_list_file().read_text(encoding="utf-8"))
            break
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            if not tries_left:
                raise InputError(
                    f"NNI's list of experiments, {_list_file()}, cannot be read ({error}); "
                    "give the experiment's folder, with a / in it, instead"
                ) from error
            time.sleep(0.2)  # NNI writes it in place: it may be half written just now
    return {id: entry for id, entry in listed.items() if isinstance(entry, dict)} if isinstance(listed, dict) else {}


def _checked(folder: Path, where: str = "") -> Path:
    if (folder / "db" / "nni.sqlite").is_file():
        return folder
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}{where}; give the experiment's folder, where it is now")
    inside = sorted(path.parents[1].name for path in folder.glob("*/db/nni.sqlite"))
    hint = f"; it holds experiments, give one of them: {', '.join(inside)}" if inside else ""
    raise InputError(f"{folder}{where} is not an experiment's folder: it has no db/nni.sqlite{hint}")
