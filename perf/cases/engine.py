"""`kiseki-bench engine`: PUT and GET without network, HTTP and signatures."""

import functools

from cases.device import BUSY
from experiment import Experiment, Measured, document, job_figures, ready
from node import PROGRAMS

NAME = "engine"
TITLE = "The engine of one core, without a network"
ABOUT = ("`kiseki-bench engine`: a node of one core with eight image files and two metadata directories on one file system, pinned; a PUT is "
         "answered when it is flushed and committed. What stands above it is the difference to the case `s3`.")
COLUMNS = (("op/s", "per_second", 0), ("MiB/s", "mib_per_second", 1), ("p50 us", "p50_us", 0), ("p99 us", "p99_us", 0),
           ("CPU us/op", "cpu_us_per_op", 0), ("flushes/op", "syncs_per_op", 2))
RATIO = None

CASES = [("put", "4k", 1), ("put", "4k", 16), ("put", "1m", 8), ("get", "4k", 16), ("get", "1m", 1), ("get", "1m", 8)]


def experiments(setting):
    times = ["--runtime", setting.either("300ms", "3s"), "--warmup", setting.either("100ms", "1s")]
    base = [*setting.client_pin, PROGRAMS / "kiseki-bench", "engine", "--json", "--dir", setting.work, *times]
    seconds, rounds = setting.either(2, 7), setting.either(1, 3)

    def measure(op, size, clients, _):
        words = ["--objects", "64"] if op == "get" else []
        told = document([*base, "--op", op, "--size", size, "--clients", clients, *words])
        return told, [Measured(f"{op} {size} x{clients}", "kiseki", figures(told["jobs"][0]))]

    return [Experiment(f"{op}-{size}-x{clients}", ("kiseki",), ready(functools.partial(measure, op, size, clients)), rounds, seconds)
            for op, size, clients in CASES]


def figures(job):
    cpu = job["client_cpu"]["ns_per_op"] / 1e3
    return {**job_figures(job), "cpu_us_per_op": cpu, "syncs_per_op": job["syncs_per_op"]}


def limit(row, medians):
    ours = medians[row]["kiseki"]
    busy = ours["cpu_us_per_op"] * ours["per_second"] / 1e6
    flushes = f", {ours['syncs_per_op']:.2f} flushes an operation" if row.startswith("put") else ""
    if busy >= BUSY:
        return f"the processor, {busy:.0%} busy: {ours['cpu_us_per_op']:,.0f} us an operation{flushes}"
    return f"waiting for the disk: the processor is {busy:.0%} busy with {ours['cpu_us_per_op']:,.0f} us an operation{flushes}"
