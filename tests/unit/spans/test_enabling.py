"""Decoding turned on with the first file that is open and put back with the last."""

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest
from machines import functions_of

from barfs.access.files import refusal
from barfs.errors import DeviceGone, KernelRefused, NoSuchNode
from barfs.machine import simulated
from barfs.machine.configspace import COMMAND_ABSENT, COMMAND_IO, COMMAND_MASTER, COMMAND_MEMORY
from barfs.machine.source import PlainSource
from barfs.names import PciAddress
from barfs.spans.enabling import Decoder, Later

NIC = PciAddress(0, 0, 3, 0)  # bar0 is memory, bar1 ports
IVSHMEM = PciAddress(0, 0, 4, 0)
BOTH = COMMAND_IO | COMMAND_MEMORY


class Source(PlainSource):
    """Plain files with a kernel's `enable`, and a note of what is written."""

    def __init__(self, *paths):
        super().__init__(*paths)
        self.written = []
        self.refused = False

    def write(self, path, data):
        """As enable_store in drivers/pci/pci-sysfs.c."""
        name, text = os.path.basename(path), data.decode()
        self.written.append(f"{name}={text}")
        assert name == "enable"
        directory = Path(path).parent
        if (directory / "driver").exists():
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        count = int(Path(path).read_text())
        if text == "1" and count == 0:
            with (directory / "config").open("r+b") as config:
                config.seek(4)
                (command,) = config.read(1)
                config.seek(4)
                config.write(bytes([command | BOTH]))
        super().write(path, str(count + (1 if text == "1" else -1)).encode())

    def open_config(self, path, what, *, writable):
        if self.refused:
            raise refusal(what, None, OSError(errno.EPERM, os.strerror(errno.EPERM)))
        file = super().open_config(path, what, writable=writable)
        real = file.write

        def write(offset, data):
            self.written.append(f"COMMAND={int.from_bytes(data, 'little'):x}")
            assert offset == 4
            return real(offset, data)

        file.write = write
        return file


class Machine:
    """The simulated machine with a kernel's `enable`, and what was written to it."""

    def __init__(self, directory):
        self.devices = simulated.build(directory).sysfs / "bus/pci/devices"
        self.bus = functions_of(directory / "sys", source=Source)
        self.written = self.bus.source.written
        self.unbind(NIC)

    def path(self, address, name):
        return self.devices / str(address) / name

    def command(self, address, value=None):
        with self.path(address, "config").open("r+b") as config:
            config.seek(4)
            if value is None:
                return int.from_bytes(config.read(2), "little")
            config.write(value.to_bytes(2, "little"))
            return value

    def enable(self, address, count=None):
        if count is not None:
            self.path(address, "enable").write_text(f"{count}\n")
        return int(self.path(address, "enable").read_text())

    def bind(self, address, driver="e1000"):
        self.path(address, "driver").symlink_to(self.devices.parent / "drivers" / driver)

    def unbind(self, address):
        self.path(address, "driver").unlink(missing_ok=True)


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.fixture
def decoder(machine):
    return Decoder(machine.bus)


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def test_what_is_on_is_left_alone(machine, decoder):
    release = decoder.hold(NIC, 0)
    release()
    assert machine.written == []
    assert machine.command(NIC) == BOTH


def test_on_with_the_first_and_off_with_the_last(machine, decoder):
    machine.command(NIC, COMMAND_MASTER)
    before = descriptors()
    first, second = decoder.hold(NIC, 0), decoder.hold(NIC, 0)
    assert machine.written == ["enable=1"]
    assert machine.command(NIC) == BOTH | COMMAND_MASTER
    first()
    assert machine.command(NIC) == BOTH | COMMAND_MASTER
    second()
    assert machine.written == ["enable=1", "enable=0", f"COMMAND={COMMAND_MASTER:x}"]
    assert machine.command(NIC) == COMMAND_MASTER
    assert machine.enable(NIC) == 0
    assert descriptors() == before
    # And once more.
    decoder.hold(NIC, 0)()
    assert machine.command(NIC) == COMMAND_MASTER


@pytest.mark.parametrize(("index", "bit"), [(0, COMMAND_MEMORY), (1, COMMAND_IO)])
@pytest.mark.parametrize("others", [0, BOTH])
def test_where_the_kernel_counts_already_only_the_bit_itself_is_written(
    machine, decoder, index, bit, others
):
    """`enable` writes the register only when it goes from 0 to 1."""
    machine.enable(NIC, 1)
    machine.command(NIC, others & ~bit)
    release = decoder.hold(NIC, index)
    assert machine.written == [f"COMMAND={others & ~bit | bit:x}"]
    release()
    assert machine.command(NIC) == others & ~bit
    assert machine.enable(NIC) == 1


def test_both_bits_one_after_the_other(machine, decoder):
    machine.enable(NIC, 2)
    machine.command(NIC, 0)
    memory = decoder.hold(NIC, 0)
    assert machine.command(NIC) == COMMAND_MEMORY
    ports = decoder.hold(NIC, 1)
    assert machine.command(NIC) == BOTH
    memory()
    assert machine.command(NIC) == BOTH, "one is still open"
    ports()
    assert machine.command(NIC) == 0
    assert machine.enable(NIC) == 2


def test_a_bit_that_was_on_stays_on(machine, decoder):
    machine.command(NIC, COMMAND_IO)
    decoder.hold(NIC, 0)()
    assert machine.command(NIC) == COMMAND_IO


def test_a_kernel_without_enable(machine, decoder):
    machine.path(IVSHMEM, "enable").unlink()
    machine.command(IVSHMEM, 0)
    release = decoder.hold(IVSHMEM, 2)
    assert machine.command(IVSHMEM) == COMMAND_MEMORY
    release()
    assert machine.command(IVSHMEM) == 0
    assert not machine.path(IVSHMEM, "enable").exists()


def test_a_driver_that_is_bound_keeps_what_it_enabled(machine, decoder):
    """Enabling is refused where there is a driver, which has its own count."""
    machine.bind(NIC)
    machine.command(NIC, 0)
    release = decoder.hold(NIC, 0)
    assert machine.command(NIC) == COMMAND_MEMORY
    release()
    assert machine.written == ["enable=1", "COMMAND=2", "COMMAND=0"]
    assert machine.enable(NIC) == 0


def test_a_driver_that_comes_meanwhile_keeps_decoding(machine, decoder, caplog):
    caplog.set_level("INFO")
    machine.command(NIC, 0)
    release = decoder.hold(NIC, 0)
    machine.bind(NIC)
    release()
    assert machine.command(NIC) == BOTH
    assert "decoding stays on: the driver e1000 has come meanwhile" in caplog.text


def test_a_driver_that_comes_between_two_files_keeps_decoding(machine, decoder):
    machine.enable(NIC, 1)
    machine.command(NIC, 0)
    memory = decoder.hold(NIC, 0)
    machine.bind(NIC)
    ports = decoder.hold(NIC, 1)
    memory()
    ports()
    assert machine.command(NIC) == BOTH


def test_a_driver_that_came_and_went(machine, decoder):
    machine.command(NIC, 0)
    release = decoder.hold(NIC, 0)
    machine.bind(NIC)
    machine.unbind(NIC)
    release()
    assert machine.command(NIC) == 0
    assert machine.enable(NIC) == 0


def test_what_somebody_else_turned_off_meanwhile_stays_off(machine, decoder):
    machine.command(NIC, 0)
    release = decoder.hold(NIC, 0)
    machine.command(NIC, COMMAND_MASTER)
    release()
    assert machine.command(NIC) == COMMAND_MASTER
    assert machine.written == ["enable=1", "enable=0"]


def test_a_virtual_function_and_one_that_is_silent_are_left_alone(machine, decoder):
    machine.command(IVSHMEM, 0)
    machine.path(IVSHMEM, "physfn").symlink_to(machine.path(NIC, "."))
    decoder.hold(IVSHMEM, 2)()
    machine.command(NIC, COMMAND_ABSENT)
    decoder.hold(NIC, 0)()
    assert machine.written == []


def test_a_device_that_falls_silent_meanwhile(machine, decoder):
    machine.enable(NIC, 1)
    machine.command(NIC, 0)
    release = decoder.hold(NIC, 0)
    machine.command(NIC, COMMAND_ABSENT)
    release()
    assert machine.written == ["COMMAND=2"]


def test_a_device_that_is_gone_or_has_no_such_bar(machine, decoder):
    before = descriptors()
    with pytest.raises(NoSuchNode):
        decoder.hold(NIC, 5)
    with pytest.raises(DeviceGone):
        decoder.hold(PciAddress(0, 9, 9, 0), 0)
    machine.path(NIC, "config").unlink()
    with pytest.raises(DeviceGone):
        decoder.hold(NIC, 0)
    assert descriptors() == before


def replug(machine, address):
    """The device goes, and one like it comes in the same place."""
    directory = machine.devices / str(address)
    shutil.copytree(directory, directory.with_name("spare"), symlinks=True)
    shutil.rmtree(directory)
    directory.with_name("spare").rename(directory)


def test_a_device_that_goes_meanwhile(machine, decoder, caplog):
    machine.command(IVSHMEM, 0)
    release = decoder.hold(IVSHMEM, 0)
    shutil.rmtree(machine.devices / str(IVSHMEM))
    release()
    assert caplog.records == []


def test_what_is_plugged_in_later_is_another_device(machine, decoder):
    """It is not turned off for files of the one before, and for its own files it is turned on."""
    machine.command(IVSHMEM, 0)
    before = descriptors()
    old = decoder.hold(IVSHMEM, 0)
    replug(machine, IVSHMEM)
    machine.command(IVSHMEM, 0)
    machine.enable(IVSHMEM, 0)
    new = decoder.hold(IVSHMEM, 2)
    assert machine.command(IVSHMEM) == BOTH
    assert machine.enable(IVSHMEM) == 1
    old()
    assert machine.command(IVSHMEM) == BOTH
    new()
    assert machine.command(IVSHMEM) == 0
    assert machine.enable(IVSHMEM) == 0
    assert descriptors() == before


def test_a_write_that_is_refused_is_an_error_and_holds_nothing(machine, decoder):
    machine.enable(NIC, 1)
    machine.command(NIC, 0)
    before = descriptors()
    machine.bus.source.refused = True
    with pytest.raises(KernelRefused):
        decoder.hold(NIC, 0)
    assert descriptors() == before
    machine.bus.source.refused = False
    decoder.hold(NIC, 0)()
    assert machine.command(NIC) == 0


def test_putting_back_that_is_refused_is_said(machine, decoder, caplog):
    machine.enable(NIC, 1)
    machine.command(NIC, 0)
    release = decoder.hold(NIC, 0)
    machine.bus.source.refused = True
    release()
    assert (
        "0000:00:03.0: decoding stays on: 0000:00:03.0 config: Operation not permitted"
        in caplog.text
    )


def held_at_once(machine, decoders, times):
    """A thread for each of the decoders holds the function so often. It is decoded meanwhile."""
    machine.command(NIC, 0)
    start, errors = threading.Barrier(len(decoders)), []

    def work(decoder):
        try:
            start.wait(20)
            for _ in range(times):
                release = decoder.hold(NIC, 0)
                assert machine.command(NIC) & COMMAND_MEMORY
                release()
        except BaseException as error:  # noqa: BLE001 - for the thread that asserts
            errors.append(error)

    threads = [threading.Thread(target=work, args=(decoder,)) for decoder in decoders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert machine.command(NIC) == 0
    assert machine.enable(NIC) == 0


def test_from_several_threads_it_is_enabled_once(machine, decoder):
    held_at_once(machine, [decoder] * 8, 30)


@pytest.mark.parametrize("register", [bytes(4), b"\0\0\xff\xff"])
@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("count", [0, 1])
def test_no_bar_is_decoded_at_an_address_that_is_not_the_kernels(
    machine, decoder, index, count, register
):
    """Nor is another BAR of the function: the bit is for all of them."""
    machine.enable(NIC, count)
    machine.command(NIC, 0)
    with machine.path(NIC, "config").open("r+b") as config:
        config.seek(0x10 + 4 * index)
        config.write(register)
    for other in (0, 1):
        decoder.hold(NIC, other)()
    assert (machine.written, machine.command(NIC)) == ([], 0)


# Several mounts. Each opens the file of its marks anew, as another process would.


@pytest.mark.parametrize("closes_first", [0, 1])
def test_the_last_of_two_mounts_turns_it_off(machine, closes_first):
    machine.command(NIC, COMMAND_MASTER)
    before = descriptors()
    mounts = [Decoder(machine.bus) for _ in range(2)]
    releases = [mount.hold(NIC, 0) for mount in mounts]
    releases.pop(closes_first)()
    assert machine.command(NIC) == BOTH | COMMAND_MASTER
    assert machine.enable(NIC) == 1
    releases.pop()()
    assert machine.command(NIC) == COMMAND_MASTER
    assert machine.enable(NIC) == 0
    assert descriptors() == before
    # And again, the other way round.
    releases = [mount.hold(NIC, 0) for mount in reversed(mounts)]
    for release in releases:
        assert machine.command(NIC) == BOTH | COMMAND_MASTER
        release()
    assert machine.command(NIC) == COMMAND_MASTER


def test_each_bit_is_handed_on(machine):
    machine.enable(NIC, 1)
    machine.command(NIC, 0)
    one, two, three = (Decoder(machine.bus) for _ in range(3))
    memory = one.hold(NIC, 0)
    ports = two.hold(NIC, 1)
    assert machine.command(NIC) == BOTH
    more = three.hold(NIC, 0)
    memory()
    ports()
    assert machine.command(NIC) == BOTH
    more()
    assert machine.command(NIC) == 0
    assert machine.enable(NIC) == 1


def test_what_no_mount_has_turned_on_stays_on_for_two_as_well(machine):
    releases = [Decoder(machine.bus).hold(NIC, 0) for _ in range(2)]
    for release in releases:
        release()
    assert machine.written == []
    assert machine.command(NIC) == BOTH


def test_a_mount_that_was_killed_holds_nothing(machine):
    machine.command(NIC, 0)
    child = os.fork()
    if child == 0:
        try:
            Decoder(machine.bus).hold(NIC, 0)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert machine.command(NIC) == BOTH
    machine.command(NIC, 0)
    machine.enable(NIC, 0)
    Decoder(machine.bus).hold(NIC, 0)()
    assert machine.command(NIC) == 0


def test_two_mounts_at_once(machine):
    held_at_once(machine, [Decoder(machine.bus) for _ in range(4)], 50)


def test_who_closes_waits_for_nothing(machine):
    """The last close asks the device, which may take its time."""
    machine.command(NIC, 0)
    may_go_on = threading.Event()
    later = Later()
    decoder = Decoder(machine.bus, later)
    release = decoder.hold(NIC, 0)
    put_back = decoder._put_back

    def slowly(*arguments):
        assert may_go_on.wait(20)
        put_back(*arguments)

    decoder._put_back = slowly
    release()
    assert machine.command(NIC) == BOTH
    may_go_on.set()
    later.finish()
    assert machine.command(NIC) == 0


def test_without_threads_a_close_waits(machine, monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    machine.command(NIC, 0)
    later = Later()
    Decoder(machine.bus, later).hold(NIC, 0)()
    assert machine.command(NIC) == 0
    later.finish()
