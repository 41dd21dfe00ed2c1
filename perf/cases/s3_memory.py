"""GETs from device images on the disk beside GETs from images in memory: the same program, the same path."""

import contextlib
import functools
import os
import pathlib
import subprocess
import tempfile

import machine
import s3_compare
from cases import s3
from experiment import Absent, Experiment, Failed, output, ready

NAME = "s3-memory"
TITLE = "S3 GET from devices beside the same from memory"
ABOUT = ("Two nodes of the same program: one with its directory on the disk, one with its directory on tmpfs, so that devices, journals and "
         "tables are memory and all else is the same; each measurement begins with a new one. Ratios are devices divided by memory, of neighbors.")
COLUMNS = s3.COLUMNS
RATIO = ("per_second", ("memory",))

CASES = ["get:1m:1", "get:1m:8", "get:1m:16"]
# 64 objects of 1 MiB coded, journals and tables; images are sparse.
SIZE_BYTES = 4 << 30


def in_memory(path):
    """Whether a file system in memory with room is there; below /dev a node makes no image files."""
    if not path.is_dir() or not os.access(path, os.W_OK) or not machine.file_system(path.resolve()).startswith("tmpfs "):
        return False
    room = os.statvfs(path)
    return room.f_bavail * room.f_frsize >= SIZE_BYTES


@contextlib.contextmanager
def memory(work):
    """A directory in memory: of a file system that is there, or, as root, of one that is mounted for the time of it."""
    for place in (pathlib.Path("/tmp"), pathlib.Path(f"/run/user/{os.geteuid()}")):
        if in_memory(place):
            with tempfile.TemporaryDirectory(prefix="kiseki-perf-", dir=place) as directory:
                yield directory
            return
    with tempfile.TemporaryDirectory(prefix="memory-", dir=work) as directory:
        output(["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "kiseki-perf", directory])
        try:
            yield directory
        finally:
            # A process that ends late may still hold it.
            output(["umount", "--lazy", directory])


def experiments(setting):
    if os.geteuid() != 0 and not any(in_memory(pathlib.Path(place)) for place in ("/tmp", f"/run/user/{os.geteuid()}")):
        raise Absent(f"neither /tmp nor /run/user is a file system in memory with {SIZE_BYTES >> 30} GiB free, and only root can mount one")
    runtime, warmup = setting.either("500ms", "4s"), setting.either("300ms", "1s")

    @contextlib.contextmanager
    def disk():
        with tempfile.TemporaryDirectory(prefix="devices-", dir=setting.work) as directory:
            yield directory

    places = {"devices": disk, "memory": lambda: memory(setting.work)}

    def measure(case, who):
        try:
            with places[who]() as place:
                node = s3_compare.Kiseki(pathlib.Path(place), list(setting.server_pin))
                return s3.measured(node, case, runtime, warmup, setting, who)
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            raise Failed(f"{who}: {error}") from error

    chosen = CASES[-1:] if setting.quick else CASES
    return [Experiment(case.replace(":", "-"), tuple(places), ready(functools.partial(measure, case)), setting.either(1, 5), setting.either(3, 9))
            for case in chosen]


def limit(row, medians):
    ours, memory = medians[row].get("devices"), medians[row].get("memory")
    if not ours or not memory:
        return None
    if memory["server_us_per_op"] > ours["server_us_per_op"]:
        text = (f"tmpfs is no ceiling here: a GET from it costs the server {memory['server_us_per_op']:,.0f} us of its processor, one from devices "
                f"{ours['server_us_per_op']:,.0f}; so ")
    else:
        text = ""
    return f"{text}devices serve {ours['per_second'] / memory['per_second']:.0%} of what tmpfs serves. From devices: {s3.limit_of(ours)}"
