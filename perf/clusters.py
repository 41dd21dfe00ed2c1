"""Clusters on this machine that s3_compare.py measures: every node a process of its own, on loopback ports."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request

from node import PROGRAMS, START_SECONDS_MAX, free_port

# Both keep three copies on three nodes, so both can lose one.
COPIES = 3
STOP_SECONDS_MAX = 60


def wait_for_http(process, url):
    """Until the server answers anything at all (a refusal is an answer); `readyz` has to say 200."""
    deadline = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{url}: the server ended with {process.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except urllib.error.HTTPError:
            if not url.endswith("/readyz"):
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise RuntimeError(f"{url}: no answer after {START_SECONDS_MAX} s")


def run(*words):
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.stderr.strip()}")
    return done.stdout


@contextlib.contextmanager
def processes(commands):
    """Starts (command, log) pairs side by side; ends all of them."""
    started = []
    try:
        for command, log in commands:
            with open(log, "ab") as out:
                started.append(subprocess.Popen([*map(str, command)], stdout=out, stderr=out, start_new_session=True))
        yield started
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in started:
            try:
                process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


class KisekiCluster:
    """One core and two device images a node; three copies."""

    name = "kiseki"

    def __init__(self, work, prefix, nodes):
        self.home, self.prefix, self.nodes = work / "kiseki", prefix, nodes
        self.ports = [(free_port(), free_port(), free_port()) for _ in range(nodes)]
        self.made = False
        self.home.mkdir()

    def init(self, number, *words):
        base = [PROGRAMS / "kiseki-server", "init", "--dir", self.home / f"node{number}"]
        base += ["--peer-listen", f"127.0.0.1:{self.ports[number - 1][2]}", "--devices", 2, "--device-gib", 4]
        run(*base, "--lanes", 2, "--metadata-dirs", 1, *words)

    def command(self, number):
        s3, admin, _ = self.ports[number - 1]
        words = [*self.prefix, PROGRAMS / "kiseki-server", "run", "--dir", self.home / f"node{number}", "--cores", 1]
        return [*words, "--s3-port", s3, "--admin-port", admin, "--s3-tls", "off"], self.home / f"node{number}.log"

    def ready(self, process, number):
        wait_for_http(process, f"http://127.0.0.1:{self.ports[number - 1][1]}/readyz")

    def make(self):
        """Forms the cluster once; later runs start what is there."""
        self.init(1, "--pool", f"{COPIES} copies")
        with processes([self.command(1)]) as first:
            self.ready(first[0], 1)
            for number in range(2, self.nodes + 1):
                bundle = self.home / f"join-{number}"
                run(PROGRAMS / "kiseki", "--dir", self.home / "node1", "node", "add", "--out", bundle)
                self.init(number, "--join", bundle)
        self.made = True

    @contextlib.contextmanager
    def serving(self):
        if not self.made:
            self.make()
        numbers = range(1, self.nodes + 1)
        with processes([self.command(number) for number in numbers]) as started:
            for number, process in zip(numbers, started):
                self.ready(process, number)
            self.await_voters()
            values = {}
            for line in (self.home / "node1" / "env").read_text().splitlines():
                if match := re.fullmatch(r"export (AWS_\w+)=(.*)", line):
                    values[match[1]] = match[2].strip("'")
            yield [process.pid for process in started], values

    def await_voters(self):
        """A node that joined a moment ago has no votes yet, and a cluster that still copies is not the one to measure."""
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline:
            totals = {"raft_groups_led": 0, "raft_groups": 0, "raft_votes_missing": 0}
            for _, admin, _ in self.ports:
                with urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics", timeout=5) as answer:
                    for line in answer.read().decode().splitlines():
                        if match := re.fullmatch(r"(?:kiseki_)?(raft_\w+)(?:\{.*\})? (\S+)", line):
                            if match[1] in totals:
                                totals[match[1]] += int(float(match[2]))
            if totals["raft_votes_missing"] == 0 and totals["raft_groups"] == min(3, self.nodes) * totals["raft_groups_led"] > 0:
                return
            time.sleep(0.2)
        raise RuntimeError(f"kiseki: voters are missing after {START_SECONDS_MAX} s ({totals}), see {self.home}")


class Garage:
    """Garage (cargo install garage): metadata and data synced before an answer, since Kiseki flushes both."""

    name = "garage"

    def __init__(self, work, prefix, nodes):
        self.home, self.prefix, self.nodes = work / "garage", prefix, nodes
        # Garage wants keys of its own form.
        self.key, self.secret = "GK" + "31" * 12, "42" * 32
        self.ports = [(free_port(), free_port(), free_port()) for _ in range(nodes)]
        self.made = False
        self.home.mkdir()
        for number in range(1, nodes + 1):
            s3, admin, rpc = self.ports[number - 1]
            (self.home / f"{number}.toml").write_text(
                f'metadata_dir = "{self.home}/meta{number}"\ndata_dir = "{self.home}/data{number}"\ndb_engine = "lmdb"\n'
                f"metadata_fsync = true\ndata_fsync = true\nreplication_factor = {min(COPIES, nodes)}\n"
                f'rpc_bind_addr = "127.0.0.1:{rpc}"\nrpc_public_addr = "127.0.0.1:{rpc}"\nrpc_secret = "{"17" * 32}"\n'
                f'[s3_api]\ns3_region = "us-east-1"\napi_bind_addr = "127.0.0.1:{s3}"\nroot_domain = ".s3.localhost"\n'
                f'[admin]\napi_bind_addr = "127.0.0.1:{admin}"\n'
            )

    def command(self, number):
        program = shutil.which("garage") or "garage"
        return [*self.prefix, program, "-c", self.home / f"{number}.toml", "server"], self.home / f"{number}.log"

    def ask(self, *words, number=1):
        return run("garage", "-c", self.home / f"{number}.toml", *words)

    @contextlib.contextmanager
    def serving(self):
        numbers = range(1, self.nodes + 1)
        with processes([self.command(number) for number in numbers]) as started:
            for number, process in zip(numbers, started):
                wait_for_http(process, f"http://127.0.0.1:{self.ports[number - 1][1]}/health")
            self.connect()
            if not self.made:
                self.make()
            self.await_healthy()
            yield [process.pid for process in started], {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.ports[0][0]}",
                "AWS_ACCESS_KEY_ID": self.key,
                "AWS_SECRET_ACCESS_KEY": self.secret,
                "AWS_REGION": "us-east-1",
            }

    def names(self):
        return [self.ask("node", "id", "-q", number=number).strip() for number in range(1, self.nodes + 1)]

    def connect(self):
        """At each start: left alone, nodes that were all away find each other again after minutes."""
        for name in self.names()[1:]:
            self.ask("node", "connect", name)

    def make(self):
        for name in self.names():
            self.ask("layout", "assign", "-z", "here", "-c", "8G", name.split("@")[0])
        self.ask("layout", "apply", "--version", 1)
        self.ask("key", "import", "--yes", self.key, self.secret)
        self.ask("key", "allow", "--create-bucket", self.key)
        self.made = True

    def await_healthy(self):
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[0][1]}/health", timeout=2) as answer:
                    if answer.status == 200 and b"fully operational" in answer.read():
                        return
            except OSError:
                pass
            time.sleep(0.1)
        raise RuntimeError(f"garage: not healthy after {START_SECONDS_MAX} s, see {self.home}")


CLUSTERS = {"garage": Garage}
