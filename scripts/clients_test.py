#!/usr/bin/env python3
"""Real clients against a real node: rclone, s3cmd, boto3; then no plaintext on disk, and a clean stop and restart.

    clients_test.py DIRECTORY [--conformance SCRIPT]

Ends with a line "N passed, N failed".
"""

import argparse
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
import traceback

from node import PROGRAMS, Node

# Long enough never to come up by chance; looked for in every byte below the node's directory.
MARKER = b"kiseki-plaintext-marker-6e1f3c52-never-on-a-disk"
NAME_MARKER = "object-name-marker-93ab77d0"
CLI = PROGRAMS / "kiseki"


def run(*command, env=None, **options):
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stdout[-2000:]} {done.stderr[-2000:]}")
    return done.stdout


def make_tree(directory, files, seed):
    rng = random.Random(seed)
    for index in range(files):
        path = directory / f"d{index % 17}" / f"e{index % 5}" / f"file {index}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        length = rng.choice([0, 1, 100, 4096, 70_000, 300_000])
        path.write_bytes(rng.randbytes(length))
    (directory / "large.bin").write_bytes(rng.randbytes(48 << 20))
    (directory / f"{NAME_MARKER}.txt").write_bytes(MARKER * 3000)


def rclone_env(node):
    """Without AWS_CA_BUNDLE, which old versions of rclone stumble over."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return {**env, "RCLONE_CONFIG": str(node.dir / "rclone.conf")}


def rclone(node, tree):
    env = rclone_env(node)
    ca = ["--ca-cert", str(node.dir / "tls/ca.crt")]
    run("rclone", "mkdir", "kiseki:tree", *ca, env=env)
    run("rclone", "copy", str(tree), "kiseki:tree", *ca, "--transfers", "8", env=env)
    run("rclone", "check", "--download", str(tree), "kiseki:tree", *ca, env=env)


def rclone_after_restart(node, tree):
    env = rclone_env(node)
    run("rclone", "check", "--download", str(tree), "kiseki:tree", "--ca-cert", str(node.dir / "tls/ca.crt"), env=env)


def s3cmd(node, tree):
    config = ["-c", str(node.dir / "s3cfg")]
    run("s3cmd", *config, "mb", "s3://s3cmd-bucket")
    run("s3cmd", *config, "put", str(tree / "large.bin"), "s3://s3cmd-bucket/large.bin")
    with tempfile.TemporaryDirectory() as back:
        target = pathlib.Path(back) / "large.bin"
        run("s3cmd", *config, "get", "s3://s3cmd-bucket/large.bin", str(target))
        assert target.read_bytes() == (tree / "large.bin").read_bytes(), "s3cmd got other bytes back"
    assert "large.bin" in run("s3cmd", *config, "ls", "s3://s3cmd-bucket/")


def changes_of_buckets_hold_on_every_core(node, _tree):
    """Cores remember buckets: after a change is answered, no connection, whichever core it meets, sees what was before."""
    from botocore.exceptions import ClientError

    # A new client opens a new connection, which the kernel gives to any core.
    def each(action):
        for _ in range(16):
            client = node.client()
            action(client)
            client.close()

    def absent(client):
        try:
            client.put_object(Bucket="remembered", Key="late", Body=b"x")
        except ClientError as error:
            assert error.response["Error"]["Code"] == "NoSuchBucket", error
        else:
            raise AssertionError("a core wrote into a bucket that is deleted")

    def opaque(client):
        etag = client.put_object(Bucket="remembered", Key="k", Body=b"body")["ETag"].strip('"')
        assert etag != "841a2d689ad86bd1611447453c22c6fc", "a core goes on with MD5 ETags"

    each(absent)
    for _ in range(3):
        node.client().create_bucket(Bucket="remembered")
        each(lambda client: client.head_bucket(Bucket="remembered"))
        node.client().delete_bucket(Bucket="remembered")
        each(absent)
    node.client().create_bucket(Bucket="remembered")
    each(lambda client: client.put_object(Bucket="remembered", Key="k", Body=b"body"))
    run(str(CLI), "--dir", str(node.dir), "bucket", "set", "remembered", "--etag", "opaque")
    each(opaque)


def tenants_never_meet(node, _tree):
    import json

    import boto3
    from botocore.exceptions import ClientError

    run(str(CLI), "--dir", str(node.dir), "tenant", "create", "other", "--dedup", "private", "--json")
    key = json.loads(run(str(CLI), "--dir", str(node.dir), "key", "create", "other", "--json"))
    env = node.env()
    other = boto3.client(
        "s3",
        endpoint_url=env["AWS_ENDPOINT_URL"],
        aws_access_key_id=key["access_key_id"],
        aws_secret_access_key=key["secret_access_key"],
        region_name=env["AWS_REGION"],
        verify=env["AWS_CA_BUNDLE"],
    )
    assert other.list_buckets()["Buckets"] == [], "a new tenant has no buckets"
    answers = set()
    for bucket in ["tree", "no-such-bucket-at-all"]:
        try:
            other.list_objects_v2(Bucket=bucket)
            raise AssertionError(f"another tenant lists {bucket}")
        except ClientError as error:
            answers.add((error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]))
    assert len(answers) == 1, f"I-T1: absent and not yours look different: {answers}"


def opaque_etags(node, _tree):
    client = node.client()
    client.create_bucket(Bucket="opaque")
    run(str(CLI), "--dir", str(node.dir), "bucket", "set", "opaque", "--etag", "opaque")
    import hashlib

    etag = client.put_object(Bucket="opaque", Key="k", Body=b"x")["ETag"].strip('"')
    assert etag != hashlib.md5(b"x").hexdigest(), "the bucket still makes MD5 ETags"


def health(node, _tree):
    import json
    import urllib.request

    base = f"http://127.0.0.1:{node.admin_port}"
    for path in ["/livez", "/readyz"]:
        assert urllib.request.urlopen(base + path, timeout=5).status == 200, path
    report = json.load(urllib.request.urlopen(base + "/healthz", timeout=5))
    assert report["healthy"] is True, report
    metrics = urllib.request.urlopen(base + "/metrics", timeout=5).read().decode()
    assert "kiseki_devices_healthy 8" in metrics, metrics[:2000]
    assert '"serving"' in run(str(CLI), "--dir", str(node.dir), "status", "--json")


def plain_reads(node, _tree):
    """GETs as the SDK sends them go the short way, and are counted as such; others don't."""
    import urllib.request

    def counted():
        text = urllib.request.urlopen(f"http://127.0.0.1:{node.admin_port}/metrics", timeout=5).read().decode()
        series = [line for line in text.splitlines() if line.startswith("kiseki_core_s3_plain_reads_total")]
        assert series, "no such series"
        return sum(float(line.rsplit(" ", 1)[1]) for line in series)

    client = node.client()
    client.create_bucket(Bucket="short-way")
    client.put_object(Bucket="short-way", Key="plain", Body=b"x")
    client.put_object(Bucket="short-way", Key="not so plain", Body=b"x")
    settled(counted)
    before = counted()
    for _ in range(7):
        assert client.get_object(Bucket="short-way", Key="plain")["Body"].read() == b"x"
        assert client.get_object(Bucket="short-way", Key="not so plain")["Body"].read() == b"x"
    assert settled(counted) == before + 7, (before, counted())


def settled(value, seconds=10):
    """`value()` once it has stayed the same over two reports of a node."""
    deadline, last, since = time.monotonic() + seconds, value(), time.monotonic()
    while time.monotonic() - since < 1.2:
        assert time.monotonic() < deadline, f"it does not come to rest: {last}"
        time.sleep(0.1)
        if (now := value()) != last:
            last, since = now, time.monotonic()
    return last


def no_plaintext(node, _tree):
    """I-K1: neither data nor names in any byte below the node's directory."""
    needles = [MARKER, NAME_MARKER.encode()]
    for path in sorted(node.dir.rglob("*")):
        if not path.is_file():
            continue
        with open(path, "rb") as file:
            size, at, tail = path.stat().st_size, 0, b""
            while at < size:
                # Images are sparse: only what was written is read.
                try:
                    at = os.lseek(file.fileno(), at, os.SEEK_DATA)
                except OSError:
                    break
                end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
                file.seek(at)
                tail = b""
                while at < end:
                    part = file.read(min(8 << 20, end - at))
                    if not part:
                        break
                    for needle in needles:
                        assert needle not in tail + part, f"I-K1: {needle[:20]!r} stands in {path} near {at}"
                    tail, at = part[-128:], at + len(part)
    log = node.log.read_bytes()
    for needle in needles:
        assert needle not in log, f"I-K1: {needle[:20]!r} stands in the log"


def two_devices_lost(node, tree):
    """Two of eight devices gone: everything is still read; one of the images is removed, one overwritten."""
    assert node.stop() == 0
    lost = [node.dir / "devices/d2.img", node.dir / "devices/d5.img"]
    kept = lost[0].with_suffix(".away")
    lost[0].rename(kept)
    size = lost[1].stat().st_size
    lost[1].write_bytes(os.urandom(1 << 20))
    os.truncate(lost[1], size)
    node.start()
    rclone_after_restart(node, tree)


def clean_stop_and_restart(node, tree):
    assert node.stop() == 0, "a clean stop ends with 0"
    node.start()
    rclone_after_restart(node, tree)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("--conformance", type=pathlib.Path)
    arguments = parser.parse_args()
    passed = failed = 0
    with tempfile.TemporaryDirectory() as scratch, Node(arguments.directory) as node:
        tree = pathlib.Path(scratch) / "tree"
        tree.mkdir()
        make_tree(tree, 1000, seed=3)
        node.start()
        steps = [health, rclone, s3cmd, tenants_never_meet, changes_of_buckets_hold_on_every_core, opaque_etags, plain_reads, no_plaintext]
        for step in [*steps, clean_stop_and_restart, two_devices_lost]:
            try:
                step(node, tree)
                print(f"{step.__name__} [ok]", flush=True)
                passed += 1
            except Exception:
                print(f"{step.__name__} [FAILED]", flush=True)
                traceback.print_exc()
                failed += 1
                if node.process is None or node.process.poll() is not None:
                    node.process = None
                    print(node.log_tail(), flush=True)
                    node.start()
        if arguments.conformance and arguments.conformance.exists():
            done = subprocess.run([sys.executable, str(arguments.conformance)], env=node.env(), timeout=900)
            # Its own lines stand above; its last one is counted by the gate.
            print(f"conformance: exit code {done.returncode}", flush=True)
            failed += done.returncode != 0
            passed += done.returncode == 0
        code = node.stop()
        print(f"clean stop: exit code {code}")
        passed, failed = passed + (code == 0), failed + (code != 0)
    print(f"{passed} passed, {failed} failed")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
