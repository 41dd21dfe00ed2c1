"""A drive that loses power: an NBD server that keeps what was not flushed apart from what was.

At a cut each sector of 512 bytes that was written since the last flush is the new one or the one of the last flush, by chance,
so that blocks of 4096 bytes are torn too. A drive that lies (`lies=True`) answers flushes without doing anything.
"""

import pathlib
import random
import socket
import struct
import threading

SECTOR = 512

# Of the NBD protocol.
OPTION_MAGIC = 0x49484156454F5054
REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC = 0x25609513
ANSWER_MAGIC = 0x67446698
OPTION_EXPORT_NAME, OPTION_ABORT, OPTION_INFO, OPTION_GO = 1, 2, 6, 7
REPLY_ACK, REPLY_INFO, REPLY_UNSUPPORTED = 1, 3, 0x80000001
READ, WRITE, DISCONNECT, FLUSH, TRIM, WRITE_ZEROES = 0, 1, 2, 3, 4, 6
FLAG_FUA = 1
# Has flags, takes flushes, FUA, trims and writes of zeros.
EXPORT_FLAGS = 1 | 4 | 8 | 32 | 64


class CutDrive:
    """A drive of `content`, served on `port` until it is closed."""

    def __init__(self, content: bytes, lies=False):
        self.now = bytearray(content)
        self.durable = bytearray(content)
        self.unflushed = set()
        self.lies = lies
        self.flushes = 0
        self.lock = threading.Lock()
        self.is_cut = False
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def url(self):
        return f"nbd://127.0.0.1:{self.port}/"

    def cut(self, seed):
        """Power fails. Returns what is left, and how many sectors were at stake."""
        chance = random.Random(seed)
        with self.lock:
            self.is_cut = True
            at_stake = sorted(self.unflushed)
            for sector in at_stake:
                if chance.random() < 0.5:
                    self.settle(sector)
            self.listener.close()
            return bytes(self.durable), len(at_stake)

    def settle(self, sector):
        start = sector * SECTOR
        self.durable[start : start + SECTOR] = self.now[start : start + SECTOR]

    def serve(self):
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                stream = peer.makefile("rb", buffering=1 << 20)
                if self.greet(peer, stream):
                    while self.answer_one(peer, stream):
                        pass
            except (OSError, struct.error):
                pass  # the machine was ended
            peer.close()

    def greet(self, peer, stream):
        peer.sendall(b"NBDMAGIC" + struct.pack(">QH", OPTION_MAGIC, 3))
        stream.read(4)
        while True:
            _, option, length = struct.unpack(">QII", stream.read(16))
            stream.read(length)

            def reply(kind, data=b""):
                peer.sendall(struct.pack(">QIII", REPLY_MAGIC, option, kind, len(data)) + data)

            if option == OPTION_EXPORT_NAME:
                peer.sendall(struct.pack(">QH", len(self.now), EXPORT_FLAGS))
                return True
            if option in (OPTION_INFO, OPTION_GO):
                reply(REPLY_INFO, struct.pack(">HQH", 0, len(self.now), EXPORT_FLAGS))
                reply(REPLY_ACK)
                if option == OPTION_GO:
                    return True
            elif option == OPTION_ABORT:
                return False
            else:
                reply(REPLY_UNSUPPORTED)

    def answer_one(self, peer, stream):
        head = stream.read(28)
        if len(head) < 28:
            return False
        magic, flags, kind, handle, offset, length = struct.unpack(">IHHQQI", head)
        assert magic == REQUEST_MAGIC
        if kind == DISCONNECT:
            return False
        data = stream.read(length) if kind == WRITE else b""
        if kind == WRITE and len(data) < length:
            return False
        answer = b""
        with self.lock:
            if self.is_cut:
                return False
            if kind == READ:
                answer = bytes(self.now[offset : offset + length])
            elif kind in (WRITE, WRITE_ZEROES, TRIM):
                self.now[offset : offset + length] = data if kind == WRITE else bytes(length)
                sectors = range(offset // SECTOR, (offset + length) // SECTOR)
                self.unflushed.update(sectors)
                if flags & FLAG_FUA and not self.lies:
                    for sector in sectors:
                        self.settle(sector)
                    self.unflushed.difference_update(sectors)
            elif kind == FLUSH:
                self.flushes += 1
                if not self.lies:
                    for sector in self.unflushed:
                        self.settle(sector)
                    self.unflushed.clear()
        peer.sendall(struct.pack(">IIQ", ANSWER_MAGIC, 0, handle) + answer)
        return True

    def save(self, path):
        pathlib.Path(path).write_bytes(self.durable)
