"""Runs in the guest: files of a device that is removed fail for good, and its mapping goes.

usage: given_up.py MOUNTPOINT ADDRESS BAR FILE

The device is removed and found again through sysfs; or, if FILE is not `-`, by whoever waits for
that file, and then it stays away.
"""

import errno
import os
import sys
import time
from pathlib import Path

PATIENCE = 20

mountpoint, address, bar, request = sys.argv[1:]
device = Path("/sys/bus/pci/devices", address)
line = (device / "resource").read_text().splitlines()[int(bar)]
start, end = (int(word, 16) for word in line.split()[:2])


def until(condition, what):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.05)


def daemon():
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue  # it has ended
        if mountpoint in words and "mount" in words:
            return entry
    raise LookupError(mountpoint)


def mapped():
    """How often the BAR is mapped: through resourceN, or through /dev/mem at its address."""
    found = 0
    for mapping in (daemon() / "maps").read_text().splitlines():
        words = mapping.split()
        found += f"{address}/resource{bar}" in mapping
        found += words[-1] == "/dev/mem" and start <= int(words[2], 16) <= end
    return found


def gone(fd):
    for call in (lambda: os.pread(fd, 4, 0), lambda: os.pwrite(fd, b"0x42", 0)):
        try:
            call()
        except OSError as error:
            if error.errno != errno.ENODEV:
                return False
        else:
            return False
    return True


names = [f"pci/{address}/{name}" for name in (f"bar{bar}", "x32/bar0@4", "u32/bar0", "config")]
names += [f"pci/{address}/bar0", f"pci/{address}/bar{bar}@10+10", f"phys/{start:x}+10"]
held = [os.open(f"{mountpoint}/{name}", os.O_RDWR) for name in names]
ram = next(
    line.split("-")[0]
    for line in Path("/proc/iomem").read_text().splitlines()
    if line.endswith("System RAM")
)
others = [
    os.open(f"{mountpoint}/{name}", os.O_RDONLY) for name in (f"phys/{ram}+10", "1b36:0010/bar0")
]
assert all(len(os.pread(fd, 4, 0)) == 4 for fd in held + others)
assert mapped() > 1
if request == "-":
    (device / "remove").write_text("1")
else:
    Path(request).touch()
    until(lambda: not device.exists(), "it stays plugged in")
# Its mapping goes without anybody touching or closing the file; that of phys stays, unreachable.
until(lambda: mapped() == 1, "it stays mapped")
assert all(map(gone, held))
if request == "-":
    Path("/sys/bus/pci/rescan").write_text("1")
    assert device.exists()
    assert all(map(gone, held))
    (device / "enable").write_text("1")
    fresh = os.open(f"{mountpoint}/pci/{address}/bar{bar}", os.O_RDWR)
    assert len(os.pread(fresh, 4, 0)) == 4
assert all(len(os.pread(fd, 4, 0)) == 4 for fd in others)
