"""Runs in the guest: a file of a BAR that has moved fails, whatever has come to its address.

usage: moved_bars.py MOUNTPOINT ADDRESS ADDRESS

The kernel places both devices' BARs anew. They begin with `one ` and `two `.
"""

import errno
import os
import sys
from pathlib import Path

mountpoint, *addresses = sys.argv[1:]
devices = [Path("/sys/bus/pci/devices", address) for address in addresses]


def starts():
    """Where each device's BAR 2 is."""
    return [
        (device / "resource").read_text().splitlines()[2].split(maxsplit=1)[0] for device in devices
    ]


held = [os.open(f"{mountpoint}/pci/{address}/bar2", os.O_RDWR) for address in addresses]
assert [os.pread(fd, 4, 0) for fd in held] == [b"one ", b"two "]
before = starts()
for device in devices:
    (device / "remove").write_text("1")
Path("/sys/bus/pci/rescan").write_text("1")
for device in devices:
    (device / "enable").write_text("1")
assert set(before) & set(starts()), "nothing has come to where something was"
for fd in held:
    try:
        os.pwrite(fd, b"lost", 0)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
    else:
        raise SystemExit("written")
