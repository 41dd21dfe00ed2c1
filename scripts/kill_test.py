#!/usr/bin/env python3
"""Kills a node in the middle of writes, again and again, and compares every object that it had acknowledged.

    kill_test.py DIRECTORY [--rounds 5] [--seconds 4] [--writers 6] [--seed 1]

Ends with a line "N passed, N failed".
"""

import argparse
import hashlib
import random
import sys
import threading
import time

from node import Node

SIZES = [0, 1, 700, 4096, 40_000, 300_000, 1_200_000, 5_300_000]


def body_of(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


class Load:
    """Writers that remember what was acknowledged and what was only tried."""

    def __init__(self, node, writers, first_seed):
        self.node, self.lock, self.stopping = node, threading.Lock(), threading.Event()
        self.acked, self.maybe, self.odd = {}, {}, []
        self.seed = first_seed
        self.threads = [threading.Thread(target=self.write, args=(index,)) for index in range(writers)]

    def next_seed(self):
        with self.lock:
            self.seed += 1
            return self.seed

    def write(self, writer):
        client = self.node.client(connect_timeout=5, read_timeout=20)
        rng = random.Random(writer)
        while not self.stopping.is_set():
            seed = self.next_seed()
            # Each writer has keys of its own, so that the last acknowledgement of a key is known.
            key = f"w{writer}/{rng.randrange(40):03d}"
            length = rng.choice(SIZES)
            delete = rng.random() < 0.15
            value = None if delete else (seed, length)
            with self.lock:
                self.maybe.setdefault(key, []).append(value)
            try:
                if delete:
                    client.delete_object(Bucket="kill", Key=key)
                else:
                    client.put_object(Bucket="kill", Key=key, Body=body_of(seed, length))
            except Exception as error:  # the node is being killed: whether it happened is unknown
                if not self.stopping.is_set() and getattr(error, "response", None):
                    self.odd.append(f"{key}: {error}")
                time.sleep(0.05)
                continue
            with self.lock:
                self.acked[key] = value
                self.maybe[key] = []

    def start(self):
        for thread in self.threads:
            thread.start()

    def join(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join()


def compare(client, acked, maybe):
    """Problems; `acked` is brought up to what is stored where an unanswered write turns out to have happened."""
    problems = []
    for key in sorted(set(acked) | set(maybe)):
        allowed = [acked.get(key)] + maybe.get(key, [])
        try:
            found = client.get_object(Bucket="kill", Key=key)["Body"].read()
        except client.exceptions.NoSuchKey:
            found = None
        except Exception as error:
            problems.append(f"{key}: {error}")
            continue
        for value in reversed(allowed):
            wanted = None if value is None else body_of(*value)
            if wanted == found:
                acked[key] = value
                break
        else:
            digest = "absent" if found is None else f"{len(found)} bytes {hashlib.sha256(found).hexdigest()[:12]}"
            problems.append(f"{key}: found {digest}, acknowledged {acked.get(key)}, also possible {maybe.get(key)}")
    return problems


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--writers", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    passed = failed = 0
    acked, seed = {}, arguments.seed * 1_000_000
    with Node(arguments.directory) as node:
        node.start()
        node.client().create_bucket(Bucket="kill")
        for round_number in range(arguments.rounds):
            load = Load(node, arguments.writers, seed)
            load.acked = dict(acked)
            load.start()
            time.sleep(arguments.seconds * rng.uniform(0.5, 1.5))
            node.kill()
            load.join()
            seed, acked = load.seed, load.acked
            node.start()
            problems = compare(node.client(), acked, load.maybe)
            problems += [f"refused while the node was up: {odd}" for odd in load.odd[:5]]
            print(f"round {round_number}: {len(acked)} keys compared, {len(problems)} problems", flush=True)
            for problem in problems[:20]:
                print(f"    {problem}", flush=True)
            passed, failed = passed + (not problems), failed + bool(problems)
        code = node.stop()
        clean = code == 0
        print(f"clean stop: exit code {code}")
        passed, failed = passed + clean, failed + (not clean)
    print(f"{passed} passed, {failed} failed")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
