"""Load on every device of a guest, each of it numbered, so that what is lost, repeated or changed shows: `saved.py send PEER`
or `saved.py receive PEER`. Ends when /run/stop is there; what each part did, or what was wrong, is in /run/result then.
"""

import json
import os
import socket
import struct
import sys
import threading
import time
import traceback
import zlib

BLOCK = 4096
BLOCKS = 1024
PORT = 7000

role, peer = sys.argv[1:3]
done, failed = {}, []


def stopped():
    return os.path.exists("/run/stop")


def record(number):
    body = struct.pack("<Q", number * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF) * (BLOCK // 8 - 1) + struct.pack("<I", number & 0xFFFFFFFF)
    return body + struct.pack("<I", zlib.crc32(body))


def tell(name, number):
    with open(f"/run/{name}.new", "w") as file:
        file.write(str(number))
    os.rename(f"/run/{name}.new", f"/run/{name}")


def disk():
    """Writes block after block, round and round, each on the disk before the next."""
    number = 0
    with open("/var/load", "wb", 0) as file:
        while not stopped():
            file.seek(number % BLOCKS * BLOCK)
            file.write(record(number))
            os.fsync(file.fileno())
            number += 1
            tell("disk", number)
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")
    with open("/var/load", "rb", 0) as file:
        for wanted in range(max(0, number - BLOCKS), number):
            file.seek(wanted % BLOCKS * BLOCK)
            assert file.read(BLOCK) == record(wanted), f"block of {wanted} of {number}"
    done["disk"] = number


def send():
    number = 0
    while True:
        try:
            stream = socket.create_connection((peer, PORT), 5)
            break
        except OSError:
            assert not stopped(), "nobody listened"
            time.sleep(0.2)
    stream.settimeout(None)
    while not stopped():
        stream.sendall(record(number))
        number += 1
        time.sleep(0.002)
    stream.shutdown(socket.SHUT_WR)
    there = struct.unpack("<Q", stream.recv(8, socket.MSG_WAITALL))[0]
    assert there == number, f"{number} sent, {there} received"
    done["net"] = number


def receive():
    number = 0
    listener = socket.create_server(("", PORT))
    stream, _ = listener.accept()
    while True:
        got = stream.recv(BLOCK, socket.MSG_WAITALL)
        if not got:
            break
        assert got == record(number), f"record {number} of a stream"
        number += 1
    stream.sendall(struct.pack("<Q", number))
    done["net"] = number


def console():
    number = 0
    with open("/dev/hvc0", "w") as file:
        while not stopped():
            file.write(f"tick {number}.\n")
            file.flush()
            number += 1
            time.sleep(0.05)
    done["console"] = number


def entropy():
    number, last = 0, b""
    with open("/dev/hwrng", "rb", 0) as file:
        while not stopped():
            got = file.read(16)
            assert len(got) > 0 and got != last, f"read {number}: {got}"
            number, last = number + 1, got
            time.sleep(0.05)
    done["entropy"] = number


def kept(part):
    try:
        part()
    except BaseException:
        failed.append(f"{part.__name__}: {traceback.format_exc()}")


parts = [disk, send if role == "send" else receive, console, entropy]
threads = [threading.Thread(target=kept, args=(part,)) for part in parts]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
with open("/run/result.new", "w") as file:
    json.dump({"done": done, "failed": failed}, file)
os.rename("/run/result.new", "/run/result")
