"""Criterion's medians of `benches/benches/kernels.rs`: each kernel and its plain twin."""

import json
import os
import pathlib
import shutil

import cargo_bench
from experiment import Experiment, Measured, output, ready

NAME = "kernels"
TITLE = "Kernels, each beside its plain twin"
ABOUT = ("`benches/benches/kernels.rs` (criterion): bytes a second of one core, data in memory. One pass measures all kernels one after the "
         "other; figures are medians of the passes' medians.")
COLUMNS = (("GiB/s", "gib_per_second", 2), ("us an iteration", "us", 1))
RATIO = ("gib_per_second", ("Plain", "plain"))


def experiments(setting):
    program = cargo_bench.program("kernels")
    home = pathlib.Path(setting.work) / "criterion"

    def measure(_):
        shutil.rmtree(home, ignore_errors=True)
        times = ["--warm-up-time", "0.05", "--measurement-time", "0.1"] if setting.quick else []
        output([*setting.client_pin, program, "--bench", "--noplot", *times], env={**os.environ, "CRITERION_HOME": str(home)})
        kept = medians(home)
        shutil.rmtree(home, ignore_errors=True)
        return {"medians": kept}, [measured(one) for one in kept]

    return [Experiment("kernels", ("criterion",), ready(measure), setting.either(1, 3), setting.either(20, 62))]


def medians(home):
    """What criterion left of each bench: its name, its bytes, its median and the bounds of that."""
    found = []
    for path in sorted(home.glob("**/new/benchmark.json")):
        bench = json.loads(path.read_text())
        median = json.loads(path.with_name("estimates.json").read_text())["median"]
        bounds = median["confidence_interval"]
        found.append({
            "bench": bench["full_id"],
            "bytes": (bench["throughput"] or {}).get("Bytes"),
            "median_ns": median["point_estimate"],
            "lower_ns": bounds["lower_bound"],
            "upper_ns": bounds["upper_bound"],
        })
    return found


def measured(one):
    group, *words = one["bench"].split("/", 2)
    who, what = words if len(words) == 2 else ("kiseki", words[0])
    if who == "rebuild-one":
        group, who = "rebuild one", "isa-l"
    figures = {"us": one["median_ns"] / 1e3}
    if one["bytes"]:
        figures["gib_per_second"] = one["bytes"] / one["median_ns"] * 1e9 / 2**30
    return Measured(f"{group} {what}", who, figures)


def limit(row, medians):
    whos = {who: figures["gib_per_second"] for who, figures in medians[row].items() if "gib_per_second" in figures}
    plain = next((whos[name] for name in RATIO[1] if name in whos), None)
    if plain is None or len(whos) < 2:
        return None
    best = max(whos, key=whos.get)
    if best in RATIO[1]:
        return f"no kernel beats the plain one ({plain:.2f} GiB/s of a core)"
    text = f"one core: {best} does {whos[best]:.2f} GiB/s, {whos[best] / plain:.1f} times its twin"
    # The chunker also runs over a cached megabyte without a hit: what is lost to it is memory, hits and their checks.
    hot = medians.get("cut hot", {}).get(best, {}).get("gib_per_second")
    if row.startswith("cut ") and "hot" not in row and hot:
        text += f"; {whos[best] / hot:.0%} of what it does over a cached megabyte without hits"
    return text
