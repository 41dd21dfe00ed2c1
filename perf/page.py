"""The page of a run, made from its record alone."""

import statistics

import cases
from beside import quartiles
from record import ABSENT, COMPLETE, PAGE, by_row, medians

OURS = "kiseki"


def write(record):
    (record.directory / PAGE).write_text(text(record.index, record.directory.resolve().name))


def text(index, name):
    lines = [f"# Measured: {name}", "", "Made by `perf/run.py` from `run.json`; everything that programs printed is below `raw/`. How to read it: `perf/README.md`.", ""]
    lines += machine(index["manifest"])
    for case in cases.ALL.values():
        if found := index["cases"].get(case.NAME):
            lines += section(case, found)
    return "\n".join(lines).rstrip() + "\n"


def machine(manifest):
    tools = ", ".join(manifest["tools"].values()) or "none"
    pinned = f"servers on processor {manifest['pinned'][0]}, clients on {manifest['pinned'][1]}" if manifest["pinned"] else "nothing: there is one processor"
    rows = [
        ("begun", manifest["started"]),
        ("processor", f"{manifest['cpu_model']}, {manifest['cpu_count']} of them"),
        ("memory", f"{manifest['memory_bytes'] / 2**30:.1f} GiB"),
        ("kernel", manifest["kernel"]),
        ("files on", manifest["file_system"]),
        ("commit", manifest["git_commit"]),
        ("pinned", pinned),
        ("other programs", tools),
        ("load at the start", f"{manifest['load_average_1m']:.2f}"),
    ]
    return ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows), ""]


def section(case, found):
    lines = [f"## {case.TITLE}", ""]
    if found["state"] == ABSENT:
        return [*lines, f"Not measured: {'; '.join(found['left_out'])}.", ""]
    lines += [case.ABOUT, ""]
    rows = by_row(found["measured"])
    rounds = max((len(one) for whos in rows.values() for one in whos.values()), default=0)
    quick = " `--quick`: seconds only, to see that all works." if found.get("quick") else ""
    lines += [f"{found['begun']}, commit {found['commit']}, load {found['load']:.2f}; rounds: {rounds}.{quick}", ""]
    if found["state"] != COMPLETE:
        lines += [f"**The case is not complete ({found['state']})**: what is here was measured in full.", ""]
    for kind in ("left_out", "failures"):
        lines += [f"- {'Left out' if kind == 'left_out' else 'Failed'}: {text}" for text in found[kind]]
    if any(found[kind] for kind in ("left_out", "failures")):
        lines.append("")
    if not rows:
        return [*lines, "Nothing was measured.", ""]
    return [*lines, *table(case, rows), *limits(case, medians(rows))]


def table(case, rows):
    middle = medians(rows)
    heads = ["", "", *(heading for heading, _, _ in case.COLUMNS), "spread"]
    if case.RATIO:
        heads.append(f"ratio of {next(heading for heading, key, _ in case.COLUMNS if key == case.RATIO[0])} (quartiles)")
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row, whos in rows.items():
        for who, rounds in whos.items():
            figures = middle[row][who]
            cells = [row, who + errors(rounds)]
            cells += [f"{figures[key]:,.{digits}f}" if key in figures else "" for _, key, digits in case.COLUMNS]
            cells.append(spread(rounds, next((key for _, key, _ in case.COLUMNS if key in figures), None)))
            if case.RATIO:
                cells.append(ratio(case, whos, who))
            lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def errors(rounds):
    count = sum(figures.get("errors", 0) for figures in rounds)
    return f" ({count:,.0f} errors)" if count else ""


def spread(rounds, key):
    """How far the first figure's rounds lie apart, in percent of their median."""
    values = [figures[key] for figures in rounds if key in figures]
    if len(values) < 2 or not statistics.median(values):
        return ""
    return f"{(max(values) - min(values)) / statistics.median(values):.0%}"


def ratio(case, whos, who):
    """Of neighbors: each round by itself, then the median."""
    key, bases = case.RATIO
    ours = getattr(case, "OURS", OURS)
    if bases is None:
        # In the line of each other contender: ours to it.
        top, bottom = (ours, who) if who != ours else (None, None)
    else:
        base = next((name for name in bases if name in whos), None)
        top, bottom = (who, base) if base and who != base else (None, None)
    if top is None or top not in whos:
        return ""
    pairs = zip(whos[top], whos[bottom])
    values = [one[key] / other[key] for one, other in pairs if key in one and other.get(key)]
    if not values:
        return ""
    low, high = quartiles(values)
    return f"{statistics.median(values):.2f}" + (f" ({low:.2f}-{high:.2f})" if len(values) > 1 else "")


def limits(case, middle):
    told = [(row, said) for row in middle if (said := case.limit(row, middle))]
    if not told:
        return []
    return ["What limits each, as far as these figures show:", "", *(f"- **{row}**: {said}." for row, said in told), ""]
