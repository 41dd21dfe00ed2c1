#!/usr/bin/env python3
"""What very many small objects cost a node: speed, memory, space on disk, restarts, listing, deleting.

    make build kiseki-bench
    perf/small_objects.py SCRATCH_DIRECTORY [--objects 1000000] [--size 1024] [--clients 16] [--json FILE]

Makes a fresh node of the kind that s3_compare.py makes (eight image files, two metadata directories, plain HTTP), puts that many distinct
objects under 1000 prefixes, stops it and starts it again, kills it and starts it again, lists everything three times, reads some objects back
and compares every byte, and deletes everything. The content of an object follows from its key, so what is right is known without keeping it.
Prints Markdown tables; a MB is 10^6 bytes. A wrong byte, or a key that is missing or one too many: exit code 1, and the node's files stay.

The load is processes of Python with a connection each, that sign like any client. They take their share of the machine, so their processor
time stands beside the server's. Starts find their files in the kernel's cache, as far as memory suffices.
"""

import argparse
import array
import base64
import bisect
import concurrent.futures
import contextlib
import hashlib
import html
import json
import multiprocessing
import os
import pathlib
import random
import re
import resource
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "scripts"))
import node as nodes
from history.s3 import Client, NoAnswer

BUCKET, PREFIXES, MB = "small-objects", 1000, 1e6
PAGE = 1000  # keys of a page of a listing and of a request to delete: the most that S3 has
BATCH = 16  # objects that a client takes at a time: few, so that all clients have work until the end
# A node that has too much to do may refuse for a while; how long a start or a request takes is a figure here, and no reason to give up.
RETRY_SECONDS, SECONDS_MAX = 60, 3600
# What follows upon a load is over when for so long no shard has changed anything and no file its size.
QUIET_SECONDS, QUIET_SECONDS_MAX = 6, 600
SAMPLE, LISTINGS, TENTHS, PROBLEMS_SHOWN, JOURNALS = 1000, 3, 10, 20, "Raft journals"
# Files of a metadata directory; the first pattern that fits.
KINDS = {JOURNALS: r"lane-\d+\.journal", "Raft log tables": r"lane-\d+-log\.redb", "tables of names": r"shard-\d+-names\.redb", "other files": ".*"}
COUNTED = ["inline_writes_total", "inline_bytes_total", "inline_refused_total", "chunks_written_total", "chunk_bytes_written_total"]
MANIFEST = ["version", "git_commit", "kernel", "cpu_model", "cpu_count", "cpu_features", "kernels", "memory_bytes", "load_average_1m", "started_unix_ms"]


def key_of(number):
    return f"p{number % PREFIXES:03}/o{number:09}"


def key_at(position, count):
    """The key at a position of the whole listing, which is in the order of keys."""
    each, longer = divmod(count, PREFIXES)  # the first prefixes may have one object more
    prefix, place = divmod(position, each + 1) if position < longer * (each + 1) else divmod(position - longer, each)
    return key_of(prefix + PREFIXES * place)


def content_of(key, size):
    return hashlib.shake_256(key.encode()).digest(size)


class Putter(Client):
    """Puts with little work of its own: Python's HTTP client would cost as much as the server."""

    def put(self, key, body):
        path = f"/{BUCKET}/{key}"
        self.connection = self.connection or self.connect()
        head = "".join(f"{name}: {value}\r\n" for name, value in self.signed("PUT", path, "", body, {}).items())
        self.connection.sock.sendall(f"PUT {path} HTTP/1.1\r\n{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        answer = b""
        while more := self.connection.sock.recv(1 << 16):
            answer += more
            head, end, rest = answer.partition(b"\r\n\r\n")
            length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
            if end and len(rest) >= (int(length[1]) if length else 0):
                return int(head.split(b" ", 2)[1]), rest
        raise NoAnswer(f"PUT {key}: the node closed the connection")


def take(amount, end):
    """The next numbers, which no other process of the load has."""
    with taken.get_lock():
        first, taken.value = taken.value, max(taken.value, min(taken.value + amount, end))
        return range(first, taken.value)


def put_some(target, count, size):
    """One client of the load: when it began, when each PUT ended and how long it took, and how many answers were refusals."""
    client, ends, took, refused = Putter(*target, SECONDS_MAX), array.array("d"), array.array("d"), 0
    began = time.monotonic()
    while numbers := take(BATCH, count):
        for key in map(key_of, numbers):
            body, sent = content_of(key, size), time.monotonic()
            status, answer = client.put(key, body)
            while status >= 500 and time.monotonic() < sent + RETRY_SECONDS:
                refused += 1
                time.sleep(0.05)
                status, answer = client.put(key, body)
            if status != 200:
                raise RuntimeError(f"PUT {key}: {status} {answer.decode(errors='replace')}")
            ends.append(time.monotonic())
            took.append(ends[-1] - sent)
    return began, ends, took, refused


def delete_some(target, count):
    """One client that deletes in the order of the listing, as programs do that empty a bucket: when it began and ended, what went wrong."""
    client, problems, began = Client(*target, SECONDS_MAX), [], time.monotonic()
    while positions := take(PAGE, count):
        keys = "".join(f"<Object><Key>{key_at(position, count)}</Key></Object>" for position in positions)
        body = f"<Delete><Quiet>true</Quiet>{keys}</Delete>".encode()
        digest = base64.b64encode(hashlib.md5(body).digest()).decode()
        status, _, answer = client.ask("POST", f"/{BUCKET}", body, {"content-md5": digest}, {"delete": ""})
        if status != 200 or b"<Error>" in answer:
            problems.append(f"DeleteObjects from place {positions[0]} on: {status} {answer[:300].decode(errors='replace')}")
    return began, time.monotonic(), problems


def progress(text):
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def together(clients, work, arguments, count, what, watch=lambda: None):
    """`work` in so many processes, which share `count` objects: what they return, and the processor time that they took."""
    global taken  # forked processes have it from here
    spent = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    taken, began, before = multiprocessing.Value("q", 0), time.monotonic(), spent()
    with concurrent.futures.ProcessPoolExecutor(clients, multiprocessing.get_context("fork")) as pool:
        futures = pending = [pool.submit(work, *arguments) for _ in range(clients)]
        while pending:
            done, pending = concurrent.futures.wait(pending, 0.1)
            if any(future.exception() for future in done):
                with taken.get_lock():
                    taken.value = count  # the others end when they come back for more
            watch()
            progress(f"{what}: {taken.value:,} of {count:,} objects, {taken.value / (time.monotonic() - began):,.0f} objects/s")
    return [future.result() for future in futures], spent() - before


def memory(node):
    """Resident bytes of the server now and at their peak."""
    text = pathlib.Path(f"/proc/{node.process.pid}/status").read_text()
    return [int(re.search(rf"{name}:\s+(\d+) kB", text)[1]) * 1024 for name in ("VmRSS", "VmHWM")]


def cpu_seconds(node):
    fields = pathlib.Path(f"/proc/{node.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")  # of programs and of the kernel


def metrics(node):  # those without labels
    with urllib.request.urlopen(f"http://127.0.0.1:{node.admin_port}/metrics", timeout=60) as answer:
        return {name: float(value) for name, value in re.findall(r"^kiseki_(\w+) (\S+)$", answer.read().decode(), re.MULTILINE)}


def disk(node):
    """Allocated bytes, since files have holes: of each metadata directory by kind, and of the image files."""
    found = {}
    for directory in sorted(node.dir.glob("meta*")):
        kinds = found[directory.name] = dict.fromkeys(KINDS, 0)
        for file in directory.iterdir():
            with contextlib.suppress(FileNotFoundError):  # some are replaced meanwhile
                kinds[next(kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, file.name))] += file.stat().st_blocks * 512
    found["devices"] = {"image files": sum(image.stat().st_blocks * 512 for image in (node.dir / "devices").glob("*.img"))}
    return found


def quiet(node):
    """Waits until nothing goes on; seconds until then, or None if that did not come."""
    state = lambda now: (disk(node), now.get("raft_proposals_total"), now.get("collection_pages_dropped_total"))
    for waited in range(0, QUIET_SECONDS_MAX, QUIET_SECONDS):
        progress(f"waiting until the node is quiet, {waited} s")
        before = state(metrics(node))
        time.sleep(QUIET_SECONDS)
        if before == state(now := metrics(node)) and now.get("collection_waiting", 0) == 0:
            return waited
    return None


def shown(value):
    if value is None:
        return "unknown"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


class Report:
    """Figures with their units by step, and what was wrong."""

    def __init__(self):
        self.figures, self.tenths, self.problems = {}, [], []

    def add(self, step, name, value, unit):
        self.figures.setdefault(step, {})[name] = {"value": value, "unit": unit}

    def add_state(self, step, node, content=0):
        """Memory, of a node that runs, and space. `content`: bytes of content that lie there, to hold the space against."""
        if node.process:
            self.add_memory(step, node)
        for place, kinds in disk(node).items():
            for kind, size in kinds.items():
                self.add(step, f"{place}: {kind}", size / MB, "MB")
            if content and place != "devices":
                whole = sum(kinds.values())
                self.add(step, f"{place}: amplification, all files / content", whole / content, "times")
                # Their length is fixed, however few the objects are.
                self.add(step, f"{place}: amplification, without the journals", (whole - kinds[JOURNALS]) / content, "times")
        if now := node.process and metrics(node):
            self.add(step, "devices: in use by the node's account", (now["capacity_bytes"] - now["free_bytes"]) / MB, "MB")

    def add_memory(self, step, node):
        for name, value in zip(["RSS", "RSS, peak since the start"], memory(node)):
            self.add(step, name, value / MB, "MB")

    def show(self):
        progress("")
        print("| tenth of the load | objects/s | MB/s | p50 ms | p99 ms | server CPU us/PUT | RSS at its end, MB |\n|---|---|---|---|---|---|---|")
        for number, row in enumerate(self.tenths, 1):
            print("|", number, "|", " | ".join(map(shown, row.values())), "|")
        print("\n| step | figure | value | unit |\n|---|---|---|---|")
        for step, figures in self.figures.items():
            for name, figure in figures.items():
                print(f"| {step} | {name} | {shown(figure['value'])} | {figure['unit']} |")


def percentile_ms(times, percent):
    return sorted(times)[len(times) * percent // 100] * 1e3


def load(node, target, options, report):
    samples = []
    watch = lambda: samples.append((time.monotonic(), cpu_seconds(node), memory(node)[0]))
    watch()
    results, client_cpu = together(options.clients, put_some, (target, options.objects, options.size), options.objects, "load", watch)
    done = sorted(pair for _, ends, took, _ in results for pair in zip(ends, took))
    sample_after = lambda moment: samples[min(bisect.bisect(samples, (moment,)), len(samples) - 1)]

    def row(part, since):
        until, latencies = part[-1][0], [took for _, took in part]
        rate, spent = len(part) / (until - since), sample_after(until)[1] - sample_after(since)[1]
        figures = {"objects_per_second": rate, "mb_per_second": rate * options.size / MB}
        figures |= {"p50_ms": percentile_ms(latencies, 50), "p99_ms": percentile_ms(latencies, 99)}
        return figures | {"server_cpu_us_per_put": spent / len(part) * 1e6, "rss_mb": sample_after(until)[2] / MB}

    began = since = min(result[0] for result in results)
    for tenth in range(TENTHS):
        if part := done[len(done) * tenth // TENTHS : len(done) * (tenth + 1) // TENTHS]:
            report.tenths.append(row(part, since))
            since = part[-1][0]
    whole, add, each = row(done, began), lambda *words: report.add("load", *words), 1e6 / options.objects
    add("time", done[-1][0] - began, "s")
    names = {"speed": "objects/s", "content": "MB/s", "latency, p50": "ms", "latency, p99": "ms"}
    for (name, unit), value in zip(names.items(), whole.values()):
        add(name, value, unit)
    add("latency, longest", max(took for _, took in done) * 1e3, "ms")
    add("answers 5xx, asked again", sum(result[3] for result in results), "answers")
    add("server CPU", (samples[-1][1] - samples[0][1]) * each, "us/PUT")
    add("clients' CPU", client_cpu * each, "us/PUT")
    add("until the node was quiet", quiet(node), "s")
    add("server CPU, until then", (cpu_seconds(node) - samples[0][1]) * each, "us/PUT")
    counted = metrics(node)
    for name in COUNTED:
        add(name, counted.get(name), "bytes" if "bytes" in name else "chunks" if "chunks" in name else "objects")
    add("metadata_fill_percent", counted.get("metadata_fill_percent"), "%")
    report.add_state("load, quiet", node, options.objects * options.size)


def restart(node, step, target, options, report):
    began, key, status = time.monotonic(), key_of(options.objects - 1), 0
    node.launch()
    node.await_ready()
    report.add(step, "until /readyz", time.monotonic() - began, "s")
    client, body = Client(*target, SECONDS_MAX), b""
    while status in (0, 500, 503) and time.monotonic() < began + SECONDS_MAX:
        status, _, body = client.ask("GET", f"/{BUCKET}/{key}")
    report.add(step, "until the first object was read", time.monotonic() - began, "s")
    if status != 200 or body != content_of(key, options.size):
        report.problems.append(f"{step}: the first GET, of {key}: {status}, {len(body)} bytes that are not those that were put")
    report.add(step, "server CPU until then", cpu_seconds(node), "s")
    report.add_memory(step, node)


def listing(step, target, count, report):
    """Lists everything and compares it; objects a second. Pages are parsed by the plainest means, outside of the time that counts."""
    client, token, listed, seconds = Client(*target, SECONDS_MAX), {}, [], 0
    while token is not None:
        began = time.monotonic()
        status, _, body = client.ask("GET", f"/{BUCKET}", query={"list-type": "2", "max-keys": str(PAGE), **token})
        seconds, text = seconds + time.monotonic() - began, body.decode()
        following = re.search(r"<NextContinuationToken>([^<]*)<", text)
        if status != 200 or ("<IsTruncated>true<" in text) != bool(following):
            raise RuntimeError(f"{step}: {status} {text[:300]}")
        token = {"continuation-token": html.unescape(following[1])} if following else None
        listed += re.findall(r"<Key>([^<]*)</Key>", text)
        progress(f"{step}: {len(listed):,} objects, {len(listed) / seconds:,.0f} objects/s")
    expected = [key_at(position, count) for position in range(count)]
    if listed != expected:
        missing, more = set(expected) - set(listed), set(listed) - set(expected)
        wrong = [f"{step}: {key} is missing" for key in sorted(missing)] + [f"{step}: {key} should not be there" for key in sorted(more)]
        report.problems += wrong or [f"{step}: keys that are there twice, or not in their order"]
    return count / seconds


def read_back(target, options, report):
    client, took = Client(*target, SECONDS_MAX), []
    for key in map(key_of, random.Random(options.objects).sample(range(options.objects), min(SAMPLE, options.objects))):
        began = time.monotonic()
        status, _, body = client.ask("GET", f"/{BUCKET}/{key}")
        took.append(time.monotonic() - began)
        if status != 200 or body != content_of(key, options.size):
            report.problems.append(f"GET {key}: {status}, {len(body)} bytes that are not those that were put")
    report.add("read back", "objects compared", len(took), "objects")
    report.add("read back", "latency, p50, one connection", percentile_ms(took, 50), "ms")
    report.add("read back", "latency, p99, one connection", percentile_ms(took, 99), "ms")


def delete(node, target, options, report):
    before = cpu_seconds(node)
    began, ended, problems = zip(*together(options.clients, delete_some, (target, options.objects), options.objects, "delete")[0])
    report.add("delete", "speed", options.objects / (max(ended) - min(began)), "objects/s")
    report.problems += sum(problems, [])
    listing("after the deletion", target, 0, report)
    report.add("delete", "until the node was quiet", quiet(node), "s")
    report.add("delete", "collection_pages_dropped_total", metrics(node)["collection_pages_dropped_total"], "pages")
    report.add("delete", "server CPU, until then", (cpu_seconds(node) - before) * 1e6 / options.objects, "us/object")
    report.add_state("delete, quiet", node)


def measure(node, options, report):
    env = node.start().env()
    target = "127.0.0.1", node.s3_port, (env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"], env["AWS_REGION"])
    if (answer := Client(*target, SECONDS_MAX).ask("PUT", f"/{BUCKET}"))[0] != 200:
        raise RuntimeError(f"making the bucket: {answer}")
    quiet(node)
    report.add_state("empty", node)
    load(node, target, options, report)
    began, code = time.monotonic(), node.stop()
    report.add("clean stop", "time", time.monotonic() - began, "s")
    # Only now the tables hold everything: a node that runs has the newest changes in its journals.
    report.add_state("clean stop", node, options.objects * options.size)
    restart(node, "start after a clean stop", target, options, report)
    node.kill()
    restart(node, "start after kill -9", target, options, report)
    speeds = [listing("listing", target, options.objects, report) for _ in range(LISTINGS)]
    report.add("listing", f"speed, median of {LISTINGS}, one connection", sorted(speeds)[LISTINGS // 2], "objects/s")
    report.add("listing", "speed of the first one, upon a start", speeds[0], "objects/s")
    read_back(target, options, report)
    delete(node, target, options, report)
    if any(codes := [code, node.stop()]):
        report.problems.append(f"clean stops ended with {codes}")
    report.add_state("delete, clean stop", node)


def machine():
    """As kiseki-bench tells it; `git_commit` is that of kiseki-bench, so build both programs at once."""
    command = [nodes.PROGRAMS / "kiseki-bench", "pipeline", "--json", "--stage", "id", "--size", "16m", "--runtime", "10ms"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["manifest"]
    return {name: told[name] for name in MANIFEST}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=pathlib.Path, metavar="SCRATCH_DIRECTORY", help="on the disk to be measured; small-objects below it is MADE ANEW")
    parser.add_argument("--objects", type=int, default=1_000_000, help="how many (default: %(default)s)")
    parser.add_argument("--size", type=int, default=1024, help="bytes of each; up to 4096 lie beside their names (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=16, help="connections that put and delete, each a process (default: %(default)s)")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all figures, with the machine they are from")
    parser.add_argument("--device-gib", type=int, default=4, help="GiB of each image file, which takes space only as it fills (default: %(default)s)")
    parser.add_argument("--run", default="", metavar="WORDS", help="more words for kiseki-server run: --run='--raft-inline-mbps 0' for chunks only")
    options = parser.parse_args()
    if min(options.objects, options.size, options.clients) < 1:
        parser.error("give at least an object, a byte and a client")
    if missing := [str(program) for program in [nodes.SERVER, nodes.PROGRAMS / "kiseki-bench"] if not program.exists()]:
        sys.exit(f"{' and '.join(missing)} missing: make build kiseki-bench")
    nodes.START_SECONDS_MAX = nodes.STOP_SECONDS_MAX = SECONDS_MAX
    home, report, manifest = options.directory / "small-objects", Report(), machine()
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    with nodes.Node(home / "node", device_gib=options.device_gib, run=["--s3-tls", "off", *shlex.split(options.run)]) as node:
        measure(node, options, report)
    report.show()
    if options.json:
        found = {"tenths": report.tenths, "figures": report.figures, "problems": report.problems[:PROBLEMS_SHOWN]}
        rounded = json.loads(json.dumps(found), parse_float=lambda text: round(float(text), 3))
        options.json.write_text(json.dumps({"command": sys.argv[1:], "manifest": manifest, **rounded}, indent=1) + "\n")
    if report.problems:
        shown_ones = "".join(f"WRONG: {problem}\n" for problem in report.problems[:PROBLEMS_SHOWN])
        sys.exit(f"{shown_ones}{len(report.problems)} problems; the node's files are in {home}")
    shutil.rmtree(home)


if __name__ == "__main__":
    main()
