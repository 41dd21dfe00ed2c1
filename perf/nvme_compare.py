#!/usr/bin/env python3
"""kiseki-bench on an NVMe drive by commands and through the block device, beside fio the same two ways, alternating.

    make kiseki-bench && scripts/nvme-vm.sh setup && perf/nvme_compare.py --rounds 10 --out result.json

Runs inside scripts/nvme-vm.sh: one machine for completions by interrupts, one whose driver has a queue to poll. The drive
is QEMU's null device: nothing behind the emulation, so that what differs is the way to it. Absolute figures are QEMU's. Ratios
are divided by fio's figures on the same way.
"""

import argparse
import base64
import gzip
import json
import os
import subprocess
import sys

import beside

BLOCK, GENERIC = "/dev/nvme0n1", "/dev/ng0n1"

# In fio's and our words, by who is compared with whom.
FIO_BLOCK = ["--ioengine=io_uring", "--direct=1", f"--filename={BLOCK}"]
# Commands are direct by themselves, and the character device refuses the flag.
FIO_COMMANDS = ["--ioengine=io_uring_cmd", "--cmd_type=nvme", f"--filename={GENERIC}"]
MACHINES = {
    "interrupts": ("nvme.poll_queues=0", {
        "fio block": FIO_BLOCK,
        "kiseki block": ["--device-path", "io_uring"],
        "fio commands": FIO_COMMANDS,
        "kiseki commands": ["--device-path", "passthrough"],
    }, [("fio block", ["kiseki block", "fio commands", "kiseki commands"]), ("fio commands", ["kiseki commands"])]),
    "polled": ("nvme.poll_queues=1", {
        "fio commands, polled": [*FIO_COMMANDS, "--hipri"],
        "kiseki commands, polled": ["--device-path", "passthrough"],
    }, [("fio commands, polled", ["kiseki commands, polled"])]),
}


def command(who, extra, options, rw, bs, depth):
    if who.startswith("fio"):
        return beside.fio_arguments(extra, rw, bs, depth, options.runtime)
    return [*beside.bench_arguments("kiseki-bench", rw, bs, depth, options.runtime, BLOCK, destroy=True), *extra]


def script(options, everyone, cases):
    """What the guest runs: one line RESULT for each measurement, in a form that a slow console takes quickly."""
    lines = ["run() { tag=$1; shift; if \"$@\" >/tmp/out 2>/tmp/err; then",
             'echo "RESULT $tag $(gzip -c /tmp/out | base64 | tr -d "\\n")"',
             'else echo "FAILED $tag"; head -c 2000 /tmp/out /tmp/err; exit 1; fi; }',
             "echo CLOCK $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"]
    names = list(everyone)
    for index, (rw, bs, depth) in enumerate(cases):
        for number in range(options.rounds):
            for who in beside.turned(names, number):
                words = command(who, everyone[who], options, rw, bs, depth)
                lines.append(" ".join(["run", f"{index}/{names.index(who)}", *words]))
    return "\n".join(lines)


def guest(options, append, text):
    fio = subprocess.run(["sh", "-c", "command -v fio"], capture_output=True, text=True).stdout.strip()
    if not fio:
        sys.exit("there is no fio to compare with: apt-get install fio")
    environment = {**os.environ, "DRIVES": f"null={options.size}:4096", "APPEND": append, "MEM": "1024", "LIMIT_S": "3000"}
    done = subprocess.run(["scripts/nvme-vm.sh", "exec", text, options.bench, fio], capture_output=True, text=True,
                          env=environment)
    if done.returncode != 0:
        sys.exit(f"the machine ended with {done.returncode}:\n{done.stdout[-4000:]}{done.stderr[-2000:]}")
    return done.stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", default="target/release/kiseki-bench", help="the program to compare")
    parser.add_argument("--machine", choices=MACHINES, action="append", help="only this one; repeatable")
    parser.add_argument("--size", default="4G", help="of the drive")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runtime", type=int, default=1, help="seconds for each measurement")
    parser.add_argument("--case", action="append", help="only cases whose name contains this; repeatable")
    parser.add_argument("--out", help="every run as JSON")
    options = parser.parse_args()
    os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
    cases = [case for case in beside.CASES
             if not options.case or any(part in beside.case_name(*case) for part in options.case)]
    results = {}
    for machine in options.machine or MACHINES:
        append, everyone, comparisons = MACHINES[machine]
        found = [{who: [] for who in everyone} for _ in cases]
        for line in guest(options, append, script(options, everyone, cases)).splitlines():
            words = line.split()
            if words[:1] == ["RESULT"]:
                case, who = (int(number) for number in words[1].split("/"))
                text = gzip.decompress(base64.b64decode(words[2])).decode()
                found[case][list(everyone)[who]].append(beside.figures(text, cases[case][0]))
            elif words[:1] == ["CLOCK"]:
                print(f"{machine}: clock of the guest: {words[1]}")
        for base, others in comparisons:
            print(f"\n{machine}: against {base}\n{beside.header(others)}")
            for case, them in zip(cases, found):
                print(beside.row(beside.case_name(*case), them, base, others), flush=True)
        results[machine] = [{"case": beside.case_name(*case), **them} for case, them in zip(cases, found)]
    if options.out:
        with open(options.out, "w", encoding="utf-8") as out:
            json.dump({"rounds": options.rounds, "runtime_s": options.runtime, "machines": results}, out, indent=1)


if __name__ == "__main__":
    main()
