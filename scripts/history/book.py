"""The history: what was asked when, and what was answered. And what it says."""

import collections
import hashlib
import json
import threading
import time

from history.linear import NEVER, Undecided, contradiction

# Of a wrong history so much is shown: what came before the answer that fits nothing.
SHOWN_STEPS = 30


def body_of(value, size):
    """The bytes of a value: they name it, and every one of them follows from it."""
    head = f"{value}:{size}:".encode()
    pattern = hashlib.sha256(head).digest()
    return (head + pattern * (size // len(pattern) + 1))[: max(size, len(head))]


def value_in(body):
    """The value that some bytes are, or None: they are none that was ever written."""
    try:
        value, size, _ = body.split(b":", 2)
        value, size = value.decode(), int(size)
    except ValueError:
        return None
    return value if body == body_of(value, size) else None


class Book:
    """All that clients saw. A time is a monotonic one of this machine, where all clients run."""

    def __init__(self, path):
        self.lock, self.steps, self.values, self.by_etag = threading.Lock(), collections.defaultdict(list), 0, {}
        self.wrong, self.counts, self.file = [], collections.Counter(), open(path, "w")

    def new_value(self, size):
        """A value that is like no other, and its bytes."""
        with self.lock:
            self.values += 1
            value = f"v{self.values}"
        body = body_of(value, size)
        with self.lock:
            self.by_etag[hashlib.md5(body).hexdigest()] = value
        return value, body

    def value_of_etag(self, etag):
        with self.lock:
            return self.by_etag.get(etag, f"etag {etag}")

    def note(self, key, step):
        with self.lock:
            self.steps[key].append(step)
            self.counts[step.kind if step.is_known() else f"{step.kind}, outcome unknown"] += 1
            row = [key, step.kind, step.value, step.expect, step.begin, step.end if step.is_known() else None, step.who]
            self.file.write(json.dumps(row) + "\n")

    def note_wrong(self, what):
        with self.lock:
            self.wrong.append(what)

    def check(self, keys):
        """What contradicts itself in the histories of these keys, as texts."""
        with self.lock:
            self.file.flush()
            histories = {key: list(self.steps.pop(key, [])) for key in keys}
            found, self.wrong = self.wrong, []
        for key, steps in histories.items():
            try:
                step = contradiction(steps)
            except Undecided as undecided:
                found.append(f"{key}: not decided: {undecided}")
                continue
            if step is not None:
                found.append(f"{key}: no order explains\n{shown(steps, step)}")
        return found


def shown(steps, wrong):
    """The steps before the one that fits nothing, and those beside it."""
    began = min(step.begin for step in steps)
    near = sorted((step for step in steps if step.begin <= wrong.end), key=lambda step: step.begin)[-SHOWN_STEPS:]
    lines = []
    for step in near:
        end = f"{step.end - began:9.4f}" if step.end != NEVER else "  unknown"
        mark = ">>" if same(step, wrong) else "  "
        expect = f" if {step.expect}" if step.expect else ""
        lines.append(f"  {mark} {step.begin - began:9.4f} {end} {step.who:12} {step.kind} {step.value}{expect}")
    return "\n".join(lines)


def same(step, other):
    """A step may have been simplified since: its times name it."""
    return (step.begin, step.end, step.who) == (other.begin, other.end, other.who)


def now():
    return time.monotonic()

