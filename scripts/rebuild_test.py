#!/usr/bin/env python3
"""A node whose index is lost: it says so, the index is made anew from the devices, and every object reads back.

    rebuild_test.py DIRECTORY

Ends with a line "N passed, N failed".
"""

import argparse
import json
import random
import subprocess
import sys

from node import PROGRAMS, SERVER, Node

DEVCTL = PROGRAMS / "kiseki-devctl"
SIZES = [1, 4096, 70_000, 300_000, 1_200_000, 3_000_000]


def body_of(key: str) -> bytes:
    rng = random.Random(key)
    return rng.randbytes(rng.choice(SIZES))


class Results:
    def __init__(self):
        self.passed = self.failed = 0

    def check(self, good, what):
        print(f"{'ok  ' if good else 'FAIL'} {what}", flush=True)
        self.passed, self.failed = self.passed + bool(good), self.failed + (not good)


def devctl(*arguments):
    done = subprocess.run([DEVCTL, "verify", *arguments, "--json"], capture_output=True, text=True)
    try:
        return done.returncode, json.loads(done.stdout)
    except ValueError:
        return done.returncode, {"error": done.stderr}


def tables(node):
    return sorted(node.dir.glob("meta*/lane-*-index.redb"))


def put(client, keys):
    for key in keys:
        client.put_object(Bucket="rebuild", Key=key, Body=body_of(key))


def wrong(client, keys):
    return [key for key in keys if client.get_object(Bucket="rebuild", Key=key)["Body"].read() != body_of(key)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    directory = parser.parse_args().directory
    results = Results()
    check = results.check
    keys = [f"k{number:03d}" for number in range(60)]
    with Node(directory) as node:
        node.start()
        client = node.client()
        client.create_bucket(Bucket="rebuild")
        put(client, keys)
        # Released fragments stay on the devices until something overwrites them.
        for key in keys[40:]:
            client.delete_object(Bucket="rebuild", Key=key)
        keys = keys[:40]
        code, answer = devctl("--dir", node.dir)
        check(code != 0 and "running" in answer.get("error", ""), "a running node is refused by name")
        node.stop()

        images = {path: path.stat().st_mtime_ns for path in (node.dir / "devices").iterdir()}
        metadata = {path: path.read_bytes() for path in tables(node)}
        code, answer = devctl("--dir", node.dir)
        check(code == 0 and answer["is_clean"], f"the stopped node's devices are clean: exit code {code}")
        check(sum(device["fragments_used"] for device in answer["devices"]) >= 40 * 3, "their fragments are used")
        check(all(device["fragments_unspoken"] == 0 for device in answer["devices"]), "the index knows about all")
        code, answer = devctl("--dir", node.dir, "--rebuild-index")
        rebuilt = answer["rebuild"]
        check(code == 0 and rebuilt["is_explained"], "every device explains every row of the node")
        same = sum(device["same"] for device in rebuilt["devices"])
        surplus = sum(len(device["surplus"]) for device in rebuilt["devices"])
        check(same > 0, f"{same} rows are the same, {surplus} more are of released fragments")
        check(
            all(path.stat().st_mtime_ns == when for path, when in images.items())
            and all(path.read_bytes() == data for path, data in metadata.items()),
            "nothing was written",
        )

        for path in tables(node):
            path.unlink()
        start = subprocess.run(
            [SERVER, "run", "--dir", node.dir, "--s3-port", str(node.s3_port), "--admin-port", str(node.admin_port)],
            capture_output=True,
            text=True,
            timeout=120,
        )
        said = start.stdout + start.stderr
        check(start.returncode != 0 and "--rebuild-index --write" in said, "a node without its index says the command")
        code, answer = devctl("--dir", node.dir)
        check(code == 1 and not answer["is_clean"], "verify says that the index is lost")
        code, answer = devctl("--dir", node.dir, "--rebuild-index", "--write")
        written = answer.get("rebuild", {}).get("rows_written", 0)
        check(code == 0 and written > 0, f"{written} rows written")
        node.start()
        client = node.client()
        bad = wrong(client, keys)
        check(not bad, f"{len(keys)} objects read back, {len(bad)} wrong {bad[:5]}")
        found = [entry["Key"] for entry in client.list_objects_v2(Bucket="rebuild").get("Contents", [])]
        check(found == keys, "what was deleted stays deleted")
        more = [f"m{number:03d}" for number in range(20)]
        put(client, more)
        node.stop()

        # One table damaged, and a crash before that: journals are replayed over what is made anew.
        node.start()
        client = node.client()
        last = [f"n{number:03d}" for number in range(20)]
        put(client, last)
        node.kill()
        for path in tables(node)[::4]:
            path.write_bytes(b"\xee" * 10_000)
        code, answer = devctl("--dir", node.dir, "--rebuild-index", "--write")
        check(answer.get("rebuild", {}).get("rows_written", 0) > 0, "rows are made anew after a crash too")
        node.start()
        bad = wrong(node.client(), keys + more + last)
        check(not bad, f"{len(keys + more + last)} objects read back, {len(bad)} wrong {bad[:5]}")
        check(node.stop() == 0, "clean stop")
        code, answer = devctl("--dir", node.dir, "--rebuild-index")
        check(code == 0 and answer["rebuild"]["is_explained"], "and every device explains itself again")
    print(f"{results.passed} passed, {results.failed} failed")
    return results.failed != 0


if __name__ == "__main__":
    sys.exit(main())
