"""Runs in the guest: what a daemon does with its rights, and how it went. It has mounted before.

usage: rights.py CAPABILITY...

The capabilities that are kept, by their numbers. Prints JSON.
"""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

from barfs.daemon import confine
from barfs.devmem import PhysicalMemory
from barfs.machine.source import source_of

WHERE = Path("/mnt/rights")
DEVICES = Path("/sys/bus/pci/devices")


def attempt(what, *arguments):
    try:
        what(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"


def open_and_close(path):
    os.close(os.open(path, os.O_RDWR))


enable = DEVICES / "0000:00:10.0/enable"
WHERE.mkdir(exist_ok=True)
subprocess.run(["mount", "-t", "tmpfs", "rights", WHERE], check=True)
confine.keep_only({confine.Capability(int(number)) for number in sys.argv[1:]})
memory = PhysicalMemory(source_of(), Path("/dev/mem"))
unmount = ["umount", WHERE]
outcome = {
    "/dev/mem": attempt(open_and_close, "/dev/mem"),
    "BAR": attempt(open_and_close, DEVICES / "0000:00:10.0/resource2"),
    "iomem": any(entry.is_ram for entry in memory.ranges()),
    "config": len((DEVICES / "0000:00:16.0/config").read_bytes()),
    "enable": [attempt(enable.write_text, number) for number in "10"],
    "unmount": subprocess.run(unmount, stderr=subprocess.DEVNULL, check=False).returncode == 0,
}
print(json.dumps(outcome))
