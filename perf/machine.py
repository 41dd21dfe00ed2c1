"""The machine and the builds that a run is from."""

import datetime
import os
import pathlib
import platform
import re
import shutil
import subprocess

from node import PROGRAMS, ROOT

# What the run may use besides our own programs: how each tells its version.
TOOLS = {"fio": ["--version"], "garage": ["--version"], "s3s-fs": ["--version"], "oha": ["--version"], "wrk": ["--version"], "cargo": ["--version"]}


def first_line(command):
    """The first line of what a program says, on either stream; None without the program."""
    if not shutil.which(command[0]):
        return None
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    return lines[0].strip() if lines else ""


def cpu_model():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def memory_bytes():
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def file_system(path):
    """Kind and device of the file system that holds `path`."""
    best = ("", "unknown", "unknown")
    for line in pathlib.Path("/proc/self/mounts").read_text().splitlines():
        device, mount, kind, *_ = line.split(" ")
        inside = str(path) == mount or str(path).startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best[0]):
            best = (mount, kind, device)
    return f"{best[1]} on {best[2]}"


def slug(model, cpus):
    """A name for a directory: `intel-xeon-2-cpus`."""
    words = re.sub(r"\((R|TM|tm)\)|\bCPU\b|\bProcessor\b|@.*|\d+-Core", " ", model)
    name = "-".join(re.findall(r"[A-Za-z0-9]+", words)).lower() or "machine"
    return f"{name}-{cpus}-cpu{'s' if cpus != 1 else ''}"


def commit():
    """The commit of the tree, `-dirty` when sources differ from it. What runs recorded themselves is no source."""
    head = first_line(["git", "rev-parse", "--short=12", "HEAD"])
    changed = first_line(["git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!perf/runs"])
    return f"{head}-dirty" if changed else head


def manifest(work, pins):
    tools = {name: said for name, words in TOOLS.items() if (said := first_line([name, *words])) is not None}
    cpus = len(os.sched_getaffinity(0))
    return {
        "started": now(),
        "cpu_model": cpu_model(),
        "cpu_count": cpus,
        "memory_bytes": memory_bytes(),
        "kernel": f"{platform.system()} {platform.release()}",
        "file_system": file_system(pathlib.Path(work).resolve()),
        "git_commit": commit(),
        "kiseki_bench": first_line([str(PROGRAMS / "kiseki-bench"), "--version"]),
        "tools": tools,
        "pinned": pins,
        "load_average_1m": os.getloadavg()[0],
    }


def now():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
