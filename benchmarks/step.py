"""Time and memory of a search step: NNI's DARTS, FairDARTS plain and fused, and its options; see README.md here.

    python benchmarks/step.py --sizes 16x8x16 --out benchmarks/results/NAME

A step is an α step and a weight step. Sizes are CHANNELSxCELLSxBATCH or ...xCANDIDATES (16x8x16x3), names of sweeps
(width, cells, batch, candidates, corners) or "all". Writes NAME.json and NAME.md behind every size.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import machine
import report
from variants import BASE, VARIANTS, Size, sizes_of, variants_of

MEASURES = ("memory", "counts", "time", "lightning")
MEASURE = Path(__file__).parent / "measure.py"
FITS_NOT = "does not fit"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the CPU")
    parser.add_argument("--sizes", nargs="+", default=["16x8x16"])
    known = ", ".join(VARIANTS)
    parser.add_argument("--variants", nargs="+", help=f"beside {BASE}; all that suit the device by default: {known}")
    parser.add_argument("--measures", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--repeats", type=int, default=7, help="timed turns of every variant")
    parser.add_argument("--limit", type=int, default=3600, help="seconds after which a process is ended")
    parser.add_argument("--memory", type=float, help="GiB that a process may take; by default what is free")
    parser.add_argument("--bandwidth", type=float, help="GB/s of the device's memory; measured by a copy if left out")
    parser.add_argument("--flops", type=float, help="TFLOP/s; measured by a matrix product if left out")
    parser.add_argument("--out", type=Path, help="path without an ending, for NAME.json and NAME.md")
    parser.add_argument("--resume", action="store_true", help="keep the sizes that NAME.json has")
    args = parser.parse_args(arguments)
    try:
        args.sizes = sizes_of(args.sizes)
        args.variants = variants_of(args.variants, args.device)
    except ValueError as error:
        parser.error(str(error))
    if args.repeats < 1 or args.threads < 1:
        parser.error(f"--repeats and --threads must be at least 1, got {args.repeats} and {args.threads}")
    if args.out and (args.out.with_suffix(".json")).exists() and not args.resume:
        parser.error(f"{args.out}.json is there already; give another --out, or --resume to add the sizes it lacks")
    return args


# -- processes ---------------------------------------------------------------------------------------------------------


def ask(args: argparse.Namespace, task: str, size: Size | None, variants: list[str], **more) -> dict[str, dict]:
    """What a process of its own finds out: {variant: findings}, with "status" and "why" where something is amiss."""
    shared = {"device": args.device, "threads": args.threads, "repeats": args.repeats}
    shared["memory"] = None if args.memory is None else int(args.memory * 2**30)
    job = {"task": task, "size": str(size), "variants": variants, **shared, **more}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", MEASURE, json.dumps(job)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(args.threads)},
        start_new_session=True,  # a compiler's workers end with it
    )
    late = False
    try:
        answers, errors = process.communicate(timeout=args.limit)
    except subprocess.TimeoutExpired:
        late = True
        os.killpg(process.pid, signal.SIGKILL)
        answers, errors = process.communicate()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    found: dict[str, dict] = {name: {} for name in variants}
    for line in answers.splitlines():
        answer = json.loads(line)
        name = answer.pop("variant")
        for each in [name] if name is not None else variants or [""]:
            found.setdefault(each, {}).update(answer)
    if process.returncode:
        for findings in found.values():
            if not findings or set(findings) == {"free_bytes"}:
                findings.update(_ending(process.returncode, late, args.limit, errors))
    return found


def _ending(code: int, late: bool, limit: int, errors: str) -> dict:
    """Why a process ended that had nothing to say about it."""
    if late:
        return {"status": "failed", "why": f"not done within {limit} s"}
    if code == -signal.SIGKILL:
        return {"status": FITS_NOT, "why": "the system killed the process"}
    return {"status": "failed", "why": (errors.strip().splitlines() or [f"exit status {code}"])[-1]}


# -- a size ------------------------------------------------------------------------------------------------------------


def measured(args: argparse.Namespace, size: Size, rates: dict) -> list[dict]:
    """The rows of one size, a variant each."""
    rows = {}
    for name in args.variants:
        rows[name] = {
            **{key: getattr(size, key) for key in ("channels", "cells", "batch", "candidates")},
            "size": str(size),
            "variant": name,
            "title": VARIANTS[name].title,
            "load_before": machine.load(),
            "date": machine.now(),
            **ask(args, "solo", size, [name], counts="counts" in args.measures, rates=rates)[name],
        }
        tell(f"{size} {name}: {report.in_short(rows[name])}")
    alive = [name for name, row in rows.items() if row.get("status") == "measured"]
    if "time" in args.measures and alive:
        add(rows, "step", ask(args, "times", size, alive), summary)
    if "lightning" in args.measures and (able := [name for name in alive if VARIANTS[name].lightning]):
        add(rows, "lightning", ask(args, "lightning", size, able), against_bare)
    compare(rows)
    return list(rows.values())


def add(rows: dict[str, dict], part: str, found: dict[str, dict], summed_up: Callable[[dict], dict]) -> None:
    """Put ``part`` of what was found into the rows, summed up, or why there is none."""
    for name, findings in found.items():
        mine = findings.get(part, findings)
        rows[name][part] = mine if "status" in mine else summed_up(mine)


def summary(found: dict) -> dict:
    """Median of the turns' seconds, and the distance of their quartiles as a share of it."""
    times = found["times"]
    median = statistics.median(times)
    low, _, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return {"seconds": median, "spread": (high - low) / median, **found}


def against_bare(found: dict[str, list[float]]) -> dict:
    """Medians through Lightning and bare, what the former takes longer, and its share spent in loading."""
    seconds, bare = statistics.median(found["through"]), statistics.median(found["bare"])
    loading = statistics.median(found["loading"])
    return {
        "seconds": seconds,
        "bare_seconds": bare,
        "overhead": seconds / bare - 1,
        "loading_share": loading / seconds,
        **found,
    }


def compare(rows: dict[str, dict]) -> None:
    """Add to every row what it is against NNI's DARTS, where both were measured."""
    base = rows[BASE]
    for row in rows.values():
        if "seconds" in row.get("step", {}) and "seconds" in base.get("step", {}):
            row["step"]["ratio"] = base["step"]["seconds"] / row["step"]["seconds"]
        if "peak_bytes" in row and "peak_bytes" in base:
            row["peak_share"] = row["peak_bytes"] / base["peak_bytes"]


# -- the command -------------------------------------------------------------------------------------------------------


def rates_of(args: argparse.Namespace) -> dict[str, float]:
    """Bytes and operations per second of the device: as given, else measured."""
    given = {"bandwidth": args.bandwidth and args.bandwidth * 1e9}
    given.update(dict.fromkeys(("float32", "bfloat16"), args.flops and args.flops * 1e12))
    if all(given.values()):
        return given
    found = ask(args, "rates", None, [])[""]
    if "rates" not in found:
        raise SystemExit(f"error: {args.device} cannot be used: {found.get('why')}")
    return {**found["rates"], **{name: rate for name, rate in given.items() if rate}}


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def save(result: dict, out: Path | None) -> None:
    if out is None:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    out.with_suffix(".md").write_text(report.markdown(result))


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    result = {"machine": machine.describe(args.device, args.threads), "repeats": args.repeats, "rows": []}
    if args.out and args.resume and args.out.with_suffix(".json").exists():
        result = json.loads(args.out.with_suffix(".json").read_text())
    done = {row["size"] for row in result["rows"]}
    if not result.get("rates"):
        result["rates"] = rates_of(args) if "counts" in args.measures else {}
    for size in args.sizes:
        if str(size) in done:
            continue
        result["rows"] += measured(args, size, result["rates"])
        save(result, args.out)
    print(report.text(result))


if __name__ == "__main__":
    main()
