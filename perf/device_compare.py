#!/usr/bin/env python3
"""kiseki-bench device beside fio's io_uring: the same file, the same processor, alternating.

    make kiseki-bench && perf/device_compare.py --file /mnt/x/bench.img --rounds 15 --out result.json
    perf/device_compare.py --file F --bench /tmp/before --bench /tmp/after     two builds beside fio and each other

Ratios are ours divided by fio's; `!` marks what misses 0.95 of its IOPS or 1.05 of its p50. --noise runs fio twice: how far
it is from itself is what the disk's swings alone do. --bare takes a loop along that does nothing but its system call for each
operation (4 KiB cases): what of a ratio is the disk's answer to whoever is not fio. --waits takes both along with the other way to wait: fio
that looks for answers without a pause (iodepth_batch_complete_min=0), and ours that sleeps at once (--busy-poll-us 0).

    cargo build --release --ignore-rust-version -p kiseki-executor --example bare_ring
    perf/device_compare.py --file F --case 4k --bare target/release/examples/bare_ring
"""

import argparse
import json
import os
import subprocess
import sys

import beside


FIO_POLLING = "fio polling"
FIO_REPEATING = "fio repeating"


def run(options, command):
    priority = ["chrt", "--fifo", "10"] if options.realtime else []
    done = subprocess.run([*priority, "taskset", "-c", options.cpu, *command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def measure(who, options, rw, bs, depth):
    if who.startswith("fio"):
        engine = ["--ioengine=io_uring", "--direct=1", f"--filename={options.file}"]
        command = beside.fio_arguments(engine, rw, bs, depth, options.runtime)
        command += ["--iodepth_batch_complete_min=0"] if who == FIO_POLLING else []
        command += ["--randrepeat=1"] if who == FIO_REPEATING else []
    elif who == options.bare:
        command = [who, options.file, rw.removeprefix("rand"), "4096", str(depth), str(options.runtime)]
    else:
        program, *more = who.split(" ")
        command = beside.bench_arguments(program, rw, bs, depth, options.runtime, options.file, destroy=True) + more
    return beside.figures(run(options, command), rw)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", required=True, help="made with 2 GiB of noise when it is missing; WRITTEN OVER")
    parser.add_argument("--bench", action="append", help="a program to compare (target/release/kiseki-bench); repeatable")
    parser.add_argument("--cpu", default="1", help="processor for all of them (taskset)")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--runtime", type=int, default=1, help="seconds for each measurement")
    parser.add_argument("--case", action="append", help="only cases whose name contains this; repeatable")
    parser.add_argument("--noise", action="store_true", help="run fio twice")
    parser.add_argument("--waits", action="store_true", help="both with the other way to wait as well")
    parser.add_argument("--repeat", action="store_true", help="fio that asks for the same places in each run as well")
    parser.add_argument("--bare", help="the bare loop's program")
    parser.add_argument("--realtime", action="store_true", help="at real-time priority, all of them: for a machine with other "
                        "programs on it (root)")
    parser.add_argument("--out", help="every run as JSON")
    options = parser.parse_args()
    if not os.path.exists(options.file):
        subprocess.run(["dd", "if=/dev/urandom", f"of={options.file}", "bs=1M", "count=2048", "oflag=direct",
                        "status=none"], check=True)
    # What is below a virtual disk may keep what was read: fio reads the same places each time, kiseki-bench others.
    subprocess.run(["dd", f"if={options.file}", "of=/dev/null", "bs=1M", "iflag=direct", "status=none"], check=True)
    others = (options.bench or ["target/release/kiseki-bench"]) + (["fio again"] if options.noise else [])
    others += [FIO_REPEATING] if options.repeat else []
    others += [FIO_POLLING, f"{others[0]} --busy-poll-us 0"] if options.waits else []
    runs = []
    print(beside.header(others + ([options.bare] if options.bare else [])), flush=True)
    for rw, bs, depth in beside.CASES:
        case = beside.case_name(rw, bs, depth)
        if options.case and not any(part in case for part in options.case):
            continue
        bare = [options.bare] if options.bare and bs == "4k" else []
        everyone = ["fio", *others, *bare]
        found = {who: [] for who in everyone}
        for number in range(options.rounds):
            for who in beside.turned(everyone, number):
                found[who].append(measure(who, options, rw, bs, depth))
        runs.append({"case": case, **found})
        print(beside.row(case, found, "fio", others + bare), flush=True)
    if options.out:
        with open(options.out, "w", encoding="utf-8") as out:
            json.dump({"rounds": options.rounds, "runtime_s": options.runtime, "runs": runs}, out, indent=1)


if __name__ == "__main__":
    main()
