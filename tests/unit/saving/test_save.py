"""Saving: what is read of a machine, what is not, and that the tar says so."""

import contextlib
import json
import os
import re
import tarfile

import pytest
from machines import E1000, FIRST, NVME, SECOND, Fixture, Witness

from barfs.access import apertures
from barfs.errors import BadRequest, BarfsError, NoSuchAddress, NoSuchNode
from barfs.machine.functions import AllFunctions
from barfs.machine.recorded import recorded_source
from barfs.names import PciAddress
from barfs.registers.capabilities import walk
from barfs.saving import facts
from barfs.saving.save import Asked, save
from barfs.saving.wishes import Wish
from barfs.saving.writer import Writer


class Listener:
    """Keeps what is told."""

    def __init__(self):
        self.lines = []
        self.places = []

    def line(self, text):
        self.lines.append(text)

    def at(self, index, count):
        self.places.append((index, count))

    def read(self, size):
        del size


def names_in(path):
    with tarfile.open(path) as tar:
        return tar.getnames()


class Saver:
    def __init__(self, fixture, path):
        self.fixture = fixture
        self.path = path
        self.told = Listener()
        self.done = None

    def __call__(self, *patterns, read=(), **more):
        wishes = [Wish.parse(text) for text in read]
        self.told = Listener()
        self.done = save(
            self.fixture.machine, self.path, Asked(patterns, wishes, **more), self.told
        )
        return self

    @property
    def touched(self):
        return self.fixture.sources[-1].touched()

    def names(self):
        return names_in(self.path)

    def content(self, name):
        with tarfile.open(self.path) as tar:
            return tar.extractfile(name).read()

    def facts(self, address):
        return json.loads(self.content(f"pci/{address}/facts.json"))


@pytest.fixture
def fixture(tmp_path):
    (tmp_path / "machine").mkdir()
    return Fixture(tmp_path / "machine", source=Witness)


@pytest.fixture
def saver(fixture, tmp_path):
    return Saver(fixture, tmp_path / "lab7.tar")


@pytest.fixture
def accesses(monkeypatch):
    """Each access to a memory BAR: how often bytes of it were loaded, and in which width."""
    seen = []
    load_run, copy_out = apertures.MappedAperture.load_run, apertures.MappedAperture.copy_out

    def loaded(self, offset, width, into):
        seen.extend((self.base + offset + at, width) for at in range(0, len(into), width))
        load_run(self, offset, width, into)

    def copied(self, offset, into):
        seen.append((self.base + offset, len(into)))
        copy_out(self, offset, into)

    monkeypatch.setattr(apertures.MappedAperture, "load_run", loaded)
    monkeypatch.setattr(apertures.MappedAperture, "copy_out", copied)
    return seen


def test_without_read_no_bar_is_touched(saver, accesses):
    saver()
    assert set(saver.touched) == {f"{a}/config" for a in (E1000, FIRST, SECOND, NVME)}
    assert accesses == []
    assert saver.told.lines[-1] == "reads no BAR"
    assert saver.told.places[-1] == (4, 4)
    assert not [name for name in saver.names() if "/bar" in name]
    assert (saver.path.stat().st_mode & 0o777) == 0o600


def test_only_chosen_functions(saver):
    saver("1af4:1110", read=["8086:100e/bar0@0+4"])
    assert {n.split("/")[1] for n in saver.names() if n.startswith("pci/")} == {
        FIRST,
        SECOND,
        E1000,
    }
    assert saver.done.functions == 3
    assert not any(NVME in path for path in saver.touched)


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ("0000:00:04.0/bar0@0-f", [(0xFEB20000 + at, 4) for at in range(0, 16, 4)]),
        ("0000:00:04.0/bar0@8+8", [(0xFEB20008, 4), (0xFEB2000C, 4)]),  # as cat reads it
        ("0000:00:04.0/bar0@0-7:u64", [(0xFEB20000, 8)]),
        ("0000:00:04.0/bar0@4-7:u16", [(0xFEB20004, 2), (0xFEB20006, 2)]),
        ("0000:00:04.0/bar0@4-5:u8", [(0xFEB20004, 1), (0xFEB20005, 1)]),
        ("0000:00:04.0/bar0@1-6", [(0xFEB20001, 1), (0xFEB20002, 2), (0xFEB20004, 2),
                                   (0xFEB20006, 1)]),
        ("0000:00:04.0/bar0@fc", [(0xFEB200FC, 4)]),
        ("1af4:1110.1/bar0@0+4:u32", [(0xFEB21000, 4)]),
    ],
)  # fmt: skip
def test_exactly_what_was_asked_for_is_read(saver, accesses, wish, expected):
    saver(read=[wish])
    assert accesses == expected
    assert saver.done.read == sum(width for _, width in expected)


def test_memory_is_copied(saver, accesses):
    saver(read=["0000:00:04.0/bar2@10-fff"])
    bytes_seen = sorted(at for start, size in accesses for at in range(start, start + size))
    assert bytes_seen == list(range(0x800000010, 0x800001000))
    assert max(size for _, size in accesses) > 8


def test_what_is_read_is_what_the_file_has(saver, fixture):
    with (fixture.devices / FIRST / "resource0").open("r+b") as bar:
        bar.write(bytes(range(256)))
    saver(read=["04.0/bar0@80-8f:u32", "04.0/bar0@0-7:u8", "04.0/bar0@10-17"])
    assert saver.facts(FIRST)["read"]["bar0"] == [[0, 8, 1], [0x10, 8, 4], [0x80, 16, 4]]
    expected = [*range(8), *range(0x10, 0x18), *range(0x80, 0x90)]
    assert saver.content(f"pci/{FIRST}/bar0") == bytes(expected)


def test_what_is_about_to_be_touched_is_said_before(saver, accesses):
    class Early(Listener):
        def line(self, text):
            assert accesses == []
            super().line(text)

    wishes = [Wish.parse("04.0/bar0@0-f:u32"), Wish.parse("04.0/bar2"), Wish.parse("03.0/rom")]
    told = Early()
    save(saver.fixture.machine, saver.path, Asked((), wishes, registers=True), told)
    text = "\n".join(told.lines)
    assert f"{FIRST} bar0@0-f: 0x10 bytes in accesses of 4 bytes" in text
    assert f"{FIRST} bar2@0-fffff: 0x100000 bytes copied as memory" in text
    assert f"{E1000} rom: 0x10000 bytes" in text
    assert re.search(rf"{E1000} bar0: \d+ registers of its map", text)


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (["04.0/bar0@0-f", "04.0/bar0@8-1f"], BadRequest),
        (["04.0/bar0", "1af4:1110/bar0@0+4"], BadRequest),
        (["04.0/rom"], NoSuchNode),
        (["04.0/bar1"], NoSuchNode),
        (["04.0/bar0@100"], NoSuchAddress),
        (["04.0/bar0@f0+20"], NoSuchAddress),
        (["dead:beef/bar0"], NoSuchNode),
    ],
)
def test_what_can_not_be_meant_is_refused_before_anything_is_touched(saver, read, kind):
    with pytest.raises(kind):
        saver(read=read)
    assert saver.touched == []
    assert not saver.path.exists()


@pytest.mark.parametrize(
    "text",
    ["", "bar0", "1af4:1110", "1af4:1110/", "1af4:1110/bar6", "1af4:1110/bar0@", "x y/bar0",
     "1af4:1110/bar0:u128", "1af4:1110/bar0:x32", "1af4:1110/rom:u8", "1af4:1110/bar0@8-4",
     "ethernet/bar0", "/bar0", "1af4:1110/config", "a/b/bar0"],
)  # fmt: skip
def test_what_is_no_wish(text):
    with pytest.raises(ValueError, match=r".+"):
        Wish.parse(text)


def test_functions_of_a_pattern_that_lack_the_bar_are_passed_over(saver):
    saver(read=["*/bar2@0+4"])
    assert [n for n in saver.names() if n.endswith("bar2")] == [
        f"pci/{FIRST}/bar2",
        f"pci/{SECOND}/bar2",
    ]


# Registers of maps


def test_registers_are_read_once_in_their_width_and_none_with_an_effect(saver, accesses):
    saver(E1000, registers=True)
    base = 0xFEB00000
    assert {width for _, width in accesses} == {4}
    offsets = [address - base for address, _ in accesses]
    assert len(offsets) == len(set(offsets))
    assert 0x00 in offsets  # CTRL
    assert 0xC0 not in offsets  # ICR, which a read clears
    assert 0x4000 not in offsets  # a counter that a read clears
    ranges = saver.facts(E1000)["read"]["bar0"]
    assert [at for start, size, _ in ranges for at in range(start, start + size, 4)] == sorted(
        offsets
    )
    assert len(ranges) < len(offsets) // 4  # those that touch are one range
    assert set(saver.touched) == {f"{E1000}/config", f"{E1000}/resource0"}


def test_what_read_names_is_not_read_again(saver, accesses):
    saver(E1000, read=["03.0/bar0@0-ff:u32"], registers=True)
    offsets = [address for address, _ in accesses]
    assert len(offsets) == len(set(offsets))
    assert len([one for one in offsets if one < 0xFEB00100]) == 64


def test_registers_of_64_bits(saver, accesses):
    saver(NVME, registers=True)
    assert (0x800200000, 8) in accesses or accesses >= [(0x800200000, 4), (0x800200004, 4)]
    assert len({address for address, _ in accesses}) == len(accesses)


# What does not answer


def test_registers_of_what_sleeps_are_not_read_and_the_tar_says_so(saver, fixture):
    fixture.set_attribute(E1000, "power_state", "D3hot")
    saver(registers=True)
    assert not [path for path in saver.touched if path.startswith(E1000)]
    assert saver.facts(E1000)["refused"]["registers"] == "the device sleeps (D3hot)"
    assert saver.done.refused == []


@pytest.mark.parametrize("how", ["D3hot", "suspended"])
def test_what_sleeps_is_asked_nothing(saver, fixture, how):
    name = "power_state" if how == "D3hot" else "power/runtime_status"
    fixture.set_attribute(FIRST, name, how)
    saver(read=["04.0/bar0@0-f"] if how == "D3hot" else [], registers=True)
    assert not [path for path in saver.touched if path.startswith(FIRST)]
    found = saver.facts(FIRST)
    assert "config" not in found["read"]
    assert how in found["refused"]["config"]
    assert found["sizes"]["config"] == 256
    if how == "D3hot":
        assert "sleeps" in found["refused"]["bar0"]
        assert "sleeps" in saver.done.refused[0]


def test_what_is_not_decoded_is_refused_and_the_tar_says_why(saver, fixture, accesses):
    fixture.set_command(FIRST, 0)
    saver(read=["1af4:1110/bar0@0-f"])
    assert {address for address, _ in accesses} == set(range(0xFEB21000, 0xFEB21010, 4))
    assert "decoding is off" in saver.facts(FIRST)["refused"]["bar0"]
    assert "bar0" not in saver.facts(FIRST)["read"]
    assert saver.facts(SECOND)["read"]["bar0"] == [[0, 16, 4]]


@pytest.mark.parametrize("value", [b"\xff", b"\x2a"])
def test_what_ceases_to_answer_meanwhile_gives_no_data(saver, fixture, monkeypatch, value):
    """Also if what it gave looks like data."""
    load_run = apertures.MappedAperture.load_run

    def loaded(self, offset, width, into):
        load_run(self, offset, width, into)
        into[:] = value * len(into)
        fixture.set_command(FIRST, 0)

    monkeypatch.setattr(apertures.MappedAperture, "load_run", loaded)
    saver(FIRST, read=["04.0/bar0@0-f"])
    assert f"pci/{FIRST}/bar0" not in saver.names()
    assert "decoding is off" in saver.facts(FIRST)["refused"]["bar0"]


def test_config_space_of_a_device_that_is_gone_is_no_data(saver, fixture):
    (fixture.devices / FIRST / "config").write_bytes(b"\xff" * 256)
    saver()
    assert f"pci/{FIRST}/config" not in saver.names()
    assert "all ones" in saver.facts(FIRST)["refused"]["config"]


def test_bridges_above_are_saved_too(saver, fixture):
    """Through the link of the function, as sysfs has it."""
    bridge = "0000:00:1c.0"
    source = fixture.devices / SECOND
    target = fixture.paths.sysfs / f"devices/pci0000:00/{bridge}/{SECOND}"
    target.parent.mkdir(parents=True)
    source.rename(target)
    source.symlink_to(f"../../../devices/pci0000:00/{bridge}/{SECOND}")
    (fixture.devices / FIRST).rename(fixture.devices / bridge)
    saver(SECOND)
    assert {n.split("/")[1] for n in saver.names() if n.startswith("pci/")} == {bridge, SECOND}
    lineage = AllFunctions(recorded_source(saver.path)).lineage(PciAddress.parse(SECOND))
    assert lineage == ("pci0000:00", (PciAddress.parse(bridge),))


# Redaction


def test_serial_numbers_are_left_out(saver, fixture):
    config = bytearray((fixture.devices / NVME / "config").read_bytes())
    config[6] |= 0x10
    config[0x34] = 0x40
    config[0x40:0x48] = b"\x03\0" + b"VPDVPD"
    config[0x100:0x10C] = (0x3 | 1 << 16 | 0x200 << 20).to_bytes(4, "little") + b"SERIALNO"
    config[0x200:0x204] = (0x1 | 1 << 16).to_bytes(4, "little")
    (fixture.devices / NVME / "config").write_bytes(config)
    saver()
    assert b"SERIALNO" in saver.path.read_bytes()
    saver(redact=True)
    raw = saver.path.read_bytes()
    assert b"SERIALNO" not in raw
    assert b"VPD" not in raw
    pci = AllFunctions(recorded_source(saver.path))
    address = PciAddress.parse(NVME)
    file = pci.open_config(address, writable=False)
    assert file.read(0, 4096) == bytes(config[:0x42])
    assert file.read(0x48, 8) == bytes(config[0x48:0x50])
    for offset in (0x42, 0x47, 0x104, 0x10B):
        with pytest.raises(BarfsError, match="serial numbers are left out"):
            file.read(offset, 1)

    def read(offset, width):
        with contextlib.suppress(BarfsError):
            return int.from_bytes(file.read(offset, width), "little")

    assert [(c.number, c.extended) for c in walk(read, 4096)] == [(3, False), (3, True), (1, True)]


IOMEM = """\
00000000-00000fff : Reserved
00100000-07fdffff : System RAM
  01000000-01bfffff : Kernel code
c0000000-febfffff : PCI Bus 0000:00
  fea00000-feafffff : PCI Bus 0000:01
    fea00000-fea0ffff : 0000:01:00.0
      fea00000-fea0ffff : nvme
  feb00000-feb1ffff : 0000:00:03.0
fec00000-fec003ff : IOAPIC 0
"""


def test_lines_of_iomem_that_are_no_functions_are_left_out():
    assert facts.redacted(IOMEM) == (
        "fea00000-fea0ffff : 0000:01:00.0\n"
        "  fea00000-fea0ffff : nvme\n"
        "feb00000-feb1ffff : 0000:00:03.0\n"
    )
    assert facts.redacted("") == ""


def test_the_command_line_is_not_saved_but_for_two_words(saver, fixture):
    fixture.set_parameters("root=/dev/sda1 password=x iomem=relaxed lockdown=integrity quiet")
    saver()
    assert saver.content("proc/cmdline") == b"iomem=relaxed lockdown=integrity\n"


# The file


def test_an_error_leaves_what_was_there_and_nothing_else(saver, monkeypatch):
    saver.path.write_bytes(b"before")

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", fail)
    with pytest.raises(OSError, match="No space"):
        saver()
    assert saver.path.read_bytes() == b"before"
    assert [p.name for p in saver.path.parent.iterdir() if p.is_file()] == [saver.path.name]


@pytest.mark.parametrize("without_name", [True, False])
def test_the_tar_takes_the_place_of_another_when_it_is_whole(tmp_path, monkeypatch, without_name):
    path = tmp_path / "x.tar"
    path.write_bytes(b"before")
    opened = os.open

    def refuse(name, flags, *more, **others):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return opened(name, flags, *more, **others)

    if not without_name:
        monkeypatch.setattr(os, "open", refuse)
    with Writer(path) as writer:
        writer.add("recording.json", b"{}")
        assert path.read_bytes() == b"before"
        writer.finish()
    assert names_in(path) == ["recording.json"]
    with contextlib.suppress(ZeroDivisionError), Writer(path) as writer:
        writer.add("x", b"y")
        raise ZeroDivisionError
    assert names_in(path) == ["recording.json"]
    assert os.listdir(tmp_path) == ["x.tar"]


def test_what_is_no_file_is_not_replaced(saver):
    saver.path.mkdir()
    with pytest.raises(BarfsError, match="no file"):
        saver()
