#!/usr/bin/env python3
"""A node's metadata directories fill up: thresholds of small objects fall at each limit, an operator raises them, and nothing is lost
when one directory is full to the brim (I-SF1, I-SF2, I-O3).

    metadata_fill_test.py DIRECTORY

The two directories lie on file systems of their own in sparse files, which takes the right to mount some. Ends with a line
"N passed, N failed"; where nothing can be mounted it says so and counts nothing.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
import traceback

from fault_test import KIB, Objects, metric, problems, status
from node import Node, kiseki, until

# The first threshold, the lowest one, and how long too little room must last (`inline_threshold`, `thresholds`).
FIRST, FLOOR, LITTLE_ROOM_SECONDS = 4 * KIB, 128, 30

# Of each metadata directory: large enough for FIRST when there is nothing else, and too small at the limits.
GIB = 2


class Volume:
    """A file system that is as large as said and can be filled at will."""

    def __init__(self, directory, name):
        self.image, self.path = directory / f"{name}.img", directory / name
        self.ballast = self.path / "ballast"
        self.path.mkdir(parents=True)
        with open(self.image, "wb") as file:
            file.truncate(GIB << 30)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", self.image], check=True)

    def __enter__(self):
        subprocess.run(["mount", "-o", "loop", self.image, self.path], check=True, stderr=subprocess.DEVNULL)
        return self

    def __exit__(self, *failure):
        subprocess.run(["umount", "--lazy", self.path], check=True)
        self.image.unlink()

    def fill_to(self, percent):
        """Has other files take what is missing to that, or less."""
        with contextlib.suppress(FileNotFoundError):
            self.ballast.unlink()
        space = os.statvfs(self.path)
        used = space.f_blocks - space.f_bfree
        missing = max(0, (used + space.f_bavail) * percent // 100 - used)
        with open(self.ballast, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, missing * space.f_frsize))

    def fill_up(self):
        """To the last byte."""
        with open(self.ballast, "ab") as file:
            length, step = file.tell(), 1 << 30
            while step >= 4 * KIB:
                try:
                    os.posix_fallocate(file.fileno(), length, step)
                    length += step
                except OSError:
                    step //= 2


def shard_of(node, bucket):
    """The shard with keys, which is the bucket's: there is no other one."""
    def found():
        code, out, _ = kiseki(node, "shard", "list", "--json")
        rows = json.loads(out) if code == 0 else []
        return [row["shard"] for row in rows if row["keys"]]
    return until(f"the objects of {bucket} are counted", found)[0]


def shown(node, shard):
    code, out, error = kiseki(node, "shard", "show", shard, "--json")
    assert code == 0, error
    return json.loads(out)["inline"]


def lies_inline(node, objects, prefix, length):
    """Whether an object of this length is stored beside its name."""
    before = metric(node, "inline_writes_total"), metric(node, "chunks_written_total")
    objects.put(prefix, 1, length)
    def counted():
        after = metric(node, "inline_writes_total"), metric(node, "chunks_written_total")
        return after != before and after
    return until("it is counted", counted)[0] > before[0]


def alerts(node, words):
    report = status(node)
    return report and [alert for alert in report["alerts"] if words in alert]


def thresholds_follow_the_room_of_metadata_directories(directory):
    # How many shards share the room follows from the cores.
    with Volume(directory, "v0") as other, Volume(directory, "v1") as volume, Node(directory / "node", run=["--cores", 2]) as node:
        for name, place in [("meta0", other.path), ("meta1", volume.path)]:
            shutil.move(node.dir / name, place / name)
            (node.dir / name).symlink_to(place / name)
        node.start()
        objects = Objects(node)
        objects.put("first", 50, FIRST)
        shard = shard_of(node, "faults")
        view = until("the voter has said what it has", lambda: (view := shown(node, shard))["supported_bytes"] and view)
        assert view["threshold_bytes"] == FIRST <= view["supported_bytes"] and view["set_by"] == "default", view
        assert view["voters"][0]["soft_limit_percent"] == 50 and view["voters"][0]["hard_limit_percent"] == 75, view
        assert not alerts(node, "metadata directories are")

        # Beyond the soft limit: it falls when that has lasted.
        began = time.monotonic()
        volume.fill_to(62)
        until("an alert names the soft limit", lambda: alerts(node, "over their soft limit"))
        view = until("it has fallen", lambda: (view := shown(node, shard))["set_by"] == "room" and view)
        assert time.monotonic() - began > LITTLE_ROOM_SECONDS / 2, "a moment's fill lowers it for good"
        soft = view["threshold_bytes"]
        assert FLOOR < soft < FIRST and soft <= view["supported_bytes"], view
        assert not lies_inline(node, objects, "longer", soft + 1) and lies_inline(node, objects, "fits", soft)

        # Beyond the hard one: at once, and as low as it goes.
        volume.fill_to(80)
        until("an alert names the hard limit", lambda: alerts(node, "over their hard limit"))
        view = until("it is at the floor", lambda: (view := shown(node, shard))["recorded_bytes"] == FLOOR and view)
        assert view["voters"][0]["fill_percent"] >= 79, view
        assert not lies_inline(node, objects, "hundred", FLOOR + 1) and lies_inline(node, objects, "tiny", FLOOR)
        code, _, error = kiseki(node, "shard", "threshold", shard, 4 * KIB)
        assert code != 0 and "over their hard limit" in error and "give them room" in error, error
        objects.all_there()

        # To the brim: the other directory goes on, and knows everything.
        volume.fill_up()
        def is_left_out():
            moment = f"{time.monotonic()}-"
            objects.put("brim" + moment, 10, 30 * KIB)
            objects.put("brim-tiny" + moment, 60, FLOOR)
            return list(problems(node, "metadata_dirs")) == [node.dir / "meta1"]
        until("the full directory is left out", is_left_out)
        objects.all_there()
        node.kill()
        volume.fill_to(0)
        node.start()
        objects.all_there()

        # With room again it stays until somebody says so.
        assert shown(node, shard)["threshold_bytes"] == FLOOR
        def raised():
            code, out, _ = kiseki(node, "shard", "threshold", shard, FIRST, "--json")
            return code == 0 and json.loads(out)["inline"]
        view = until("the voters have said that there is room", raised)
        assert view["set_by"] == "operator" and view["threshold_bytes"] == FIRST, view
        until("writers have heard of it", lambda: lies_inline(node, objects, f"again{time.monotonic()}", FIRST))
        objects.all_there()
        assert node.stop() == 0
        node.start()
        objects.all_there()
        assert shown(node, shard)["set_by"] == "operator"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=pathlib.Path)
    arguments = parser.parse_args()
    directory = arguments.directory.resolve() / "metadata-fill"
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with Volume(directory, "try0"), Volume(directory, "try1"):
            pass
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        print(f"nothing can be mounted here, so metadata directories are not filled: {error}")
        print("0 passed, 0 failed")
        return 0
    finally:
        shutil.rmtree(directory)
    directory.mkdir()
    began, failed = time.monotonic(), 0
    step = thresholds_follow_the_room_of_metadata_directories
    try:
        step(directory)
        print(f"{step.__name__} [ok] {time.monotonic() - began:.1f} s", flush=True)
    except Exception:
        failed = 1
        print(f"{step.__name__} [FAILED]", flush=True)
        traceback.print_exc()
        log = directory / "node.log"
        if log.exists():
            print("\n".join(log.read_text(errors="replace").splitlines()[-30:]))
    shutil.rmtree(directory, ignore_errors=True)
    print(f"{1 - failed} passed, {failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(main())
