"""Addresses for nodes: a network namespace each, on a bridge that clients are on too, where root may make such; otherwise ports of
the loopback. Between the nodes, never towards clients, packets can be dropped one way or by chance, and a node's link can be slow."""

import os
import shutil
import subprocess

NETWORK = "10.{}.{}.{}"
PORT = 9000


def can_separate():
    """Why nodes can't have addresses of their own here, or nothing."""
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    missing = [program for program in ("ip", "tc", "nft", "nsenter", "unshare") if shutil.which(program) is None]
    if missing:
        return f"{', '.join(missing)} is missing (iproute2, nftables, util-linux)"
    name = f"kft{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode != 0:
        return "network namespaces can't be made here"
    rules = run_in(name, ["nft", "-f", "-"], "table inet t {\n chain c {\n  type filter hook output priority 0;\n  numgen random mod 100 < 1 drop\n }\n}\n")
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return "" if rules.returncode == 0 else f"nft: {rules.stderr.strip()}"


def run_in(name, words, text=None):
    return subprocess.run(["nsenter", f"--net=/run/netns/{name}", *words], input=text, capture_output=True, text=True)


class Net:
    """The namespaces of one run, named after this process."""

    def __init__(self):
        tag = os.getpid()
        self.prefix = f"kf{tag}"
        self.bridge, self.part = f"kf{tag}b", (64 + tag // 250 % 64, tag % 250)
        self.names, self.cuts, self.lossy, self.slow = {}, set(), {}, {}
        self.host = NETWORK.format(*self.part, 254)
        must(["ip", "link", "add", self.bridge, "type", "bridge"])
        must(["ip", "addr", "add", f"{self.host}/24", "dev", self.bridge])
        must(["ip", "link", "set", self.bridge, "up"])

    def address(self, number):
        return NETWORK.format(*self.part, number)

    def add(self, number):
        name, outside = f"{self.prefix}n{number}", f"kf{os.getpid()}v{number}"
        must(["ip", "netns", "add", name])
        self.names[number] = name
        must(["ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", name])
        must(["ip", "link", "set", outside, "master", self.bridge, "up"])
        for words in [
            ["ip", "link", "set", "lo", "up"],
            ["ip", "addr", "add", f"{self.address(number)}/24", "dev", "eth0"],
            ["ip", "link", "set", "eth0", "up"],
        ]:
            done = run_in(name, words)
            if done.returncode != 0:
                raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
        return name

    def cut(self, sender, receiver):
        """What one sends to the other is lost; what the other sends arrives."""
        self.cuts.add((sender, receiver))

    def lose(self, number, percent):
        """So many of the packets between a node and the others are lost."""
        self.lossy[number] = percent

    def slow_down(self, number, kilobits):
        """A node sends no faster than this."""
        self.slow[number] = kilobits

    def heal(self):
        self.cuts, self.lossy, slow, self.slow = set(), {}, self.slow, {}
        for number in slow:
            run_in(self.names[number], ["tc", "qdisc", "del", "dev", "eth0", "root"])
        self.apply()

    def apply(self):
        for number, name in self.names.items():
            others = ", ".join(self.address(other) for other in self.names if other != number)
            # Where it would arrive: the sender learns nothing.
            rules = [f"ip saddr {self.address(sender)} drop" for sender, to in sorted(self.cuts) if to == number]
            for other, percent in self.lossy.items():
                senders = f"{{ {others} }}" if other == number else self.address(other)
                rules.append(f"ip saddr {senders} numgen random mod 100 < {percent} drop")
            chain = "\n  ".join(["type filter hook input priority 0;", *rules])
            text = f"table inet faults\ndelete table inet faults\ntable inet faults {{\n chain arrived {{\n  {chain}\n }}\n}}\n"
            done = run_in(name, ["nft", "-f", "-"], text)
            if done.returncode != 0:
                raise RuntimeError(f"nft: {done.stderr.strip()}\n{text}")
            if number in self.slow:
                rate = ["rate", f"{self.slow[number]}kbit", "burst", "16kb", "latency", "2s"]
                done = run_in(name, ["tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", *rate])
                if done.returncode != 0:
                    raise RuntimeError(f"tc: {done.stderr.strip()}")

    def remove(self):
        for name in self.names.values():
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        subprocess.run(["ip", "link", "del", self.bridge], capture_output=True)


def must(words):
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
