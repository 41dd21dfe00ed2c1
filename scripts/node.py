"""A node under test: a directory, free ports, start, stop, kill; and what tests of nodes count, ask and wait for."""

import http.client
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Where the programs are; another build can be tested too.
PROGRAMS = pathlib.Path(os.environ.get("KISEKI_PROGRAMS", ROOT / "target/release"))
SERVER = PROGRAMS / "kiseki-server"
KISEKI = PROGRAMS / "kiseki"
# A start recovers journals and shards; on a loaded two-core machine this takes seconds.
START_SECONDS_MAX = 120
STOP_SECONDS_MAX = 60
# Longer than any condition takes on a loaded two-core machine.
PATIENCE_SECONDS = 90


class Results:
    """What was checked in this process."""

    passed = failed = 0


def check(ok, what):
    Results.passed += bool(ok)
    Results.failed += not ok
    print(f"{'ok  ' if ok else 'FAIL'} {what}", flush=True)
    return bool(ok)


def until(what, condition, seconds=PATIENCE_SECONDS):
    """The first true value of `condition`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    raise RuntimeError(f"waited in vain for {seconds} s: {what}")


def command(program, *words, timeout=120):
    """Exit code, standard output, standard error."""
    done = subprocess.run([program, *map(str, words)], capture_output=True, text=True, timeout=timeout)
    return done.returncode, done.stdout, done.stderr


def kiseki(node, *words):
    """`kiseki` on the node itself."""
    return command(KISEKI, "--dir", node.dir, *words)


def status(node):
    code, out, error = kiseki(node, "status", "--json")
    if not out:
        raise RuntimeError(f"status of {node.dir.name} ended with {code}: {error}")
    return json.loads(out)


def listed(node):
    """Rows of `kiseki node list`, by number."""
    code, out, error = kiseki(node, "node", "list", "--json")
    if code != 0:
        raise RuntimeError(f"node list: {error}")
    return {row["node"]: row for row in json.loads(out)}


def votes_missing(nodes):
    """Votes that shards lack, as their leaders count; None while some shard has no leader."""
    cores = [core for node in nodes for core in status(node)["core_reports"].values()]
    values = [core["values"] for core in cores]
    shards = {shard["shard"] for core in cores for shard in core["shards"]}
    led = sum(value.get("raft_groups_led", 0) for value in values)
    replicas = sum(value.get("raft_groups", 0) for value in values)
    missing = sum(value.get("raft_votes_missing", 0) for value in values)
    return missing if led and led == len(shards) and replicas >= 3 * led else None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Node:
    """A node in `directory`, made ready on first use; `init` are further words for `kiseki-server init`, `run` for `kiseki-server run`,
    and both are run by `prefix`."""

    def __init__(self, directory, device_gib=1, devices=8, init=(), run=(), prefix=()):
        self.dir = pathlib.Path(directory).resolve()
        self.s3_port, self.admin_port = free_port(), free_port()
        self.process = None
        self.log = self.dir.parent / (self.dir.name + ".log")
        self.prefix, self.run, self.environment = list(prefix), list(map(str, run)), None
        subprocess.run(
            [*self.prefix, SERVER, "init", "--dir", self.dir, "--devices", str(devices), "--device-gib", str(device_gib), *map(str, init)],
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def start(self):
        self.launch()
        return self.await_ready()

    def launch(self):
        """Starts it and waits for nothing: some nodes have to wait for others."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, SERVER, "run", "--dir", self.dir, "--s3-port", str(self.s3_port), "--admin-port", str(self.admin_port), *self.run],
                stdout=log,
                stderr=log,
                env=self.environment,
            )

    def await_ready(self):
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the node ended with {self.process.returncode}:\n{self.log_tail()}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/readyz", timeout=2) as answer:
                    if answer.status == 200 and (self.dir / "env").exists():
                        return self
            except (urllib.error.URLError, OSError, http.client.HTTPException):
                pass  # not yet, or it ended in the middle of its answer
            time.sleep(0.05)
        raise RuntimeError(f"the node is not ready after {START_SECONDS_MAX} s:\n{self.log_tail()}")

    def stop(self):
        """A clean stop; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(STOP_SECONDS_MAX)
        self.process = None
        return code

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process = None

    def log_tail(self, lines=30):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def env(self):
        """The exports in `env`, over this process's environment."""
        values = dict(os.environ)
        for line in (self.dir / "env").read_text().splitlines():
            if line.startswith("export "):
                name, value = line[len("export "):].split("=", 1)
                values[name] = value.strip("'")
        return values

    def client(self, **config):
        import boto3
        from botocore.config import Config

        env = self.env()
        config = {"retries": {"max_attempts": 1}, **config}
        return boto3.client(
            "s3",
            endpoint_url=env["AWS_ENDPOINT_URL"],
            aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
            region_name=env["AWS_REGION"],
            verify=env.get("AWS_CA_BUNDLE", False),
            config=Config(s3={"addressing_style": "path"}, **config),
        )

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        if self.process is not None:
            self.kill()
        if failure[0] is not None:
            print(self.log_tail(), file=sys.stderr)
