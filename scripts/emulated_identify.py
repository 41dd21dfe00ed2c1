"""What an emulated drive says of itself, where QEMU has no property for it.

    emulated_identify.py MONITOR DRIVE:FIELD=VALUE,... [DRIVE:...] -- QEMU ARGUMENTS...

Starts QEMU, which stops before the machine's first step (-S) and listens on MONITOR, changes the fields in the Identify pages that
QEMU keeps in its memory, and lets the machine run. So the guest never sees anything else, and what the drive does is
QEMU's. DRIVE is the number at the end of its serial number. Exits as QEMU does.
"""

import ctypes
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time

# Field: (page, offset, how it is packed). Offsets are those of the specification.
FIELDS = {
    "crdt1": ("controller", 128, "<H"),
    "crdt2": ("controller", 130, "<H"),
    "crdt3": ("controller", 132, "<H"),
    "fna": ("controller", 524, "<B"),
    "vwc": ("controller", 525, "<B"),
    "noiob": ("namespace", 46, "<H"),
}
MODEL = b"QEMU NVMe Ctrl".ljust(40)
# Memory of the machine itself is not looked at: nothing is in it yet, and it is long.
REGION_BYTES_MAX = 128 << 20
PR_SET_PDEATHSIG = 1


class Monitor:
    """The least of QEMU's monitor protocol."""

    def __init__(self, path, patience_s=10):
        deadline = time.monotonic() + patience_s
        self.socket = socket.socket(socket.AF_UNIX)
        while True:
            try:
                self.socket.connect(str(path))
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        self.stream = self.socket.makefile("r")
        self.stream.readline()
        self.ask("qmp_capabilities")

    def ask(self, command, **arguments):
        self.socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        for line in self.stream:
            answer = json.loads(line)
            if "error" in answer:
                raise OSError(f"QEMU refuses {command} {arguments}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
        raise OSError(f"QEMU ended before it answered {command}")

    def close(self):
        self.stream.close()
        self.socket.close()


def regions(pid):
    """Writable private memory."""
    with open(f"/proc/{pid}/maps") as maps:
        for line in maps:
            start, end, rights = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+)", line).groups()
            start, end = int(start, 16), int(end, 16)
            if rights == "rw-p" and end - start <= REGION_BYTES_MAX:
                yield start, end


def pages(memory, pid, drive):
    """Addresses of the drive's Identify pages, by kind."""
    serial = f"kiseki{drive}".encode().ljust(20)
    identifier = struct.pack(">Q", 0x6B6973656B690000 + drive * 256 + 1)
    found = {"controller": [], "namespace": []}
    for start, end in regions(pid):
        try:
            memory.seek(start)
            content = memory.read(end - start)
        except OSError:
            continue
        for match in re.finditer(re.escape(serial + MODEL), content):
            found["controller"].append(start + match.start() - 4)
        for match in re.finditer(re.escape(identifier), content):
            first = match.start() - 120
            # Size, capacity and use are the same in an Identify page of QEMU's, and nowhere else in front of the identifier.
            if first >= 0 and len(set(struct.unpack_from("<3Q", content, first))) == 1:
                found["namespace"].append(start + first)
    return found


def change(pid, wishes):
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        for wish in wishes:
            drive, fields = wish.split(":", 1)
            found = pages(memory, pid, int(drive))
            for field in fields.split(","):
                name, value = field.split("=")
                kind, offset, packing = FIELDS[name]
                if len(found[kind]) != 1:
                    sys.exit(f"drive {drive} has {len(found[kind])} Identify pages of its {kind} in QEMU's memory, not 1")
                memory.seek(found[kind][0] + offset)
                memory.write(struct.pack(packing, int(value, 0)))


def die_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main():
    split = sys.argv.index("--")
    monitor_path, wishes = sys.argv[1], sys.argv[2:split]
    qemu = subprocess.Popen(sys.argv[split + 1 :], preexec_fn=die_with_parent)
    signal.signal(signal.SIGTERM, lambda *_: qemu.terminate())
    monitor = Monitor(monitor_path)
    change(qemu.pid, wishes)
    monitor.ask("cont")
    monitor.close()
    sys.exit(qemu.wait())


if __name__ == "__main__":
    main()
