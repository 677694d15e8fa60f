"""The maps that come with barfs: made of their sources, and what specifications say of some."""

import json
import runpy
from pathlib import Path

import pytest

from barfs.registers.files import ALIASES, BUILT_IN, MapFiles
from barfs.registers.maps import find, registers
from barfs.registers.plans import effects_of_reading, plan

ROOT = Path(__file__).parents[3]


def test_they_are_made_of_their_sources(tmp_path):
    """If not: make generated."""
    runpy.run_path(str(ROOT / "tools/registers"))["compile_all"](tmp_path)
    names = sorted(path.name for path in BUILT_IN.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    for name in names:
        assert (BUILT_IN / name).read_text() == (tmp_path / name).read_text(), name


SUBJECTS = [path.stem for path in BUILT_IN.glob("*.json") if path.name != ALIASES]
MAPS = {subject: MapFiles([BUILT_IN]).find([subject]).map for subject in SUBJECTS}


def test_each_is_found():
    assert {"8086:100e", "1234:11e8", "1af4:1110", "class-010802", "class-010601"} <= set(MAPS)
    assert {"class-0c0330", "class-080501", "virtio", "config", "phys-HPET"} <= set(MAPS)
    for alias, name in json.loads((BUILT_IN / ALIASES).read_text()).items():
        assert MapFiles([BUILT_IN]).find([alias]).file.stem == name


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_register_says_what_it_is_and_every_name_is_one(subject):
    for register in registers(MAPS[subject].outline()):
        assert register.description, register.path
        assert register.fields, register.path
        assert "\n" not in register.description


# Map, register, offset and size in bytes, as the specifications have them.
PLACES = [
    ("8086:100e", "STATUS", 0x8, 4),
    ("8086:100e", "ICR", 0xC0, 4),
    ("8086:100e", "RA/15/RAH", 0x547C, 4),
    ("8086:100e", "MTA/127", 0x53FC, 4),
    ("1234:11e8", "DMA_CMD", 0x98, 8),
    ("1af4:1110", "DOORBELL", 0xC, 4),
    ("class-010802", "CAP", 0, 8),
    ("class-010802", "CC", 0x14, 4),
    ("class-010601", "PORT/1/IS", 0x190, 4),
    ("class-010601", "PORT/31/DEVSLP", 0x10C4, 4),
    ("class-080501", "NORINTSTS", 0x30, 2),
    ("class-080501", "PWRCON", 0x29, 1),
    ("class-080501", "RSPREG/3", 0x1C, 4),
    ("class-0c0330", "OP/PORT/2/PORTSC", 0x420, 4),
    ("virtio", "queue_enable", 0x1C, 2),
    ("phys-HPET", "TIM/2/COMP", 0x148, 8),
    ("phys-IOAPIC", "IOWIN", 0x10, 4),
]


@pytest.mark.parametrize(("subject", "path", "offset", "size"), PLACES)
def test_places(subject, path, offset, size):
    register = find(MAPS[subject].outline(), path)
    assert (register.offset, register.size) == (offset, size)


def test_reading_that_has_an_effect():
    found = {
        (subject, register.path)
        for subject in SUBJECTS
        for register in registers(MAPS[subject].outline())
        if effects_of_reading(register)
    }
    expected = {("8086:100e", "ICR"), ("1af4:1110", "INTRSTATUS"), ("class-080501", "BDATA")}
    assert expected | {("virtio", "isr_status")} <= found
    counters = {path for subject, path in found if subject == "8086:100e"} - {"ICR"}
    assert {"CRCERRS", "GPRC"} <= counters
    assert found - expected - {("8086:100e", path) for path in counters} == {
        ("virtio", "isr_status")
    }


# Map, register, field; whether the register is read first, and what is written for the field's
# highest value to a register that reads as all ones.
WRITES = [
    ("8086:100e", "CTRL", "RST", True, 0xFFFFFFFF),
    ("8086:100e", "CTRL", "SLU", True, 0xFBFFFFFF),
    ("8086:100e", "ICR", "LSC", False, 0x4),
    ("8086:100e", "IMC", "LSC", False, 0x4),
    ("class-010601", "PORT/0/IS", "DHRS", False, 0x1),
    ("class-010601", "BOHC", "OOS", True, 0xFFFFFFF7),
    ("class-080501", "NORINTSTS", "TRSCMP", False, 0x2),
    ("class-080501", "CLKCON", "SDCLK_EN", True, 0xFFFF),
    ("class-010802", "CC", "EN", True, 0xFFFFFFFF),
    ("class-0c0330", "OP/USBSTS", "PCD", False, 0x10),
    ("class-0c0330", "OP/PORT/0/PORTSC", "PP", True, 0x7F00FFED),
]


@pytest.mark.parametrize(("subject", "path", "field", "reads", "written"), WRITES)
def test_writes_of_fields(subject, path, field, reads, written):
    register = find(MAPS[subject].outline(), path)
    target = register.field(field)
    made = plan(register, target)
    value = made.value((1 << 8 * register.step) - 1, (1 << target.width) - 1)
    assert (bool(made.keep), hex(value)) == (reads, hex(written))
