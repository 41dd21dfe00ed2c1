"""What the tests of whole nodes on emulated NVMe drives share: the machine with a node in it, and the least of an S3 client."""

import datetime
import hashlib
import hmac
import http.client
import os
import pathlib
import signal
import socket
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAMS = pathlib.Path(os.environ.get("KISEKI_PROGRAMS", ROOT / "target/release"))
MIB = 1 << 20
# Software emulation on a loaded machine.
READY_SECONDS_MAX = 90

# Before the node: its metadata directory is drive 0, and a shell listens for the test.
PRELUDE = """
for module in $(cat /mods/order); do insmod /mods/$module.ko 2>/dev/null; done
ip addr add 10.0.2.15/24 dev eth0 && ip link set eth0 up
mount -t ext4 /dev/drive0 /mnt || exit 90
export KISEKI_DIR=/mnt/node
mkdir -p $KISEKI_DIR
nc -ll -p 7000 -e sh >/dev/null 2>&1 &
"""
# The node, and its key as soon as there is one.
RUN = """
(while [ ! -e $KISEKI_DIR/env ]; do sleep 1; done; sed -n 's/^export \\(AWS_[A-Z_]*KEY[A-Z_]*\\)=/credential \\1=/p' $KISEKI_DIR/env) &
kiseki-server run --dir $KISEKI_DIR --cores CORES
"""

passed = 0
failed = 0


def result(name, is_good, detail=""):
    global passed, failed
    passed, failed = passed + bool(is_good), failed + (not is_good)
    print(f"{'ok   ' if is_good else 'FAIL '} {name}" + (f" ({detail})" if detail and not is_good else ""), flush=True)


def summary():
    """Prints the last line; the exit code."""
    print(f"{passed} passed, {failed} failed", flush=True)
    return 1 if failed else 0


def await_true(condition, seconds):
    """What `condition` gives as soon as it is not false, or at the end of the time."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


class Machine:
    """A guest whose drives are `drives` (as nvme-vm.sh names them) and that runs `setup` and then a node."""

    def __init__(self, work, name, drives, setup, cores=1, poll_queues=1, **more):
        self.console_path = work / f"{name}.console"
        self.pid_path = work / f"{name}.pid"
        self.monitor_path = work / f"{name}.qmp"
        self.s3_port, self.admin_port, self.shell_port = free_port(), free_port(), free_port()
        environment = dict(
            os.environ,
            DRIVES=" ".join(drives),
            MEM="1536",
            SMP=str(cores),
            APPEND=f"nvme.poll_queues={poll_queues}",
            LIMIT_S="400",
            PIDFILE=str(self.pid_path),
            QMP=str(self.monitor_path),
            FORWARD=f"{self.s3_port}:9000 {self.admin_port}:9090 {self.shell_port}:7000",
            **more,
        )
        programs = [PROGRAMS / name for name in ("kiseki-server", "kiseki-devctl", "kiseki")]
        self.process = subprocess.Popen(
            [ROOT / "scripts/nvme-vm.sh", "exec", PRELUDE + setup + RUN.replace("CORES", str(cores)), *programs],
            stdout=open(self.console_path, "wb"),
            stderr=subprocess.STDOUT,
            env=environment,
        )

    def console(self):
        return self.console_path.read_text(errors="replace")

    def wait_ready(self):
        deadline = time.monotonic() + READY_SECONDS_MAX
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if self.get_admin("/readyz")[0] == 200 and "credential AWS_SECRET_ACCESS_KEY=" in self.console():
                    return True
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(0.2)
        return False

    def run(self, command, seconds=60):
        """Runs a command in the guest: exit code and what it said."""
        with socket.create_connection(("127.0.0.1", self.shell_port), timeout=seconds) as shell:
            line = f"export PATH=/t:/bin; ({command}) </dev/null 2>&1; code=$?; echo; echo exit-code=$code"
            shell.sendall(f"{line}\nexit\n".encode())
            text = b""
            while b"exit-code=" not in text or not text.endswith(b"\n"):
                part = shell.recv(65536)
                if not part:
                    break
                text += part
        said, _, code = text.decode(errors="replace").rpartition("exit-code=")
        return int(code or 125), said.strip()

    def get_admin(self, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=5)
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    def credentials(self):
        found = {}
        for line in self.console().splitlines():
            if line.startswith("credential "):
                name, value = line[len("credential ") :].split("=", 1)
                found[name] = value.strip("'\"")
        return found["AWS_ACCESS_KEY_ID"], found["AWS_SECRET_ACCESS_KEY"]

    def end(self):
        """Like pulling the plug: what QEMU has not sent is gone with it."""
        if self.pid_path.exists():
            try:
                os.kill(int(self.pid_path.read_text()), signal.SIGKILL)
            except (ProcessLookupError, ValueError):
                pass
        self.process.wait(30)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Client:
    """The least of S3: a signed request on a connection of its own."""

    def __init__(self, machine):
        self.access, self.secret = machine.credentials()
        self.port = machine.s3_port
        self.connection = None

    def request(self, method, path, body=b""):
        now = datetime.datetime.now(datetime.timezone.utc)
        stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
        host, digest = f"127.0.0.1:{self.port}", hashlib.sha256(body).hexdigest()
        headers = {"host": host, "x-amz-content-sha256": digest, "x-amz-date": stamp}
        signed = ";".join(sorted(headers))
        canonical = "\n".join(
            [method, path, "", *(f"{name}:{headers[name]}" for name in sorted(headers)), "", signed, digest]
        )
        scope = f"{day}/us-east-1/s3/aws4_request"
        text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
        key = f"AWS4{self.secret}".encode()
        for part in (day, "us-east-1", "s3", "aws4_request"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self.access}/{scope}, SignedHeaders={signed}, Signature={signature}"
        )
        if self.connection is None:
            self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            self.connection.request(method, path, body=body, headers=headers)
            answer = self.connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            self.connection = None
            raise
