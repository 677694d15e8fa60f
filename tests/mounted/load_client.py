"""One process of the load: threads that each own a stretch of what they share, and check it.

usage: load_client.py MOUNTPOINT FIRST THREADS SECONDS

FIRST is the number of the first of its clients. Prints how often each thing was done and what went
wrong, as JSON.
"""

import contextlib
import errno
import json
import os
import random
import sys
import threading
import time
from collections import Counter

# Paths that come and go.
COMES_AND_GOES = ("pci/0000:00:08.0", "pci/0000:00:09.0")
# A name that the kernel has kept is looked up again at ESTALE. If the device goes meanwhile, some
# programs see ESTALE, since the kernel looks up once.
EXPECTED = {errno.ENOENT, errno.ENODEV, errno.ESTALE}
STRETCH = 8192  # of the memory of a device, and 1/64 of it
REGISTERS = 256
RAM = 0x10000


class Wrong(Exception):
    pass


class Client:
    def __init__(self, root, number):
        self.root, self.number = root, number
        self.random = random.Random(number)
        self.done, self.wrong = Counter(), []

    @contextlib.contextmanager
    def opened(self, path, flags=os.O_RDWR):
        fd = os.open(f"{self.root}/{path}", flags)
        try:
            yield fd
        finally:
            os.close(fd)

    def check(self, path, first, length):
        """Write and read a stretch of one's own."""
        data = self.random.randbytes(length)
        with self.opened(path) as fd:
            if os.pwrite(fd, data, first) != length:
                raise Wrong("short write")
            if os.pread(fd, length, first) != data:
                raise Wrong(f"other bytes at {first:#x}")

    def within(self, size, unit=1):
        first = self.random.randrange(size // unit)
        return first * unit, self.random.randint(1, size // unit - first) * unit

    # What a client does, by name

    def memory(self):
        first, length = self.within(STRETCH)
        self.check("1af4:1110/bar2", self.number * STRETCH + first, length)

    def registers(self):
        first, length = self.within(REGISTERS)
        if self.random.randrange(2):
            length = min(length, self.random.choice((1, 2, 4, 8)))
        self.check("pci/0000:01:00.0/bar0", self.number * REGISTERS + first, length)

    def fixed(self):
        width = self.random.choice((1, 2, 4, 8))
        view = f"pci/0000:01:00.0/u{8 * width}"
        first, length = self.within(REGISTERS, width)
        if self.random.randrange(2):
            self.check(f"{view}/bar0", self.number * REGISTERS + first, length)
        else:
            window = f"{self.number * REGISTERS:x}+{REGISTERS:x}"
            self.check(f"{view}/bar0@{window}", first, length)

    def text(self):
        offset = self.number * REGISTERS + 4 * self.random.randrange(REGISTERS // 4)
        mask = self.random.getrandbits(32)
        value = self.random.getrandbits(32) & mask
        with self.opened(f"pci/0000:01:00.0/x32/bar0@{offset:x}") as fd:
            os.pwrite(fd, b"0", 0)
            os.pwrite(fd, b"%d:%#x\n" % (value, mask), 0)
            if os.pread(fd, 99, 0) != b"0x%08x\n" % value:
                raise Wrong("other text")

    def ports(self):
        self.check("8086:100e/bar1", self.number, 1)

    def ram(self):
        first, length = self.within(1024)
        self.check(f"phys/{RAM + self.number * 1024:x}+400", first, length)

    def listings(self):
        for name in ("", "pci", "phys", "1af4:1110", "1af4:1110/u32"):
            if not os.listdir(f"{self.root}/{name}"):
                raise Wrong(f"nothing in {name}")

    def look_ups(self):
        os.readlink(f"{self.root}/8086:100e")
        os.stat(f"{self.root}/phys/{self.random.randrange(0xA0000):x}")
        with contextlib.suppress(FileNotFoundError):
            os.stat(f"{self.root}/pci/0000:00:1{self.random.randrange(8)}.0/bar0")
            raise Wrong("found what is not there")

    def texts(self):
        for name in ("info", "config"):
            with self.opened(f"8086:100e/{name}", os.O_RDONLY) as fd:
                if len(os.read(fd, 4096)) < 64:
                    raise Wrong(f"short {name}")

    def comes_and_goes(self):
        """It goes at any time, but never comes back to who had it open."""
        device = self.random.choice(COMES_AND_GOES)
        view = self.random.choice(("", "u8/", "u16/", "u32/", "x32/"))
        gone = False
        try:
            os.listdir(f"{self.root}/{device}")
            os.stat(f"{self.root}/{device}/{view}bar0")
            window = f"@{4 * self.number:x}+4"
            with self.opened(f"{device}/{view}bar0{window}") as fd:
                for _ in range(5):
                    value = self.random.getrandbits(32)
                    data = value.to_bytes(4, "little")
                    shown = b"0x%08x\n" % value if view == "x32/" else data
                    try:
                        os.pwrite(fd, shown, 0)
                        read = os.pread(fd, len(shown), 0)
                    except OSError:
                        gone = True
                        raise
                    finally:
                        if gone:
                            self.stays_gone(fd)
                    if read != shown:
                        raise Wrong(f"{read} instead of {shown}")
        except OSError as error:
            if error.errno not in EXPECTED or (gone and error.errno != errno.ENODEV):
                raise
            self.done[errno.errorcode[error.errno]] += 1

    def stays_gone(self, fd):
        for call in (lambda: os.pread(fd, 4, 0), lambda: os.pwrite(fd, b"0x1\n", 0)):
            try:
                call()
            except OSError as error:
                if error.errno != errno.ENODEV:
                    raise
            else:
                raise Wrong("it came back")

    def run(self, end):
        actions = (
            *(self.memory, self.registers, self.fixed, self.text, self.ports, self.ram),
            *(self.listings, self.look_ups, self.texts, self.comes_and_goes, self.comes_and_goes),
        )
        while time.monotonic() < end and len(self.wrong) < 5:
            action = self.random.choice(actions)
            try:
                action()
            except (OSError, Wrong) as error:
                self.wrong.append(f"{action.__name__} of client {self.number}: {error}")
            self.done[action.__name__] += 1


def main():
    root, first, threads, seconds = sys.argv[1], *map(float, sys.argv[2:])
    clients = [Client(root, int(first) + n) for n in range(int(threads))]
    end = time.monotonic() + seconds
    running = [threading.Thread(target=client.run, args=[end]) for client in clients]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    done = sum((client.done for client in clients), Counter())
    print(json.dumps({"done": done, "wrong": [one for client in clients for one in client.wrong]}))


main()
