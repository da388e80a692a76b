"""Many vsock streams at once, both ways, half closed by both ends: `streams.py host SOCKET MACHINE PORT COUNT BYTES` connects through
the vmm's control socket, `streams.py guest PORT COUNT BYTES` listens. Each side sends its own bytes, compares what came, and
prints how many streams were whole.

No two streams carry the same bytes: each has the same block, begun at another place, and the sides have different blocks.
"""

import json
import random
import resource
import selectors
import socket
import struct
import sys

PIECE = 64 << 10


class Stream:
    def __init__(self, sock, number, ours, theirs, prefix=b""):
        sock.setblocking(False)
        self.sock, self.number, self.theirs = sock, number, theirs
        self.pieces = [memoryview(prefix)] + ([] if number is None else turned(ours, number))
        self.ours, self.first, self.got, self.same = ours, b"", 0, True
        self.done_sending = self.done_receiving = False

    def send(self):
        while self.pieces:
            piece = self.pieces[0]
            if not piece:
                self.pieces.pop(0)
                continue
            try:
                sent = self.sock.send(piece[:PIECE])
            except BlockingIOError:
                return
            self.pieces[0] = piece[sent:]
        if self.number is not None:
            self.sock.shutdown(socket.SHUT_WR)
            self.done_sending = True

    def receive(self):
        try:
            data = self.sock.recv(PIECE)
        except BlockingIOError:
            return
        if not data:
            self.done_receiving = True
            return
        if self.number is None:
            self.first += data
            if len(self.first) < 4:
                return
            self.number = struct.unpack("<I", self.first[:4])[0]
            self.pieces = turned(self.ours, self.number)
            data = self.first[4:]
        while data:
            # What is expected at this place, up to the end of the block, where it begins again.
            place = (start(self.theirs, self.number) + self.got) % len(self.theirs)
            expected = self.theirs[place : place + len(data)]
            self.same &= data[: len(expected)] == expected
            self.got += len(expected)
            data = data[len(expected) :]

    def whole(self):
        return self.same and self.got == len(self.theirs)


def start(block, number):
    return number * 4099 % len(block)


def turned(block, number):
    at = start(block, number)
    return [memoryview(block)[at:], memoryview(block)[:at]]


def carry(streams):
    selector = selectors.DefaultSelector()
    for stream in streams:
        selector.register(stream.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, stream)
    whole, left = 0, len(streams)
    while left:
        for key, events in selector.select():
            stream = key.data
            if events & selectors.EVENT_READ and not stream.done_receiving:
                stream.receive()
            if not stream.done_sending and stream.pieces:
                stream.send()
            wanted = (0 if stream.done_receiving else selectors.EVENT_READ) | (
                selectors.EVENT_WRITE if stream.pieces else 0
            )
            if stream.done_receiving and (stream.done_sending or stream.number is None):
                selector.unregister(stream.sock)
                stream.sock.close()
                whole += stream.whole()
                left -= 1
            elif wanted and wanted != key.events:
                selector.modify(stream.sock, wanted, stream)
    return whole


def connect(path, machine, port):
    with socket.socket(socket.AF_UNIX) as control:
        control.connect(path)
        body = json.dumps({"connect": {"machine": machine, "port": port}}).encode()
        control.sendall(struct.pack("<I", len(body)) + body)
        reply, descriptors, _, _ = socket.recv_fds(control, 4096, 4)
        if len(descriptors) != 1:
            raise SystemExit(f"connecting: {reply!r}")
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=descriptors[0])


def main():
    side, *rest = sys.argv[1:]
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    port, count, size = map(int, rest[-3:])
    blocks = [random.Random(seed).randbytes(size) for seed in (1, 2)]
    if side == "guest":
        with socket.socket(socket.AF_VSOCK) as listener, socket.socket(socket.AF_VSOCK) as sign:
            listener.bind((socket.VMADDR_CID_ANY, port))
            listener.listen(128)
            # Whoever waits for us looks here: connections to it stay in its backlog.
            sign.bind((socket.VMADDR_CID_ANY, port + 1))
            sign.listen(1)
            streams = [Stream(listener.accept()[0], None, blocks[1], blocks[0]) for _ in range(count)]
    else:
        path, machine = rest[:2]
        streams = [
            Stream(connect(path, machine, port), number, blocks[0], blocks[1], struct.pack("<I", number))
            for number in range(count)
        ]
    print(carry(streams), "whole", flush=True)


main()
