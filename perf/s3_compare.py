#!/usr/bin/env python3
"""Kiseki and other S3 servers side by side: the same client, the same minute, alternating rounds, medians.

    perf/s3_compare.py [--peer NAME=COMMAND ...] [--nodes 1] [--rounds 3] [--runtime 4s] [--case OP:SIZE:CLIENTS ...] [--out FILE]

Each server gets a fresh directory on the same file system; between rounds all are stopped but the one measured. COMMAND
is run by a shell with PORT, DIR, KEY and SECRET in its environment, and has to serve S3 over plain HTTP on
127.0.0.1:$PORT. `--peer s3s-fs` is short for the command of that server (cargo install s3s-fs --features binary), and `--peer kiseki-chunks` is Kiseki that
makes chunks of small objects too.

The load is kiseki-bench s3: path style, signature version 4, unsigned payload, one connection for each client; content
that does not repeat. With --pin the servers run on the first processor and the client on the second. `mixed-70/30:64k:16` is a mix
of GETs and PUTs in percent; its latencies are those of the PUTs.

`--peer garage` (cargo install garage) is a Garage that syncs metadata and data before it answers. With --nodes 3 all servers are clusters of
three nodes on this machine that keep three copies, the client talks to one node, and what the servers cost is the sum over their nodes.

Prints a Markdown table of medians; --out writes the figures of every run, with the machine they are from, as JSON.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "scripts"))
from clusters import CLUSTERS, KisekiCluster, wait_for_http
from node import PROGRAMS, ROOT, SERVER, Node, free_port

CASES = ["put:64k:16", "put:1m:8", "put:64m:2", "get:64k:16", "get:1m:8", "get:64m:2"]
KNOWN_PEERS = {
    "s3s-fs": 'mkdir -p "$DIR" && exec s3s-fs --access-key "$KEY" --secret-key "$SECRET" --host 127.0.0.1 --port "$PORT" "$DIR"',
}
KEY, SECRET = "perf-access-key", "perf-secret-key-0123456789"
FIRST_CPU, SECOND_CPU = "0", "1"


CHUNKS = "kiseki-chunks"


class Kiseki:
    def __init__(self, work, prefix, name="kiseki", words=()):
        self.name, self.node, self.prefix, self.words = name, Node(work / name, device_gib=4), prefix, words
        self.admins = [f"http://127.0.0.1:{self.node.admin_port}"]

    @contextlib.contextmanager
    def serving(self):
        node = self.node
        with open(node.log, "ab") as log:
            ports = ["--s3-port", str(node.s3_port), "--admin-port", str(node.admin_port)]
            command = [*self.prefix, SERVER, "run", "--dir", node.dir, *ports, "--s3-tls", "off", *self.words]
            node.process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for_http(node.process, f"http://127.0.0.1:{node.admin_port}/readyz")
            env = node.env()
            yield [node.process.pid], {name: env[name] for name in env if name.startswith("AWS_")}
        finally:
            node.stop()


class Peer:
    def __init__(self, name, command, work, prefix):
        self.name, self.command, self.dir, self.prefix = name, command, work / name, prefix
        self.port = free_port()

    @contextlib.contextmanager
    def serving(self):
        env = {**os.environ, "PORT": str(self.port), "DIR": str(self.dir), "KEY": KEY, "SECRET": SECRET}
        with open(self.dir.parent / f"{self.name}.log", "ab") as log:
            command = [*self.prefix, "sh", "-c", self.command]
            process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        endpoint = f"http://127.0.0.1:{self.port}"
        try:
            wait_for_http(process, endpoint)
            yield [process.pid], {
                "AWS_ENDPOINT_URL": endpoint,
                "AWS_ACCESS_KEY_ID": KEY,
                "AWS_SECRET_ACCESS_KEY": SECRET,
                "AWS_REGION": "us-east-1",
            }
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def load(case, runtime, warmup="1s"):
    """The words of kiseki-bench for a case."""
    op, size, clients = case.split(":")
    mixed = op.startswith("mixed-")
    words = [PROGRAMS / "kiseki-bench", "s3", "--json", "--op", op.replace("mixed-", "mixed:"), "--size", size, "--clients", clients]
    words += ["--runtime", runtime, "--warmup", warmup, "--bucket", f"perf-{op.replace('/', '-')}-{size}"]
    # In one request, as the other sizes: parts of 5 MiB would measure a different path.
    words += ["--part-size", "1g"]
    if op == "get" or mixed:
        words += ["--objects", "4" if size.endswith("m") and int(size[:-1]) >= 16 else "64"]
    return words


def told(command, env):
    """What kiseki-bench printed, with these AWS_* and no others."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    done = subprocess.run(list(map(str, command)), env={**clean, **env}, capture_output=True, text=True, check=False)
    if not done.stdout:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout)


def measure(server, case, runtime, prefix, warmup="1s"):
    """One run of one case; what kiseki-bench printed. A Kiseki that stands alone also tells where its time went."""
    with server.serving() as (pids, env):
        words = [word for pid in pids for word in ("--server-pid", pid)]
        words += [word for admin in getattr(server, "admins", []) for word in ("--server-admin", admin)]
        try:
            return told([*prefix, *load(case, runtime, warmup), *words], env)
        except RuntimeError as error:
            raise RuntimeError(f"{server.name} {case}: {error}") from error


def figures(document):
    job = document["jobs"][0]
    # Of a mix: what both did, and how long a write took.
    sides = [job[name] for name in ("read", "write") if job[name]["total_ios"]]
    side = sides[-1]
    return {
        "per_second": sum(one["iops"] for one in sides),
        "mib_per_second": sum(one["bw_bytes"] for one in sides) / 2**20,
        "p50_ms": side["clat_ns"]["percentile"]["50.000000"] / 1e6,
        "p99_ms": side["clat_ns"]["percentile"]["99.000000"] / 1e6,
        "server_cpu_us_per_op": job["server_cpu"]["ns_per_op"] / 1e3,
        "server_cpu_s_per_gib": job["server_cpu"]["ns_per_gib"] / 1e9,
        "errors": job["error"],
    }


def record(runs):
    """What is worth keeping: the machine and the build once, of every run its figures."""
    told = ("version", "git_commit", "kernel", "cpu_model", "cpu_count", "cpu_features", "kernels", "memory_bytes")
    manifest = runs[0]["result"]["manifest"]
    rounded = lambda value: round(value, 2) if isinstance(value, float) else value
    line = lambda run: {key: rounded(value) for key, value in figures(run["result"]).items()}
    named = [{"round": run["round"], "case": run["case"], "server": run["server"], **line(run)} for run in runs]
    return {"command": sys.argv[1:], "manifest": {key: manifest[key] for key in told}, "runs": named}


def table(cases, servers, runs):
    print("| case | server | op/s | MiB/s | p50 ms | p99 ms | server us/op | server s/GiB |")
    print("|---|---|---|---|---|---|---|---|")
    for case in cases:
        for server in servers:
            values = [figures(run["result"]) for run in runs if (run["case"], run["server"]) == (case, server.name)]
            median = {key: statistics.median(value[key] for value in values) for key in values[0]}
            errors = sum(value["errors"] for value in values)
            note = f" ({errors} errors)" if errors else ""
            print(
                f"| {case} | {server.name}{note} | {median['per_second']:,.0f} | {median['mib_per_second']:.1f}"
                f" | {median['p50_ms']:.2f} | {median['p99_ms']:.2f} | {median['server_cpu_us_per_op']:,.0f}"
                f" | {median['server_cpu_s_per_gib']:.2f} |"
            )


def side_by_side(peers, work, prefix, nodes=1):
    """Kiseki and the peers of these names, each with a directory of its own below `work`; ValueError for a name that says nothing."""
    several = nodes > 1
    found = [KisekiCluster(work, prefix, nodes) if several else Kiseki(work, prefix)]
    for peer in peers:
        if peer in CLUSTERS:
            found.append(CLUSTERS[peer](work, prefix, nodes))
            continue
        if several:
            raise ValueError(f"--peer {peer}: with --nodes the peers are {', '.join(CLUSTERS)}")
        if peer == CHUNKS:
            found.append(Kiseki(work, prefix, CHUNKS, ["--raft-inline-mbps", "0"]))
            continue
        name, command = named(peer)
        found.append(Peer(name, command, work, prefix))
    return found


def named(peer):
    """Name and command of a peer as --peer gives it; ValueError when it has no command that is known."""
    name, _, command = peer.partition("=")
    if not command and name not in (CHUNKS, *KNOWN_PEERS, *CLUSTERS):
        raise ValueError(f"--peer {name}: say how it starts, as {name}=COMMAND; known: {', '.join([CHUNKS, *KNOWN_PEERS, *CLUSTERS])}")
    return name, command or KNOWN_PEERS.get(name)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME[=COMMAND]")
    parser.add_argument("--case", action="append", metavar="OP:SIZE:CLIENTS", help=f"default: {' '.join(CASES)}")
    parser.add_argument("--nodes", type=int, default=1, help="clusters of so many nodes instead of single servers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runtime", default="4s")
    parser.add_argument("--pin", action="store_true", help="servers on one processor, the client on another")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "target/perf", help="on the disk to be measured")
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    cases = options.case or CASES
    options.work.mkdir(parents=True, exist_ok=True)
    pin = lambda cpu: ["taskset", "-c", cpu] if options.pin else []
    shutil.rmtree(options.work / "data", ignore_errors=True)
    work = options.work / "data"
    work.mkdir()
    try:
        servers = side_by_side(options.peer, work, pin(FIRST_CPU), options.nodes)
    except ValueError as error:
        parser.error(str(error))
    runs = []
    for number in range(options.rounds):
        for case in cases:
            # Alternating, and each first in its turn, so that nobody always has the quieter half of a minute.
            for server in servers if number % 2 == 0 else servers[::-1]:
                result = measure(server, case, options.runtime, pin(SECOND_CPU))
                runs.append({"round": number, "case": case, "server": server.name, "result": result})
                line = figures(result)
                print(f"round {number} {case} {server.name}: {line['mib_per_second']:.1f} MiB/s", file=sys.stderr)
    table(cases, servers, runs)
    if options.out:
        options.out.write_text(json.dumps(record(runs), indent=1) + "\n")
    shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
