#!/usr/bin/env python3
"""kiseki-bench s3 beside load generators that others wrote: the same GETs on the same endpoint, in turn.

    cargo install oha --version 1.16.0 --locked --ignore-rust-version      and / or      apt install wrk
    perf/load_generator_check.py [--peer NAME[=COMMAND] ...] [--size 4k] [--clients 1,16] [--rounds 5] [--runtime 3s] [--pin] [--out FILE]

Kiseki, and each --peer (as for s3_compare.py), serves 64 objects; each program reads them at random with as many connections, which
are kept, over plain HTTP/1.1, every request signed. The server runs through all rounds of a row. What is held against each other are
requests a second, p50 and p99.

- oha signs each request anew, as kiseki-bench does, but its clock begins when that is done; kiseki-bench's begins before: signing, some
  microseconds, is in its p50.
- wrk sends requests that were signed before, so its processor has less to do between two of them. It corrects its percentiles for
  coordinated omission (it adds latencies that it supposes it has missed), so its p99 is longer than what it measured.

Prints a Markdown table of medians and ratios. Exit code 2 when neither program is installed.
"""

import argparse
import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import urllib.parse

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "scripts"))
import beside
import s3_compare
from experiment import Failed, document, job_figures
from history.s3 import Client, NoAnswer, NotSent
from node import PROGRAMS, ROOT

BUCKET, OBJECTS = "perf-check", 64
OURS = "kiseki-bench"
# What S3 wants to be told of a body that is not there; oha signs the header but does not add it.
NOTHING_SHA256 = hashlib.sha256(b"").hexdigest()
HOW = "cargo install oha --version 1.16.0 --locked --ignore-rust-version, or apt install wrk"

# Requests are made before the clock runs; errors are those of the connection and all answers above 399.
WRK_SCRIPT = """
local requests, number = %s, 0
math.randomseed(os.time())
request = function() return requests[math.random(#requests)] end
done = function(summary, latency)
  local e = summary.errors
  io.write(string.format('{"requests":%%d,"duration_us":%%d,"p50_us":%%d,"p99_us":%%d,"errors":%%d}\\n', summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))
end
"""


def generators():
    """Programs that are installed."""
    return tuple(name for name in ("oha", "wrk") if shutil.which(name))


class Target:
    """An endpoint that serves, with its objects."""

    def __init__(self, env, work):
        self.env, self.work = env, pathlib.Path(work)
        self.url = env["AWS_ENDPOINT_URL"]
        parts = urllib.parse.urlsplit(self.url)
        region = env.get("AWS_REGION", "us-east-1")
        self.credentials = (env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"], region)
        self.client = Client(parts.hostname, parts.port, self.credentials, 60)
        self.keys = [f"/{BUCKET}/object-{number:03}" for number in range(OBJECTS)]

    def store(self, size_bytes):
        self.ask("PUT", f"/{BUCKET}", b"")
        for key in self.keys:
            self.ask("PUT", key, os.urandom(size_bytes))

    def ask(self, method, path, body):
        try:
            status, _, content = self.client.ask(method, path, body)
        except (NotSent, NoAnswer) as error:
            raise Failed(f"{method} {path}: {error}") from error
        # A bucket that is there already is none the worse.
        if status >= 300 and status != 409:
            raise Failed(f"{method} {path}: {status} {content[:200]!r}")

    def bytes_of_request(self, key):
        headers = self.client.signed("GET", key, "", b"", {})
        return f"GET {key} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"


def measure(who, target, size, clients, runtime_s, pin):
    """One run of one program: its document and its figures."""
    return {OURS: kiseki_bench, "oha": oha, "wrk": wrk}[who](target, size, clients, runtime_s, pin)


def kiseki_bench(target, size, clients, runtime_s, pin):
    words = ["s3", "--json", "--op", "get", "--size", size, "--clients", clients, "--objects", OBJECTS, "--bucket", BUCKET]
    words += ["--runtime", f"{runtime_s}s", "--warmup", "500ms", "--cleanup"]
    try:
        told = s3_compare.told([*pin, PROGRAMS / "kiseki-bench", *words], target.env)
    except RuntimeError as error:
        raise Failed(str(error)) from error
    return told, job_figures(told["jobs"][0])


def oha(target, _, clients, runtime_s, pin):
    key, secret, region = target.credentials
    urls = target.work / "urls"
    urls.write_text("".join(f"{target.url}{path}\n" for path in target.keys))
    words = ["oha", "--no-tui", "--output-format", "json", "-z", f"{runtime_s}s", "-w", "-c", clients, "--worker-threads", "1"]
    words += ["--urls-from-file", "--aws-sigv4", f"aws:amz:{region}:s3", "-a", f"{key}:{secret}"]
    words += ["-H", f"x-amz-content-sha256: {NOTHING_SHA256}", urls]
    told = document([*pin, *words])
    return told, oha_figures(told)


def oha_figures(told):
    answers = {int(status): count for status, count in told["statusCodeDistribution"].items()}
    good = answers.get(200, 0)
    errors = sum(answers.values()) - good + sum(told["errorDistribution"].values())
    if not good:
        raise Failed(f"oha got no object: answers {answers}, errors {told['errorDistribution']}")
    seconds = told["latencyPercentiles"]
    return {
        "per_second": good / told["summary"]["total"],
        "p50_us": seconds["p50"] * 1e6,
        "p99_us": seconds["p99"] * 1e6,
        "errors": errors,
    }


def wrk(target, _, clients, runtime_s, pin):
    script = target.work / "requests.lua"
    script.write_text(WRK_SCRIPT % ("{" + ",".join(f"[==[{target.bytes_of_request(key)}]==]" for key in target.keys) + "}"))
    told = document([*pin, "wrk", "-t", "1", "-c", clients, "-d", f"{runtime_s}s", "--timeout", "60s", "-s", script, target.url])
    if told["errors"] >= told["requests"]:
        raise Failed(f"wrk got no object: {told}")
    return told, {
        "per_second": told["requests"] / told["duration_us"] * 1e6,
        "p50_us": told["p50_us"],
        "p99_us": told["p99_us"],
        "errors": told["errors"],
    }


@contextlib.contextmanager
def serving(name, peers, work, pin):
    """A server of that name with the objects in it, as `measure` wants it: size in bytes goes to `store`."""
    with tempfile.TemporaryDirectory(prefix="check-", dir=work) as directory:
        try:
            chosen = [peer for peer in peers if s3_compare.named(peer)[0] == name]
            servers = s3_compare.side_by_side(chosen, pathlib.Path(directory), list(pin))
            server = next(server for server in servers if server.name == name)
            with server.serving() as (_, env):
                yield Target(env, directory)
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            raise Failed(f"{name}: {error}") from error


def bytes_of(size):
    """4k, 1m: as kiseki-bench reads them."""
    units = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
    number, unit = (size[:-1], units[size[-1].lower()]) if size[-1:].lower() in units else (size, 1)
    return int(number) * unit


def compared(found):
    """Ratios of medians of ours to each other program's, of `found`: {who: {figure: median}}."""
    return {
        who: {key: found[OURS][key] / figures[key] for key in ("per_second", "p50_us", "p99_us")}
        for who, figures in found.items() if who != OURS
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME[=COMMAND]")
    parser.add_argument("--size", default="4k")
    parser.add_argument("--clients", default="1,16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runtime", type=int, default=3, help="seconds of one measurement")
    parser.add_argument("--pin", action="store_true", help="servers on one processor, the programs on another")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "target/perf")
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    if not generators():
        parser.error(f"neither oha nor wrk is installed: {HOW}")
    try:
        size_bytes = bytes_of(options.size)
        clients = [int(word) for word in options.clients.split(",")]
        names = ["kiseki", *(s3_compare.named(peer)[0] for peer in options.peer)]
    except ValueError as error:
        parser.error(str(error))
    options.work.mkdir(parents=True, exist_ok=True)
    pin = lambda cpu: ["taskset", "-c", cpu] if options.pin else []
    whos, runs = (OURS, *generators()), []
    print("| server | connections | program | requests/s | p50 us | p99 us | kiseki-bench / it: requests/s, p50, p99 |")
    print("|---|---|---|---|---|---|---|")
    try:
        for name in names:
            with serving(name, options.peer, options.work, pin(s3_compare.FIRST_CPU)) as target:
                target.store(size_bytes)
                for count in clients:
                    found = {who: [] for who in whos}
                    for number in range(options.rounds):
                        for who in beside.turned(list(whos), number):
                            _, figures = measure(who, target, options.size, count, options.runtime, pin(s3_compare.SECOND_CPU))
                            found[who].append(figures)
                            runs.append({"server": name, "connections": count, "program": who, "round": number, **figures})
                    medians = {who: {key: statistics.median(one[key] for one in figures) for key in ("per_second", "p50_us", "p99_us")}
                               for who, figures in found.items()}
                    ratios = compared(medians)
                    for who in whos:
                        one = medians[who]
                        told = ", ".join(f"{ratio:.2f}" for ratio in ratios[who].values()) if who in ratios else ""
                        print(f"| {name} | {count} | {who} | {one['per_second']:,.0f} | {one['p50_us']:,.0f} | {one['p99_us']:,.0f} | {told} |", flush=True)
    except Failed as error:
        print(error, file=sys.stderr)
        return 1
    if options.out:
        options.out.write_text(json.dumps({"size": options.size, "runs": runs}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
