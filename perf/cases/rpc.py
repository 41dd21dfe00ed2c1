"""`kiseki-bench rpc`: calls between two cores over the loopback, beside rustls alone."""

import functools

from experiment import Experiment, Measured, document, job_figures, ready
from node import PROGRAMS

NAME = "rpc"
TITLE = "Calls between two cores over TLS"
ABOUT = ("`kiseki-bench rpc` on the loopback, both ends in one process. Bulk bytes go in calls of 1 MiB, four at a time; *rustls* are as many "
         "bytes through rustls with two blocking threads and nothing above it. Processor time is that of both ends.")
COLUMNS = (("calls/s", "per_second", 0), ("MiB/s", "mib_per_second", 1), ("p50 us", "p50_us", 1), ("p99 us", "p99_us", 1),
           ("CPU us/call, both ends", "cpu_us_per_op", 1))
RATIO = ("per_second", ("rustls",))

# Row, part, whether rustls moves the same bytes.
PARTS = [("call without content, one at a time", "null", False), ("256 bytes there, 4 KiB back", "call", False),
         ("bulk bytes sent", "send", True), ("bulk bytes received", "receive", True)]


def experiments(setting):
    times = ["--runtime", setting.either("200ms", "2s"), "--warmup", setting.either("50ms", "500ms")]
    pin = ["--cpus", "0,1"] if setting.client_pin else []

    def measure(row, part, who):
        told = document([PROGRAMS / "kiseki-bench", "rpc", "--json", *times, *pin, "--part", "rustls" if who == "rustls" else part])
        job = told["jobs"][0]
        return told, [Measured(row, who, {**job_figures(job), "cpu_us_per_op": job["client_cpu"]["ns_per_op"] / 1e3})]

    rounds, seconds = setting.either(1, 5), setting.either(0.5, 2.8)
    return [Experiment(part, ("kiseki", "rustls") if has_twin else ("kiseki",), ready(functools.partial(measure, row, part)), rounds, seconds)
            for row, part, has_twin in PARTS]


def limit(row, medians):
    ours, rustls = medians[row].get("kiseki"), medians[row].get("rustls")
    if not ours:
        return None
    busy = ours["cpu_us_per_op"] * ours["per_second"] / 1e6
    text = f"both ends together use {busy:.2f} processors, {ours['cpu_us_per_op']:,.0f} us a call"
    if rustls:
        text += f"; rustls alone {rustls['cpu_us_per_op']:,.0f} us, {ours['per_second'] / rustls['per_second']:.0%} of its calls a second are reached"
    return text
