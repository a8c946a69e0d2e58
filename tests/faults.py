"""Faults put into searches of digits, through the real command line: does everything end as if nothing had happened?

    python tests/faults.py --kills 20 --seed 0          # everything; a table, and "injected N, survived N, lost N"
    python tests/faults.py --only "damage|disk"         # the faults whose names this is found in

A search (and a retraining) runs once without a fault. Then others are killed, starved, damaged and gone on with, and
their final α, weights, batch norms, optimizers, history, architecture and result are compared with the first one's bit
for bit (all but times). The exit code is 1 if anything was lost; the folders of what was lost are kept. The full disk
and the read-only folder are mounts and need root. SIGKILL loses nothing that the kernel has: this is no loss of power.
"""

import argparse
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import cycle
from pathlib import Path
from random import Random

from searches import Life, Lost, Retraining, Search, compare

PLACES = {
    "its beginning": (r"runs/run$|/retrain$|(run|retrain)/\.?(config|nni|tensorboard/hparams|lock)", 8),
    "a checkpoint": (r"checkpoints", 12),
    "the history": (r"run/\.?history", 9),
    "its result": (r"(run|retrain)/\.?(sample|genotype|result|normal|reduce|network)", 8),
}
"""Where a search kills itself: the files that are written there, and how many changes of them to choose from."""


class Skipped(Exception):
    """A fault that cannot be put in here; says why."""


# -- killed -----------------------------------------------------------------------------------------------------------


def kill_somewhere(search: Search, how: str, random: Random, seconds: float) -> str | None:
    """Begin or go on and SIGKILL all of it; returns where that was, None where it ended before."""
    if how == "at any time":
        life, after = search.start(), random.uniform(0, seconds)
        life.until(lambda: life.age() > after)
        where = f"after {after:.1f} s"
    elif how == "as files change":
        names, changes, delay = _names(search), random.randint(1, 5), random.choice([0, random.uniform(0, 0.01)])
        life, seen = search.start(), [names]

        def changed() -> bool:
            if (now := _names(search)) != seen[-1]:
                seen.append(now)
            return len(seen) > changes

        life.until(changed, pause=0.0005)
        time.sleep(delay)
        where = f"{delay * 1000:.1f} ms after change {changes} in checkpoints/"
    else:
        pattern, changes = PLACES[how]
        count, delay = random.randint(1, changes), random.choice([0, 0, random.uniform(0, 0.02)])
        life = search.start(trip=(pattern, count, delay))
        life.until(lambda: False)
        where = f"at change {count} of {how} (tripwire {pattern!r} {count} {delay:.4f})"
    life.kill()
    if life.process.returncode == 0:
        return None
    if life.process.returncode != -signal.SIGKILL:
        raise Lost(f"ended with {life.process.returncode} before it was killed: {life.last_words()}")
    return f"{where}, with {search.epochs()} epochs recorded"


def _names(search: Search) -> set[str]:
    folder = search.run / "checkpoints"
    return set(os.listdir(folder)) if folder.is_dir() else set()


KILLS = ("a checkpoint", "at any time", "its beginning", "as files change", "the history", "its result")


def kill_again_and_again(report: "Report", make: Callable[[], Search], kills: int, random: Random, at_a_time: int = 4):
    """Inject ``kills`` of them, some into each search that ``make`` makes, and go on to its end.

    Some searches save within their epochs, too.
    """
    done, hows = 0, cycle(KILLS)  # also where one is not reached: a retraining has no history
    while done < kills:
        search, places = make(), []
        reference, seconds = report.references[search.name]
        failure = None
        try:
            while len(places) < at_a_time and done + len(places) < kills and not search.finished():
                if (where := kill_somewhere(search, next(hows), random, seconds)) is None:
                    break
                places.append(where)
            if not search.finished():
                search.go_on()
            compare(search, reference)
        except Lost as lost:
            failure = lost
        places = places or (["before any kill"] if failure else [])
        for where in places:
            report.row(f"SIGKILL of a {search.name}", where, failure)
        done += len(places)
        report.leave(search, failure)


# -- one fault at a time ----------------------------------------------------------------------------------------------


def kill_of_the_main_process(search: Search, random: Random) -> str:
    """Only the process that a user sees, as the kernel kills when memory is short; go on at once."""
    life = started(search, 1)
    life.signal(signal.SIGKILL, group=False)
    life.process.wait()
    search.go_on()
    life.end()
    return "its workers noticed"


def kill_of_a_worker(search: Search, random: Random) -> str:
    import psutil

    life = started(search, 1)
    life.until(lambda: psutil.Process(life.process.pid).children())
    random.choice(psutil.Process(life.process.pid).children()).kill()
    code = life.end(60)
    if code == 0:
        return "not noticed: it had loaded all it had to"
    search.go_on()
    return f"exit code {code}: {life.last_words()}"


def sigterm(search: Search, random: Random) -> str:
    return _stopped(search, random, signal.SIGTERM, 143, group=False)


def sigterm_to_all(search: Search, random: Random) -> str:
    """As systemd and Slurm send it: to the workers as well."""
    return _stopped(search, random, signal.SIGTERM, 143, group=True)


def ctrl_c(search: Search, random: Random) -> str:
    """As a terminal sends it, to the workers as well."""
    return _stopped(search, random, signal.SIGINT, 130, group=True)


def early_ctrl_c(search: Search, random: Random) -> str:
    """Before anything is trained: nothing is said about how to go on, but going on works."""
    life = search.start()
    after = random.uniform(0, 6)
    life.until(lambda: life.age() > after)
    life.signal(signal.SIGINT)
    code = life.end(20)
    if code not in (130, -signal.SIGINT):
        raise Lost(f"exit code {code} after Ctrl-C: {life.last_words()}")
    search.go_on()
    return f"after {after:.1f} s: exit code {code}"


def _stopped(search: Search, random: Random, number: int, expected: int, group: bool) -> str:
    life, epochs = started(search, random.randint(0, 2)), search.epochs()
    after = random.uniform(0, 1)
    time.sleep(after)
    began = time.monotonic()
    life.signal(number, group)
    code = life.end(30)
    took = time.monotonic() - began
    where = f"in epoch {epochs + 1}: exit code {code} after {took:.1f} s"
    if code == 0:
        return f"{where}: it was at its end"
    if code != expected:
        raise Lost(f"{where} in place of {expected}: {life.last_words()}")
    if "search --resume runs/run" not in life.said():
        raise Lost(f"{where}, and it does not say how to go on: {life.last_words()}")
    search.go_on()
    return where


def second_ctrl_c(search: Search, random: Random) -> str:
    life = started(search, 1)
    life.signal(signal.SIGINT)
    pause = random.uniform(0, 0.3)
    time.sleep(pause)
    began = time.monotonic()
    life.signal(signal.SIGINT)
    code = life.end(20)
    where = f"{pause:.2f} s after the first: exit code {code} after {time.monotonic() - began:.1f} s"
    if code not in (130, -signal.SIGINT):
        raise Lost(f"{where}: {life.last_words()}")
    search.go_on()
    return where


# -- damaged checkpoints ----------------------------------------------------------------------------------------------


def truncated(path: Path, random: Random) -> str:
    length = random.randrange(1, path.stat().st_size)
    os.truncate(path, length)
    return f"cut to {length:,} bytes"


def flipped(path: Path, random: Random) -> str:
    content = bytearray(path.read_bytes())
    places = [random.randrange(len(content)) for _ in range(random.choice([1, 8]))]
    for place in places:
        content[place] ^= 1 << random.randrange(8)
    path.write_bytes(content)
    return f"a bit flipped at {', '.join(map(str, places))}"


def zeros(path: Path, random: Random) -> str:
    """What a file system may leave of a file after a loss of power: its length."""
    path.write_bytes(bytes(path.stat().st_size))
    return "all zeros"


def emptied(path: Path, random: Random) -> str:
    path.write_bytes(b"")
    return "emptied"


def removed(path: Path, random: Random) -> str:
    path.unlink()
    return "removed"


DAMAGES = (truncated, flipped, zeros, emptied, removed)


def damage(how: Callable) -> Callable:
    """The newest checkpoint is damaged: the one before it is used, with a word."""

    def fault(search: Search, random: Random) -> str:
        newest = killed_with_two_checkpoints(search)
        intact = newest.read_bytes()
        what = how(newest, random)
        life = search.go_on(again=2)
        if how is not removed and newest.name not in life.said():
            if how is not flipped:
                raise Lost(f"{newest.name} {what}: not a word about it")
            what += f" of {len(intact):,} bytes: taken as whole"
        return f"{newest.name} {what}"

    return fault


def damage_to_all(search: Search, random: Random) -> str:
    """Nothing to go on from: said in a line, and nothing is written."""
    killed_with_two_checkpoints(search)
    for path in search.checkpoints():
        random.choice(DAMAGES[:-1])(path, random)
    says = refused(search, lambda: search.start(), "checkpoint", codes=(1, 2))
    shutil.rmtree(search.run)
    search.go_on()
    return says


# -- places that cannot be written ------------------------------------------------------------------------------------


def full_disk(search: Search, random: Random) -> str:
    """The file system is full all at once, but for less than a checkpoint (280 kB)."""
    with mounted(search.place / "runs", "-t", "tmpfs", "-o", "size=64m", "tmpfs"):
        life = started(search, random.randint(1, 2))
        life.until(search.checkpoints)
        left = random.randrange(1, 200_000)
        _fill(search.place / "runs" / "ballast", left)
        says = not_saved(search, life)
        (search.place / "runs" / "ballast").unlink()
        search.go_on()
        return _kept(search, f"{left:,} bytes left: {says}")


def _fill(path: Path, left: int) -> None:
    with path.open("wb") as ballast:
        while (free := os.statvfs(path.parent)).f_bavail * free.f_frsize > left + free.f_frsize:
            with suppress(OSError):  # the search has written something meanwhile
                size = ballast.seek(0, os.SEEK_END)
                os.posix_fallocate(ballast.fileno(), size, free.f_bavail * free.f_frsize - left)


def read_only(search: Search, random: Random) -> str:
    """The folder becomes read-only while a search is at work; even root cannot write there."""
    runs = search.place / "runs"
    runs.mkdir()
    life = started(search, random.randint(1, 2))
    with mounted(runs, "--bind", str(runs)):
        subprocess.run(["mount", "-o", "remount,bind,ro", runs], check=True)
        says = not_saved(search, life)
    search.go_on()
    return says


def small_files(search: Search, random: Random) -> str:
    """``ulimit -f``: no file may become as large as a checkpoint."""
    limit = random.randrange(50_000, 200_000)
    life = search.start(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    says = not_saved(search, life)
    search.go_on()
    return f"ulimit of {limit:,} bytes: {says}"


def not_saved(search: Search, life: Life) -> str:
    """That a search ends with one line when it cannot save, and what it says."""
    code = life.end()
    said = life.said()
    if code != 1 or "Traceback" in said:
        raise Lost(f"exit code {code} in place of 1 and a line: {life.last_words()}")
    if "error:" not in said or "search --resume runs/run" not in said:
        raise Lost(f"it does not say how to go on: {life.last_words()}")
    return next(line for line in said.split("\n") if "error:" in line)


@contextmanager
def mounted(folder: Path, *words: str) -> Iterator[None]:
    """``mount`` with the words on ``folder`` inside. Raises Skipped where that is not allowed."""
    folder.mkdir(exist_ok=True)
    if os.geteuid() != 0:
        raise Skipped("only root can mount")
    done = subprocess.run(["mount", *words, folder], capture_output=True, text=True)
    if done.returncode:
        raise Skipped(done.stderr.strip())
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def _kept(search: Search, says: str) -> str:
    """Copies what is on a mount to where it is compared after it is gone."""
    shutil.copytree(search.place / "runs", search.place / "kept")
    search.run = search.place / "kept" / "run"
    return says


# -- users ------------------------------------------------------------------------------------------------------------


def changed_configuration(search: Search, random: Random) -> str:
    """Another seed in the run's config.yaml: named, and refused."""
    killed_with_two_checkpoints(search)
    path = search.run / "config.yaml"
    before = path.read_text()
    path.write_text(before.replace("seed: 2", "seed: 77"))
    says = refused(search, lambda: search.start(), "seed")
    path.write_text(before)
    search.go_on()
    return says


def changed_flag(search: Search, random: Random) -> str:
    killed_with_two_checkpoints(search)
    says = refused(search, lambda: search.start("--search.batch_size", "8"), "search.batch_size")
    search.go_on()
    return says


def second_process(search: Search, random: Random) -> str:
    """Somebody goes on with a search that is running; it is held meanwhile, or it could be at its end."""
    life = started(search, 1)
    life.signal(signal.SIGSTOP)
    says = refused(search, lambda: search.start(), "another process")
    life.signal(signal.SIGCONT)
    if code := life.end():
        raise Lost(f"the first process ended with {code}: {life.last_words()}")
    return says


def two_at_once(search: Search, random: Random) -> str:
    """Two go on at the same moment with a search that was killed: one works, the other is refused."""
    killed_with_two_checkpoints(search)
    lives = [search.start(), search.start()]
    codes = sorted(life.end() for life in lives)
    if codes != [0, 2]:
        raise Lost(f"they ended with {codes}: {' | '.join(life.last_words() for life in lives)}")
    return "one worked, one was refused"


def two_beginnings(search: Search, random: Random) -> str:
    lives = [search.start(), search.start()]
    codes = sorted(life.end() for life in lives)
    if codes != [0, 2]:
        raise Lost(f"they ended with {codes}: {' | '.join(life.last_words() for life in lives)}")
    return "one worked, one was refused"


# -- what faults are made of ------------------------------------------------------------------------------------------


def started(search: Search, epochs: int) -> Life:
    """A life that has finished so many epochs and works on the next one."""
    life = search.start()
    ready = (lambda: search.epochs() >= epochs) if epochs else (search.run / "tensorboard" / "hparams.yaml").exists
    if not life.until(ready):
        raise Lost(f"ended with {life.process.returncode} before epoch {epochs + 1}: {life.last_words()}")
    return life


def killed_with_two_checkpoints(search: Search) -> Path:
    """Kill a search that has saved twice or more; returns the newest checkpoint."""
    life = search.start()
    life.until(lambda: search.epochs() >= 3 and len(search.checkpoints()) >= 2)
    life.kill()
    return search.checkpoints()[-1]


def refused(search: Search, begin: Callable[[], Life], word: str, codes: tuple = (2,)) -> str:
    """That a command ends with one line that names ``word``, and leaves the run's folder as it is."""
    before = _stamps(search)
    life = begin()
    code = life.end()
    if code not in codes or "Traceback" in life.said():
        raise Lost(f"exit code {code} in place of a refusal ({' or '.join(map(str, codes))}): {life.last_words()}")
    if word not in life.last_words() or "error:" not in life.last_words():
        raise Lost(f"refused, but {word!r} is not named: {life.last_words()}")
    if _stamps(search) != before:
        raise Lost("refused, but the run's folder was changed")
    return life.last_words()


def _stamps(search: Search) -> dict:
    files = (path for path in search.run.rglob("*") if path.is_file() and path.name != ".lock")
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


FAULTS = {
    "SIGKILL of the main process alone": kill_of_the_main_process,
    "SIGKILL of a worker": kill_of_a_worker,
    "SIGTERM": sigterm,
    "SIGTERM to workers too": sigterm_to_all,
    "Ctrl-C": ctrl_c,
    "Ctrl-C, early": early_ctrl_c,
    "Ctrl-C twice": second_ctrl_c,
    **{f"damage: newest checkpoint {how.__name__}": damage(how) for how in DAMAGES},
    "damage: every checkpoint": damage_to_all,
    "full disk": full_disk,
    "read-only folder": read_only,
    "files too large": small_files,
    "changed configuration": changed_configuration,
    "changed flag": changed_flag,
    "second process": second_process,
    "two resumes at once": two_at_once,
    "two beginnings at once": two_beginnings,
}


# -- the table --------------------------------------------------------------------------------------------------------


class Report:
    """The table, a row for each fault; and the folders that the faults happen in."""

    def __init__(self, folder: Path, seed: int):
        self.folder = folder
        self.seed = seed
        self.references: dict[str, tuple[dict, float]] = {}
        self.injected = self.lost = self.places = 0

    def place(self) -> Path:
        self.places += 1
        return self.folder / f"{self.places:03d}"

    def reference(self, search: Search) -> Search:
        """Run a search without a fault."""
        began = time.monotonic()
        search.go_on()
        self.references[search.name] = search.facts(), time.monotonic() - began
        print(f"a {search.name} without a fault: {self.references[search.name][1]:.1f} s", flush=True)
        return search

    def inject(self, name: str, fault: Callable, search: Search, random: Random) -> None:
        """Put in one fault, let the search end, and compare."""
        where, failure = "", None
        try:
            where = fault(search, random)
            compare(search, self.references[search.name][0])
        except Lost as lost:
            failure = lost
        except Skipped as why:
            print(f"skipped   {name}: {why}", flush=True)
            return
        self.row(name, where, failure)
        self.leave(search, failure)

    def row(self, name: str, where: str, failure: Lost | None) -> None:
        self.injected += 1
        self.lost += failure is not None
        text = "; ".join(str(part) for part in (where, failure) if part)
        print(f"{'LOST' if failure else 'survived':<9} {name:<36} {text}", flush=True)

    def leave(self, search: Search, failure: Lost | None) -> None:
        if failure:
            print(f"          its folder is kept: {search.place}", flush=True)
        else:
            shutil.rmtree(search.place)

    def last_line(self) -> str:
        return f"injected {self.injected}, survived {self.injected - self.lost}, lost {self.lost}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="SIGKILLs of searches; a fourth as many of retrainings")
    parser.add_argument("--seed", type=int, default=0, help="of where faults happen")
    parser.add_argument("--rounds", type=int, default=1, help="how often every other fault happens")
    parser.add_argument("--only", default="", help="faults whose names a pattern is found in")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # with what was started
    report = Report(Path(tempfile.mkdtemp(prefix="faults-")), given.seed)
    searched = report.reference(Search(report.place()))
    if re.search(given.only, "SIGKILL of a search"):
        random = Random(f"{given.seed} searches")
        kill_again_and_again(report, lambda: Search(report.place(), random.choice([0, 2])), given.kills, random)
    for round in range(given.rounds):
        for name, fault in FAULTS.items():
            if re.search(given.only, name):
                report.inject(name, fault, Search(report.place()), Random(f"{given.seed} {round} {name}"))
    if re.search(given.only, "SIGKILL of a retraining") and given.kills > 3:
        report.reference(Retraining(report.place(), searched))
        random = Random(f"{given.seed} retrainings")
        kill_again_and_again(report, lambda: Retraining(report.place(), searched), given.kills // 4, random, 2)
    if not report.lost:
        shutil.rmtree(report.folder)
    print(report.last_line())
    return report.lost > 0


if __name__ == "__main__":
    sys.exit(main())
