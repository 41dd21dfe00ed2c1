"""A whole node on emulated NVMe drives: written and read over S3, its power cut in mid-write, and read again.

    nvme_node_test.py WORK_DIRECTORY [--seed N]

Drive 0 holds the metadata (ext4), the others are devices, driven by commands. After the cut everything acknowledged must
be there. The control: the same with devices that lie about flushes must be caught. Ends with "N passed, M failed".
"""

import argparse
import datetime
import hashlib
import hmac
import http.client
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time

from cut_drive import CutDrive

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAMS = pathlib.Path(os.environ.get("KISEKI_PROGRAMS", ROOT / "target/release"))
MIB = 1 << 20
DEVICES = 3
DEVICE_BYTES = 160 * MIB
METADATA_BYTES = 320 * MIB
# Software emulation on a loaded machine.
READY_SECONDS_MAX = 90
WRITE_SECONDS = 12
WRITERS = 3

GUEST = """
for module in $(cat /mods/order); do insmod /mods/$module.ko 2>/dev/null; done
ip addr add 10.0.2.15/24 dev eth0 && ip link set eth0 up
mount -t ext4 /dev/drive0 /mnt || exit 90
export KISEKI_DIR=/mnt/node
if [ ! -e $KISEKI_DIR/kiseki.toml ]; then
    mkdir -p $KISEKI_DIR
    cat > $KISEKI_DIR/kiseki.toml <<TOML
metadata_dirs = ["meta"]
devices = [DEVICES]
device_path = "passthrough"
[s3]
listen = "0.0.0.0:9000"
unsafe_s3_plaintext = true
[admin]
listen = "0.0.0.0:9090"
TOML
    sync
    kiseki-server init --dir $KISEKI_DIR --lanes 2 || exit 91
    kiseki-devctl format --yes --lanes 2 NAMES || exit 92
    kiseki-server init --dir $KISEKI_DIR --lanes 2 || exit 93
fi
(while [ ! -e $KISEKI_DIR/env ]; do sleep 1; done; sed -n 's/^export \\(AWS_[A-Z_]*KEY[A-Z_]*\\)=/credential \\1=/p' $KISEKI_DIR/env) &
kiseki-server run --dir $KISEKI_DIR --cores 1
"""

passed = 0
failed = 0


def result(name, is_good, detail=""):
    global passed, failed
    passed, failed = passed + bool(is_good), failed + (not is_good)
    print(f"{'ok   ' if is_good else 'FAIL '} {name}" + (f" ({detail})" if detail and not is_good else ""), flush=True)


class Machine:
    """A guest with a node on `drives`."""

    def __init__(self, work, name, drives):
        self.console_path = work / f"{name}.console"
        self.pid_path = work / f"{name}.pid"
        self.s3_port, self.admin_port = free_port(), free_port()
        names = " ".join(f"/dev/drive{index}" for index in range(1, DEVICES + 1))
        devices = ", ".join(f'"/dev/drive{index}"' for index in range(1, DEVICES + 1))
        blocks = [512, 4096, 512, 4096]
        environment = dict(
            os.environ,
            DRIVES=" ".join(f"{drive.url()}:{block}" for drive, block in zip(drives, blocks)),
            MEM="1536",
            LIMIT_S="400",
            PIDFILE=str(self.pid_path),
            FORWARD=f"{self.s3_port}:9000 {self.admin_port}:9090",
        )
        programs = [PROGRAMS / name for name in ("kiseki-server", "kiseki-devctl")]
        commands = GUEST.replace("DEVICES", devices).replace("NAMES", names)
        self.process = subprocess.Popen(
            [ROOT / "scripts/nvme-vm.sh", "exec", commands, *programs],
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
    import socket

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


def content_of(key, length):
    return random.Random(key).randbytes(length)


def write_until(machine, acknowledged, stop, writer):
    """Puts new objects and records what is acknowledged, until the machine is gone."""
    client, chance, count = Client(machine), random.Random(writer), 0
    while not stop.is_set():
        key, length = f"/cut/w{writer}-{count}", chance.choice([100, 5000, 70_000, 300_000])
        count += 1
        try:
            status, _ = client.request("PUT", key, content_of(key, length))
        except (OSError, http.client.HTTPException):
            return
        if status == 200:
            acknowledged[key] = length


def missing(machine, acknowledged):
    """Acknowledged objects that are not there as they were written."""
    client, lost = Client(machine), []
    for key, length in acknowledged.items():
        status, body = client.request("GET", key)
        if status != 200 or body != content_of(key, length):
            lost.append(f"{key}: {status}, {len(body)} of {length} bytes")
    return lost


def new_drives(work, lies):
    metadata = work / "metadata.img"
    with open(metadata, "wb") as image:
        image.truncate(METADATA_BYTES)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-F", metadata], check=True)
    contents = [metadata.read_bytes()] + [bytes(DEVICE_BYTES)] * DEVICES
    metadata.unlink()
    # Were the metadata lost too, the file system would not even mount, and the store would be asked nothing.
    return [CutDrive(content, lies and index > 0) for index, content in enumerate(contents)]


def cut_and_look(work, name, lies, seed):
    """Returns what was lost, or why the node did not come back; None: it never got so far."""
    drives = new_drives(work, lies)
    machine = Machine(work, name, drives)
    acknowledged, stop = {}, threading.Event()
    try:
        if not machine.wait_ready():
            result(f"{name}: a node starts on NVMe drives", False, machine.console()[-2000:])
            return None
        metrics = machine.get_admin("/metrics")[1]
        driven = f'kiseki_device_io_paths{{path="passthrough_polled"}} {DEVICES}' in metrics
        result(f"{name}: a node starts and drives {DEVICES} drives by polled commands", driven)
        client = Client(machine)
        status, body = client.request("PUT", "/cut")
        assert status in (200, 409), (status, body)
        if lies:
            # What was written so far is taken as durable: the lie is about the objects alone.
            for drive in drives[1:]:
                with drive.lock:
                    drive.durable[:] = drive.now
                    drive.unflushed.clear()
        writers = [
            threading.Thread(target=write_until, args=(machine, acknowledged, stop, writer)) for writer in range(WRITERS)
        ]
        for writer in writers:
            writer.start()
        deadline = time.monotonic() + 4 * WRITE_SECONDS
        time.sleep(WRITE_SECONDS)
        while len(acknowledged) < 40 and time.monotonic() < deadline:
            time.sleep(0.1)
        if not lies:
            lost = missing(machine, dict(acknowledged))
            result(f"{name}: what is acknowledged reads back while more is written", not lost, "; ".join(lost[:3]))
        left = [drive.cut(seed + index) for index, drive in enumerate(drives)]
    finally:
        stop.set()
        machine.end()
    flushes = sum(drive.flushes for drive in drives)
    at_stake = sum(count for _, count in left)
    print(f"      {len(acknowledged)} objects acknowledged, {flushes} flushes, {at_stake} unflushed sectors at the cut")
    machine = Machine(work, f"{name}-after", [CutDrive(content) for content, _ in left])
    try:
        if not machine.wait_ready():
            words = last_words(machine.console())
            if lies and not (words.startswith("kiseki-server") or " ERROR " in words):
                # A machine that does not come up says nothing about what its drives lost.
                result(f"{name}: the machine comes back", False, words)
                return None
            return [f"the node does not start: {words}"]
        return missing(machine, acknowledged)
    except (OSError, http.client.HTTPException) as error:
        if lies:
            result(f"{name}: the machine stays", False, str(error))
            return None
        return [f"the node went away: {error}"]
    finally:
        machine.end()


def last_words(console):
    """The server's own message, where there is one."""
    lines = [line for line in console.splitlines() if line.startswith("kiseki-server") or " ERROR " in line]
    return lines[-1] if lines else console[-600:]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    print(f"      seed {arguments.seed}")
    lost = cut_and_look(arguments.work, "power cut", False, arguments.seed)
    if lost is not None:
        result("I-L5: after a power cut everything acknowledged is there", not lost, "; ".join(lost[:5]))
    caught = cut_and_look(arguments.work, "lying drives", True, arguments.seed)
    if caught is not None:
        result("drives that lie about flushes are caught", caught, "nothing was lost: the test sees nothing")
        print(f"      {caught[0][:300] if caught else ''}")
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
