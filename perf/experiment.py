"""An experiment: contenders that are measured in turn, so that neighbors met the same machine."""

import contextlib
import dataclasses
import json
import subprocess
from collections.abc import Callable

import beside


class Failed(Exception):
    """A measurement gave no figures. The text says which and why; the others go on."""


class Absent(Exception):
    """A case can't be measured on this machine; the text says what is missing."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one measurement says of one row of the page's table."""

    row: str
    who: str
    figures: dict


@dataclasses.dataclass(frozen=True)
class Experiment:
    """`opened()` makes what is measured ready and gives `measure(who)`, which returns a document to keep and a list of Measured."""

    name: str
    contenders: tuple
    opened: Callable
    rounds: int
    # What one measurement takes, about, with all that goes before and after it: for the progress line only.
    seconds: float

    def turns(self):
        """(round, contender): each round begins with another one."""
        names = list(self.contenders)
        return [(number, who) for number in range(self.rounds) for who in beside.turned(names, number)]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all cases are told."""

    work: object
    quick: bool
    peers: tuple
    # Words in front of commands that keep them to a processor; empty where there is only one.
    server_pin: tuple
    client_pin: tuple

    def either(self, quick, real):
        return quick if self.quick else real


def ready(measure):
    """`opened` of an experiment that needs nothing made ready."""
    return lambda: contextlib.nullcontext(measure)


def output(command, **more):
    """What a program printed; Failed when it says that it failed."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, **more)
    except OSError as error:
        raise Failed(f"{words[0]}: {error}") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise Failed(f"`{' '.join(words)}` ended with {done.returncode}: {' '.join(said)}")
    return done.stdout


def document(command, **more):
    """What a program printed as JSON, from the first brace on: fio may warn before it."""
    text = output(command, **more)
    try:
        return json.loads(text[text.index("{"):])
    except ValueError as error:
        raise Failed(f"`{' '.join(map(str, command))}` printed no JSON: {text[:200]!r}") from error


def job_figures(job):
    """The usual figures of one job of kiseki-bench: of a mix, what both sides did, and the latencies of the writes."""
    sides = [job[name] for name in ("read", "write") if job[name]["total_ios"]]
    if not sides:
        raise Failed(f"{job['jobname']}: nothing was done; {'; '.join(job['errors']['messages']) or 'no error was told'}")
    per_second = sum(side["iops"] for side in sides)
    percentile = sides[-1]["lat_ns"]["percentile"]
    return {
        "per_second": per_second,
        "mib_per_second": sum(side["bw_bytes"] for side in sides) / 2**20,
        "p50_us": percentile["50.000000"] / 1e3,
        "p99_us": percentile["99.000000"] / 1e3,
        "cpu_us_per_op": (job["usr_cpu"] + job["sys_cpu"]) * 1e4 / max(per_second, 1e-9),
        "errors": job["error"],
    }
