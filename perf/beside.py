"""What the comparisons of devices share: the cases, fio's and our figures from their JSON, ratios of neighbors, the table.

Whoever runs next to each other meets the same disk, so the ratio of each round is taken first and the median of these
ratios second. The order within a round is turned from round to round.
"""

import json
import statistics

CASES = [("randread", "4k", 1), ("randread", "4k", 32), ("randwrite", "4k", 1), ("randwrite", "4k", 32),
         ("read", "1m", 8), ("write", "1m", 8)]

# What is held against fio: at least 95 % of its operations, and half of them within 5 % of its time.
IOPS_MIN, P50_MAX = 0.95, 1.05


def case_name(rw, bs, depth):
    return f"{rw} {bs} x{depth}"


def fio_arguments(engine, rw, bs, depth, runtime_s):
    """fio's lat is compared, submission included, since ours begins when the caller asks. engine: what names it comes first.

    randrepeat=0: kiseki-bench asks for other random places in each run. fio by itself asks for the same ones, and whatever is
    below a virtual disk keeps those.
    """
    return ["fio", "--name=x", *engine, f"--rw={rw}", f"--bs={bs}", f"--iodepth={depth}", f"--runtime={runtime_s}",
            "--time_based", "--norandommap", "--randrepeat=0", "--fixedbufs", "--registerfiles", "--lat_percentiles=1",
            "--output-format=json"]


def bench_arguments(program, rw, bs, depth, runtime_s, path, destroy):
    arguments = [program, "device", "--rw", rw, "--bs", bs, "--iodepth", str(depth), "--runtime", f"{runtime_s}s",
                 "--warmup", "0s", "--json"]
    return arguments + (["--destroy", path] if destroy else []) + [path]


def figures(text, rw):
    """IOPS, latencies and processor time of one run; text is what fio or kiseki-bench printed."""
    job = json.loads(text[text.index("{"):])["jobs"][0]
    found = job["read" if "read" in rw else "write"]
    percentiles = found["lat_ns"]["percentile"]
    return {
        "iops": found["iops"],
        "p50_us": percentiles["50.000000"] / 1e3,
        "p99_us": percentiles["99.000000"] / 1e3,
        "mean_us": found["lat_ns"]["mean"] / 1e3,
        "cpu_us_per_op": (job["usr_cpu"] + job["sys_cpu"]) * 1e4 / max(found["iops"], 1),
    }


def turned(names, number):
    """The same names, beginning with another one in each round."""
    start = number % len(names)
    return names[start:] + names[:start]


def header(others):
    line = f"{'case':<18}{'rounds':>7}{'fio IOPS':>10}{'fio p50 us':>12}{'fio CPU us':>12}"
    return line + "".join(f" | {name[-30:]:<38}" for name in others) + "\n" + " " * 59 + \
        " |   IOPS (quartiles)    p50 (quartiles)  CPU us" * len(others)


def quartiles(values):
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def row(case, found, base, others):
    """found: who -> figures of each round. base: whom the others are held against."""
    def middle(who, key):
        return statistics.median(one[key] for one in found[who])

    line = f"{case:<18}{len(found[base]):>7}{middle(base, 'iops'):>10.0f}{middle(base, 'p50_us'):>12.1f}" \
           f"{middle(base, 'cpu_us_per_op'):>12.2f}"
    for who in others:
        line += " |"
        for key in ("iops", "p50_us"):
            ratios = [mine[key] / theirs[key] for mine, theirs in zip(found[who], found[base])]
            low, high = quartiles(ratios)
            middle_ratio = statistics.median(ratios)
            is_met = middle_ratio >= IOPS_MIN if key == "iops" else middle_ratio <= P50_MAX
            line += f" {middle_ratio:5.2f}{' ' if is_met else '!'}({low:4.2f}-{high:4.2f})"
        line += f" {middle(who, 'cpu_us_per_op'):6.2f}"
    return line
