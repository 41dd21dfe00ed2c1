"""Clients that put, create, swap, delete, get and list a few hot keys, and write down what they saw."""

import collections
import random
import threading
import time

from history.book import now, value_in
from history.linear import NEVER, Step
from history.s3 import Client, NoAnswer, NotSent, error_code, listed

BUCKET = "history"
KEYS = 4
SIZES = [64, 64, 4 << 10, 40 << 10, 300 << 10]
# A request that has no answer by then counts as one of unknown outcome.
PATIENCE_SECONDS = 5
PAUSE_SECONDS_MAX = 0.03
ALL = ["get", "put", "create", "swap", "delete", "list"]
WEIGHTS = [30, 25, 10, 15, 8, 12]


class Requests:
    """The requests of one client to one node, each of which is in the book when it returns. True: it was answered."""

    def __init__(self, book, node, who, seconds=PATIENCE_SECONDS):
        self.book, self.who, self.etags = book, f"{who}>{node.number}", {}
        self.client = Client(node.host, node.s3_port, node.credentials(), seconds)
        self.problem = ""

    def ask(self, method, key, body=b"", headers=None, query=None):
        """(began, status, headers, body); status 0: not sent, None: unknown."""
        path, began = f"/{BUCKET}/{key}" if key else f"/{BUCKET}", now()
        try:
            answer = self.client.ask(method, path, body, headers, query)
        except NotSent as error:
            self.problem = f"not sent: {error}"
            return began, 0, {}, b""
        except NoAnswer as error:
            self.problem = f"no answer: {error}"
            return began, None, {}, b""
        if answer[0] >= 500:
            self.problem = f"{answer[0]} {answer[2][:300]!r}"
        return began, *answer

    def change(self, kind, key, body, headers, value, expect, refusals):
        """A request that changes something if it is answered with success. `refusals`: status -> what was seen instead."""
        began, status, _, content = self.ask("DELETE" if kind == "delete" else "PUT", key, body, headers)
        if status == 0:
            return False
        if status in (200, 204):
            self.book.note(key, Step(kind, value, began, now(), expect, self.who))
        elif status in refusals and error_code(content) in ("PreconditionFailed", "NoSuchKey"):
            kind, value = refusals[status]
            self.book.note(key, Step(kind, value, began, now(), expect, self.who))
        elif status is None or status >= 500 or status == 409:
            # It may have happened, or may happen yet.
            self.book.note(key, Step(kind, value, began, NEVER, expect, self.who))
            return False
        else:
            self.book.note_wrong(f"{self.who}: {kind} of {key} was answered {status} {content[:300]!r}")
            return False
        return True

    def put(self, key, size):
        value, body = self.book.new_value(size)
        return self.change("put", key, body, {}, value, None, {})

    def create(self, key, size):
        value, body = self.book.new_value(size)
        return self.change("create", key, body, {"if-none-match": "*"}, value, None, {412: ("taken", None)})

    def swap(self, key, size):
        """Swaps what it has just read; others may come between."""
        if not self.get(key):
            return False
        etag = self.etags.get(key)
        if etag is None:
            return True
        value, body = self.book.new_value(size)
        refusals = {412: ("other", None), 404: ("read", None)}
        expect = self.book.value_of_etag(etag)
        return self.change("swap", key, body, {"if-match": f'"{etag}"'}, value, expect, refusals)

    def delete(self, key):
        return self.change("delete", key, b"", {}, None, None, {})

    def get(self, key):
        began, status, headers, content = self.ask("GET", key)
        if status == 404 and error_code(content) == "NoSuchKey":
            self.book.note(key, Step("read", None, began, now(), None, self.who))
            self.etags.pop(key, None)
            return True
        if status == 200:
            value = value_in(content)
            if value is None:
                self.book.note_wrong(f"{self.who}: {key} came back with bytes that nobody wrote: {content[:80]!r}, {len(content)} bytes")
                return False
            self.book.note(key, Step("read", value, began, now(), None, self.who))
            self.etags[key] = headers["etag"].strip('"')
            return True
        return self.no_read(key, status, content)

    def list(self, prefix, keys):
        """What a listing says of each key is a read of it."""
        began, status, _, content = self.ask("GET", "", query={"list-type": "2", "prefix": prefix})
        if status != 200:
            return self.no_read(prefix, status, content)
        rows, is_whole = listed(content)
        ended = now()
        if not is_whole or set(rows) - set(keys):
            self.book.note_wrong(f"{self.who}: the listing of {prefix} is {rows}")
            return False
        for key in keys:
            value = self.book.value_of_etag(rows[key]) if key in rows else None
            self.book.note(key, Step("read", value, began, ended, None, f"{self.who}l"))
        return True

    def no_read(self, key, status, content):
        # A page of an object whose leader changed meanwhile, or a body that breaks off, is an error; it is never other bytes.
        if status not in (0, None) and status < 500:
            self.book.note_wrong(f"{self.who}: a read of {key} was answered {status} {content[:300]!r}")
        return False


class Clients:
    """Threads that work on the keys of an era through all nodes."""

    def __init__(self, book, nodes, rng, count=8):
        self.book, self.nodes, self.ending, self.lock = book, nodes, threading.Event(), threading.Lock()
        # At which era each thread is just now, while it has a request.
        self.era, self.at = 0, {}
        self.forget()
        names = [f"c{number}" for number in range(count)]
        self.threads = [threading.Thread(target=self.work, args=(name, random.Random(rng.randrange(1 << 60)))) for name in names]
        for thread in self.threads:
            thread.start()

    @staticmethod
    def keys(era):
        return [f"era{era}/{name}" for name in range(KEYS)]

    def forget(self):
        """Counts anew."""
        with self.lock:
            self.answered, self.failures, self.slowest = collections.Counter(), collections.defaultdict(list), collections.Counter()

    def forget_waits(self):
        """How long requests took, and not what failed."""
        with self.lock:
            self.slowest.clear()

    def next_era(self):
        """Turns to other keys; returns the former ones when no request for them is under way any more."""
        with self.lock:
            before, self.era = self.era, self.era + 1
        while any(era == before for era in list(self.at.values())):
            time.sleep(0.01)
        return self.keys(before)

    def read_through_all(self, keys):
        """The last word about some keys: each is read through each node. What could not be read."""
        failed = []
        for node in self.nodes:
            requests = Requests(self.book, node, "last", seconds=30)
            failed += [f"{key} through node {node.number}: {requests.problem}" for key in keys if not requests.get(key)]
            requests.client.close()
        return failed

    def work(self, who, rng):
        requests = {}
        while not self.ending.is_set():
            node = rng.choice(self.nodes)
            mine = requests.setdefault(node.number, Requests(self.book, node, who))
            with self.lock:
                era = self.at[who] = self.era
            began = time.monotonic()
            try:
                is_good = self.step(rng, mine, era)
            except Exception as error:  # noqa: BLE001: the test itself is wrong, or the answer is
                self.book.note_wrong(f"{who}: {type(error).__name__}: {error}")
                is_good = False
            with self.lock:
                self.at[who] = None
                if is_good:
                    self.answered[node.number] += 1
                else:
                    self.failures[node.number].append(mine.problem)
                self.slowest[node.number] = max(self.slowest[node.number], time.monotonic() - began)
            self.ending.wait(rng.random() * PAUSE_SECONDS_MAX if is_good else 0.1)

    def step(self, rng, requests, era):
        keys = self.keys(era)
        key, size = rng.choice(keys), rng.choice(SIZES)
        match rng.choices(ALL, WEIGHTS)[0]:
            case "get":
                return requests.get(key)
            case "put":
                return requests.put(key, size)
            case "create":
                return requests.create(key, size)
            case "swap":
                return requests.swap(key, size)
            case "delete":
                return requests.delete(key)
            case _:
                return requests.list(f"era{era}/", keys)

    def end(self):
        self.ending.set()
        for thread in self.threads:
            thread.join()
