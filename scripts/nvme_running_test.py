"""A node that runs in the emulated machine while its drives change: taken in, reset, and warning of their end.

    nvme_running_test.py WORK_DIRECTORY

It starts on plain files, without any NVMe device, on two cores. Ends with "N passed, M failed".
"""

import http.client
import json
import pathlib
import subprocess
import sys
import threading
import time

from emulated_identify import Monitor
from nvme_machine import MIB, Client, Machine, await_true, result, summary
from nvme_node_test import content_of

FILES = 3
DRIVES = 2
METADATA_BYTES = 900 * MIB
# The least that the node takes.
SMART_INTERVAL_S = 10
# "The reliability of the NVM subsystem is degraded."
UNRELIABLE = 1 << 2

SETUP = f"""
cat > $KISEKI_DIR/kiseki.toml <<TOML
metadata_dirs = ["meta"]
devices = [{", ".join(f'"/mnt/d{index}.img"' for index in range(FILES))}]
[s3]
listen = "0.0.0.0:9000"
unsafe_s3_plaintext = true
[admin]
listen = "0.0.0.0:9090"
[health]
smart_interval_s = {SMART_INTERVAL_S}
TOML
for index in $(seq 0 {FILES - 1}); do truncate -s 160M /mnt/d$index.img; done
kiseki-server init --dir $KISEKI_DIR --lanes 2 || exit 91
kiseki-devctl format --yes --lanes 2 {" ".join(f"/mnt/d{index}.img" for index in range(FILES))} || exit 92
kiseki-server init --dir $KISEKI_DIR --lanes 2 || exit 93
"""


class Node:
    """What the tests ask of the node in the machine."""

    def __init__(self, machine):
        self.machine = machine

    def devices(self):
        """By path; none when the node does not answer."""
        code, said = self.machine.run("kiseki --dir /mnt/node status --json")
        if code != 0:
            return {}
        return {device["path"]: device for device in json.loads(said)["devices"]}

    def device(self, path):
        return self.devices().get(path, {})

    def devctl(self, arguments):
        return self.machine.run(f"kiseki-devctl {arguments}", 120)


def enroll(node):
    before = {device.get("io_path") for device in node.devices().values()}
    result("the node starts without NVMe drives", before == {"file"}, before)
    code, said = node.devctl("enroll --format --dir /mnt/node " + " ".join(f"/dev/drive{n}" for n in range(1, DRIVES + 1)))
    result("drives are enrolled while it runs", code == 0, said[-600:])
    for number in range(1, DRIVES + 1):
        device = node.device(f"/dev/drive{number}")
        way = device.get("io_path"), device.get("io_path_reason"), device.get("state")
        result(f"drive {number} is driven by polled commands at once", way == ("passthrough_polled", "", "healthy"), way)


def write(client, names, lost):
    for name in names:
        content = content_of(name, 200_000)
        try:
            status, _ = client.request("PUT", f"/running/{name}", content)
        except (OSError, http.client.HTTPException) as error:
            status = error
        if status != 200:
            lost.append(f"{name} can't be written: {status}")


def read_back(client, names):
    wrong = []
    for name in names:
        status, body = client.request("GET", f"/running/{name}")
        if status != 200 or body != content_of(name, 200_000):
            wrong.append(f"{name}: {status}, {len(body)} bytes")
    return wrong


def through_reset(node, client):
    """Controllers are reset under the node's load. A drive goes on, or is fenced and says why; no object is lost."""
    names, lost, done = [f"reset-{number}" for number in range(40)], [], threading.Event()
    resets, failures = [], []

    def reset():
        while not done.is_set():
            try:
                code, said = node.machine.run(
                    "for file in /sys/class/nvme/nvme*/reset_controller; do echo 1 > $file && echo reset; done")
                resets.append(said.split().count("reset"))
                if code != 0:
                    failures.append(said[-200:])
            except (OSError, ValueError) as error:
                failures.append(str(error))
            time.sleep(0.3)

    resetting = threading.Thread(target=reset)
    resetting.start()
    # The first one is awaited, so that something is written after it.
    await_true(lambda: sum(resets) or failures, 30)
    write(client, names, lost)
    done.set()
    resetting.join()
    result("controllers are reset", sum(resets) > 0, f"{len(resets)} attempts; {'; '.join(failures[:3])}")
    result("objects are written while controllers are reset", not lost, "; ".join(lost[:3]))
    wrong = read_back(client, names)
    result("I-L5: they are all there", not wrong, "; ".join(wrong[:3]))
    for number in range(1, DRIVES + 1):
        device = node.device(f"/dev/drive{number}")
        told = "controller" in device.get("reason", "") or "I-D6" in device.get("reason", "")
        fine = device.get("state") == "healthy" or device.get("state") == "failed" and told
        result(f"drive {number} goes on, or says why it does not", fine, (device.get("state"), device.get("reason")))
        if device.get("state") == "failed":
            code, said = node.devctl(f"enroll --dir /mnt/node /dev/drive{number}")
            result(f"drive {number} is taken back by an operator", code == 0, said[-600:])


def worn(node):
    """I-D3, from the drive's own warning to the operator's word."""
    path = "/dev/drive1"
    monitor = Monitor(node.machine.monitor_path)
    warn = lambda bits: monitor.ask("qom-set", path="/machine/peripheral/c1", property="smart_critical_warning", value=bits)
    warn(UNRELIABLE)
    patience = 3 * SMART_INTERVAL_S
    device = await_true(lambda: found if (found := node.device(path)).get("evacuation") else None, patience) or node.device(path)
    begun = device.get("state"), device.get("actor"), (device.get("evacuation") or {}).get("reason") or ""
    result("I-D3: a drive that warns is emptied by itself", begun[:2] == ("evacuating", "wear"), begun)
    result("I-D3: and the node says why", "reliability is degraded" in begun[2], begun)
    left = lambda: (node.device(path).get("evacuation") or {}).get("fragments_left", -1)
    empty = await_true(lambda: left() == 0, 60)
    result("I-D3: what lies on it moves to the others", empty, f"{left()} fragments left")
    code, said = node.devctl(f"drain --cancel --dir /mnt/node {path} --reason 'it stays'")
    result("an operator keeps it", code == 0, said[-600:])
    shown = lambda device: (device.get("state"), bool(device.get("evacuation")))
    await_true(lambda: shown(node.device(path)) == ("degraded", False), 10)
    # Several looks at the same warning. Nothing marks the moment at which nothing happens.
    deadline = time.monotonic() + 2.5 * SMART_INTERVAL_S
    states = set()
    while time.monotonic() < deadline:
        # A status that does not come says nothing; none at all is no proof.
        if seen := node.device(path):
            states.add(shown(seen))
        time.sleep(1)
    begun = [change["reason"] for change in node.device(path).get("history", []) if change["state"] == "evacuating"]
    once = states == {("degraded", False)} and len(begun) == 1
    result("I-D3: it is not begun again for the same cause", once, (states, begun))
    wear = node.device(path).get("wear") or {}
    result("and the warning still shows", wear.get("is_critical") and wear.get("warnings"), wear)
    warn(0)
    monitor.close()


def main():
    work = pathlib.Path(sys.argv[1])
    work.mkdir(parents=True, exist_ok=True)
    drives = work / "running"
    drives.mkdir(exist_ok=True)
    metadata = drives / "drive0.img"
    with open(metadata, "wb") as image:
        image.truncate(METADATA_BYTES)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-F", metadata], check=True)
    shown = [f"{METADATA_BYTES}:512", "160M:512;vwc=0", "160M:4096"]
    machine = Machine(work, "running", shown, SETUP, cores=2, poll_queues=2, KEEP=str(drives))
    try:
        if not machine.wait_ready():
            result("a node starts on files", False, machine.console()[-2000:])
            return summary()
        node, client = Node(machine), Client(machine)
        status, body = client.request("PUT", "/running")
        assert status in (200, 409), (status, body)
        enroll(node)
        names, lost = [f"first-{number}" for number in range(30)], []
        write(client, names, lost)
        result("objects are written", not lost, "; ".join(lost[:3]))
        through_reset(node, client)
        worn(node)
        wrong = read_back(client, names)
        result("I-L5: what was written first is there at the end", not wrong, "; ".join(wrong[:3]))
    except (OSError, ValueError, http.client.HTTPException) as error:
        # Also an answer that is no JSON, or was cut off.
        result("the node stays", False, f"{error}; {machine.console()[-1500:]}")
    finally:
        machine.end()
    return summary()


if __name__ == "__main__":
    sys.exit(main())
