"""Which capabilities serving takes: each thing is tried by a process that has given up others."""

import json

import pytest

from barfs.daemon.confine import SERVING, Capability

# What a daemon does with its rights, and how it went. It has mounted before.
PROGRAM = """
import errno, json, os
from pathlib import Path
from barfs.daemon import confine
from barfs.devmem import PhysicalMemory
from barfs.machine.source import source_of
os.makedirs("/mnt/rights", exist_ok=True)
os.system("mount -t tmpfs rights /mnt/rights")
confine.keep_only({{confine.Capability(number) for number in {keep}}})
def attempt(what, *arguments):
    try:
        what(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
def enable(number):
    Path("/sys/bus/pci/devices/0000:00:10.0/enable").write_text(number)
def open_and_close(path):
    os.close(os.open(path, os.O_RDWR))
memory = PhysicalMemory(source_of(), Path("/dev/mem"))
print(json.dumps({{
    "/dev/mem": attempt(open_and_close, "/dev/mem"),
    "BAR": attempt(open_and_close, "/sys/bus/pci/devices/0000:00:10.0/resource2"),
    "iomem": any(entry.is_ram for entry in memory.ranges()),
    "config": len(Path("/sys/bus/pci/devices/0000:00:16.0/config").read_bytes()),
    "enable": [attempt(enable, "1"), attempt(enable, "0")],
    "unmount": os.system("umount /mnt/rights 2>/dev/null") == 0,
}}))
"""

ALL = {
    "/dev/mem": "done",
    "BAR": "done",
    "iomem": True,
    "config": 4096,
    "enable": ["done", "done"],
    "unmount": True,
}
LESS = {
    Capability.SYS_RAWIO: {"/dev/mem": "EPERM"},
    Capability.SYS_ADMIN: {
        "iomem": False,
        "config": 64,
        "enable": ["EPERM", "EPERM"],
        "unmount": False,
    },
}


def outcome(guest, keep):
    done = guest.python(PROGRAM.format(keep=[int(capability) for capability in keep]))
    guest.run("! mountpoint -q /mnt/rights || umount /mnt/rights")
    return json.loads(done.text)


def test_they_are_enough(guest):
    assert outcome(guest, SERVING) == ALL


@pytest.mark.parametrize("without", LESS)
def test_each_is_needed(guest, without):
    assert LESS.keys() == SERVING
    assert outcome(guest, SERVING - {without}) == ALL | LESS[without]


def test_the_daemons_have_no_others(guest):
    """Both of them, with all their threads; the other tests of this tier show that it is enough."""
    shown = guest.run(
        "for p in $(pgrep -f 'barfs[ ]mount'); do cat /proc/$p/task/*/status; done"
    ).text
    fields = [line.split(":\t") for line in shown.splitlines()]
    found = {name: {value for key, value in fields if key == name} for name, _ in fields}
    needed = f"{sum(1 << capability for capability in SERVING):016x}"
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert found[name] == {needed}
    for name in ("CapInh", "CapAmb"):
        assert found[name] == {"0" * 16}
    assert found["NoNewPrivs"] == {"1"}
