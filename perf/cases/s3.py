"""GET and PUT over S3, beside the peers that were named."""

import contextlib
import functools
import pathlib
import shutil
import subprocess
import tempfile

import s3_compare
from cases.device import BUSY
from experiment import Experiment, Failed, Measured, job_figures, ready

NAME = "s3"
TITLE = "S3 over plain HTTP"
ABOUT = ("`kiseki-bench s3`: path style, signature version 4, unsigned payload, a connection for each client, content that does not repeat. One "
         "node with eight image files; servers on one processor, the client on the other; each measurement begins with empty directories, since nodes "
         "of the same program differ. Latencies are the client's. Ratios are Kiseki's operations a second divided by the peer's of the same round.")
COLUMNS = (("op/s", "per_second", 0), ("MiB/s", "mib_per_second", 1), ("p50 us", "p50_us", 0), ("p99 us", "p99_us", 0),
           ("server us/op", "server_us_per_op", 0), ("client us/op", "client_us_per_op", 0))
# Held against each peer: see page.py.
RATIO = ("per_second", None)

CASES = [f"{op}:{size}:{clients}" for op in ("get", "put") for size in ("4k", "1m", "16m") for clients in (1, 16)]
PHASE = "phase "


def peer_name(peer):
    return s3_compare.named(peer)[0]


@contextlib.contextmanager
def fresh(setting, make):
    """Servers in a directory of their own, which is gone afterwards: `make(directory)` by name."""
    with tempfile.TemporaryDirectory(prefix="s3-", dir=setting.work) as directory:
        try:
            yield {server.name: server for server in make(pathlib.Path(directory))}
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            raise Failed(str(error)) from error


def experiments(setting):
    peers = present(setting)
    names = ("kiseki", *map(peer_name, peers))
    runtime, warmup = setting.either("500ms", "4s"), setting.either("300ms", "1s")

    def measure(case, who):
        with fresh(setting, lambda work: s3_compare.side_by_side(peers, work, list(setting.server_pin))) as servers:
            return measured(servers[who], case, runtime, warmup, setting)

    chosen = CASES if not setting.quick else [case for case in CASES if ":16m:" not in case]
    return [Experiment(case.replace(":", "-"), names, ready(functools.partial(measure, case)), setting.either(1, 3), setting.either(3, 9))
            for case in chosen]


def present(setting):
    """Peers whose program is there; one that comes with a command of its own is believed."""
    return [peer for peer in setting.peers if "=" in peer or peer == s3_compare.CHUNKS or shutil.which(peer)]


def left_out(setting):
    if not setting.peers:
        return ["no peer was named (--peer): Kiseki stands alone"]
    return [f"{peer} is not installed" for peer in setting.peers if peer not in present(setting)]


def measured(server, case, runtime, warmup, setting, who=None):
    try:
        told = s3_compare.measure(server, case, runtime, list(setting.client_pin), warmup)
    except RuntimeError as error:
        raise Failed(str(error)) from error
    op, size, clients = case.split(":")
    return told, [Measured(f"{op} {size} x{clients}", who or server.name, figures(told["jobs"][0]))]


def figures(job):
    found = job_figures(job)
    found["client_us_per_op"] = found.pop("cpu_us_per_op")
    found["server_us_per_op"] = job["server_cpu"]["ns_per_op"] / 1e3
    for stage in (job.get("waterfall") or {}).get("stages", []):
        found[PHASE + stage["name"]] = stage["p50_ns"] / 1e3
    return found


def limit(row, medians):
    ours = medians[row].get("kiseki")
    return ours and limit_of(ours)


def limit_of(ours):
    server, client = (ours[key] * ours["per_second"] / 1e6 for key in ("server_us_per_op", "client_us_per_op"))
    if server >= BUSY:
        text = f"the server's processor, {server:.0%} busy (the client's {client:.0%})"
    elif client >= BUSY:
        text = f"the client's processor, {client:.0%} busy: the server's is {server:.0%} busy and could do more"
    else:
        text = f"no processor: the server's is {server:.0%} busy, the client's {client:.0%}; each waits for the other, or for the disk"
    told = phases(ours)
    return f"{text}. Server's phases at p50: {told}" if told else text


def phases(ours, most=4):
    """The longest phases as shares of their sum."""
    spent = {key.removeprefix(PHASE): value for key, value in ours.items() if key.startswith(PHASE)}
    total = sum(spent.values())
    if total <= 0:
        return ""
    longest = sorted(spent, key=spent.get, reverse=True)[:most]
    return f"{', '.join(f'{name} {spent[name] / total:.0%}' for name in longest)} of {total:,.0f} us"
