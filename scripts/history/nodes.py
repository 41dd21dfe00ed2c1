"""The nodes of a run: processes with addresses of their own, each in a file system of its own where root may mount one."""

import os
import pathlib
import shutil
import subprocess
import threading
import time

from history.net import PORT
from node import Node, free_port, kiseki, listed, status, until, votes_missing

DEVICES, LANES = 2, 2
# The file system of a node has room for its devices and for metadata, and not for much more.
FILE_SYSTEM_MIB = 2_560
PEER_PORT = 9100
FAKETIME = pathlib.Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")


class Member(Node):
    """A node of the cluster."""

    def __init__(self, cluster, number, init):
        self.cluster, self.number = cluster, number
        self.place = cluster.work / f"place{number}"
        net = cluster.net
        self.host = net.address(number) if net else "127.0.0.1"
        self.image = make_file_system(self.place) if net else None
        self.place.mkdir(exist_ok=True)
        prefix = ["nsenter", f"--net=/run/netns/{net.add(number)}"] if net else []
        self.peer = f"{self.host}:{PEER_PORT if net else free_port()}"
        words = ["--peer-listen", self.peer, "--lanes", LANES, *init]
        run = ["--s3-tls", "off", "--s3-host", self.host, "--cores", 1]
        super().__init__(self.place / "node", devices=DEVICES, init=words, run=run, prefix=prefix)
        self.log = cluster.work / f"node{number}.log"
        if net:
            self.s3_port, self.admin_port = PORT, 9090
        self.clock = self.place / "clock"
        # One clock for all, until one is told to jump.
        if FAKETIME.exists():
            self.clock.write_text("+0")
            self.environment = {
                **os.environ,
                "LD_PRELOAD": str(FAKETIME),
                "FAKETIME_TIMESTAMP_FILE": str(self.clock),
                "FAKETIME_CACHE_DURATION": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        self.boottime = 0

    def launch(self):
        prefix = self.prefix
        if self.boottime:
            # A machine that starts anew counts from another beginning.
            words = [f"--boottime={self.boottime}", f"--monotonic={self.boottime}"]
            self.prefix = [*prefix, "unshare", "--time", *words]
        try:
            super().launch()
        finally:
            self.prefix = prefix

    def is_up(self):
        return self.process is not None and self.process.poll() is None

    def await_ready(self):
        def serves():
            if self.process.poll() is not None:
                raise RuntimeError(f"node {self.number} ended with {self.process.returncode}:\n{self.log_tail()}")
            return (self.dir / "env").exists() and state(self).get("phase") == "serving"

        until(f"node {self.number} serves", serves, 120)
        return self

    def credentials(self):
        env = self.env()
        return env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"], env["AWS_REGION"]

    def jump(self, seconds):
        """The wall clock says something else from now on."""
        self.clock.write_text(f"{seconds:+d}")

    def fill(self):
        """Nothing more can be written to the file system that the node lives on."""
        free = shutil.disk_usage(self.place).free
        subprocess.run(["fallocate", "-l", str(free), self.place / "filler"], capture_output=True)
        with open(self.place / "filler", "ab") as filler:
            try:
                while True:
                    filler.write(bytes(1 << 20))
                    filler.flush()
            except OSError:
                pass

    def empty(self):
        (self.place / "filler").unlink(missing_ok=True)

    def devices(self):
        return sorted((self.dir / "devices").iterdir())


def state(node):
    """What a node says of itself; nothing when it says nothing."""
    try:
        return status(node)
    except (RuntimeError, subprocess.TimeoutExpired):
        return {}


def make_file_system(place):
    image = place.with_suffix(".img")
    with open(image, "wb") as file:
        file.truncate(FILE_SYSTEM_MIB << 20)
    place.mkdir()
    # Nothing is set aside or put off: what is full is full.
    for words in [
        ["mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", image],
        ["mount", "-o", "loop,discard", image, place],
    ]:
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{words}: {done.stderr.strip()}")
    return image


def unmount(place):
    """The kernel lets go of a killed node's files (its rings hold them) a moment after the process is gone."""
    for _ in range(50):
        if subprocess.run(["umount", place], capture_output=True).returncode == 0:
            return
        time.sleep(0.1)
    subprocess.run(["umount", "--lazy", place], capture_output=True)


class Cluster:
    """All nodes of a run."""

    def __init__(self, work, net):
        self.work, self.net, self.members, self.last = work, net, [], 0
        # Those that were replaced; what they lived on is still mounted.
        self.gone = []

    def form(self, count, pool):
        self.last = 1
        first = Member(self, 1, ["--pool", pool])
        self.members.append(first)
        first.start()
        until("the first node is recorded", lambda: 1 in listed(first))
        while len(self.members) < count:
            self.join()
        self.await_whole()

    def up(self):
        return [member for member in self.members if member.is_up()]

    def join(self):
        """One more node, through any that is up and has the authority."""
        first = self.members[0]
        bundle = self.work / f"bundle{self.last + 1}"
        code, _, error = kiseki(first, "node", "add", "--out", bundle)
        if code != 0:
            raise RuntimeError(f"node add: {error}")
        self.last += 1
        member = Member(self, self.last, ["--join", bundle])
        member.start()
        self.members.append(member)
        until(f"node {member.number} is active", lambda: listed(first)[member.number]["state"] == "active")
        return member

    def lacks(self):
        """What is missing until every shard has its voters and every stripe its width, as all nodes see it; nothing when nothing is."""
        try:
            reports = {member.number: status(member)["repair"] for member in self.members}
            votes = votes_missing(self.members)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            return str(error)
        thin = {number: report for number, report in reports.items() if not report["at_full_width"]}
        return f"votes missing: {votes}, not at full width: {thin}" if thin or votes != 0 else ""

    def await_whole(self, seconds=180):
        deadline = time.monotonic() + seconds
        while lacks := self.lacks():
            if time.monotonic() > deadline:
                raise RuntimeError(f"not whole after {seconds} s: {lacks}")
            time.sleep(0.5)

    def each(self, act, members):
        """Does something on several nodes at once."""
        failures = []

        def one(member):
            try:
                act(member)
            except Exception as error:  # noqa: BLE001: told below
                failures.append(f"node {member.number}: {error}")

        threads = [threading.Thread(target=one, args=(member,)) for member in members]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise RuntimeError("; ".join(failures))

    def end(self, keep):
        for member in self.members + self.gone:
            if member.process is not None:
                member.kill()
        for member in self.members + self.gone:
            if member.image:
                unmount(member.place)
                if not keep:
                    member.image.unlink()
        if self.net:
            self.net.remove()

