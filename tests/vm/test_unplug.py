"""A device is unplugged again and again while clients use it, and others beside it."""

import json
import time

import pytest

from vm.conftest import MOUNTS
from vm.machine import COMMAND_TIMEOUT, MIB, Region, program_line

ROUNDS = 50
ROUNDS_BY_QEMU = 2
ASKED = "/run/by-qemu"
SLOT = 2
BACKEND = {"qom-type": "memory-backend-file", "id": "slot2", "size": MIB, "share": True}
# As in guest/unplug_load.py.
FIRST_REGISTER, MARK = 0x10, 0x88


def check_accesses(seen, starts, mark):
    """Each round's register is accessed until the device has gone, and never after."""
    marks = [
        at for at, access in enumerate(seen) if (access.kind, access.offset) == ("write", mark)
    ]
    assert len(marks) == len(MOUNTS) * len(starts)
    for number, start in enumerate(starts):
        gone = marks[len(MOUNTS) * (number + 1) - 1]
        register = start + FIRST_REGISTER + 4 * number
        accesses = [at for at, access in enumerate(seen) if access.offset == register]
        assert len(accesses) > 2 * len(MOUNTS) * 4, f"round {number}"
        assert accesses[-1] < gone, f"round {number}: accessed after it had gone"


def load(address, rounds, directory):
    return program_line("unplug_load.py", address, rounds, directory, *MOUNTS.values())


def check(result, seen, edu, rounds):
    assert result["wrong"] == []
    assert len(result["starts"]) == rounds
    assert result["others"] > rounds
    check_accesses(seen, result["starts"], edu.address + MARK)


@pytest.fixture
def everywhere(edu):
    """The registers of all ivshmem and edu devices, by their addresses."""
    return Region("ivshmem-mmio", 0), Region(edu.name, 0)


def test_fifty_rounds_under_load(guest, edu, everywhere):
    with guest.traced(*everywhere) as seen:
        done = guest.run(load("0000:00:11.0", ROUNDS, "-"), timeout=300)
    check(json.loads(done.text), seen, edu, ROUNDS)


def plug(guest):
    """An ivshmem device in slot 2."""
    guest.qmp.cmd("object-add", **BACKEND, **{"mem-path": str(guest.directory / "slot2")})
    guest.qmp.cmd("device_add", driver="ivshmem-plain", id="late", memdev="slot2", bus="slot2")


def unplug(guest):
    """Take it out; QEMU 7.2 cannot plug in the same memory again while it still has it."""
    guest.qmp.cmd("device_del", id="late")
    if not guest.architecture.has_firmware:
        # Without ACPI that is a press of the button, which the kernel obeys five seconds later.
        guest.run(f"echo 0 > /sys/bus/pci/slots/{SLOT}/power")
    deadline = time.monotonic() + COMMAND_TIMEOUT
    while "late" in str(guest.qmp.cmd("qom-list", path="/machine/peripheral")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    guest.qmp.cmd("object-del", id="slot2")


@pytest.mark.each_machine
def test_rounds_of_real_hotplug_under_load(guest, edu, everywhere):
    (guest.directory / "slot2").write_bytes(bytes(MIB))
    plug(guest)
    guest.run(f"mkdir {ASKED}")
    listed = guest.run(
        "for i in {1..200}; do ls /sys/bus/pci/devices | grep -m 1 ^0000:02: && exit;"
        " sleep 0.1; done; exit 1"
    )
    command = load(listed.text.strip(), ROUNDS_BY_QEMU, ASKED)
    with guest.traced(*everywhere) as seen:
        guest.run(f"setsid {command} >{ASKED}.log 2>&1 &")
        for _ in range(ROUNDS_BY_QEMU):
            for what, do in (("unplug", unplug), ("plug", plug)):
                wait = f"until [ -e {ASKED}/{what} ] || [ -s {ASKED}.log ]; do sleep 0.05; done"
                asked = guest.run(f"{wait}; cat {ASKED}.log").text
                assert not asked, asked
                do(guest)
                guest.run(f"rm {ASKED}/{what}")
        done = guest.run(f"until [ -s {ASKED}.log ]; do sleep 0.05; done; cat {ASKED}.log")
    check(json.loads(done.text), seen, edu, ROUNDS_BY_QEMU)
    unplug(guest)
