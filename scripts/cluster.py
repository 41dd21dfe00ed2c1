#!/usr/bin/env python3
"""A cluster on this machine, to try things out: `make cluster [NODES=6]`, `make cluster-stop`.

    cluster.py up DIRECTORY [--nodes 6] [--racks 3]
    cluster.py down DIRECTORY

Every node is a process of its own on loopback ports, with one core and two small image files. Node 1 forms the cluster, the others
are added as an operator adds them. Run again it starts what does not run, and adds what is missing. All of it lies in
DIRECTORY/cluster; what clients need goes to DIRECTORY/cluster/env, and to DIRECTORY/env unless a single node lives there.

Six "machines" that are one: losing this machine loses everything. That is what it is for.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAMS = pathlib.Path(os.environ.get("KISEKI_PROGRAMS", ROOT / "target/release"))
S3_PORT, ADMIN_PORT, PEER_PORT = 9000, 9090, 9100
DEVICES, DEVICE_GIB, LANES = 2, 4, 2
START_SECONDS_MAX = 120
STOP_SECONDS_MAX = 30


class LocalNode:
    def __init__(self, home, number, racks=0):
        self.number, self.home = number, home
        self.rack = f"r{(number - 1) % racks + 1}" if racks else ""
        self.dir = home / f"node{number}"
        self.log, self.pid_file = home / f"node{number}.log", home / f"node{number}.pid"
        self.process = None
        self.s3, self.admin, self.peer = (base + number - 1 for base in (S3_PORT, ADMIN_PORT, PEER_PORT))

    def pid(self):
        """The running process; another one that has its number by now is none of ours."""
        try:
            pid = int(self.pid_file.read_text())
            words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            return pid if os.fsencode(self.dir) in words else None
        except (OSError, ValueError):
            return None

    def init(self, *words):
        base = [PROGRAMS / "kiseki-server", "init", "--dir", self.dir, "--peer-listen", f"127.0.0.1:{self.peer}"]
        sizes = ["--devices", DEVICES, "--device-gib", DEVICE_GIB, "--lanes", LANES, "--metadata-dirs", 2]
        if self.rack:
            sizes += ["--rack", self.rack]
        run(*base, *sizes, *words)

    def launch(self):
        if self.pid() is not None:
            return
        words = [PROGRAMS / "kiseki-server", "run", "--dir", self.dir, "--cores", 1]
        words += ["--s3-port", self.s3, "--admin-port", self.admin]
        with open(self.log, "ab") as log:
            process = subprocess.Popen([*map(str, words)], stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        self.pid_file.write_text(str(process.pid))
        self.process = process  # reaped when this ends

    def await_ready(self):
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline:
            # Of one that was started a moment ago the kernel does not tell the words yet.
            ended = self.process.poll() is not None if self.process else self.pid() is None
            if ended:
                sys.exit(f"node {self.number} ended; {self.log} says:\n{tail(self.log)}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/readyz", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                pass
            time.sleep(0.1)
        sys.exit(f"node {self.number} does not serve after {START_SECONDS_MAX} s; {self.log} says:\n{tail(self.log)}")

    def stop(self):
        pid = self.pid()
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
        return pid


def tail(path, lines=20):
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def run(*words):
    done = subprocess.run([*map(str, words)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, words))}\n{done.stderr.strip()}")
    return done.stdout


def pool(nodes):
    """Six nodes can lose two fragments of six and one node; fewer keep copies."""
    return "4+2" if nodes >= 6 else "3 copies" if nodes >= 2 else "2 copies"


def up(directory, count, racks):
    home = directory / "cluster"
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o700)
    made = sorted(int(path.name[4:]) for path in home.glob("node*") if path.is_dir() and (path / "nodes.json").exists())
    nodes = [LocalNode(home, number, racks) for number in range(1, max([count, *made]) + 1)]
    first = nodes[0]
    # Whatever was cut off before its first start is taken up again by the same commands.
    if first.pid() is None:
        first.init("--pool", pool(count))
    for node in nodes:
        if node is not first and node.number in made and node.pid() is None:
            node.init("--join", home / f"join-{node.number}")
        if node is first or node.number in made:
            node.launch()
    first.await_ready()
    for node in nodes[1:]:
        if node.number not in made:
            bundle = home / f"join-{node.number}"
            if not (bundle / "join.json").exists():
                shutil.rmtree(bundle, ignore_errors=True)
                run(PROGRAMS / "kiseki", "--dir", first.dir, "node", "add", "--out", bundle)
            node.init("--join", bundle)
            node.launch()
        node.await_ready()
    shutil.copy(first.dir / "env", home / "env")
    env = home / "env"
    if not (directory / "kiseki.toml").exists():
        env = directory / "env"
        shutil.copy(first.dir / "env", env)
    for node in nodes:
        status = json.loads(run(PROGRAMS / "kiseki", "--dir", node.dir, "status", "--json"))
        print(f"node {status['node']}  S3 {status['endpoint']}  metrics http://127.0.0.1:{node.admin}/metrics  log {node.log}")
    print(f"try\n  . {env} && aws s3 mb s3://hello && aws s3 cp README.md s3://hello/")
    print(f"  {PROGRAMS / 'kiseki'} --dir {first.dir} node list\n  make cluster-stop")


def down(directory):
    home = directory / "cluster"
    nodes = [LocalNode(home, int(path.stem[4:])) for path in home.glob("node*.pid")]
    stopping = [node for node in nodes if node.stop() is not None]
    deadline = time.monotonic() + STOP_SECONDS_MAX
    while any(node.pid() for node in stopping) and time.monotonic() < deadline:
        time.sleep(0.1)
    for node in stopping:
        pid = node.pid()
        if pid is not None:
            print(f"node {node.number} does not stop; ended at once (what is acknowledged stays)")
            os.kill(pid, signal.SIGKILL)
    for node in nodes:
        node.pid_file.unlink(missing_ok=True)
    print(f"{len(stopping)} nodes stopped; `make cluster` starts them again, removing {home} forgets them")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["up", "down"])
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--nodes", type=int, default=6)
    parser.add_argument("--racks", type=int, default=0, help="new nodes say that they are in so many racks, in turns")
    arguments = parser.parse_args()
    directory = arguments.directory.resolve()
    if arguments.verb == "down":
        down(directory)
    elif not 1 <= arguments.nodes <= 50:
        parser.error("1 to 50 nodes")
    elif not 0 <= arguments.racks <= arguments.nodes:
        parser.error("no more racks than nodes")
    else:
        up(directory, arguments.nodes, arguments.racks)


if __name__ == "__main__":
    main()
