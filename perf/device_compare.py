#!/usr/bin/env python3
"""kiseki-bench device beside fio's io_uring: the same file, the same processor, alternating.

    make bench && perf/device_compare.py --file /mnt/x/bench.img --rounds 5 --out result.json

fio's `lat` is compared (submission included), since ours begins when the caller asks. Medians over the rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys

CASES = [("randread", "4k", 1), ("randread", "4k", 32), ("randwrite", "4k", 1), ("randwrite", "4k", 32),
         ("read", "1m", 8), ("write", "1m", 8)]


def side(job, rw):
    return job["read" if "read" in rw else "write"]


def figures(job, rw):
    found = side(job, rw)
    percentiles = found["lat_ns"]["percentile"]
    return {
        "iops": found["iops"],
        "p50_us": percentiles["50.000000"] / 1e3,
        "p99_us": percentiles["99.000000"] / 1e3,
        "cpu_us_per_op": (job["usr_cpu"] + job["sys_cpu"]) * 1e4 / max(found["iops"], 1),
    }


def run(command, rw):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return figures(json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0], rw)


def fio(options, rw, bs, depth):
    return run(["taskset", "-c", options.cpu, "fio", "--name=x", f"--filename={options.file}", "--ioengine=io_uring",
                "--direct=1", f"--rw={rw}", f"--bs={bs}", f"--iodepth={depth}", f"--runtime={options.runtime}",
                "--time_based", "--norandommap", "--fixedbufs", "--registerfiles", "--lat_percentiles=1",
                "--output-format=json"], rw)


def ours(options, rw, bs, depth):
    return run(["taskset", "-c", options.cpu, options.bench, "device", "--rw", rw, "--bs", bs, "--iodepth", str(depth),
                "--runtime", f"{options.runtime}s", "--warmup", "0s", "--destroy", options.file, "--json",
                options.file], rw)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", required=True, help="made with 2 GiB of noise when it is missing; WRITTEN OVER")
    parser.add_argument("--bench", default="target/release/kiseki-bench", help="the program to compare")
    parser.add_argument("--cpu", default="1", help="processor for both (taskset)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runtime", type=int, default=4, help="seconds for each measurement")
    parser.add_argument("--out", help="every run as JSON")
    options = parser.parse_args()
    if not os.path.exists(options.file):
        subprocess.run(["dd", "if=/dev/urandom", f"of={options.file}", "bs=1M", "count=2048", "oflag=direct",
                        "status=none"], check=True)
    runs = []
    print(f"{'case':<20}{'fio IOPS':>10}{'ours':>10}{'ratio':>7}{'fio p50 us':>12}{'ours':>9}{'ratio':>7}"
          f"{'fio CPU us':>12}{'ours':>7}")
    for rw, bs, depth in CASES:
        case = f"{rw} {bs} x{depth}"
        found = {"fio": [], "kiseki": []}
        for _ in range(options.rounds):
            found["fio"].append(fio(options, rw, bs, depth))
            found["kiseki"].append(ours(options, rw, bs, depth))
        runs.append({"case": case, **found})
        median = {who: {key: statistics.median(one[key] for one in them) for key in them[0]}
                  for who, them in found.items()}
        f, k = median["fio"], median["kiseki"]
        print(f"{case:<20}{f['iops']:>10.0f}{k['iops']:>10.0f}{k['iops'] / f['iops']:>7.2f}{f['p50_us']:>12.1f}"
              f"{k['p50_us']:>9.1f}{k['p50_us'] / f['p50_us']:>7.2f}{f['cpu_us_per_op']:>12.2f}"
              f"{k['cpu_us_per_op']:>7.2f}", flush=True)
    if options.out:
        with open(options.out, "w", encoding="utf-8") as out:
            json.dump({"rounds": options.rounds, "runtime_s": options.runtime, "runs": runs}, out, indent=1)


if __name__ == "__main__":
    main()
