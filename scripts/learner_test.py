#!/usr/bin/env python3
"""A node takes the place of another one when the logs no longer hold what was written, so snapshots bring it everything that small objects
hold; then it leads, and what is read comes from its own tables alone (I-SF5, I-L9).

    learner_test.py DIRECTORY [--writes 24000]

Needs boto3 (target/client-test-venv, see client-test.sh). Ends with a line "N passed, M failed".
"""

import argparse
import hashlib
import os
import pathlib
import random
import sys
import threading
import time
import traceback

from cluster_test import BUCKET, Cluster, metric, shards
from history.s3 import Client, NoAnswer, NotSent
from node import Results, check, kiseki, listed, until

# More than a group writes before it takes a snapshot and lets the log before it go (GroupSettings: 20,000).
WRITES = 24_000
WRITERS, KEYS_OF_WRITER = 12, 60
# All of them lie beside their names at any threshold that a new cluster has.
SIZES = [1, 200, 1000, 4096]
# Each time about half of the shards that are not led by the new node yet get to it.
TURNS_MAX = 20


class Writer(threading.Thread):
    """Writes its own keys over and over. `written`: the digest of what was acknowledged last."""

    def __init__(self, node, number, ending):
        super().__init__()
        self.client, self.number, self.ending = raw_client(node), number, ending
        self.written, self.count, self.problem = {}, 0, ""

    def run(self):
        rng = random.Random(self.number)
        while not self.ending.is_set():
            key = f"{self.number}/{self.count % KEYS_OF_WRITER}"
            body = rng.randbytes(rng.choice(SIZES))
            try:
                status, _, answer = self.client.ask("PUT", f"/{BUCKET}/{key}", body)
            except (NotSent, NoAnswer) as error:
                status, answer = 0, str(error)
            if status != 200:
                self.problem = f"PUT of {key} was answered {status} {answer[:200]}"
                return
            self.written[key] = hashlib.sha256(body).hexdigest()
            self.count += 1


def raw_client(node):
    env = node.env()
    return Client("127.0.0.1", node.s3_port, (env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"], "us-east-1"), 60)


def write(nodes, count):
    ending = threading.Event()
    writers = [Writer(nodes[number % len(nodes)], number, ending) for number in range(WRITERS)]
    began = time.monotonic()
    for writer in writers:
        writer.start()
    done = lambda: sum(writer.count for writer in writers)
    try:
        until("enough is written", lambda: done() >= count or any(writer.problem for writer in writers), 300)
    finally:
        ending.set()
        for writer in writers:
            writer.join()
    check(not any(writer.problem for writer in writers), f"{done()} small objects are written in {time.monotonic() - began:.1f} s {[writer.problem for writer in writers if writer.problem][:3]}")
    return {key: digest for writer in writers for key, digest in writer.written.items()}


def bad_reads(node, written):
    client, bad = raw_client(node), []
    for key, digest in written.items():
        status, _, body = client.ask("GET", f"/{BUCKET}/{key}")
        if status != 200 or hashlib.sha256(body).hexdigest() != digest:
            bad.append(f"{key}: {status}, {len(body)} bytes")
    client.close()
    return bad


def take_place(cluster):
    """A new node gets the votes of the last one, which leaves."""
    first, last, guest = cluster.nodes[0], cluster.nodes[-1], cluster.join()
    guest.start()
    until("the new node is active", lambda: listed(first)[guest.number]["state"] == "active")
    code, _, error = kiseki(first, "node", "drain", last.number)
    check(code == 0, f"a node is drained {error}")
    has_moved = lambda row: last.number not in row["voters"] and guest.number in row["voters"]
    until("its votes have gone to the new one", lambda: all(has_moved(row) for row in shards(first).values()), 120)
    installed = until("it tells of a snapshot", lambda: metric(guest, "raft_snapshots_installed_total"))
    check(installed > 0, f"{installed} snapshots brought it what logs no longer hold")
    until("the other one leaves", lambda: kiseki(first, "node", "remove", last.number)[0] == 0, 120)
    last.kill()
    cluster.nodes.remove(last)
    return guest


def read_alone(cluster, guest, written):
    """Its leaders die until the new node has led every shard of names, and what is read then is read from it."""
    unseen = set(shards(guest))
    for _ in range(TURNS_MAX):
        led = {number for number, row in shards(guest).items() if row["leader"] == guest.number}
        if led & unseen:
            bad = bad_reads(guest, written)
            check(not bad, f"everything reads back while the new node leads {sorted(led)} {bad[:3]}")
            # Those that it led before and after were not led by others meanwhile.
            unseen -= {number for number, row in shards(guest).items() if row["leader"] == guest.number} & led
        if not unseen:
            break
        leader = next(row["leader"] for number, row in shards(guest).items() if number in unseen)
        victim = next((node for node in cluster.nodes if node is not guest and getattr(node, "number", 1) == leader), None)
        if victim is None:
            continue
        victim.kill()
        until("another one leads", lambda: all(shards(guest)[number]["leader"] not in (None, leader) for number in unseen))
        victim.start()
    check(not unseen, f"the new node has led every shard of names {sorted(unseen)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--writes", type=int, default=WRITES)
    arguments = parser.parse_args()
    work = arguments.directory.resolve()
    work.mkdir(parents=True)
    os.environ["KISEKI_S3_TLS"] = "off"
    cluster = Cluster(work, 3)
    try:
        cluster.form()
        for _ in range(2):
            node = cluster.join()
            node.start()
        until("every shard has three voters", lambda: all(len(row["voters"]) == 3 for row in shards(cluster.nodes[0]).values()))
        cluster.nodes[0].client().create_bucket(Bucket=BUCKET)
        until("every shard has three voters", lambda: all(len(row["voters"]) == 3 for row in shards(cluster.nodes[0]).values()))
        written = write(cluster.nodes, arguments.writes)
        inline = sum(metric(node, "inline_writes_total") for node in cluster.nodes)
        check(inline > arguments.writes * 0.9, f"{inline} of them lie beside their names")
        guest = take_place(cluster)
        read_alone(cluster, guest, written)
    except Exception:  # noqa: BLE001: what can't go on is a failure
        traceback.print_exc()
        for node in cluster.nodes:
            print(f"--- {node.log}\n{node.log_tail(15) if node.log.exists() else ''}", file=sys.stderr)
        check(False, "went on to the end")
    finally:
        cluster.stop()
    print(f"{Results.passed} passed, {Results.failed} failed")
    return Results.failed != 0


if __name__ == "__main__":
    sys.exit(main())
