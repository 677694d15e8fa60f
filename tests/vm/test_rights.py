"""Which capabilities serving takes: each thing is tried by a process that has given up others."""

import json

import pytest

from barfs.daemon.confine import SERVING, Capability

pytestmark = pytest.mark.each_machine

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
    done = guest.program("rights.py", *(int(capability) for capability in keep))
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
