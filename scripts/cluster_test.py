#!/usr/bin/env python3
"""Several nodes on this machine: joining and its refusals, one data for all, and nodes that die.

    cluster_test.py DIRECTORY [--nodes 3] [--phases join,refusals,data,split,small,health,requests,drain,kill-one,kill-all,leave,grow] [--rounds 1] [--seed 1]

`join` comes first and is always run; `--phases` names those that follow, in this order: refusals (who may not join or start), data (put
through one node, read through all), split (a shard is split while clients work, then another while its leader dies), small (the threshold of small objects changes under load), health (what healthz, health, top and metrics say while a node is down and when it is back), requests (one id in the logs of several nodes), drain (one more node joins and leaves), kill-one (kill -9 of each node in turn while clients work), kill-all (kill -9 of all, start in random
order), leave (a drain that is cancelled, a lost node), grow (another cluster: nodes join when data are there,
and when what was written has spread over them each node may go). Needs boto3 (target/client-test-venv, see client-test.sh). Ends with a line "N passed, M failed".
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import shutil
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request

from node import PROGRAMS, SERVER, Node, Results, check, command, free_port, kiseki, listed, status, until, votes_missing

KIB, MIB = 1 << 10, 1 << 20
DEVCTL = PROGRAMS / "kiseki-devctl"
BUCKET = "cluster"
# A leader is elected, links time out, a retry: what a client may see of a dead node.
FAILOVER_SECONDS_MAX = 30
# Chunks, and what lies beside its name at the thresholds that `small` sets.
LOAD_SIZES = [50 * KIB, 900, 1500, 4 * KIB]
PHASES = ["refusals", "data", "split", "small", "health", "requests", "drain", "kill-one", "kill-all", "leave", "grow"]


class Cluster:
    def __init__(self, work, count, racks=lambda number: f"r{number}"):
        self.racks = racks
        self.work, self.nodes, self.written, self.lock = work, [], {}, threading.Lock()
        self.peer_ports = {}
        self.count = count

    def peer_words(self, number):
        self.peer_ports.setdefault(number, free_port())
        return ["--peer-listen", f"127.0.0.1:{self.peer_ports[number]}", "--lanes", 2, "--rack", self.racks(number)]

    def form(self, pool="3 copies"):
        first = Node(self.work / "node1", devices=2, init=["--pool", pool, *self.peer_words(1)])
        os.environ["KISEKI_CORES"] = "1"
        self.nodes.append(first)
        first.start()

    def invite(self, name):
        bundle = self.work / name
        code, out, error = kiseki(self.nodes[0], "node", "add", "--out", bundle, "--json")
        if code != 0:
            raise RuntimeError(f"node add: {error}")
        return json.loads(out)["node"], bundle

    def join(self):
        number, bundle = self.invite(f"bundle{len(self.nodes) + 1}")
        node = Node(self.work / f"node{number}", devices=2, init=["--join", bundle, *self.peer_words(number)])
        self.nodes.append(node)
        node.number, node.bundle = number, bundle
        return node

    def put(self, client, key, size, seed):
        body = random.Random(seed).randbytes(size)
        client.put_object(Bucket=BUCKET, Key=key, Body=body)
        with self.lock:
            self.written[key] = hashlib.sha256(body).hexdigest()

    def bad_reads(self, node):
        """Keys that were acknowledged and do not read back through a node."""
        client, bad = node.client(), []
        with self.lock:
            written = dict(self.written)
        for key, digest in written.items():
            try:
                body = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
            except Exception as error:  # noqa: BLE001: whatever it is, it is not the object
                bad.append(f"{key}: {error}")
                continue
            if hashlib.sha256(body).hexdigest() != digest:
                bad.append(f"{key}: other bytes")
        return bad

    def stop(self):
        for node in self.nodes:
            if node.process is not None:
                node.kill()


def join(cluster):
    cluster.form()
    first = cluster.nodes[0]
    recorded = until("the first node is recorded", lambda: 1 in listed(first))
    check(recorded, "the node that forms the cluster is recorded as node 1")
    while len(cluster.nodes) < cluster.count:
        node = cluster.join()
        check((node.dir / "keys/key-store").exists(), f"node {node.number} has the keys")
        check((node.dir / "nodes.json").exists() and not (node.dir / "pki/ca.key").exists(), "knows the others, and has no authority")
        check(listed(first)[node.number]["state"] == "invited", "and is invited until it starts")
        code, _, error = command(SERVER, "init", "--dir", node.dir, "--join", node.bundle, *cluster.peer_words(node.number))
        check(code == 0, f"joining again changes nothing {error}")
        node.start()
        until("it is recorded as active", lambda: listed(first)[node.number]["state"] == "active")
        check(status(node)["node"] == node.number, f"node {node.number} serves")
    for node in cluster.nodes:
        until("all nodes are active", lambda: [row["state"] for row in status(node)["nodes"]] == ["active"] * cluster.count)
        check(True, f"all are active as {node.dir.name} sees it")
    until("every shard has its voters", lambda: votes_missing(cluster.nodes) == 0)
    check(True, "every shard has its voters")
    until("repair has looked at everything", lambda: all(status(node)["repair"]["at_full_width"] for node in cluster.nodes))
    check(True, "every stripe is at full width, as each node sees it")


def refusals(cluster):
    first, work = cluster.nodes[0], cluster.work
    before = len(listed(first))
    code, _, error = kiseki(first, "node", "add", "--out", work)
    check(code != 0 and "exists" in error, f"a bundle is not written over: {error.strip()}")
    check(len(listed(first)) == before, "and no number is lost by it")
    if len(cluster.nodes) > 1:
        code, _, error = kiseki(cluster.nodes[1], "node", "add")
        check(code != 0 and "authority" in error, f"without the authority nobody is added: {error.strip()}")
    number, bundle = cluster.invite("refused")
    words = ["--devices", 2, "--device-gib", 1, *cluster.peer_words("spare")]
    code, _, error = command(SERVER, "init", "--dir", work / "spare", "--join", work, *words)
    check(code != 0 and "node add" in error, f"what is no bundle is refused: {error.strip()}")
    code, _, error = command(SERVER, "init", "--dir", first.dir, "--join", bundle, *words)
    check(code != 0 and "new directory" in error, f"a node's directory joins nothing else: {error.strip()}")
    code, _, error = kiseki(first, "node", "remove", "1")
    check(code != 0 and "drain" in error, f"a node in use is not removed by the way: {error.strip()}")
    code, _, error = kiseki(first, "node", "drain", "99")
    check(code != 0 and "not recorded" in error, f"nobody is no node: {error.strip()}")
    code, _, error = kiseki(first, "node", "remove", number)
    check(code == 0, f"an invitation is taken back {error}")
    code, _, error = command(SERVER, "init", "--dir", work / "spare", "--join", bundle, *words)
    check(code != 0 and "removed" in error, f"whoever was removed gets no keys: {error.strip()}")
    check(not (work / "spare/keys/key-store").exists() and not list((work / "spare").glob("devices/*")), "and nothing was formatted")
    code, _, error = command(SERVER, "init", "--dir", work / "spare")
    check(code != 0 and "--join" in error, f"and forms no cluster of its own (I-O4): {error.strip()}")
    code, _, error = command(SERVER, "run", "--dir", work / "spare")
    check(code != 0 and "passphrase" in error, f"what has not joined does not start: {error.strip().splitlines()[-1:]}")

    number, bundle = cluster.invite("copied")
    spare = Node(work / "copied-node", devices=2, init=["--join", bundle, *cluster.peer_words("copied")])
    certificate = spare.dir / "pki/node"
    shutil.move(certificate, work / "own-certificate")
    shutil.copytree(first.dir / "pki/node", certificate)
    try:
        spare.start()
        check(False, "a certificate of another node is refused")
    except RuntimeError as error:
        check("belongs to node" in str(error), "a certificate of another node is refused, and that is said")
    if spare.process is not None and spare.process.poll() is None:
        spare.kill()
    kiseki(first, "node", "remove", number)


def data(cluster, rng):
    writer = cluster.nodes[0].client()
    writer.create_bucket(Bucket=BUCKET)
    for index in range(40):
        cluster.put(writer, f"data/{index}", rng.choice([1, 10 * KIB, 300 * KIB, 3 * MIB]), index)
    for node in cluster.nodes:
        bad = cluster.bad_reads(node)
        check(not bad, f"everything reads back through {node.dir.name} {bad[:3]}")
    for node in cluster.nodes[1:]:
        cluster.put(node.client(), f"by/{node.dir.name}", 200 * KIB, node.number)
    check(not cluster.bad_reads(cluster.nodes[0]), "what others wrote reads back through the first")


def shards(node):
    code, out, error = kiseki(node, "shard", "list", "--json")
    if code != 0:
        raise RuntimeError(f"shard list: {error}")
    return {row["shard"]: row for row in json.loads(out)}


def bad_listing(cluster, node):
    """What is acknowledged and not listed, or listed twice, in pages of 100."""
    with cluster.lock:
        written = set(cluster.written)
    pages = node.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, PaginationConfig={"PageSize": 100})
    keys = [row["Key"] for page in pages for row in page.get("Contents", [])]
    bad = [f"{key} is missing" for key in sorted(written - set(keys))]
    if keys != sorted(set(keys), key=str.encode):
        bad.append("keys are out of order or listed twice")
    return bad


def split(cluster):
    """Keys move to another shard while clients write and list them; then again while the leader of the shard dies."""
    first = cluster.nodes[0]
    load = Load(cluster, cluster.nodes, "split")
    try:
        until("clients are at work", lambda: load.puts > 20)
        parent = max(shards(first).values(), key=lambda row: row["writes_per_minute"])
        check(parent["writes_per_minute"] > 0 and len(parent["voters"]) == 3, f"the list says which shard has to do: {parent}")
        code, _, error = kiseki(first, "shard", "split", parent["shard"], "--bucket", "nobody", "--at", "x")
        check(code != 0 and "bucket" in error, f"a bucket that is not there is refused: {error.strip()}")
        code, out, error = kiseki(first, "shard", "split", parent["shard"], "--bucket", BUCKET, "--at", "data/3", "--json")
        check(code == 0, f"a shard is split {error}")
        child = json.loads(out)["child"]
        until("the keys have moved", lambda: shards(first)[child]["split_of"] is None and shards(first)[child]["leader"])
        before = load.puts
        until("puts go on", lambda: load.puts > before + 20)
        check(load.longest < FAILOVER_SECONDS_MAX, f"clients waited for {load.longest:.1f} s at most")
        row = shards(first)[child]
        check(row["state"] == "serves" and len(row["voters"]) == 3, f"the new shard serves: {row}")
        check(shards(first)[parent["shard"]]["given"] == 1, "and the old one says that it gave keys away")
        for node in cluster.nodes:
            bad = bad_listing(cluster, node)
            check(not bad, f"all keys are listed once through {node.dir.name} {bad[:3]}")
        # By the keys that are asked for, and with a leader that dies.
        code, out, error = kiseki(first, "shard", "split", child, "--json")
        check(code == 0, f"it is split again, by what is asked for {error}")
        grandchild = json.loads(out)["child"]
        until("it begins", lambda: "split" in shards(first)[child]["state"])
        leader = shards(first)[child]["leader"]
        victim = next((node for node in cluster.nodes if getattr(node, "number", 1) == leader), cluster.nodes[-1])
        victim.kill()
        witness = next(node for node in cluster.nodes if node is not victim)
        until("it has another leader", lambda: shards(witness)[child]["leader"] not in (None, leader))
        victim.start()
        until("the keys have moved", lambda: shards(witness)[grandchild]["split_of"] is None and shards(witness)[grandchild]["leader"])
        check(True, "a split whose leader died goes on by itself")
    finally:
        load.end()
    for node in cluster.nodes:
        bad = cluster.bad_reads(node) + bad_listing(cluster, node)
        check(not bad, f"everything reads back and is listed through {node.dir.name} {bad[:3]}")
    until("every shard has its voters", lambda: votes_missing(cluster.nodes) == 0)


def small(cluster):
    """The threshold of a shard changes while clients write on both sides of it (I-L9: it holds for later writes only)."""
    first = cluster.nodes[0]
    load = Load(cluster, cluster.nodes, "small")

    def inline_writes():
        return sum(metric(node, "inline_writes_total") for node in cluster.nodes)

    def go_on():
        before, inline_before = load.puts, inline_writes()
        until("puts go on", lambda: load.puts > before + 30)
        until("small ones lie beside their names", lambda: inline_writes() > inline_before)

    try:
        until("clients are at work", lambda: load.puts > 20)
        busy = [number for number, row in shards(first).items() if row["writes_per_minute"] > 0]
        go_on()
        for threshold in (1 * KIB, 4 * KIB):
            for number in busy:
                code, _, error = kiseki(first, "shard", "threshold", number, threshold)
                check(code == 0, f"the threshold of shard {number} becomes {threshold} under load {error}")
            go_on()
    finally:
        load.end()
    check(not load.failures, f"nobody was refused for it {load.failures[:3]}")
    for node in cluster.nodes:
        bad = cluster.bad_reads(node) + bad_listing(cluster, node)
        check(not bad, f"objects of both kinds read back and are listed through {node.dir.name} {bad[:3]}")


def metric(node, name):
    """The value of a metric without labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{node.admin_port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return next(int(float(line.split()[1])) for line in lines if line.startswith(f"kiseki_{name} "))


def healthz(node, path="healthz"):
    """Status and JSON (or text) of what a node says of health."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{node.admin_port}/{path}", timeout=10) as answer:
            code, body = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        code, body = error.code, error.read()
    return code, json.loads(body) if path == "healthz" else body.decode()


def home_leader(nodes):
    """One that leads a home of chunks, so that others have to look after its stripes when it is gone."""
    homes = lambda node: [it for core in status(node)["core_reports"].values() for it in core["shards"] if it["is_led_here"] and 0 < it["shard"] < 1024]
    return next((node for node in reversed(nodes) if homes(node)), nodes[-1])


def health(cluster):
    """Whether the cluster would hold without a node, as each says: all up, one down, all up again; and what is shown meanwhile."""
    nodes, victim = cluster.nodes, home_leader(cluster.nodes[1:])
    others = [node for node in nodes if node is not victim]
    for node in nodes:
        until(f"the cluster holds without {node.dir.name}", lambda: healthz(node)[0] == 200)
        found = healthz(node)[1]
        check(found["ok"] and not found["reasons"] and not found["alone"], f"the cluster holds without {node.dir.name}")
    code, out, error = kiseki(nodes[0], "health")
    check(code == 0 and out.startswith("ok"), f"kiseki health says so: {out.strip()} {error}")
    rows = json.loads(kiseki(nodes[0], "node", "list", "--json")[1])
    racks = {row["node"]: row.get("rack") for row in rows if row["state"] == "active"}
    check(len(racks) == len(nodes) and racks == {number: f"r{number}" for number in racks}, f"every node's rack is recorded: {racks}")
    code, out, error = kiseki(nodes[0], "health", "--rack", "r2")
    check(code == 0 and "without rack r2" in out, f"the cluster holds without a rack: {out.strip()} {error}")
    code, out, _ = kiseki(nodes[0], "health", "--rack", "r77")
    check(code == 1 and "no node says that it is in rack r77" in out, f"a rack that nobody is in is called that: {out.strip()}")
    victim.kill()
    for node in others:
        until("it is said that no other node may leave", lambda: healthz(node)[0] == 503)
        named = lambda: all(any(words in it for it in healthz(node)[1]["reasons"]) for words in ("pool 0", "shard s", f"node {victim.number}"))
        until("pool, shards and the silent node are named", named)
        check(healthz(node)[0] == 503, f"{node.dir.name} must stay: {healthz(node)[1]['reasons']}")
        check([healthz(node, path)[0] for path in ("livez", "readyz")] == [200, 200], "and lives and is ready all the same")
    code, out, _ = kiseki(nodes[0], "health", "--json")
    check(code == 1 and not json.loads(out)["ok"], "kiseki health exits with 1")
    number = victim.number
    # Repair looks once more at what there is, with the node away.
    until("without the node that is down the cluster holds", lambda: kiseki(nodes[0], "health", number)[0] == 0)
    check(True, "without the node that is down the cluster holds")
    alerts = until("the silent node is an alert", lambda: [it for it in status(nodes[0])["alerts"] if "silent" in it])
    check(f"node {number}" in alerts[0], f"the silent node is an alert: {alerts}")
    victim.start()
    for node in nodes:
        until(f"the cluster holds without {node.dir.name} again", lambda: healthz(node)[0] == 200)
        check(True, f"when it is back the cluster holds without {node.dir.name}")

    shards = [shard for core in status(nodes[0])["core_reports"].values() for shard in core["shards"]]
    led = [shard for shard in shards if shard["is_led_here"]]
    check(all(shard["leader"] and len(shard["voters"]) >= 3 for shard in shards), f"{len(shards)} shards have leaders and voters")
    check(all(len(shard["followers"]) >= 2 for shard in led), "and leaders know their followers")
    code, out, error = kiseki(nodes[0], "top", "--json")
    frame = json.loads(out) if code == 0 else {}
    shown = [key for key in ("nodes", "cores", "devices", "pools", "shards") if frame.get(key)]
    check(len(shown) == 5, f"top shows nodes, cores, devices, pools, shards: {shown} {error}")
    check(all(0 < core["busy_percent"] < 101 for core in frame["cores"]), f"cores are busy: {frame['cores']}")
    code, out, _ = kiseki(nodes[0], "top", "--once")
    check(code == 0 and "BACKLOG" in out and "SHARD" in out, "top shows it as text once")
    _, metrics = healthz(nodes[0], "metrics")
    for name in ("shard_is_leader{", "shard_follower_lag_entries{", "shard_proposals_total{", "core_cpu_us_total{"):
        check(f"kiseki_{name}" in metrics, f"{name[:-1]} is in /metrics")


    elsewhere(cluster)


def elsewhere(cluster):
    """A device of one node, administered from where another one is."""
    first, second = cluster.nodes[0], cluster.nodes[1]
    code, out, error = kiseki(first, "ca", "issue-admin", "--name", "tester")
    check(code == 0, f"an administrator gets a certificate {error}")
    device = status(second)["devices"][0]
    link = ["--node", f"localhost:{cluster.peer_ports[second.number]}", "--cert", first.dir / "pki/admin-tester"]
    state = lambda: next(it["state"] for it in status(second)["devices"] if it["id"] == device["id"])
    code, out, error = command(DEVCTL, "drain", device["path"], *link, "--dry-run")
    check(code == 0 and "would move" in out and state() == "healthy", f"a drain elsewhere is tried out: {out.strip()} {error}")
    code, out, error = command(DEVCTL, "drain", device["path"], *link, "--json")
    check(code == 0 and json.loads(out)["state"] == "evacuating", f"a device of a node elsewhere is drained {error}")
    until("it is being emptied", lambda: state() == "evacuating")
    code, out, error = command(DEVCTL, "drain", device["id"], *link, "--cancel")
    check(code == 0, f"and kept after all {error}")
    until("it is healthy again", lambda: state() == "healthy")
    code, out, error = command(DEVCTL, "enroll", "/dev/nowhere", *link, "--format")
    check(code == 1 and "machine" in error, f"nothing is formatted from elsewhere: {error.strip()}")
    code, out, error = command(DEVCTL, "enroll", "nowhere", *link)
    check(code != 0 and "whole path" in error, f"a path that means something here alone is refused: {error.strip()}")


def requests(cluster):
    """One id of a client's request in the logs of the node that it talks to and of others."""
    for node in cluster.nodes:
        config = node.dir / "kiseki.toml"
        text = config.read_text()
        check("slow_request_ms = 1000" in text, f"{node.dir.name} tells of slow requests")
        config.write_text(text.replace("slow_request_ms = 1000", "slow_request_ms = 0.01"))
        node.stop()
        node.start()
    first, others = cluster.nodes[0], cluster.nodes[1:]
    client, body = first.client(), random.Random(7).randbytes(300 * KIB)
    number = iter(range(1000))

    def is_told():
        # One warning in five seconds, so not every request is told of on every node.
        answer = client.put_object(Bucket=BUCKET, Key="request", Body=next(number).to_bytes(4, "big") + body)
        name = answer["ResponseMetadata"]["HTTPHeaders"]["x-amz-request-id"]
        logs = [node.log.read_text(errors="replace") for node in [first, *others]]
        told = all(any(name in log for log in some) for some in (logs[:1], logs[1:]))
        # Each node holds further warnings back for five seconds from its last one: after those all tell of the next request.
        return name if told else time.sleep(6)

    name = until("one request is told of on several nodes", is_told)
    check(len(name) == 16, f"request {name} is in the log of the node that was asked and of another one")


def drain(cluster):
    """One more node joins, gets its share, and leaves in good order. Before anything is killed: what writers leave that died
    stays where it is until it is settled, which takes an hour."""
    first, guest, said = cluster.nodes[0], cluster.join(), []
    guest.start()
    until("the new node is active", lambda: listed(first)[guest.number]["state"] == "active")
    until("it is given fragments", lambda: any(row["node"] == guest.number and row["devices"] for row in status(first)["nodes"]))
    for index in range(30):
        cluster.put(first.client(), f"guest/{index}", 100 * KIB, index)
    code, _, error = kiseki(first, "node", "drain", guest.number)
    check(code == 0, f"a node is drained {error}")

    def leaves():
        code, _, error = kiseki(first, "node", "remove", guest.number)
        said.append(error.strip())
        return code == 0

    try:
        until("it leaves", leaves)
    except RuntimeError:
        check(False, f"it leaves: {said[-1]}")
        raise
    check(any("still holds" in error for error in said), f"it leaves, and not before what it held has moved: {said[0][:120]}")
    guest.kill()
    cluster.nodes.remove(guest)
    for node in cluster.nodes:
        bad = cluster.bad_reads(node)
        check(not bad, f"everything reads back through {node.dir.name} without it {bad[:3]}")
    until("every shard has its voters", lambda: votes_missing(cluster.nodes) == 0)


class Load:
    """Puts and gets through the nodes that live, how many failed (no client tries again), and how long they failed in one go."""

    def __init__(self, cluster, nodes, name):
        self.cluster, self.nodes, self.name, self.ending = cluster, nodes, name, threading.Event()
        self.puts, self.longest, self.threads, self.failures = 0, 0.0, [], []
        for number, node in enumerate(nodes):
            thread = threading.Thread(target=self.work, args=(number, node))
            thread.start()
            self.threads.append(thread)

    def work(self, number, node):
        client = node.client(read_timeout=40, connect_timeout=5, retries={"max_attempts": 0})
        index, good_at = 0, time.monotonic()
        while not self.ending.is_set():
            key = f"{self.name}/{number}/{index}"
            try:
                self.cluster.put(client, key, LOAD_SIZES[index % len(LOAD_SIZES)], hash((number, index)) & 0xFFFF)
                client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
            except Exception as error:  # noqa: BLE001: it counts as time without service
                with self.cluster.lock:
                    self.failures.append(f"{key}: {error}")
                self.ending.wait(0.2)
                is_good = False
            else:
                is_good = True
            with self.cluster.lock:
                self.longest = max(self.longest, time.monotonic() - good_at)
                self.puts += is_good
            good_at = time.monotonic() if is_good else good_at
            index += 1

    def end(self):
        self.ending.set()
        for thread in self.threads:
            thread.join()


def kill_one(cluster, rng, rounds):
    for number in range(rounds):
        for victim in rng.sample(cluster.nodes, len(cluster.nodes)):
            living = [node for node in cluster.nodes if node is not victim]
            load = Load(cluster, living, f"kill-{number}-{victim.dir.name}")
            try:
                until("clients are at work", lambda: load.puts > 5)
                victim.kill()
                before = load.puts
                until("puts go on", lambda: load.puts > before + 5, FAILOVER_SECONDS_MAX)
                check(True, f"without {victim.dir.name} puts and gets go on")
                victim.start()
                before = load.puts
                until("puts go on", lambda: load.puts > before + 5)
            finally:
                load.end()
            print(f"     {len(load.failures)} of {load.puts + len(load.failures)} puts and gets through the others failed, none tried again by its client {load.failures[:3]}", flush=True)
            check(load.longest < FAILOVER_SECONDS_MAX, f"no client waited longer than {load.longest:.1f} s")
            bad = cluster.bad_reads(victim)
            check(not bad, f"everything reads back through {victim.dir.name}, which came back {bad[:3]}")


def kill_all(cluster, rng, rounds):
    for _ in range(rounds):
        load = Load(cluster, cluster.nodes, f"all-{rng.randrange(1 << 30)}")
        until("clients are at work", lambda: load.puts > 5)
        order = rng.sample(cluster.nodes, len(cluster.nodes))
        for node in order:
            node.kill()
        load.end()
        first, *others = rng.sample(cluster.nodes, len(cluster.nodes))
        first.launch()
        waits = until("a node alone says for whom it waits", lambda: kiseki(first, "status", "--json")[0] == 0 and status(first)["waits_for"])
        check("node" in waits, f"a node alone waits and says so: {waits}")
        for node in others:
            node.launch()
        for node in cluster.nodes:
            node.await_ready()
        for node in cluster.nodes:
            bad = cluster.bad_reads(node)
            check(not bad, f"after a start in any order everything reads back through {node.dir.name} {bad[:3]}")


def leave(cluster):
    first, last = cluster.nodes[0], cluster.nodes[-1]
    code, _, error = kiseki(first, "node", "drain", last.number)
    check(code == 0 and listed(first)[last.number]["state"] == "draining", f"a node is drained {error}")
    code, _, error = kiseki(first, "node", "drain", last.number, "--cancel")
    check(code == 0 and listed(first)[last.number]["state"] == "active", f"and kept after all {error}")
    last.kill()
    code, _, error = kiseki(first, "node", "remove", last.number, "--lost")
    check(code == 0 and listed(first)[last.number]["state"] == "removed", f"a lost one is removed {error}")
    bad = cluster.bad_reads(first)
    check(not bad, f"everything reads back without it {bad[:3]}")
    metrics = urllib.request.urlopen(f"http://127.0.0.1:{first.admin_port}/metrics", timeout=5).read().decode()
    check('way="out"' in metrics, "links to others are in /metrics")


def grow(cluster):
    """2+1 on two nodes of one rack: a stripe has two fragments on one of them and would be lost with it. Two more join, each in a rack
    of its own; when rebalancing has ended (I-D4), any node may go, and then the rack of two."""
    cluster.stop()
    grown = Cluster(cluster.work / "grow", 4, lambda number: "a" if number <= 2 else f"b{number}")
    grown.work.mkdir()
    try:
        grow_and_lose(grown)
    finally:
        grown.stop()


def grow_and_lose(grown):
    grown.form("2+1")
    first, rng = grown.nodes[0], random.Random(3)

    def add_one():
        node = grown.join()
        node.start()
        until("it is recorded as active", lambda: listed(first)[node.number]["state"] == "active")

    def rebalance(node):
        return status(node)["rebalance"]

    def has_ended():
        reports = [rebalance(node) for node in grown.nodes]
        return all(report["at_rest"] and report["devices_surveyed"] == 2 * len(grown.nodes) for report in reports)

    def total(name):
        return sum(rebalance(node)[name] for node in grown.nodes)

    add_one()
    until("rebalancing is at rest on two nodes", has_ended)
    client = first.client()
    client.create_bucket(Bucket=BUCKET)
    for index in range(40):
        grown.put(client, f"grow/{index}", rng.choice([10 * KIB, 240 * KIB, 2 * MIB, 5 * MIB]), index)
    check(total("fragments_moved") == 0, "nothing moves while everything lies as it should")
    began = time.monotonic()
    add_one()
    add_one()
    until("rebalancing has ended, as every node sees it", has_ended)
    fragments, moved, needed = total("fragments_moved"), total("bytes_moved"), total("bytes_needed")
    print(
        f"  {fragments} fragments, {moved / MIB:.1f} MiB moved, {needed / MIB:.1f} MiB at the least, in {time.monotonic() - began:.1f} s"
        " with two joins"
    )
    check(fragments > 40 and needed <= moved * 1.02 and moved <= 1.1 * needed, "what lay on few nodes has spread, and little else moved")
    until("and is at full width", lambda: all(status(node)["repair"]["at_full_width"] for node in grown.nodes))
    shown = kiseki(first, "status")[1]
    check("rebalance at rest" in shown, "status says that it has ended")
    metrics = urllib.request.urlopen(f"http://127.0.0.1:{first.admin_port}/metrics", timeout=5).read().decode()
    check("kiseki_rebalance_at_rest 1" in metrics and "kiseki_rebalance_spread_bytes_total" in metrics, "and so do the metrics")
    log = "".join(node.log.read_text(errors="replace") for node in grown.nodes)
    check("rebalancing begins" in log and "rebalancing has ended" in log, "and the log")
    until("every shard has its voters", lambda: votes_missing(grown.nodes) == 0)
    for victim in list(grown.nodes):
        living = [node for node in grown.nodes if node is not victim]
        victim.kill()
        reads_back(grown, living[0], victim.dir.name)
        writes_go_on(grown, living[-1], victim.dir.name, victim.dir.name)
        victim.start()
    until("rebalancing is at rest again", has_ended)
    lose_a_rack(grown)


def reads_back(cluster, through, without):
    """Everything does, through a node, as soon as a loss is got over."""
    bad = [""]

    def all_read_back():
        bad[:] = cluster.bad_reads(through)
        return not bad

    try:
        until("a loss is got over", all_read_back, FAILOVER_SECONDS_MAX)
    except RuntimeError:
        pass
    check(not bad, f"without {without} everything reads back {bad[:3]}")


def lose_a_rack(grown):
    """I-D4: no stripe has more fragments in a rack than it can lose, and no shard a majority of its voters. The two nodes that are left
    of four have no room for a stripe of 2+1 that could lose one of them: they write two copies."""
    first, last = grown.nodes[0], grown.nodes[-1]

    def reasons():
        return json.loads(kiseki(last, "health", "--rack", "a", "--json")[1])["reasons"]

    until("no stripe and no shard needs the rack", lambda: not reasons())
    check(kiseki(last, "health", "--rack", "a")[0] == 0, "health says that the cluster holds without the rack of two nodes")
    for node in (first, grown.nodes[1]):
        node.kill()
    reads_back(grown, last, "a rack of two nodes")
    writes_go_on(grown, last, "a rack of two nodes", "rack")

    def copies():
        metrics = urllib.request.urlopen(f"http://127.0.0.1:{last.admin_port}/metrics", timeout=5).read().decode()
        return sum(float(line.split()[1]) for line in metrics.splitlines() if line.startswith("kiseki_stripes_as_copies_total"))

    until("they are counted as copies", copies)
    check(True, f"as copies: {copies():.0f}")
    reads_back(grown, last, "a rack of two nodes, and what was written meanwhile,")


def writes_go_on(cluster, through, without, key):
    """As soon as a loss is got over."""
    said = [""]

    def writes():
        try:
            cluster.put(through.client(), f"without/{key}", 300 * KIB, len(cluster.written))
        except Exception as error:  # noqa: BLE001: whatever it is, the write did not go on
            said[0] = str(error)
            return False
        return True

    try:
        until("writes go on", writes, FAILOVER_SECONDS_MAX)
        check(True, f"without {without} writes go on")
    except RuntimeError:
        check(False, f"without {without} writes go on: {said[0]}"); raise


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--phases", default=",".join(PHASES))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    phases = [phase for phase in arguments.phases.split(",") if phase and phase != "join"]
    strange = set(phases) - set(PHASES)
    if strange:
        parser.error(f"no such phase: {', '.join(strange)}")
    work = arguments.directory.resolve()
    work.mkdir(parents=True)
    rng, cluster = random.Random(arguments.seed), Cluster(work, arguments.nodes)
    steps = {
        "refusals": lambda: refusals(cluster),
        "data": lambda: data(cluster, rng),
        "split": lambda: split(cluster),
        "small": lambda: small(cluster),
        "health": lambda: health(cluster),
        "requests": lambda: requests(cluster),
        "drain": lambda: drain(cluster),
        "kill-one": lambda: kill_one(cluster, rng, arguments.rounds),
        "kill-all": lambda: kill_all(cluster, rng, arguments.rounds),
        "leave": lambda: leave(cluster),
        "grow": lambda: grow(cluster),
    }
    try:
        join(cluster)
        for phase in [phase for phase in PHASES if phase in phases]:
            print(f"== {phase}", flush=True)
            steps[phase]()
    except Exception:  # noqa: BLE001: what can't go on is a failure
        traceback.print_exc()
        for node in cluster.nodes:
            print(f"--- {node.log}\n{node.log_tail(15) if node.log.exists() else ''}", file=sys.stderr)
        check(False, "went on to the end")
    finally:
        cluster.stop()
    print(f"{Results.passed} passed, {Results.failed} failed")
    return Results.failed != 0


if __name__ == "__main__":
    sys.exit(main())
