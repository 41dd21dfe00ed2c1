"""`kiseki-bench pipeline`: each stage of the data path of one core, and the whole."""

import functools

from experiment import Experiment, Measured, document, ready
from node import PROGRAMS

NAME = "pipeline"
TITLE = "Pipeline of one core"
ABOUT = ("`kiseki-bench pipeline`, pinned: each stage alone, `kernels` (in place, nothing allocated) and `whole` (from received bytes to "
         "fragments, copies included). Random data unless the row says otherwise. The last column divides by the processor time of the threads.")
COLUMNS = (("GiB/s a core", "gib_per_second", 2), ("GiB for a second of processor", "gib_per_cpu_second", 2))
RATIO = None

# What follows each other in a stream. `id-batch`, not `id`: streams hash in lanes.
PARTS = {
    "whole": ("receive", "cut", "id-batch", "keys", "seal", "encode", "checksum"),
    "kernels": ("cut", "id-batch", "keys", "seal", "encode"),
}
STAGES = 12
TWO = "whole, two cores at once"
MIXED = "whole, mixed data"


def experiments(setting):
    runtime = setting.either("200ms", "2s")
    seconds = setting.either(0.3, 2.2)
    base = [PROGRAMS / "kiseki-bench", "pipeline", "--json", "--runtime", runtime, "--size", setting.either("32m", "64m")]
    rounds = setting.either(1, 3)
    more = [("random", 1, STAGES, None), ("mixed", 1, 1, MIXED)] + ([("random", 2, 1, TWO)] if setting.client_pin else [])
    found = []
    for data, threads, stages, row in more:
        pin = setting.client_pin if threads == 1 else ()
        words = ["--data", data, "--threads", str(threads), *(["--stage", "whole"] if row else [])]
        measure = functools.partial(_measure, [*pin, *base, *words], row)
        found.append(Experiment(f"{data}-x{threads}", ("kiseki",), ready(measure), rounds, stages * seconds + 0.5))
    return found


def _measure(command, row, _):
    told = document(command)
    return told, [Measured(row or job["jobname"], "kiseki", figures(job)) for job in told["jobs"]]


def figures(job):
    return {
        "gib_per_second": job["bw_per_core_bytes"] / 2**30,
        "gib_per_cpu_second": job["bw_per_cpu_second_bytes"] / 2**30,
    }


def limit(row, medians):
    speed = {name: whos["kiseki"]["gib_per_second"] for name, whos in medians.items() if "kiseki" in whos}
    if row == TWO and "whole" in speed:
        return f"each of two cores has {speed[row] / speed['whole']:.0%} of what one has alone: the rest is memory, or neighbors of this machine"
    if row not in PARTS or not all(part in speed for part in PARTS[row]):
        return None
    shares = {part: speed[row] / speed[part] for part in PARTS[row]}
    ordered = sorted(shares, key=shares.get, reverse=True)
    told = ", ".join(f"{part} {shares[part]:.0%}" for part in ordered)
    return f"the processor, by the stages' own speeds: {told}; together {sum(shares.values()):.0%} of its time"
