"""Functions that are held through VFIO, with plain files in the place of the kernel's."""

import errno
import os
import re
import threading

import pytest
import trio
import trio.testing
from machines import machine_of

from barfs.access.vfio import NotViable
from barfs.diagnosis import causes
from barfs.errors import KernelRefused, NotAllowed, NotBound
from barfs.machine import simulated
from barfs.names import PciAddress
from barfs.spans import vfio
from barfs.spans.vfio import VfioDevices

FIRST, SECOND = PciAddress(0, 0, 4, 0), PciAddress(0, 0, 5, 0)


class Held:
    """A function that was opened."""

    def __init__(self):
        self.event = -1
        self.closed = False

    def wanted_back(self):
        self.event = os.eventfd(0, os.EFD_NONBLOCK)
        return self.event

    def close(self):
        self.closed = True


@pytest.fixture
def machine(tmp_path):
    machine = machine_of(simulated.build(tmp_path))
    for address in (FIRST, SECOND):
        device = tmp_path / "sys/bus/pci/devices" / str(address)
        (device / "driver").symlink_to(tmp_path / "drivers/vfio-pci")
        group = tmp_path / "groups/7"
        (group / "devices").mkdir(parents=True, exist_ok=True)
        (group / "devices" / str(address)).touch()
        (device / "iommu_group").symlink_to(group)
    return machine


@pytest.fixture
def opened():
    return []


@pytest.fixture
def devices(machine, opened, tmp_path):
    devices = VfioDevices(machine.pci, opened.append, tmp_path / "dev")
    yield devices
    devices.close()


def test_what_is_opened_while_it_waits_is_given_back_when_it_is_wanted(
    devices, opened, monkeypatch
):
    """Nothing looks for it from time to time: what becomes readable is what wakes it up."""
    held = {}

    def open_device(name, *_, **__):
        held[name] = Held()
        return held[name]

    def no_timer(*_):
        raise AssertionError("it wakes up by itself")

    monkeypatch.setattr(vfio, "open_device", open_device)
    given_up = []

    async def main():
        async with trio.open_nursery() as nursery:
            with monkeypatch.context() as patch:
                patch.setattr(trio, "move_on_after", no_timer)
                patch.setattr(trio, "sleep", no_timer)
                nursery.start_soon(devices.run, given_up.append)
                await trio.testing.wait_all_tasks_blocked()
                for number, address in enumerate((FIRST, SECOND), start=1):
                    await trio.to_thread.run_sync(devices.device, address)
                    await trio.testing.wait_all_tasks_blocked()
                    assert len(given_up) == number - 1
                    os.eventfd_write(held[str(address)].event, 1)
                    with trio.fail_after(20):
                        while len(given_up) < number:
                            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert given_up == opened == [FIRST, SECOND]
    assert all(one.closed for one in held.values())
    assert devices.note(FIRST) is None


def test_a_function_is_opened_once_by_however_many(devices, opened, monkeypatch):
    monkeypatch.setattr(vfio, "open_device", lambda *_, **__: Held())
    threads = [threading.Thread(target=devices.device, args=(FIRST,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened == [FIRST]
    assert "it was reset when it was opened" in devices.note(FIRST)
    assert devices.note(SECOND) is None


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (NotViable(1, "not viable"), NotBound, f"other drivers use: {SECOND} (ivshmem)"),
        (
            OSError(errno.EACCES, "no"),
            NotAllowed,
            r"this user may not open it; chown \d+ \S+/vfio/7",
        ),
        (OSError(errno.EPERM, "no"), KernelRefused, "the IOMMU does not remap interrupts"),
    ],
)
def test_what_the_kernel_refuses(devices, tmp_path, monkeypatch, error, kind, words):
    link = tmp_path / "sys/bus/pci/devices" / str(SECOND) / "driver"
    link.unlink()
    link.symlink_to(tmp_path / "drivers/ivshmem")

    def open_device(*_, **__):
        raise error

    monkeypatch.setattr(vfio, "open_device", open_device)
    pattern = words if kind is NotAllowed else re.escape(words)
    with pytest.raises(kind, match=pattern) as caught:
        devices.device(FIRST)
    assert caught.value.__cause__ is error


def test_what_no_iommu_confines_opens_only_on_request(machine, tmp_path, monkeypatch):
    (tmp_path / "groups/7/name").write_text("vfio-noiommu\n")
    monkeypatch.setattr(vfio, "open_device", lambda *_, **__: Held())
    opened = []
    for noiommu in (False, True):
        devices = VfioDevices(machine.pci, opened.append, tmp_path / "dev", noiommu=noiommu)
        try:
            if noiommu:
                devices.device(FIRST)
            else:
                with pytest.raises(KernelRefused, match=r"DMA can reach all memory; .* --noiommu"):
                    devices.device(FIRST)
        finally:
            devices.close()
        assert opened == [FIRST] * noiommu


def test_what_is_bound_to_another_driver_is_refused_in_the_words_of_doctor(
    devices, machine, tmp_path
):
    link = tmp_path / "sys/bus/pci/devices" / str(FIRST) / "driver"
    link.unlink()
    for driver in (None, "e1000"):
        if driver is not None:
            link.symlink_to(tmp_path / "drivers" / driver)
        with pytest.raises(NotBound) as caught:
            devices.device(FIRST)
        cause = causes.not_bound(machine.pci, FIRST)
        assert str(caught.value) == f"{FIRST}: {cause}"
        assert cause.mend.endswith(f"echo {FIRST} > {tmp_path}/sys/bus/pci/drivers_probe")
