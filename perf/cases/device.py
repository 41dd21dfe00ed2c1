"""`kiseki-bench device` beside fio's io_uring on one file."""

import functools
import pathlib
import shutil

import beside
from experiment import Experiment, Failed, Measured, document, output, ready
from node import PROGRAMS

NAME = "device"
TITLE = "A core's ring beside fio"
ABOUT = ("`kiseki-bench device` and fio (io_uring, fixed buffers and files, direct I/O) on one file filled with noise, both on the same "
         "processor. Latencies begin with the submission. Ratios are medians of the ratios of neighbors.")
COLUMNS = (("IOPS", "per_second", 0), ("MiB/s", "mib_per_second", 1), ("p50 us", "p50_us", 1), ("p99 us", "p99_us", 1),
           ("CPU us/op", "cpu_us_per_op", 2))
RATIO = ("per_second", ("fio",))

CASES = [*beside.CASES[:4], ("read", "128k", 8), ("write", "128k", 8), *beside.CASES[4:]]
# From here on a processor has no room for anything else.
BUSY = 0.9


def experiments(setting):
    file = pathlib.Path(setting.work) / "device.img"
    seconds = setting.either(1, 2)
    others = ("fio",) if shutil.which("fio") else ()

    def filled():
        if not file.exists():
            length = setting.either(128, 1024)
            output(["dd", "if=/dev/urandom", f"of={file}", "bs=1M", f"count={length}", "oflag=direct", "status=none"])

    def measure(rw, bs, depth, who):
        filled()
        if who == "fio":
            engine = ["--ioengine=io_uring", "--direct=1", f"--filename={file}"]
            command = beside.fio_arguments(engine, rw, bs, depth, seconds)
        else:
            command = beside.bench_arguments(str(PROGRAMS / "kiseki-bench"), rw, bs, depth, seconds, str(file), destroy=True)
        told = document([*setting.client_pin, *command])
        return told, [Measured(beside.case_name(rw, bs, depth), who, figures(told, rw))]

    # A pair of each in a short run: seconds of a disk say little anyhow.
    chosen = [CASES[0], CASES[3]] if setting.quick else CASES
    rounds = setting.either(1, 5)
    return [Experiment(f"{rw}-{bs}-x{depth}", ("kiseki", *others), ready(functools.partial(measure, rw, bs, depth)), rounds, seconds + 0.6)
            for rw, bs, depth in chosen]


def left_out(_):
    return [] if shutil.which("fio") else ["fio is not installed (apt install fio): the ring stands alone, without a ratio"]


def figures(told, rw):
    job = told["jobs"][0]
    side = job["read" if "read" in rw else "write"]
    if not side["total_ios"]:
        raise Failed(f"{rw}: nothing was done")
    percentile = side["lat_ns"]["percentile"]
    return {
        "per_second": side["iops"],
        "mib_per_second": side["bw_bytes"] / 2**20,
        "p50_us": percentile["50.000000"] / 1e3,
        "p99_us": percentile["99.000000"] / 1e3,
        "cpu_us_per_op": (job["usr_cpu"] + job["sys_cpu"]) * 1e4 / max(side["iops"], 1),
    }


def limit(row, medians):
    ours, fio = medians[row].get("kiseki"), medians[row].get("fio")
    if not ours:
        return None
    busy = ours["cpu_us_per_op"] * ours["per_second"] / 1e6
    if busy >= BUSY:
        text = f"the processor: {ours['cpu_us_per_op']:.1f} us an operation keep it {busy:.0%} busy"
    else:
        text = f"not the processor, which is {busy:.0%} busy: the file's disk and the way to it"
    if fio:
        theirs = fio["cpu_us_per_op"] * fio["per_second"] / 1e6
        ratio = ours["per_second"] / fio["per_second"]
        text += f"; fio's median is {1 / ratio:.2f} times ours, with {theirs:.0%}"
    return text
