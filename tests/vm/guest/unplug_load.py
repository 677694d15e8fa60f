"""Runs in the guest: clients use a device that comes and goes, and others that stay.

usage: unplug_load.py ADDRESS ROUNDS DIRECTORY MOUNTPOINT...

ADDRESS is that of an ivshmem device. It is removed and found again through sysfs; or, if DIRECTORY
is not `-`, by whoever watches that directory for the files `unplug` and `plug`, and deletes them.
In each round the registers are used at another offset, so that a trace of the bus shows whose
accesses they are; after the device has gone, each mount writes a mark to the edu device at MARK.
Prints the address of the registers in each round, and what went wrong, as JSON.
"""

import errno
import json
import os
import sys
import threading
import time
from pathlib import Path

DEVICES = Path("/sys/bus/pci/devices")
FIRST_REGISTER = 0x10  # above those that have a meaning (QEMU, docs/specs/ivshmem-spec.txt)
EDU, STAYS = "1234:11e8", "0000:00:10.0"
MARK = 0x88  # the edu device keeps what is written there
PATIENCE = 30

wrong = []


def until(condition, what):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.001)


def daemons(mountpoints):
    """The directories in /proc of the daemons, by the mountpoints on their command lines."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue  # it has ended
        if "mount" in words and set(words) & set(mountpoints):
            found.append(entry)
    assert len(found) == len(mountpoints)
    return found


def held(daemon):
    """How many descriptors and mappings of devices and memory."""
    maps = (daemon / "maps").read_text()
    return len(os.listdir(daemon / "fd")), maps.count("/resource") + maps.count("/dev/mem")


class Used:
    """A file that a client uses until it is gone, and beyond."""

    def __init__(self, path, offset, data):
        self.path, self.offset, self.data = path, offset, data
        self.fd = os.open(path, os.O_RDWR)
        self.done = 0  # requests that succeeded
        self.gone = 0  # and those after the device went

    def use(self):
        try:
            os.pwrite(self.fd, self.data, self.offset)
            read = os.pread(self.fd, len(self.data), self.offset)
        except OSError as error:
            if error.errno != errno.ENODEV:
                wrong.append(f"{self.path}: {error}")
            self.gone += 1
        else:
            if self.gone:
                wrong.append(f"{self.path}: it came back")
            if "bar2" in self.path and read != self.data:
                wrong.append(f"{self.path}: {read} instead of {self.data}")
            self.done += 1


class Client(threading.Thread):
    """Uses its files, one after the other, until it is stopped; with a pause after each turn."""

    def __init__(self, files, pause=0):
        super().__init__(daemon=True)
        self.files, self.pause, self.stopped = files, pause, False

    def run(self):
        while not self.stopped:
            for file in self.files:
                file.use()
            time.sleep(self.pause)

    def stop(self):
        self.stopped = True
        self.join()


def bar_start(address, index):
    lines = (DEVICES / address / "resource").read_text().splitlines()
    return int(lines[index].split()[0], 16)


def open_files(mountpoint, address, number):
    """The registers in several ways, and the memory; a mount's own part of it."""
    register = FIRST_REGISTER + 4 * number
    device, four = f"{mountpoint}/pci/{address}", number.to_bytes(4, "little")
    start = bar_start(address, 0)
    return [
        Used(f"{device}/bar0", register, four),
        Used(f"{device}/u32/bar0", register, four),
        Used(f"{device}/x32/bar0@{register:x}", 0, b"%d" % number),
        Used(f"{mountpoint}/phys/u32/{start + register:x}+4", 0, four),
        Used(f"{device}/bar2", 4096 * len(mountpoint), 16 * four),
    ]


def ask(directory, address, what):
    """Unplug or plug the device in, and wait for it."""
    if directory == "-" and what == "unplug":
        (DEVICES / address / "remove").write_text("1")
    elif directory == "-":
        (DEVICES.parent / "rescan").write_text("1")
    else:
        Path(directory, what).touch()
        until(lambda: not Path(directory, what).exists(), f"nobody does: {what}")
    until(lambda: (DEVICES / address).exists() == (what == "plug"), what)


def go_round(number, address, directory, mountpoints):
    """Use the device, take it away, bring it back; gives where its registers were."""
    (DEVICES / address / "enable").write_text("1")
    start = bar_start(address, 0)
    clients = [Client(open_files(mountpoint, address, number)) for mountpoint in mountpoints]
    files = [file for client in clients for file in client.files]
    for client in clients:
        client.start()
    until(lambda: all(file.done > 1 for file in files), "they are not used")
    ask(directory, address, "unplug")
    for mountpoint in mountpoints:
        # A small request is made when those before it have ended.
        mark = os.open(f"{mountpoint}/{EDU}/u32/bar0", os.O_WRONLY)
        os.pwrite(mark, number.to_bytes(4, "little"), MARK)
        os.close(mark)
        if os.path.exists(f"{mountpoint}/pci/{address}"):
            wrong.append(f"{mountpoint} still shows it in round {number}")
    until(lambda: all(file.gone > 1 for file in files), "they are not gone")
    ask(directory, address, "plug")
    before = [file.gone for file in files]
    until(lambda: all(f.gone > n + 1 for f, n in zip(files, before, strict=True)), "unused")
    for client in clients:
        client.stop()
    for file in files:
        os.close(file.fd)
    return start


def main():
    address, rounds, directory, *mountpoints = sys.argv[1:]
    others = []
    for mountpoint in mountpoints:
        others.append(Used(f"{mountpoint}/pci/{STAYS}/bar2", 4096 * len(mountpoint), b"stays" * 9))
        others.append(Used(f"{mountpoint}/{EDU}/u32/bar0", 4, bytes(4)))
    # It takes little from those of the device, so that a round takes less time.
    bystander = Client(others, pause=0.02)
    bystander.start()
    starts = []
    found = daemons(mountpoints)
    try:
        for number in range(int(rounds)):
            starts.append(go_round(number, address, directory, mountpoints))
            if number == 0:
                first = [held(daemon) for daemon in found]
        until(lambda: [held(daemon) for daemon in found] == first, "they hold more")
    except (OSError, TimeoutError) as error:
        wrong.append(repr(error))
    finally:
        bystander.stop()
    wrong.extend(f"{file.path} noticed" for file in others if file.gone or not file.done)
    if not (DEVICES / address).exists():
        ask(directory, address, "plug")
    (DEVICES / address / "enable").write_text("1")
    holdings = [held(daemon) for daemon in found]
    used = sum(file.done for file in others)
    print(json.dumps({"starts": starts, "wrong": wrong, "held": holdings, "others": used}))


main()
