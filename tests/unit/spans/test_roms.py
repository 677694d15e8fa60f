"""An expansion ROM that can't be read: why, by what the kernel said and by what it is behind."""

import errno
import os

import pytest
from machines import functions_of

from barfs.access.files import SysfsFile
from barfs.diagnosis.obstacles import Obstacles
from barfs.errors import BarfsError, KernelRefused, NotDecoded
from barfs.machine import simulated, source
from barfs.machine.source import PlainSource, RealSource
from barfs.names import PciAddress
from barfs.spans.roms import RomView, judge_image

E1000 = PciAddress(0, 0, 3, 0)
HEADER = "e1000 0000:00:03.0: Invalid PCI ROM header signature: expecting 0xaa55, got 0x{}"
PCIR = "it has no valid image: its data begin with "
DATA = "pci 0000:00:03.0: Invalid PCI ROM data signature: expecting 0x52494350, got 0x{}"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (HEADER.format("ffff"), "nothing answers behind its BAR: it reads all ones"),
        (HEADER.format("0000"), "it has no valid image: it begins with 00 00 instead of 55 aa"),
        (
            HEADER.format("6548"),
            "it has no valid image: it begins with 48 65 (He) instead of 55 aa",
        ),
        (HEADER.format("aa"), "it has no valid image: it begins with aa 00 instead of 55 aa"),
        (
            DATA.format("45584546"),
            f"{PCIR}46 45 58 45 (FEXE) instead of 50 43 49 52 (PCIR)",
        ),
        (DATA.format("ffffffff"), "nothing answers behind its BAR: it reads all ones"),
        *((None, "it has no valid image"), ("something else", "it has no valid image")),
    ],
)
def test_what_the_kernel_said_of_an_image(said, words):
    assert judge_image(said).sentence == words


class Unreadable(SysfsFile):
    number = errno.EIO

    def read(self, offset, length):
        error = OSError(self.number, os.strerror(self.number))
        kind = KernelRefused if self.number == errno.EPERM else BarfsError
        raise kind(what="x", system=error) from error


class Source(PlainSource):
    said = HEADER.format("ffff")

    def open_rom(self, path, what):
        return Unreadable(path, what=what, writable=False)

    def last_said(self, address, words):
        assert (address, words) == (E1000, "PCI ROM")
        return self.said


@pytest.fixture
def machine(tmp_path):
    return simulated.build(tmp_path)


@pytest.fixture
def view(machine):
    pci = functions_of(machine.sysfs, source=Source)
    view = RomView(pci.open_rom(E1000), pci, Obstacles(pci), E1000)
    yield view
    view.close()


def test_a_rom_without_a_valid_image(view):
    with pytest.raises(NotDecoded) as caught:
        view.read(0, 4)
    assert str(caught.value) == (
        "0000:00:03.0 rom: nothing answers behind its BAR: it reads all ones"
    )
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENODEV])
def test_another_error_stays_as_it_is(view, monkeypatch, number):
    monkeypatch.setattr(Unreadable, "number", number)
    with pytest.raises(BarfsError) as caught:
        view.read(0, 4)
    assert not isinstance(caught.value, NotDecoded)


def test_decoding_that_is_off_says_more_than_what_was_read(view, machine):
    path = machine.sysfs / "bus/pci/devices" / str(E1000) / "config"
    with path.open("r+b") as config:
        config.seek(4)
        config.write(b"\1\0")
    with pytest.raises(NotDecoded, match="memory decoding is off in the command register; setpci"):
        view.read(0, 4)


@pytest.mark.parametrize("line", ["0x0 0x0 0x0", "0x0 0xffff 0x20046200"])
def test_a_rom_that_has_no_address_yet_gets_one_when_it_is_read(view, machine, line):
    path = machine.sysfs / "bus/pci/devices" / str(E1000) / "resource"
    path.write_text("\n".join([*path.read_text().splitlines()[:6], line]))
    with pytest.raises(NotDecoded, match="all ones"):
        view.read(0, 4)


@pytest.fixture
def kernel_log(tmp_path, monkeypatch):
    """As /dev/kmsg: each read gives one record, and at the end it would wait."""
    (tmp_path / "kmsg").touch()
    monkeypatch.setattr(source, "KERNEL_LOG", tmp_path / "kmsg")
    waiting, records = [], []

    def read(_, size):
        assert size >= 8192
        if not waiting:
            raise BlockingIOError
        record = waiting.pop(0)
        if isinstance(record, Exception):
            raise record
        return record

    def seek(fd, offset, whence):
        assert (offset, whence) == (0, os.SEEK_SET)
        waiting[:] = records

    monkeypatch.setattr(source.os, "read", read)
    monkeypatch.setattr(source.os, "lseek", seek)
    return records


def record(text):
    return f"6,1,2,-;{text}\n SUBSYSTEM=pci\n DEVICE=+pci:0000:00:03.0\n".encode()


def test_the_last_line_of_a_function_in_the_kernels_log(tmp_path, kernel_log):
    real = RealSource(tmp_path, tmp_path, tmp_path)
    assert real.last_said(E1000, "PCI ROM") is None
    real.listen()
    assert real.last_said(E1000, "PCI ROM") is None
    kernel_log += [
        *map(record, (HEADER.format("1"), HEADER.format("2"), "pci 0000:00:03.0: enabling")),
        BrokenPipeError(errno.EPIPE, "overwritten"),
        record(HEADER.format("3").replace("00:03.0", "10:03.0")),
        record(HEADER.format("4").replace(" 0000:00:03.0", " 10000:00:03.0")),
    ]
    for _ in range(2):
        assert real.last_said(E1000, "PCI ROM") == HEADER.format("2")
    os.close(real._log)


def test_without_the_right_to_hear_it_nothing_is_known(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(source, "KERNEL_LOG", tmp_path / "absent")
    real = RealSource(tmp_path, tmp_path, tmp_path)
    caplog.set_level("INFO")
    real.listen()
    assert "absent: No such file" in caplog.text
    assert real.last_said(E1000, "PCI ROM") is None
