#!/usr/bin/env python3
"""What an operator does to a node and what goes wrong below it: lost devices and metadata directories, a full pool,
bad input at the start; and how little a shifted copy costs.

    fault_test.py DIRECTORY [--only TEXT]

Ends with a line "N passed, N failed".
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request

from node import PROGRAMS, SERVER, Node, free_port

KIB, MIB = 1 << 10, 1 << 20
# Longer than any condition takes on a loaded two-core machine.
PATIENCE_SECONDS = 60
# Of a node whose small objects are to outlive them.
KILLS = 6
BUCKET = "faults"


def await_that(what, condition):
    """The first true value of `condition`."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"not after {PATIENCE_SECONDS} s: {what}")


def metric(node, name):
    with urllib.request.urlopen(f"http://127.0.0.1:{node.admin_port}/metrics", timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith(f"kiseki_{name} "):
                return int(line.split()[1])
    raise AssertionError(f"no metric {name}")


def labelled(node, name):
    """The values of a metric that has labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{node.admin_port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return [int(line.split()[-1]) for line in lines if line.startswith(f"kiseki_{name}{{")]


def health(node):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{node.admin_port}/healthz", timeout=10) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return json.load(error)


def problems(node, kind):
    """Path and reason of all that is not as it should be."""
    good = {"devices": "healthy", "metadata_dirs": "current"}[kind]
    return {pathlib.Path(found["path"]): found["reason"] for found in health(node)[kind] if found["state"] != good}


def answer_of(call, **keywords):
    """(code, status) of an S3 call; ("", 200) if it worked."""
    from botocore.exceptions import ClientError

    try:
        return "", call(Bucket=BUCKET, **keywords)["ResponseMetadata"]["HTTPStatusCode"]
    except ClientError as error:
        return error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]


class Objects:
    """What was acknowledged, by hash."""

    def __init__(self, node):
        self.node, self.hashes, self.rng = node, {}, random.Random(5)
        node.client().create_bucket(Bucket=BUCKET)

    def put(self, prefix, count, length):
        """All of them must be taken."""
        client = self.node.client()
        for index in range(count):
            body = self.rng.randbytes(length)
            client.put_object(Bucket=BUCKET, Key=f"{prefix}{index}", Body=body)
            self.hashes[f"{prefix}{index}"] = hashlib.sha256(body).hexdigest()

    def compare(self):
        """Keys that can't be read now; other bytes than those that were stored are never excused."""
        client, unreadable = self.node.client(), []
        for key, wanted in self.hashes.items():
            try:
                body = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
            except client.exceptions.NoSuchKey:
                raise AssertionError(f"{key} was acknowledged and is gone") from None
            except Exception as error:
                unreadable.append(f"{key}: {error}")
                continue
            assert hashlib.sha256(body).hexdigest() == wanted, f"{key} came back with other bytes"
        return unreadable

    def all_there(self):
        unreadable = self.compare()
        assert not unreadable, unreadable[:5]


def a_shifted_copy_costs_little(directory):
    """One byte in front of everything: the chunks after the first are found again."""
    with Node(directory / "shifted") as node:
        client = node.start().client()
        client.create_bucket(Bucket=BUCKET)
        body = random.Random(1).randbytes(64 * MIB)
        sent, used = 0, []
        for data in [body, b"x" + body]:
            client.put_object(Bucket=BUCKET, Key=str(len(data)), Body=data)
            sent += len(data)
            await_that("the metrics count the upload", lambda: metric(node, "s3_bytes_in_total") >= sent)
            used.append(metric(node, "capacity_bytes") - metric(node, "free_bytes"))
        empty = 0.02 * metric(node, "capacity_bytes")  # reserved whatever is stored
        growth = (used[1] - used[0]) / (used[0] - empty)
        assert growth < 0.05, f"device use grew by {growth:.1%}"
        assert client.get_object(Bucket=BUCKET, Key=str(len(body) + 1))["Body"].read() == b"x" + body
        assert node.stop() == 0


def overwrite(path, length):
    with open(path, "r+b") as file:
        for at in range(0, length, 8 * MIB):
            file.write(os.urandom(min(8 * MIB, length - at)))


def overwrite_ends(path):
    """Where the superblocks lie."""
    with open(path, "r+b") as file:
        for at in [0, path.stat().st_size - 8 * MIB]:
            file.seek(at)
            file.write(os.urandom(8 * MIB))


def devices_are_lost_while_clients_read(directory):
    with Node(directory / "lost") as node:
        small_devices(node, 64)
        node.start()
        objects = Objects(node)
        objects.put("before", 20, 200 * KIB)
        image = [node.dir / f"devices/d{index}.img" for index in range(8)]

        def lose(*lost):
            await_that("health names the lost devices", lambda: set(problems(node, "devices")) == set(lost))
            assert all(problems(node, "devices").values()), "each with a reason"
            assert metric(node, "devices_healthy") == 8 - len(lost)

        image[1].unlink()
        overwrite(image[4], 64 * MIB)
        lose(image[1], image[4])
        objects.all_there()
        objects.put("six", 5, 200 * KIB)
        await_that("the log says it too", lambda: node.log.read_text().count("device fenced") >= 2)

        image[6].unlink()
        lose(image[1], image[4], image[6])
        lost = objects.compare()
        assert len(lost) < len(objects.hashes), "some stripes still have four fragments"
        objects.put("five", 5, 200 * KIB)  # k+1 usable devices: with less protection, but acknowledged

        image[7].unlink()
        lose(image[1], image[4], image[6], image[7])
        client = node.client()
        put = lambda: answer_of(client.put_object, Key="four", Body=os.urandom(200 * KIB))
        await_that("writes are refused", lambda: put() == ("ServiceUnavailable", 503))
        assert answer_of(client.head_object, Key="before0") == ("", 200)
        assert answer_of(client.delete_object, Key="before0") == ("", 204)
        del objects.hashes["before0"]
        assert len(objects.compare()) < len(objects.hashes)
        assert node.stop() == 0


def small_devices(node, mib, lanes=4):
    """In place of those that `init` made; before the first start."""
    images = sorted((node.dir / "devices").glob("*.img"))
    for image in images:
        image.unlink()
        with open(image, "wb") as file:
            file.truncate(mib * MIB)
    # The metadata set knows of the first ones.
    for meta in node.dir.glob("meta*"):
        shutil.rmtree(meta)
        meta.mkdir()
    devctl = [PROGRAMS / "kiseki-devctl", "format", "--dir", node.dir, "--lanes", str(lanes)]
    subprocess.run([*devctl, *images], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([SERVER, "init", "--dir", node.dir], check=True, stdout=subprocess.DEVNULL)


def status(node):
    """What `kiseki status --json` says."""
    command = [PROGRAMS / "kiseki", "--dir", node.dir, "status", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    return json.loads(done.stdout) if done.returncode == 0 else None


def at_full_width(node, devices):
    """Whether repair is done with the devices that are left, by its own account and by its metrics (I-O2)."""
    report = status(node)
    usable = report and [device for device in report["devices"] if device["state"] == "healthy"]
    if not report or len(usable) != devices or not report["repair"]["at_full_width"]:
        return False
    return metric(node, "at_full_width") == 1 and metric(node, "repair_backlog") == 0


class Load:
    """Clients that put objects until told to stop; what was acknowledged is noted, what was refused is counted."""

    def __init__(self, objects, prefix, length):
        self.objects, self.prefix, self.length = objects, prefix, length
        self.stop, self.refused, self.count = threading.Event(), [], 0
        self.thread = threading.Thread(target=self.run)

    def run(self):
        client, rng = self.objects.node.client(), random.Random(77)
        while not self.stop.is_set():
            key, body = f"{self.prefix}{self.count}", rng.randbytes(self.length)
            self.count += 1
            try:
                answer = answer_of(client.put_object, Key=key, Body=body)
            except Exception as error:  # nobody answers any more
                self.refused.append(str(error))
                return
            if answer == ("", 200):
                self.objects.hashes[key] = hashlib.sha256(body).hexdigest()
            else:
                self.refused.append(answer)
            # So that a fast machine does not fill the devices before the step is through.
            self.stop.wait(0.02)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *failure):
        self.stop.set()
        self.thread.join()


def lost_devices_are_rebuilt_on_those_that_are_left(directory):
    """I-D1: two of eight devices go under load; when the node says that it is at full width again, two more go. Coded
    4+2, a stripe survives two losses: of four, only what really was repaired."""
    with Node(directory / "rebuilt") as node:
        small_devices(node, 128)
        node.start()
        objects = Objects(node)
        objects.put("small", 10, 8 * KIB)
        objects.put("before", 30, 700 * KIB)
        image = [node.dir / f"devices/d{index}.img" for index in range(8)]
        with Load(objects, "during", 300 * KIB) as load:
            await_that("the load runs", lambda: load.count > 5)
            image[1].unlink()
            overwrite(image[4], 128 * MIB)
            await_that("the losses are noticed", lambda: len(problems(node, "devices")) == 2)
            await_that("full width under load", lambda: at_full_width(node, 6) or load.count > 2000)
        assert not load.refused, load.refused[:5]
        await_that("full width", lambda: at_full_width(node, 6))
        repaired = status(node)["repair"]
        assert repaired["fragments_repaired"] > 40 and repaired["bytes_repaired"] > 5 * MIB, repaired
        assert repaired["lost_stripes"] == 0 and not repaired["waits_for"], repaired
        print(f"  {repaired['fragments_repaired']} fragments, {repaired['bytes_repaired'] / MIB:.1f} MiB repaired")
        text = node.log.read_text()
        assert text.count("fragment repaired") >= repaired["fragments_repaired"], "one event for each"
        objects.all_there()

        image[6].unlink()
        image[7].unlink()
        await_that("the losses are noticed", lambda: len(problems(node, "devices")) == 4)
        waits = await_that("it says what it waits for", lambda: status(node)["repair"]["waits_for"])
        assert waits == "2 more devices (4 are usable)", waits
        assert metric(node, "repair_devices_wanted") == 2 and metric(node, "repair_waiting") > 0
        shown = subprocess.run([PROGRAMS / "kiseki", "--dir", node.dir, "status"], capture_output=True, text=True)
        assert waits in shown.stdout, shown.stdout
        objects.all_there()  # four of eight devices are gone
        assert node.stop() == 0

        # A restart does not forget: with two new devices in place of two lost ones full width comes back.
        for index in (1, 4):
            image[index].unlink(missing_ok=True)
        subprocess.run([SERVER, "init", "--dir", node.dir], check=True, stdout=subprocess.DEVNULL)
        for index in (6, 7):
            if image[index].exists():
                image[index].unlink()
        node.start()
        await_that("full width with new devices", lambda: at_full_width(node, 6))
        objects.all_there()
        assert node.stop() == 0


def noise_in_payloads(image):
    """A block of noise in the payload of each fragment on the device of a stopped node; how many there are."""
    devctl = PROGRAMS / "kiseki-devctl"
    run = lambda *words: json.loads(subprocess.run([devctl, *words], capture_output=True, text=True, check=True).stdout)
    block = run("inspect", "--json", image)["block_len_bytes"]
    fragments = run("verify", "--fragments", "--json", image)["devices"][0]["fragments"]
    with open(image, "r+b") as file:
        for fragment in fragments:
            file.seek(fragment["start_block"] * block + 4 * KIB + fragment["payload_len_bytes"] // 2)
            file.write(os.urandom(512))
    return len(fragments)


def rot_is_found_by_scrub_and_repaired(directory):
    """Nobody reads; scrub does."""
    with Node(directory / "rot") as node:
        small_devices(node, 64)
        config = node.dir / "kiseki.toml"
        text = config.read_text()
        config.write_text(text.replace("unsafe_no_scrub = false", "unsafe_no_scrub = true"))
        node.start()
        assert status(node)["unsafe_settings"] == ["unsafe_no_scrub"] and not status(node)["scrub"]["is_on"]
        objects = Objects(node)
        objects.put("rot", 12, 700 * KIB)
        assert node.stop() == 0
        config.write_text(text)
        rotten = noise_in_payloads(node.dir / "devices/d3.img")
        assert rotten > 3, rotten
        node.start()
        await_that("scrub has found all of it", lambda: metric(node, "scrub_bad_total") >= rotten)
        await_that("it is repaired", lambda: at_full_width(node, 8))
        await_that("a whole pass", lambda: status(node)["scrub"]["last_full_pass_unix_ms"] > 0)
        assert metric(node, "repair_fragments_total") >= rotten and metric(node, "scrub_bytes_total") > 5 * MIB
        assert "d3.img" in next(line for line in node.log.read_text().splitlines() if "fragment repaired" in line)
        assert node.stop() == 0
        image = [node.dir / f"devices/d{index}.img" for index in range(8)]
        image[0].unlink()
        image[5].unlink()
        node.start()
        objects.all_there()
        assert node.stop() == 0


def a_full_pool(directory):
    """I-C5: clients are refused at the critical fill, by one message; deletes go on, what is left is for repair; with
    the space that comes back writes go on. The levels are seen in status, metrics and log. Image files shrink."""
    with Node(directory / "full") as node:
        small_devices(node, 16)
        images = sorted((node.dir / "devices").glob("*.img"))
        on_disk = lambda: sum(image.stat().st_blocks * 512 for image in images)
        pool_level = lambda: labelled(node, "pool_fill_level")[0]
        node.start()
        objects = Objects(node)
        objects.put("first", 1, 100 * KIB)
        free_at_first = await_that("free space is known", lambda: metric(node, "free_bytes"))

        def fill(prefix):
            """Through many connections, since each core fills its own part; True when all are refused."""
            refusals = 0
            clients = [node.client() for _ in range(8)]
            for index in range(1000):
                body = objects.rng.randbytes(1 * MIB)
                answer = answer_of(clients[index % 8].put_object, Key=f"{prefix}{index}", Body=body)
                if answer == ("", 200):
                    objects.hashes[f"{prefix}{index}"] = hashlib.sha256(body).hexdigest()
                    refusals = 0
                    continue
                assert answer == ("InsufficientStorage", 507), answer
                refusals += 1
                if refusals == 16:
                    return
            raise AssertionError("the pool does not get full")

        def delete(keys):
            client = node.client()
            for key in keys:
                assert answer_of(client.delete_object, Key=key) == ("", 204), "deletes go on"
                del objects.hashes[key]

        fill("a")
        objects.all_there()
        refused = await_that("status knows the fill", lambda: status(node)["pools"][0]["level"] == "critical" and status(node))
        assert 850 < refused["pools"][0]["fill_permille"] <= 900, refused["pools"]
        assert pool_level() == 2 and len(labelled(node, "device_fill_permille")) == 8
        shown = subprocess.run([PROGRAMS / "kiseki", "--dir", node.dir, "status"], capture_output=True, text=True)
        assert "new data of clients is refused" in shown.stdout and "free runs" in shown.stdout, shown.stdout
        crossings = [line for line in node.log.read_text().splitlines() if "fill level crossed" in line and 'what="pool' in line]
        assert 1 <= len(crossings) <= 2 and 'level="critical"' in crossings[-1], crossings  # once each
        assert node.stop() == 0
        node.start()
        objects.all_there()
        full, full_on_disk = metric(node, "free_bytes"), on_disk()
        delete([key for key in objects.hashes if key.startswith("a")][::2])
        wanted = full + (free_at_first - full) // 3
        await_that("space comes back", lambda: metric(node, "free_bytes") > wanted)
        objects.put("again", 5, 1 * MIB)
        objects.all_there()
        delete([key for key in objects.hashes if key != "first0"])
        await_that("all space comes back", lambda: metric(node, "free_bytes") > 0.98 * free_at_first)
        await_that("the pool is normal again", lambda: status(node)["pools"][0]["level"] == "normal" and pool_level() == 0)
        await_that("the files give it back", lambda: on_disk() < full_on_disk / 3)
        # Counters are reported twice a second, files shrink at once.
        await_that("it is counted", lambda: metric(node, "discarded_bytes_total") > 40 * MIB)
        assert metric(node, "discards_total") > 0
        assert metric(node, "discard_errors_total") == 0
        print(f"  {full_on_disk / MIB:.0f} MiB of files when full, {on_disk() / MIB:.0f} MiB after the deletes")
        objects.all_there()
        assert node.stop() == 0


def a_full_pool_is_repaired(directory):
    """I-C5, I-D1: at its critical fill a pool still heals, from what clients must leave alone."""
    with Node(directory / "fullheal") as node:
        small_devices(node, 32)
        node.start()
        objects = Objects(node)
        client = node.client()
        for index in range(1000):
            body = objects.rng.randbytes(700 * KIB)
            answer = answer_of(client.put_object, Key=f"k{index}", Body=body)
            if answer != ("", 200):
                assert answer == ("InsufficientStorage", 507), answer
                break
            objects.hashes[f"k{index}"] = hashlib.sha256(body).hexdigest()
        else:
            raise AssertionError("the pool does not get full")
        # Some space, as much as the lost device held, so that repair fits below the read-only level.
        for key in list(objects.hashes)[::5]:
            assert answer_of(client.delete_object, Key=key) == ("", 204)
            del objects.hashes[key]
        await_that("space comes back", lambda: status(node)["pools"][0]["level"] != "critical")
        (node.dir / "devices/d2.img").unlink()
        await_that("full width on seven devices", lambda: at_full_width(node, 7))
        answers = [answer_of(client.put_object, Key=f"late{index}", Body=os.urandom(700 * KIB)) for index in range(40)]
        assert ("InsufficientStorage", 507) in answers, "the pool is critical again"
        objects.all_there()
        assert node.stop() == 0


def start_refused(node, *words):
    """The node does not start, and says so in one message with these words."""
    port, admin = free_port(), free_port()
    done = subprocess.run(
        [SERVER, "run", "--dir", node.dir, "--s3-port", str(port), "--admin-port", str(admin)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    check_refusal(done, *words)


def check_refusal(done, *words):
    text = done.stdout + done.stderr
    assert done.returncode not in (0, None) and done.returncode > 0, (done.returncode, text[-500:])
    assert "panicked" not in text, text[-500:]
    last = text[text.rindex("kiseki-server: ") :] if "kiseki-server: " in text else text
    for word in words:
        assert word in last, f"{word!r} is not in: {last}"


def a_metadata_directory_is_lost(directory):
    with Node(directory / "meta") as node:
        small_devices(node, 64)
        node.start()
        objects = Objects(node)
        meta, kept = [node.dir / "meta0", node.dir / "meta1"], [node.dir / "kept0", node.dir / "kept1"]
        objects.put("a", 5, 30 * KIB)
        # Taken away while the node runs; it goes on, and never comes back on what was taken away.
        meta[1].rename(kept[1])
        await_that("health names the directory", lambda: list(problems(node, "metadata_dirs")) == [meta[1]])
        objects.put("b", 5, 30 * KIB)
        assert node.stop() == 0
        meta[0].rename(kept[0])
        kept[1].rename(meta[1])
        start_refused(node, "stale", "bring back")
        kept[0].rename(meta[0])
        node.start()
        assert not problems(node, "metadata_dirs"), "it is filled from the other one"
        objects.all_there()
        # Now it holds everything: the other one may go, this time before the start.
        objects.put("c", 5, 30 * KIB)
        assert node.stop() == 0
        shutil.rmtree(meta[0])
        node.start()
        assert list(problems(node, "metadata_dirs")) == [meta[0]]
        objects.all_there()
        assert node.stop() == 0
        doctor = subprocess.run([SERVER, "doctor", "--dir", node.dir], capture_output=True, text=True).stdout
        assert f"{meta[0]} is missing" in doctor, doctor
        shutil.rmtree(meta[1])
        start_refused(node, "none of the metadata directories")


def an_old_copy_of_a_metadata_directory_is_not_served(directory):
    """Somebody restores one of two directories from a copy: the other one, which holds everything, must win."""
    with Node(directory / "old") as node:
        small_devices(node, 64)
        node.start()
        objects = Objects(node)
        objects.put("a", 5, 30 * KIB)
        assert node.stop() == 0
        shutil.copytree(node.dir / "meta0", node.dir / "copy")
        node.start()
        objects.put("b", 20, 30 * KIB)
        assert node.stop() == 0
        shutil.rmtree(node.dir / "meta0")
        (node.dir / "copy").rename(node.dir / "meta0")
        node.start()
        objects.all_there()
        assert not problems(node, "devices"), problems(node, "devices")
        assert node.stop() == 0


def a_start_that_can_not_work(directory):
    """One message that names the thing and the remedy, and an exit code that is not 0."""
    node = Node(directory / "start", devices=3)
    config, passphrase = node.dir / "kiseki.toml", node.dir / "keys/passphrase"
    good_config, good_passphrase = config.read_text(), passphrase.read_text()
    for text, words in [
        ("flush_everything = true\n" + good_config, ["kiseki.toml", "unknown field `flush_everything`", "remove"]),
        (good_config.replace("[s3]", "[s3]\nregoin = 'x'"), ["unknown field `regoin`"]),
        (good_config.replace("cores = 0", "cores = 'two'"), ["kiseki.toml", "line"]),
    ]:
        config.write_text(text)
        start_refused(node, *words)
    config.write_text(good_config)
    passphrase.write_text("not this one\n")
    start_refused(node, "passphrase does not open", "KISEKI_PASSPHRASE_FILE")
    passphrase.write_text(good_passphrase)
    run = [SERVER, "run", "--dir", node.dir]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = str(taken.getsockname()[1])
        for s3, admin, flag in [(number, str(free_port()), "--s3-port"), (str(free_port()), number, "--admin-port")]:
            command = [*run, "--s3-port", s3, "--admin-port", admin]
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
            check_refusal(done, number, flag)
    little = lambda: resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
    command = [*run, "--s3-port", str(free_port()), "--admin-port", str(free_port())]
    if os.geteuid() == 0:  # for whom the limit does not hold
        command = ["setpriv", "--bounding-set=-ipc_lock", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, preexec_fn=little)
    check_refusal(done, "locked memory", "ulimit -l")

    # Damaged, foreign, absent: two of three are used no more, each with a reason; with all three there is no start.
    stranger = Node(directory / "stranger", devices=1)
    image = [node.dir / f"devices/d{index}.img" for index in range(3)]
    overwrite_ends(image[0])
    os.replace(stranger.dir / "devices/d0.img", image[1])
    with node:
        node.start()
        reasons = problems(node, "devices")
        assert "no Kiseki superblock" in reasons[image[0]] and "cluster" in reasons[image[1]], reasons
        assert node.stop() == 0
    image[2].unlink()
    start_refused(node, "no usable device", "d0.img", "d1.img", "d2.img", "kiseki-devctl")


def a_killed_node_starts_again_at_once(directory):
    """The kernel still holds the port for a moment."""
    with Node(directory / "again") as node:
        small_devices(node, 32)
        for _ in range(3):
            node.start().client().list_buckets()
            node.kill()


def devctl(node, verb, *words, code=0):
    """A verb of kiseki-devctl about this node; what it says."""
    command = [PROGRAMS / "kiseki-devctl", verb, *words, "--dir", node.dir]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5 * PATIENCE_SECONDS)
    text = done.stdout + done.stderr
    assert (done.returncode == 0) == (code == 0), (verb, words, done.returncode, text)
    assert "panicked" not in text, text
    return text


def new_image(path, mib):
    with open(path, "xb") as file:
        file.truncate(mib * MIB)
    return path


def configured(node):
    """The devices that kiseki.toml names, as it names them."""
    import tomllib

    return tomllib.loads((node.dir / "kiseki.toml").read_text())["devices"]


def state_of(node, path):
    return next((found["state"] for found in health(node)["devices"] if found["path"] == str(path)), None)


def descriptors(node, path):
    """How often the node has a file open, as the kernel sees it: also one that was deleted."""
    count = 0
    for entry in pathlib.Path(f"/proc/{node.process.pid}/fd").iterdir():
        try:
            count += os.readlink(entry).removesuffix(" (deleted)") == str(path)
        except FileNotFoundError:
            pass
    return count


def devices_join_a_running_node(directory):
    """A seventh and an eighth device join under load, a lost one is replaced, one that was taken away is taken back; a
    restart finds all of it."""
    with Node(directory / "join", devices=6) as node:
        small_devices(node, 256)
        config = node.dir / "kiseki.toml"
        config.write_text(config.read_text().replace("devices = [", "# the first shelf\ndevices = ["))
        node.start()
        objects = Objects(node)
        objects.put("before", 20, 700 * KIB)
        assert status(node)["durability"] == "EC 4+2"
        image = [node.dir / f"devices/d{index}.img" for index in range(6)]
        with Load(objects, "during", 300 * KIB) as load:
            await_that("the load runs", lambda: load.count > 5)
            for index in (6, 7):
                image.append(new_image(node.dir / f"devices/d{index}.img", 256))
                if index == 6:
                    refused = devctl(node, "enroll", image[6], code=1)
                    assert "kiseki-devctl" in refused and "format" in refused, refused
                    assert configured(node) == [f"devices/d{known}.img" for known in range(6)]
                before = load.count
                said = devctl(node, "enroll", image[index], "--format")
                assert "takes part" in said, said
                assert state_of(node, image[index]) == "healthy", "before the answer"
                assert configured(node)[-1] == f"devices/d{index}.img" and "# the first shelf" in config.read_text()
                await_that("the load goes on", lambda: load.count > before + 3)
            assert metric(node, "devices_healthy") == 8
            await_that("the new ones take fragments", lambda: all(
                found["free_bytes"] < 0.99 * found["capacity_bytes"] for found in health(node)["devices"][6:]
            ) or load.count > 2000)

            # One is lost, and replaced.
            await_that("full width", lambda: at_full_width(node, 8))
            image[1].unlink()
            await_that("it is noticed", lambda: state_of(node, image[1]) not in ("healthy", None))
            await_that("repair has looked", lambda: status(node)["repair"]["backlog_stripes"] == 0 or load.count > 2000)
            await_that("full width with seven", lambda: at_full_width(node, 7))
            image.append(new_image(node.dir / "devices/d8.img", 256))
            repaired, began = metric(node, "repair_fragment_bytes_total"), time.monotonic()
            said = devctl(node, "replace", image[1], image[8], "--format", "--wait")
            assert "takes the place of" in said and "full width" in said, said
            assert configured(node)[1] == "devices/d8.img" and len(configured(node)) == 8
            assert descriptors(node, image[1]) == 0, "the lost one is closed, so the drive can be pulled"
        assert not load.refused, load.refused[:5]
        await_that("full width", lambda: at_full_width(node, 8))
        objects.all_there()

        # Two of those that are left may go: what was on the replaced one is on others.
        away = [(image[2], node.dir / "away2"), (image[8], node.dir / "away8")]
        for path, kept in away:
            path.rename(kept)
        await_that("they are noticed", lambda: len(problems(node, "devices")) == 2)
        objects.all_there()
        objects.put("without", 10, 300 * KIB)
        began, repaired = time.monotonic(), metric(node, "repair_fragment_bytes_total")
        await_that("full width with six", lambda: at_full_width(node, 6))
        took, moved = time.monotonic() - began, metric(node, "repair_fragment_bytes_total") - repaired
        print(f"  {moved / MIB:.1f} MiB rebuilt in {took:.1f} s, {moved / MIB / took:.1f} MiB/s")
        # Plugged in again: taken back without a word (one by itself, one is named before that happens).
        for path, kept in away:
            kept.rename(path)
        await_that("both are taken back", lambda: not problems(node, "devices"))
        await_that("what was rebuilt twice is released", lambda: at_full_width(node, 8))
        assert metric(node, "repair_released_total") > 0
        objects.all_there()

        # One that failed is trusted again only when somebody says so (I-D6).
        kept, junk = node.dir / "kept", node.dir / "junk"
        os.link(image[3], kept)
        new_image(junk, 128)
        os.replace(junk, image[3])
        await_that("the stranger is noticed", lambda: state_of(node, image[3]) == "failed")
        os.replace(kept, image[3])
        time.sleep(3)  # nothing is to happen
        assert state_of(node, image[3]) == "failed"
        said = devctl(node, "enroll", image[3], "--wait")
        assert "is back" in said and "full width" in said, said
        assert len(configured(node)) == 8 and not problems(node, "devices")
        assert node.stop() == 0

        # Any two are away at a restart with the edited configuration, and come back while it runs.
        away = [(image[0], node.dir / "away0"), (image[8], node.dir / "away8")]
        for path, kept in away:
            path.rename(kept)
        node.start()
        objects.all_there()
        assert len(problems(node, "devices")) == 2 and status(node)["durability"] == "EC 4+2"
        for path, kept in away:
            kept.rename(path)
        await_that("both are taken up", lambda: not problems(node, "devices"))
        await_that("full width again", lambda: at_full_width(node, 8))
        objects.all_there()

        # One that works is replaced: emptied under load, let go, closed.
        fresh = new_image(node.dir / "devices/d9.img", 256)
        with Load(objects, "last", 300 * KIB) as load:
            said = devctl(node, "replace", image[4], fresh, "--format", "--wait")
        assert "can be pulled" in said and not load.refused, (said, load.refused[:5])
        assert descriptors(node, image[4]) == 0 and "devices/d4.img" not in configured(node)
        image[4].unlink()
        await_that("full width without it", lambda: at_full_width(node, 8))
        objects.all_there()
        assert node.stop() == 0


def former(node, path):
    """What status says of a device that is configured no more."""
    return next((found for found in status(node)["former_devices"] if found["path"] == str(path)), None)


def a_device_is_replaced_while_the_node_is_stopped(directory):
    """I-D2: the next start knows that the old one was replaced, by whom and why; it is failed until repair has looked at every
    stripe, then removed. In its own slot, in another one, and with a crash before that is recorded."""
    with Node(directory / "stopped") as node:
        small_devices(node, 64)
        image = [node.dir / f"devices/d{index}.img" for index in range(8)]
        objects = Objects(node.start())
        objects.put("before", 20, 700 * KIB)
        assert node.stop() == 0

        # In another slot.
        image[1].unlink()
        fresh = new_image(node.dir / "devices/d8.img", 64)
        said = devctl(node, "replace", image[1], fresh, "--format")
        assert "takes the place of" in said and "at the next start" in said and "rebuilt from the start on" in said, said
        assert configured(node)[1] == "devices/d8.img"
        # In the same slot; one that was used before is not taken for a new one.
        image[2].unlink()
        shutil.copyfile(image[3], image[2])
        said = devctl(node, "replace", image[2], image[2], code=1)
        assert "it is a copy of" in said or "used before" in said, said
        new_image(node.dir / "junk", 64).replace(image[2])
        devctl(node, "replace", image[2], image[2], "--format")
        notes = json.loads((node.dir / "replaced.json").read_text())
        assert [note["path"] for note in notes] == [str(image[1]), str(image[2])], notes
        untouched = new_image(node.dir / "untouched", 64)
        said = devctl(node, "replace", node.dir / "nowhere.img", untouched, "--format", code=1)
        assert "is no device of this node" in said and untouched.stat().st_blocks == 0, said
        node.start()
        node.kill()
        node.start()
        await_that("the first is removed", lambda: (former(node, image[1]) or {}).get("state") == "removed")
        await_that("the second is removed", lambda: (former(node, image[2]) or {}).get("state") == "removed")
        for path in image[1:3]:
            gone = former(node, path)
            assert gone["actor"] == "operator" and "took its place" in gone["reason"], gone
            states = [change["state"] for change in gone["history"]]
            assert states[-2:] == ["failed", "removed"], ("I-D2", states)
        assert state_of(node, image[2]) == "healthy", "the new one in the old slot is another device"
        await_that("full width", lambda: at_full_width(node, 8))
        await_that("the notes go", lambda: json.loads((node.dir / "replaced.json").read_text()) == [])
        shown = subprocess.run([PROGRAMS / "kiseki", "--dir", node.dir, "status"], capture_output=True, text=True)
        assert "former    removed" in shown.stdout and "took its place" in shown.stdout, shown.stdout
        objects.all_there()
        assert node.stop() == 0

        # Three at once: what only they hold is not given up behind anybody's back.
        kept = {}
        for index in (3, 4, 5):
            kept[index] = node.dir / f"kept{index}"
            image[index].rename(kept[index])
        for index in (3, 4, 5):
            devctl(node, "replace", image[index], new_image(node.dir / f"devices/e{index}.img", 64), "--format", code=0)
        node.start()
        await_that("it says that stripes need them", lambda: "can't be read without" in (former(node, image[3]) or {}).get("warning", ""))
        assert former(node, image[3])["state"] == "failed", former(node, image[3])
        for index in (3, 4, 5):
            kept[index].rename(image[index])
            devctl(node, "enroll", image[index])
        await_that("full width with eleven", lambda: at_full_width(node, 11))
        objects.all_there()
        assert node.stop() == 0


def devices_that_can_not_join_are_refused(directory):
    """Each with its reason and what to do, and nothing has changed afterwards."""
    stranger, other = Node(directory / "stranger", devices=3), Node(directory / "other", devices=3)
    with Node(directory / "refuse", devices=4) as node, other:
        small_devices(node, 64)
        # Of the same cluster, so that only the lock tells: another node with the same keys.
        for name in ("key-store", "passphrase"):
            shutil.copy(node.dir / "keys" / name, other.dir / "keys" / name)
        small_devices(other, 64)
        node.start()
        other.start()
        objects = Objects(node)
        objects.put("a", 5, 300 * KIB)
        assert status(node)["durability"] == "3 copies"
        config = (node.dir / "kiseki.toml").read_text()
        before = health(node)["devices"]
        twin = node.dir / "twin.img"
        shutil.copy(node.dir / "devices/d0.img", twin)
        link = node.dir / "link.img"
        link.symlink_to(node.dir / "devices/d1.img")
        blank, tiny = new_image(node.dir / "blank.img", 64), new_image(node.dir / "tiny.img", 1)
        spare = new_image(node.dir / "spare.img", 64)
        lanes = new_image(node.dir / "lanes.img", 64)
        subprocess.run(
            [PROGRAMS / "kiseki-devctl", "format", lanes, "--cluster", cluster_of(node), "--lanes", "2"],
            check=True, stdout=subprocess.DEVNULL,
        )

        def check_all(running):
            for path, words in [
                (stranger.dir / "devices/d0.img", ["cluster", "format"]),
                (twin, ["copy", "d0.img"]),
                (blank, ["no Kiseki superblock", "kiseki-devctl", "format"]),
                (lanes, ["2 lanes", "format"]),
                (node.dir / "nothing.img", ["not there"]),
                (other.dir / "devices/d0.img", ["in use by another process"]),
            ] + ([(link, ["in use already", "d1.img"])] if running else []):
                for dry_run in (["--dry-run"], []):
                    said = devctl(node, "enroll", path, *dry_run, code=1)
                    assert all(word in said for word in words), (path, words, said)
            said = devctl(node, "enroll", tiny, "--format", code=1)
            assert "too small" in said and "needed" in said, said
            said = devctl(node, "replace", node.dir / "devices/d0.img", blank, code=1)
            assert ("no Kiseki superblock" if running else "works") in said, said
            assert (node.dir / "kiseki.toml").read_text() == config, "nothing has changed"

        check_all(running=True)
        said = devctl(node, "replace", "d0d0d0d0", blank, code=1)
        assert "no device of this node" in said, said
        drop = lambda devices: [{key: found[key] for key in ("path", "id", "state")} for found in devices]
        assert drop(health(node)["devices"]) == drop(before)
        objects.put("b", 5, 300 * KIB)

        # A small one is told of, and taken; the shape of the pool stays, and status says so.
        small = new_image(node.dir / "small.img", 24)
        said = devctl(node, "enroll", small, "--format")
        assert "warning" in said and "by size" in said, said
        devctl(node, "enroll", spare, "--format")
        shape = status(node)["durability"]
        assert shape.startswith("3 copies") and "EC 4+2" in shape, shape
        objects.put("c", 5, 300 * KIB)
        objects.all_there()

        # A configuration that can't be written: refused before anything happens.
        late = new_image(node.dir / "late.img", 64)
        devctl(node, "format", late)
        (node.dir / "kiseki.toml.new").mkdir()
        said = devctl(node, "enroll", late, code=1)
        assert "can't be changed" in said and "by hand" in said, said
        (node.dir / "kiseki.toml.new").rmdir()
        assert state_of(node, late) is None and descriptors(node, late) == 0
        assert node.stop() == 0

        config = (node.dir / "kiseki.toml").read_text()
        check_all(running=False)
        # Offline: the same, at the next start.
        said = devctl(node, "enroll", late)
        assert "at the next start" in said, said
        node.start()
        assert state_of(node, late) == "healthy" and not problems(node, "devices")
        assert status(node)["durability"].startswith("3 copies"), "not by what is configured now"
        objects.all_there()
        assert node.stop() == 0


def used_by_device(node):
    """Bytes that fragments take, headers included, by device id."""
    used = {}
    for core in status(node)["core_reports"].values():
        for device, held in core["device_used_bytes"].items():
            used[device] = used.get(device, 0) + held
    return used


def reported_since(node, moment):
    """Whether every core has told of itself after that time of the clock that counts from the boot, in nanoseconds."""
    reports = status(node)["core_reports"].values()
    return bool(reports) and all(core["reported_at"] > moment for core in reports)


def rebalanced(node, devices):
    """What the node says of rebalancing, when that has ended with so many devices."""
    report = status(node)["rebalance"]
    return report if report["at_rest"] and report["devices_surveyed"] == devices else None


def a_device_that_joins_gets_its_share(directory):
    """What is stored moves onto a device that joins until devices are about as full; no more of it than that takes."""
    with Node(directory / "share") as node:
        small_devices(node, 128)
        node.start()
        objects = Objects(node)
        objects.put("share", 60, 3 * MIB)
        await_that("it is at rest", lambda: rebalanced(node, 8))
        # What cores report is some seconds old, and two of them may be apart: one that lacks the last puts would be taken
        # for less than there was.
        written = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        await_that("reports know of all", lambda: reported_since(node, written))
        before, moved = used_by_device(node), status(node)["rebalance"]["bytes_moved"]
        image, began = new_image(node.dir / "devices/d8.img", 128), time.monotonic()
        devctl(node, "enroll", image, "--format")
        report = await_that("rebalancing has ended", lambda: rebalanced(node, 9))
        ended = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        await_that("reports know of what moved", lambda: reported_since(node, ended))
        await_that("what was moved is off its old place", lambda: sum(used_by_device(node).values()) <= sum(before.values()))
        seconds, after = time.monotonic() - began, used_by_device(node)
        moved = report["bytes_moved"] - moved
        least = sum(max(0, held - before.get(device, 0)) for device, held in after.items())
        new = next(held for device, held in after.items() if device not in before)
        share = sum(after.values()) / len(after)
        print(f"  {moved / MIB:.1f} MiB moved, {least / MIB:.1f} MiB at the least with headers, in {seconds:.1f} s;"
              f" the new device holds {new / share:.0%} of an even share")
        assert moved <= 1.1 * least, (moved, least)
        assert 0.75 * share < new < 1.25 * share, (new, share)
        fills = [1 - found["free_bytes"] / found["capacity_bytes"] for found in status(node)["devices"]]
        assert max(fills) - min(fills) < 0.08, fills
        assert metric(node, "rebalance_at_rest") == 1 and metric(node, "rebalance_balanced_bytes_total") >= moved
        shown = subprocess.run([PROGRAMS / "kiseki", "--dir", node.dir, "status"], capture_output=True, text=True).stdout
        assert "rebalance at rest" in shown, shown
        assert "rebalancing begins" in node.log.read_text() and "rebalancing has ended" in node.log.read_text()
        assert at_full_width(node, 9)
        objects.all_there()
        assert node.stop() == 0
        node.start()
        await_that("a restart finds it at rest", lambda: rebalanced(node, 9))
        assert status(node)["rebalance"]["fragments_moved"] == 0, "nothing moves once more"
        # Eight of the nine hold what any two lost ones held.
        image.unlink()
        await_that("the loss is noticed", lambda: len(problems(node, "devices")) == 1)
        objects.all_there()
        await_that("full width without it", lambda: at_full_width(node, 8))
        assert node.stop() == 0


def cluster_of(node):
    inspect = [PROGRAMS / "kiseki-devctl", "inspect", "--json", node.dir / "devices/d0.img"]
    return json.loads(subprocess.run(inspect, capture_output=True, text=True, check=True).stdout)["cluster"]


def a_node_is_killed_while_a_device_joins(directory):
    """Before, around and after the moment in which the configuration is written; the next start is sound each time."""
    with Node(directory / "killed", devices=6) as node:
        small_devices(node, 64)
        node.start()
        objects = Objects(node)
        objects.put("before", 10, 300 * KIB)
        kept = {"without": 0, "with": 0}
        for attempt in range(10):
            image = node.dir / f"devices/e{attempt}.img"
            new_image(image, 64)
            devctl(node, "format", image)
            count = len(configured(node))
            request = {"command": "device-enroll", "path": str(image), "actor": "test"}
            with Load(objects, f"during{attempt}-", 100 * KIB) as load, socket.socket(socket.AF_UNIX) as admin:
                await_that("the load runs", lambda: load.count > 3)
                admin.connect(str(node.dir / "admin.sock"))
                admin.sendall(json.dumps(request).encode() + b"\n")
                if attempt % 2 == 0:
                    deadline = time.monotonic() + PATIENCE_SECONDS
                    while len(configured(node)) == count and time.monotonic() < deadline:
                        pass
                else:
                    time.sleep(random.Random(attempt).uniform(0.0, 0.04))
                node.kill()
                load.stop.set()
            named = len(configured(node)) > count
            kept["with" if named else "without"] += 1
            node.start()
            assert not problems(node, "devices"), problems(node, "devices")
            assert len(health(node)["devices"]) == count + named
            objects.all_there()
            if not named:
                devctl(node, "enroll", image)
        print(f"  killed before the configuration was written {kept['without']} times, after it {kept['with']} times")
        assert kept["with"] >= 3, kept
        devices = 16
        await_that("full width", lambda: at_full_width(node, devices))
        objects.all_there()
        assert node.stop() == 0


def report_of(node, path):
    return next((found for found in status(node)["devices"] if found["path"] == str(path)), None)


def set_key(node, before, after):
    config = node.dir / "kiseki.toml"
    text = config.read_text()
    assert before in text, before
    config.write_text(text.replace(before, after))


def a_device_is_drained_under_load_and_leaves(directory):
    """I-D5: eight devices; a drain is cancelled in the middle, another goes on over a kill -9, a third ends under load and
    its device is retired; then two of the seven that are left are lost."""
    with Node(directory / "drain") as node:
        small_devices(node, 128)
        set_key(node, "mib_per_second_max = 400", "mib_per_second_max = 1")
        node.start()
        objects = Objects(node)
        objects.put("small", 10, 8 * KIB)
        objects.put("before", 150, 700 * KIB)
        image = [node.dir / f"devices/d{index}.img" for index in range(8)]
        moved = lambda: metric(node, "evacuation_fragments_total")
        await_that("the devices are recorded", lambda: report_of(node, image[7])["since_unix_ms"] > 0)

        refused = devctl(node, "retire", image[2], code=1)
        assert "drain it first" in refused, refused
        refused = devctl(node, "drain", "no-such-device", code=1)
        assert "no device of this node" in refused, refused
        said = devctl(node, "drain", image[2], "--dry-run")
        assert "would move" in said and state_of(node, image[2]) == "healthy", said

        # Kept after all.
        devctl(node, "drain", image[3], "--reason", "a try")
        await_that("status says so", lambda: report_of(node, image[3])["evacuation"])
        assert report_of(node, image[3])["evacuation"]["reason"] == "a try"
        await_that("some have moved", lambda: moved() > 2)
        devctl(node, "drain", image[3], "--cancel")
        assert report_of(node, image[3])["used_fragments"] > 0, "in the middle"
        await_that("it is healthy again", lambda: state_of(node, image[3]) == "healthy")
        history = [(change["state"], change["actor"]) for change in report_of(node, image[3])["history"]]
        assert history == [("healthy", "node"), ("evacuating", "operator"), ("healthy", "operator")], history
        objects.all_there()

        # It goes on after a crash; named by the first digits of its id.
        ident = report_of(node, image[2])["id"]
        devctl(node, "drain", ident[:8])
        before = moved()
        await_that("some have moved", lambda: moved() > before + 2)
        refused = devctl(node, "retire", image[2], code=1)
        assert "I-D5" in refused and "still live" in refused, refused
        assert "would" not in devctl(node, "retire", image[2], "--dry-run", code=1)
        node.kill()
        set_key(node, "mib_per_second_max = 1\n", "mib_per_second_max = 400\n")
        node.start()
        await_that("it goes on", lambda: state_of(node, image[2]) == "evacuating")
        shown = subprocess.run([PROGRAMS / "kiseki", "--dir", node.dir, "status"], capture_output=True, text=True).stdout
        assert "evacuating" in shown and "(by operator, " in shown and "    drain   " in shown, shown
        with Load(objects, "during", 300 * KIB) as load:
            await_that("the load runs", lambda: load.count > 5)
            began, bytes_before = time.monotonic(), report_of(node, image[2])["used_bytes"]
            said = devctl(node, "drain", image[2], "--wait")
            took = time.monotonic() - began
            assert "is empty" in said, said
            written = load.count
            await_that("the load goes on", lambda: load.count > written + 10)
            assert report_of(node, image[2])["used_fragments"] == 0, "nothing is placed on it any more"
            said = devctl(node, "retire", image[2])
            assert "can be pulled" in said, said
            written = load.count
            await_that("the load goes on", lambda: load.count > written + 10)
        assert not load.refused, load.refused[:5]
        rate = bytes_before / MIB / took
        print(f"  {bytes_before / MIB:.1f} MiB left the device in {took:.1f} s under load, {rate:.1f} MiB/s")
        assert state_of(node, image[2]) is None and f"devices/{image[2].name}" not in configured(node)
        assert descriptors(node, image[2]) == 0, "it is closed, so the drive can be pulled"
        assert "retired" in subprocess.run(
            [PROGRAMS / "kiseki-devctl", "inspect", image[2]], capture_output=True, text=True
        ).stdout, "the device itself tells"
        await_that("full width with seven", lambda: at_full_width(node, 7))
        objects.all_there()
        refused = devctl(node, "enroll", image[2], code=1)
        assert "format" in refused, refused
        kept = image[2].with_suffix(".kept")
        image[2].rename(kept)
        assert node.stop() == 0

        node.start()
        await_that("full width after a restart", lambda: at_full_width(node, 7))
        objects.all_there()
        assert all(found["state"] == "healthy" for found in health(node)["devices"])
        assert node.stop() == 0
        # Named in the configuration again, it is not used.
        kept.rename(image[2])
        set_key(node, "devices = [", 'devices = ["devices/d2.img", ')
        for lost in (image[0], image[5]):
            lost.unlink()
        node.start()
        assert "was retired" in problems(node, "devices")[image[2]], problems(node, "devices")
        objects.all_there()
        # One that is lost leaves when no stripe needs it.
        await_that("the losses are recorded", lambda: report_of(node, image[0])["state"] == "unreachable")
        refused = devctl(node, "retire", image[0], code=1)
        assert "--lost" in refused or "still looking" in refused, refused
        said = devctl(node, "retire", image[0], "--lost")
        assert "can be pulled" in said and state_of(node, image[0]) is None, said
        objects.all_there()
        assert node.stop() == 0



def small_objects_lie_beside_their_names(directory):
    """Objects of at most 4 KiB have no chunks, survive a kill, and become chunks where metadata directories are too full (I-SF5, I-SF7)."""
    with Node(directory / "small") as node:
        node.run = ["--meta-hard-limit-pct", "95"]
        node.start()
        objects = Objects(node)
        objects.put("tiny", 100, 1)
        objects.put("small", 100, 4 * KIB)
        await_that("they are counted", lambda: metric(node, "inline_writes_total") == 200)
        assert metric(node, "inline_bytes_total") == 100 + 100 * 4 * KIB
        assert 1 < metric(node, "metadata_fill_percent") <= 95
        assert metric(node, "chunks_written_total") == 0 and metric(node, "inline_refused_total") == 0
        node.kill()
        # Everything is fuller than that, so from now on they become chunks.
        node.run = ["--meta-hard-limit-pct", "1"]
        node.start()
        objects.all_there()
        await_that("the fill is measured", lambda: (objects.put("more", 1, 4 * KIB), metric(node, "inline_refused_total"))[1])
        before = metric(node, "chunks_written_total")
        objects.put("chunks", 20, 4 * KIB)
        await_that("they are counted", lambda: metric(node, "chunks_written_total") >= before + 20)
        client = node.client()
        for index in range(0, 100, 2):
            client.delete_object(Bucket=BUCKET, Key=f"small{index}")
            del objects.hashes[f"small{index}"]
        assert node.stop() == 0
        node.run = ["--raft-inline-mbps", "0"]
        node.start()
        objects.all_there()
        objects.put("off", 5, 100)
        await_that("they are counted", lambda: metric(node, "chunks_written_total") == 5)
        assert metric(node, "inline_writes_total") == 0 and metric(node, "inline_refused_total") == 0
        objects.all_there()


class Writer(threading.Thread):
    """Stores, overwrites and deletes small objects of its own, until nobody answers any more."""

    def __init__(self, node, number, known, seed):
        super().__init__()
        # Never one in the middle of its operations when the node is back.
        self.client, self.known, self.rng = node.client(retries={"total_max_attempts": 1}, read_timeout=PATIENCE_SECONDS), known, random.Random(seed)
        self.keys, self.answered, self.refused = [f"w{number}-{index}" for index in range(24)], 0, []

    def run(self):
        while not self.refused:
            key = self.rng.choice(self.keys)
            body = None if self.rng.random() < 0.2 else self.rng.randbytes(self.rng.randint(1, 4 * KIB))
            before = self.known.get(key, {None})
            self.known[key] = before | {body}
            try:
                if body is None:
                    self.client.delete_object(Bucket=BUCKET, Key=key)
                else:
                    self.client.put_object(Bucket=BUCKET, Key=key, Body=body)
            except Exception as error:
                self.refused.append(str(error))
                return
            self.known[key] = {body}
            self.answered += 1


def small_objects_outlive_kills(directory):
    """I-SF5, I-L2: kill -9 at any moment, so also between the flush of an entry, the row that it becomes and the checkpoint that lets go of it. Every key
    is then what was acknowledged last, or what was under way; a listing says the same."""
    with Node(directory / "small-kills", devices=3) as node:
        node.start()
        node.client().create_bucket(Bucket=BUCKET)
        known, rng = {}, random.Random(17)
        for kill in range(KILLS):
            writers = [Writer(node, number, known, 100 * kill + number) for number in range(4)]
            for writer in writers:
                writer.start()
            wanted = rng.randint(1, 500)
            await_that("they are at work", lambda: sum(writer.answered for writer in writers) >= wanted or any(writer.refused for writer in writers))
            assert not any(writer.refused for writer in writers), [writer.refused for writer in writers]
            node.kill()
            for writer in writers:
                writer.join()
            node.start()
            client = node.client()
            for key, allowed in known.items():
                try:
                    found = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
                except client.exceptions.NoSuchKey:
                    found = None
                assert found in allowed, f"kill {kill}: {key} is neither what was acknowledged nor what was under way ({len(allowed)} possible)"
                known[key] = {found}
            there = {found["Key"]: found["Size"] for found in client.list_objects_v2(Bucket=BUCKET).get("Contents", [])}
            assert there == {key: len(body) for key, (body,) in known.items() if body is not None}, f"kill {kill}: the listing"
        assert metric(node, "chunks_written_total") == 0
        assert node.stop() == 0


STEPS = [
    a_shifted_copy_costs_little,
    devices_are_lost_while_clients_read,
    lost_devices_are_rebuilt_on_those_that_are_left,
    a_device_is_drained_under_load_and_leaves,
    rot_is_found_by_scrub_and_repaired,
    a_full_pool,
    a_full_pool_is_repaired,
    a_metadata_directory_is_lost,
    an_old_copy_of_a_metadata_directory_is_not_served,
    a_start_that_can_not_work,
    a_killed_node_starts_again_at_once,
    devices_join_a_running_node,
    a_device_is_replaced_while_the_node_is_stopped,
    devices_that_can_not_join_are_refused,
    a_node_is_killed_while_a_device_joins,
    a_device_that_joins_gets_its_share,
    small_objects_lie_beside_their_names,
    small_objects_outlive_kills,
]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    passed = failed = 0
    for step in STEPS:
        if arguments.only not in step.__name__:
            continue
        began = time.monotonic()
        try:
            step(arguments.directory)
            print(f"{step.__name__} [ok] {time.monotonic() - began:.1f} s", flush=True)
            passed += 1
        except Exception:
            print(f"{step.__name__} [FAILED]", flush=True)
            traceback.print_exc()
            failed += 1
        shutil.rmtree(arguments.directory)
        arguments.directory.mkdir()
    print(f"{passed} passed, {failed} failed")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
