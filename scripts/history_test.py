#!/usr/bin/env python3
"""Faults against real processes, under clients that write down what they see; in the end no history may contradict itself.

    history_test.py DIRECTORY [--seed 1] [--rounds N | --seconds N] [--nodes 3] [--pool 4+2] [--only NAME,...] [--cold-starts N]
                    [--self-test]

A cluster is formed, each node with an address of its own (a network namespace) and a file system of its own where root may make such.
Clients put, put if absent, swap by ETag, delete, get and list a few hot keys through all nodes. One trouble after the other happens
(history/troubles.py). After each the cluster has to serve again through every node within seconds, each key is read
once more through every node, and the history of each key has to be linearizable (history/linear.py). In the end
every shard has its voters and every stripe its width.

Without --rounds and --seconds the short form: each trouble of a fixed list once. A failure prints the seed and keeps DIRECTORY with
history.jsonl and the nodes' logs. `--cold-starts N` instead stops all nodes and starts them in random order, N times.
Ends with a line "N passed, M failed".
"""

import argparse
import pathlib
import random
import sys
import time
import traceback

from history.book import Book
from history.clients import BUCKET, Clients, Requests
from history.linear import check_self
from history.net import Net, can_separate
from history.nodes import Cluster
from history.troubles import LAST_SECONDS, SHORT, check_allowance, possible
from node import Results, check, until

# From the end of a trouble until every node serves again, on a loaded two-core machine. A start takes most of it.
SERVES_SECONDS_MAX = 45
# From the beginning of a trouble until the nodes that it does not touch serve: a leader is missed, found to be cut off, and replaced.
MEANWHILE_SECONDS_MAX = 20


class Scene:
    """What troubles happen to."""

    def __init__(self, cluster, clients, book, rng):
        self.cluster, self.clients, self.book, self.rng = cluster, clients, book, rng

    def pause(self, seconds):
        time.sleep(seconds)

    def last(self):
        """A trouble lasts for as long as it does: this is what is looked at, so nothing is waited for."""
        time.sleep(self.rng.uniform(*LAST_SECONDS))

    def shuffled(self):
        return self.rng.sample(self.cluster.members, len(self.cluster.members))

    def serves(self, member):
        """Whether a node answers a change and a read."""
        requests = Requests(self.book, member, "probe", seconds=10)
        key = f"probe/{member.number}"
        try:
            return requests.put(key, 64) and requests.get(key)
        finally:
            requests.client.close()

    def serve_meanwhile(self, members, what):
        """While a trouble lasts the nodes that it does not touch serve."""
        began = time.monotonic()
        for member in members:
            until(f"node {member.number} serves while {what}", lambda member=member: self.serves(member), 120)
        took = time.monotonic() - began
        check(took < MEANWHILE_SECONDS_MAX, f"the others serve after {took:.1f} s while {what}")

    def serve_again(self, what):
        began = time.monotonic()
        for member in self.cluster.members:
            until(f"node {member.number} serves after {what}", lambda member=member: self.serves(member), 120)
        took = time.monotonic() - began
        check(took < SERVES_SECONDS_MAX, f"all nodes serve {took:.1f} s after {what}")

    def recover(self, what):
        """Nothing goes wrong any more."""
        if self.cluster.net:
            self.cluster.net.heal()
        began = time.monotonic()
        for member in self.cluster.members:
            if not member.is_up():
                member.launch()
        for member in self.cluster.members:
            member.await_ready()
        if time.monotonic() - began > 1:
            print(f"     nodes were ready after {time.monotonic() - began:.1f} s", flush=True)
        self.serve_again(what)

    def judge(self, what):
        """The histories of the keys so far."""
        keys = self.clients.next_era()
        unread = self.clients.read_through_all(keys)
        check(not unread, f"every key is read through every node after {what} {unread[:3] or ''}")
        wrong = self.book.check([*keys, *(f"probe/{member.number}" for member in self.cluster.members)])
        check(not wrong, f"the history is linearizable after {what}")
        for text in wrong:
            print(text, flush=True)
        return not wrong


def play(scene, troubles):
    for trouble in troubles:
        name = trouble.__name__.replace("_", " ")
        print(f"== {name}", flush=True)
        scene.clients.forget()
        until("clients are at work", lambda: sum(scene.clients.answered.values()) > 20)
        told = trouble(scene)
        scene.recover(name)
        clients = scene.clients
        answered, failed = sum(clients.answered.values()), sum(map(len, clients.failures.values()))
        print(f"     {told}; {answered} requests answered, {failed} not", flush=True)
        if not scene.judge(name):
            return
    whole(scene)


def whole(scene):
    """Repair ends, with clients at work."""
    began = time.monotonic()
    scene.cluster.await_whole()
    check(True, f"every shard has its voters and every stripe its width, {time.monotonic() - began:.1f} s after the last trouble")


def cold_starts(scene, count):
    """All nodes are stopped, cleanly or not, and started in random order."""
    longest = 0.0
    for number in range(count):
        until("clients are at work", lambda: sum(scene.clients.answered.values()) > 20)
        members = scene.shuffled()
        if scene.rng.random() < 0.5:
            for member in members:
                member.kill()
        else:
            scene.cluster.each(lambda member: member.stop(), members)
        began = time.monotonic()
        for member in scene.shuffled():
            member.launch()
            scene.pause(scene.rng.choice([0, 0, scene.rng.random() * 3]))
        for member in members:
            member.await_ready()
        scene.serve_again(f"cold start {number + 1}")
        longest = max(longest, time.monotonic() - began)
        scene.clients.forget()
        if not scene.judge(f"cold start {number + 1}"):
            return
    check(True, f"{count} cold starts in random order, {longest:.1f} s at most until all nodes served")
    whole(scene)


def schedule(arguments, rng, net):
    """The troubles, one after the other."""
    troubles, left_out = possible(net)
    for what in left_out:
        print(f"LEFT OUT {what}", flush=True)
    if arguments.only:
        names = arguments.only.split(",")
        troubles = [trouble for trouble in troubles if trouble.__name__ in names]
        if len(troubles) != len(names):
            raise SystemExit(f"of {arguments.only} this machine can make {[trouble.__name__ for trouble in troubles]}")
        if not arguments.rounds and not arguments.seconds:
            return troubles
    if not arguments.rounds and not arguments.seconds:
        return [trouble for trouble in SHORT if trouble in troubles]
    return endless(arguments, rng, troubles)


def endless(arguments, rng, troubles):
    until_time = time.monotonic() + arguments.seconds if arguments.seconds else None
    number = 0
    while (until_time is None or time.monotonic() < until_time) and (not arguments.rounds or number < arguments.rounds):
        number += 1
        yield rng.choice(troubles)


def run(arguments, work):
    rng = random.Random(arguments.seed)
    why_not = can_separate()
    if why_not:
        print(f"LEFT OUT addresses of their own: {why_not}", flush=True)
    cluster, book, clients = Cluster(work, None if why_not else Net()), Book(work / "history.jsonl"), None
    try:
        began = time.monotonic()
        cluster.form(arguments.nodes, arguments.pool)
        first = Requests(book, cluster.members[0], "first", seconds=60)
        check(first.client.ask("PUT", f"/{BUCKET}")[0] == 200, "a bucket is made")
        print(f"     {arguments.nodes} nodes after {time.monotonic() - began:.1f} s", flush=True)
        clients = Clients(book, list(cluster.members), rng)
        scene = Scene(cluster, clients, book, rng)
        if arguments.cold_starts:
            cold_starts(scene, arguments.cold_starts)
        else:
            play(scene, schedule(arguments, rng, cluster.net))
    except Exception:  # noqa: BLE001: what can't go on is a failure
        traceback.print_exc()
        for member in cluster.members:
            print(f"--- {member.log}\n{member.log_tail(15) if member.log.exists() else ''}", flush=True)
        check(False, "went on to the end")
    finally:
        if clients:
            clients.end()
            print(f"     {dict(sorted(book.counts.items()))}", flush=True)
        cluster.end(keep=Results.failed)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=pathlib.Path, nargs="?")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--pool", default="4+2", help="how chunks are protected")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--only", default="")
    parser.add_argument("--cold-starts", type=int, default=0)
    parser.add_argument("--self-test", action="store_true")
    arguments = parser.parse_args()
    check_self(check)
    check_allowance(check)
    if not arguments.self_test:
        if arguments.directory is None:
            parser.error("a directory for the nodes is needed")
        work = arguments.directory.resolve()
        work.mkdir(parents=True)
        run(arguments, work)
        if Results.failed:
            print(f"seed {arguments.seed}; everything is kept in {work}", flush=True)
    print(f"{Results.passed} passed, {Results.failed} failed")
    return Results.failed != 0


if __name__ == "__main__":
    sys.exit(main())
