"""GETs from device images on the disk beside GETs from images in memory: the same program, the same path."""

import contextlib
import functools
import os
import pathlib
import tempfile

import s3_compare
from cases import s3
from experiment import Absent, Experiment, Failed

NAME = "s3-memory"
TITLE = "S3 GET from devices beside the same from memory"
ABOUT = ("Two nodes of the same program: one with its directory on the disk, one with its directory on tmpfs, so that devices, journals and "
         "tables are memory and all else is the same. Ratios are devices divided by memory, of neighbors.")
COLUMNS = s3.COLUMNS
RATIO = ("per_second", ("memory",))

CASES = ["get:1m:1", "get:1m:8", "get:1m:16"]
MEMORY = pathlib.Path("/dev/shm")
# 64 objects of 1 MiB coded, journals and tables; images are sparse.
FREE_MIN_BYTES = 2 << 30


def experiments(setting):
    if not MEMORY.is_dir():
        raise Absent(f"{MEMORY} is missing: there is no file system in memory")
    room = os.statvfs(MEMORY)
    if room.f_bavail * room.f_frsize < FREE_MIN_BYTES:
        raise Absent(f"{MEMORY} has less than {FREE_MIN_BYTES >> 30} GiB free")
    runtime, warmup = setting.either("500ms", "4s"), setting.either("300ms", "1s")

    @contextlib.contextmanager
    def opened(case):
        with tempfile.TemporaryDirectory(prefix="devices-", dir=setting.work) as disk, tempfile.TemporaryDirectory(prefix="kiseki-perf-", dir=MEMORY) as memory:
            nodes = {}

            def measure(who):
                try:
                    if who not in nodes:
                        nodes[who] = s3_compare.Kiseki(pathlib.Path({"devices": disk, "memory": memory}[who]), list(setting.server_pin))
                    return s3.measured(nodes[who], case, runtime, warmup, setting, who)
                except (RuntimeError, OSError) as error:
                    raise Failed(f"{who}: {error}") from error

            yield measure

    chosen = CASES[-1:] if setting.quick else CASES
    return [Experiment(case.replace(":", "-"), ("devices", "memory"), functools.partial(opened, case), setting.either(1, 5), setting.either(3, 8))
            for case in chosen]


def limit(row, medians):
    ours, memory = medians[row].get("devices"), medians[row].get("memory")
    if not ours or not memory:
        return None
    return f"devices serve {ours['per_second'] / memory['per_second']:.0%} of what memory serves. From devices: {s3.limit_of(ours)}"
