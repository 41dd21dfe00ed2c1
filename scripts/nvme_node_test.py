"""A whole node on emulated NVMe drives: written and read over S3, its power cut in mid-write, and read again.

    nvme_node_test.py WORK_DIRECTORY [--seed N]

Drive 0 holds the metadata (ext4), the others are devices, driven by commands: polled by a node of two cores, and answered by
interrupts in the control. After the cut everything acknowledged must be there. The control: the same with devices that lie about
flushes must be caught. Ends with "N passed, M failed".
"""

import argparse
import http.client
import pathlib
import random
import subprocess
import sys
import threading
import time

from cut_drive import CutDrive
from nvme_machine import MIB, Client, Machine, result, summary

DEVICES = 3
DEVICE_BYTES = 160 * MIB
METADATA_BYTES = 320 * MIB
WRITE_SECONDS = 8
WRITERS = 3

SETUP = """
if [ ! -e $KISEKI_DIR/kiseki.toml ]; then
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
"""


def machine_on(work, name, drives, lies):
    names = " ".join(f"/dev/drive{index}" for index in range(1, DEVICES + 1))
    devices = ", ".join(f'"/dev/drive{index}"' for index in range(1, DEVICES + 1))
    setup = SETUP.replace("DEVICES", devices).replace("NAMES", names)
    blocks = [512, 4096, 512, 4096]
    shown = [f"{drive.url()}:{block}" for drive, block in zip(drives, blocks)]
    return Machine(work, name, shown, setup, cores=1 if lies else 2, poll_queues=0 if lies else 2)


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
    machine = machine_on(work, name, drives, lies)
    acknowledged, stop = {}, threading.Event()
    try:
        if not machine.wait_ready():
            result(f"{name}: a node starts on NVMe drives", False, machine.console()[-2000:])
            return None
        metrics = machine.get_admin("/metrics")[1]
        way = "passthrough" if lies else "passthrough_polled"
        driven = f'kiseki_device_io_paths{{path="{way}"}} {DEVICES}' in metrics
        result(f"{name}: a node starts and drives {DEVICES} drives, {way}", driven, metrics_about(metrics))
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
    machine = machine_on(work, f"{name}-after", [CutDrive(content) for content, _ in left], lies)
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


def metrics_about(metrics):
    return "; ".join(line for line in metrics.splitlines() if line.startswith("kiseki_device_io_paths"))


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
    sys.exit(summary())


if __name__ == "__main__":
    main()
