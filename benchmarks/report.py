"""Results as tables: plain text for the terminal, Markdown for the repository. Imports nothing heavy."""

from collections.abc import Callable

from variants import PUBLISHED, PUBLISHED_STEPS

MIB = 2**20
NONE = "–"


def _number(*path: str, form: Callable[[float], str]) -> Callable[[dict], str]:
    """A column: the row's number under ``path``, written by ``form``.

    Without that number it is what came of the attempt ("does not fit"), or a dash where there was none.
    """

    def cell(row: dict) -> str:
        *parts, key = path
        for part in parts:
            row = row.get(part, {})
        return form(row[key]) if key in row else row.get("status", NONE) if parts else NONE

    return cell


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _ratio(value: float) -> str:
    return f"{value:.2f}"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _published(row: dict) -> str:
    """Time of the published search at this step, where the row is of its size."""
    through, bare = row.get("lightning", {}).get("seconds"), row.get("step", {}).get("seconds")
    if row["size"] != PUBLISHED or not (through or bare):
        return NONE
    return f"{PUBLISHED_STEPS * (through or bare) / 60:,.1f} min"


LEFT = ("size", "variant", "time spent in")
"""Columns of words."""

SIZE = (("size", lambda row: row["size"]), ("variant", lambda row: row["title"]))
COLUMNS = (
    *SIZE,
    ("step", _number("step", "seconds", form=seconds)),
    ("× NNI", _number("step", "ratio", form=_ratio)),
    ("spread", _number("step", "spread", form=_percent)),
    ("peak MiB", _number("peak_bytes", form=lambda value: f"{value / MIB:,.0f}")),
    ("of NNI's", _number("peak_share", form=_ratio)),
    ("operators", _number("counts", "operators", form=_count)),
    ("kernels", _number("counts", "kernels", form=_count)),
    ("launches", _number("counts", "launches", form=_count)),
    ("Lightning", _number("lightning", "seconds", form=seconds)),
    ("over bare", _number("lightning", "overhead", form=_percent)),
    ("loading", _number("lightning", "loading_share", form=_percent)),
    (f"{PUBLISHED_STEPS:,} steps", _published),
)
"""The table: a column's head, and a row's cell in it. Columns without any figure are left out."""


def _over_floor(row: dict) -> str:
    step, floor = row.get("step", {}).get("seconds"), row.get("floor", {}).get("seconds")
    return f"{step / floor:.1f}" if step and floor else NONE


def _kinds(row: dict) -> str:
    kinds = sorted(row.get("counts", {}).get("kinds", {}).items(), key=lambda item: -item[1])
    return ", ".join(f"{kind} {share:.0%}" for kind, share in kinds if share >= 0.02) or NONE


WORK = (
    *SIZE,
    ("GB", _number("floor", "bytes", form=lambda value: f"{value / 1e9:.2f}")),
    ("GFLOP", _number("floor", "operations", form=lambda value: f"{value / 1e9:.1f}")),
    ("floor", _number("floor", "seconds", form=seconds)),
    ("step / floor", _over_floor),
    ("time spent in", _kinds),
)
"""What a step does at least, and what its time goes into."""


def in_short(row: dict) -> str:
    """A row's memory, or why there is none, in one line."""
    if row.get("status") == "measured":
        return f"{row['peak_bytes'] / MIB:,.0f} MiB"
    return _why(row)


def _why(row: dict) -> str:
    if row.get("status") == "does not fit":
        return f"does not fit in {row['free_bytes'] / 2**30:.1f} GiB" if "free_bytes" in row else "does not fit"
    return ": ".join(row[key] for key in ("status", "why") if row.get(key)) or "nothing was found"


def _table(rows: list[dict], columns: tuple) -> list[list[str]]:
    """Head and rows of cells; rows that were not measured say why in their third cell."""
    measured = [row for row in rows if row.get("status") == "measured"]
    kept = [c for c in columns if c in SIZE or any(c[1](row) != NONE for row in measured)]
    lines = [[head for head, _ in kept]]
    for row in rows:
        if row.get("status") == "measured":
            lines.append([cell(row) for _, cell in kept])
        elif columns is COLUMNS:
            lines.append([row["size"], row["title"], _why(row)][: len(kept)] + [""] * (len(kept) - 3))
    return lines if len(kept) > len(SIZE) or columns is COLUMNS else []


def _aligned(lines: list[list[str]]) -> str:
    """Columns of equal width, words to the left and figures to the right; a reason runs over the columns behind it."""
    heads = lines[0]
    full = [line for line in lines if all(line)]
    widths = [max(len(line[i]) for line in (full if i >= len(SIZE) else lines)) for i in range(len(heads))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if head in LEFT or not all(line) else cell.rjust(width)
            for head, cell, width in zip(heads, line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def piped(lines: list[list[str]]) -> str:
    """Rows of a table in Markdown."""
    rule = ["---" if head in LEFT else "---:" for head in lines[0]]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))


def about(result: dict) -> list[str]:
    """The machine and its rates, a line each."""
    m = result["machine"]
    device = f"{m['gpu']}, " if m["gpu"] else ""
    lines = [
        f"{device}{m['cpu']}, {m['cores']} cores, {m['threads']} threads, {m['memory_bytes'] / 2**30:.1f} GiB; "
        f"{m['system']}, Python {m['python']}",
        ", ".join(f"{name} {version}" for name, version in m["versions"].items() if version)
        + f"; commit {m['commit']}; {m['date']}",
    ]
    loads = [row["load_before"] for row in result["rows"]]
    if loads:
        lines.append(f"load average before the measurements: {min(loads)} to {max(loads)}; {result['repeats']} repeats")
    if result.get("rates"):
        rates = result["rates"]
        lines.append(
            f"memory {rates['bandwidth'] / 1e9:,.1f} GB/s, float32 {rates['float32'] / 1e12:.3g} TFLOP/s, "
            f"bfloat16 {rates['bfloat16'] / 1e12:.3g} TFLOP/s"
        )
    return lines


def text(result: dict) -> str:
    """Both tables for a terminal."""
    tables = [_table(result["rows"], columns) for columns in (COLUMNS, WORK)]
    return "\n\n".join(["\n".join(about(result)), *(_aligned(lines) for lines in tables if len(lines) > 1)])


def markdown(result: dict) -> str:
    """Both tables as a page. The columns are explained in benchmarks/README.md."""
    parts = ["# Time and memory of a search step", "\n".join(f"- {line}" for line in about(result))]
    parts.append(piped(_table(result["rows"], COLUMNS)))
    work = _table(result["rows"], WORK)
    if len(work) > 1:
        parts += ["## Work", piped(work)]
    parts.append("The columns are explained in [benchmarks/README.md](../README.md).")
    return "\n\n".join(parts) + "\n"
