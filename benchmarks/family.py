"""Time and memory of a search step of FairDARTS, its kin and NNI's DARTS, through NNI and Lightning; see README.md.

    python benchmarks/family.py --out benchmarks/results/NAME

The strategies, and what each has of its own, are those of examples/family/digits.yaml. Every turn is a search in a
process of its own; what it computes beside its steps is measured in the first one. Writes NAME.json and NAME.md behind
every turn.
"""

import argparse
import json
import statistics
from pathlib import Path

import machine
import report
import yaml
from step import ask, summary, tell
from variants import Size

EXPERIMENT = Path(__file__).parents[1] / "examples/family/digits.yaml"
BASE = "fairdarts"
WORDS = {"sharpness": "eigenvalue, each epoch", "strength": "strengths, at the end"}
"""What a search computes beside its steps, and when."""


def strategies() -> dict[str, dict]:
    """{name: a trial's parameters} of the experiment, FairDARTS first."""
    content = yaml.safe_load(EXPERIMENT.read_text())
    found = {}
    for choice in content["searchSpace"]["strategy"]["_value"]:
        own = {name: entry["_value"][0] for name, entry in choice.items() if name != "_name"}
        found[choice["_name"]] = {"strategy": choice["_name"], **own}
    return {BASE: found.pop(BASE), **found}


def parse(known: list[str], arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU; with one its own seconds are counted")
    parser.add_argument("--size", type=Size.parse, default="8x5x16", help="CHANNELSxCELLSxBATCH")
    parser.add_argument("--strategies", nargs="+", choices=known, default=known, help=f"beside {BASE}; all by default")
    parser.add_argument("--repeats", type=int, default=5, help="turns of every strategy")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a turn, and of each of its stages")
    parser.add_argument("--limit", type=int, default=1800, help="seconds after which a process is ended")
    parser.add_argument("--memory", type=float, help="GiB that a process may take; by default what is free")
    parser.add_argument("--out", type=Path, help="path without an ending, for NAME.json and NAME.md")
    return parser.parse_args(arguments)


def rows_of(name: str, turns: list[dict], load: float) -> list[dict]:
    """The rows of a strategy, one for each of its stages, or one that says why there is none."""
    measured = [turn for turn in turns if turn.get("status") == "measured"]
    if not measured:
        return [{"strategy": name, "load_before": load, **turns[-1]}]
    stages = len(measured[0]["epochs"])
    rows = []
    for stage in range(stages):
        epochs = [turn["epochs"][stage] for turn in measured]
        rows.append(
            {
                "strategy": name if stages == 1 else f"{name}, stage {stage + 1} of {stages}",
                "load_before": load,
                "status": "measured",
                "step": summary({"times": [seconds for epoch in epochs for seconds in epoch["times"]]}),
                "peak_bytes": statistics.median(epoch["peak_bytes"] for epoch in epochs),
            }
        )
    for work in measured[0]["besides"]:
        rows[-1][work] = measured[0]["besides"][work]
    return rows


def table(rows: list[dict]) -> list[list[str]]:
    """Head and rows of cells, against FairDARTS' row."""
    lines = [["strategy", "step", "× FairDARTS", "spread", "peak MiB", "× FairDARTS", "besides"]]
    (base,) = (row for row in rows if row["strategy"] == BASE)
    for row in rows:
        if row["status"] != "measured":
            lines.append([row["strategy"], row["status"], *[""] * 4, row.get("why", "")])
            continue
        step, peak = row["step"], row["peak_bytes"]
        ratios = ["–", "–"]
        if base["status"] == "measured":
            ratios = [f"{step['seconds'] / base['step']['seconds']:.2f}", f"{peak / base['peak_bytes']:.2f}"]
        besides = [f"{WORDS[work]}: {_cost(row[work])}" for work in WORDS if work in row]
        spread = f"{step['spread']:.0%}"
        cells = [report.seconds(step["seconds"]), ratios[0], spread, f"{peak / report.MIB:,.0f}", ratios[1]]
        lines.append([row["strategy"], *cells, "; ".join(besides)])
    return lines


def _cost(found: dict) -> str:
    return f"{report.seconds(found['seconds'])}, {found['peak_bytes'] / report.MIB:,.0f} MiB"


def markdown(result: dict) -> str:
    """The page: the machine, the table."""
    about = [
        *report.about(result),
        f"size {result['size']}, {result['steps']} steps a turn, seconds of {result['clock']}",
    ]
    parts = ["# Time and memory of a search step, by strategy", "\n".join(f"- {line}" for line in about)]
    parts.append(report.piped(table(result["rows"])))
    parts.append("The columns are explained in [benchmarks/README.md](../README.md).")
    return "\n\n".join(parts) + "\n"


def main(arguments: list[str] | None = None) -> None:
    known = strategies()
    args = parse(list(known), arguments)
    names = [name for name in known if name == BASE or name in args.strategies]
    turns: dict[str, list[dict]] = {name: [] for name in names}
    load = {name: machine.load() for name in names}
    result = {"machine": machine.describe(args.device, args.threads), "size": str(args.size), "steps": args.steps}
    result["clock"] = "the processor" if args.device == "cpu" and args.threads == 1 else "the clock on the wall"
    for turn in range(args.repeats):
        for name in names[:: 1 if turn % 2 == 0 else -1]:
            load[name] = max(load[name], machine.load())
            more = {"parameters": known[name], "steps": args.steps, "besides": turn == 0}
            turns[name].append(ask(args, "family", args.size, [name], **more)[name])
            tell(f"turn {turn + 1} of {args.repeats}, {name}: {turns[name][-1].get('why', 'measured')}")
        rows = [row for name in names for row in rows_of(name, turns[name], load[name])]
        result |= {"repeats": turn + 1, "rows": rows}
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
            args.out.with_suffix(".md").write_text(markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
