"""How long the machine itself kept a small synced write waiting: what no server can be faster than."""

import os
import threading
import time

EVERY_SECONDS = 0.01


class Stalls:
    """A thread that writes and syncs a block beside the nodes, over and over, until the `with` ends."""

    def __init__(self, directory):
        self.path, self.ending = directory / "stalls", threading.Event()
        self.longest, self.lock = 0.0, threading.Lock()
        self.thread = threading.Thread(target=self.work)

    def take(self):
        """The longest turn that ended since this was asked last, in seconds."""
        with self.lock:
            longest, self.longest = self.longest, 0.0
        return longest

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ending.set()
        self.thread.join()
        self.path.unlink(missing_ok=True)

    def work(self):
        file = os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            while not self.ending.wait(EVERY_SECONDS):
                began = time.monotonic()
                os.pwrite(file, bytes(4096), 0)
                os.fdatasync(file)
                took = time.monotonic() - began
                with self.lock:
                    self.longest = max(self.longest, took)
        finally:
            os.close(file)
