"""Physical memory: what /proc/iomem says, and what is opened of it."""

import errno
import os
from pathlib import Path

import pytest

from barfs.devmem import IomemRange, PhysicalMemory, Segment, parse_iomem, split_by_kind
from barfs.errors import BarfsError, NoSuchAddress
from barfs.names import AddressRange

IOMEM = """\
00000000-00000fff : Reserved
00001000-00002fff : System RAM
  00001000-000017ff : Kernel code
    00001400-000015ff : deeper
00003000-000037ff : Reserved
00005000-00005fff : PCI Bus 0000:00
00006000-00007fff : System RAM (kmem)
"""
CONTENTS = bytes((at * 7 + (at >> 8)) & 0xFF for at in range(0x8000))


@pytest.fixture
def memory(tmp_path):
    (tmp_path / "iomem").write_text(IOMEM)
    with (tmp_path / "mem").open("wb") as file:
        file.write(CONTENTS)
        file.truncate(1 << 36)
    return PhysicalMemory(tmp_path, tmp_path / "mem")


def test_iomem_nests_and_only_top_level_ranges_are_listed_ascending(memory, tmp_path, caplog):
    entries = parse_iomem(IOMEM)
    assert entries[1] == IomemRange(0x1000, 0x2FFF, "System RAM", 0)
    assert [entry.depth for entry in entries] == [0, 0, 1, 2, 0, 0, 0]
    (tmp_path / "iomem").write_text("\n".join(reversed(IOMEM.splitlines())))
    assert memory.ranges() == [entry for entry in entries if entry.depth == 0]
    assert not caplog.messages


@pytest.mark.parametrize(
    "line",
    [
        *("garbage", "1000-2000 System RAM", "1000 : x", "0x1000-0x2000 : x", "1000-1FFF : x"),
        *("", "-1-2 : x", " 1000-2000 : odd indent", "\t1000-2000 : x", "3000-2fff : reversed"),
        "10000000000000000-10000000000000001 : 17 digits",
    ],
)
def test_a_line_of_another_form_is_left_out_and_logged(line, caplog):
    first, *rest = IOMEM.splitlines()
    assert parse_iomem("\n".join([first, line, *rest])) == parse_iomem(IOMEM)
    assert [repr(line) in message for message in caplog.messages] == [True]


def test_the_unprivileged_see_no_ranges(memory, tmp_path):
    (tmp_path / "iomem").write_text("00000000-00000000 : Reserved\n  00000000-00000000 : x")
    assert memory.ranges() == []
    with pytest.raises(NoSuchAddress, match="only to root"):
        memory.resolve(AddressRange(0, None))


@pytest.mark.parametrize(
    ("start", "end", "size"),
    [
        *((0, None, 0x1000), (0xFFF, None, 1), (0x1404, None, 0x1BFC), (0x5180, None, 0xE80)),
        *((0x7FFF, None, 1), (0, 0, 1), (0x1000, 0x2FFF, 0x2000), (0xFFF, 0x1000, 2)),
        *((0, 0x37FF, 0x3800), (0x5FFF, 0x6000, 2), (0x5101, 0x5101, 1)),
    ],
)
def test_a_range_resolves_across_borders_and_to_the_end(memory, start, end, size):
    assert memory.resolve(AddressRange(start, end)) == (start, size)


@pytest.mark.parametrize(
    ("start", "end", "missing"),
    [
        *((0x3800, None, 0x3800), (0x4FFF, None, 0x4FFF), (0x8000, None, 0x8000)),
        *((0x37FF, 0x3800, 0x3800), (0x4FFF, 0x5000, 0x4FFF), (0, 0x5000, 0x3800)),
        *((0x7FFF, 0x8000, 0x8000), ((1 << 64) - 1, None, (1 << 64) - 1)),
    ],
)
def test_an_address_in_no_range_is_named(memory, start, end, missing):
    with pytest.raises(NoSuchAddress, match=f"{missing:#x} is in no range") as caught:
        memory.resolve(AddressRange(start, end))
    assert caught.value.errno == errno.ENXIO
    with pytest.raises(NoSuchAddress):
        memory.open(start, (end or start) + 1 - start, writable=False)


@pytest.mark.parametrize(
    "expected",
    [
        *([(0, 0x1000, False)], [(0x1403, 5, True)], [(0x5101, 6, False)]),
        [(0xFFF, 1, False), (0x1000, 1, True)],
        [(0, 0x1000, False), (0x1000, 0x2000, True), (0x3000, 0x800, False)],
        [(0x5FFC, 4, False), (0x6000, 0x2000, True)],
    ],
)
def test_a_range_opens_as_its_stretches_of_one_kind(memory, tmp_path, expected):
    start, size = expected[0][0], sum(size for _, size, _ in expected)
    assert split_by_kind(start, size, parse_iomem(IOMEM)) == [Segment(*part) for part in expected]
    assert memory.is_ram(start, size) == all(is_ram for *_, is_ram in expected)
    apertures = memory.open(start, size, writable=True)
    assert [(one.base, one.size, one.memory_like) for one in apertures] == expected
    after = bytearray(CONTENTS)
    for aperture in apertures:
        end = aperture.base + aperture.size
        aperture.copy_out(0, data := bytearray(aperture.size))
        assert data == CONTENTS[aperture.base : end]
        after[end - 1] ^= 0xFF
        aperture.store_run(aperture.size - 1, 1, after[end - 1 : end])
        aperture.close()
    with (tmp_path / "mem").open("rb") as file:
        assert file.read(0x8000) == after


def test_a_refusal_of_one_stretch_gives_up_those_before_it(memory, tmp_path):
    last = (1 << 63) - 0x1000  # past what any file can be mapped at
    text = f"0-{last - 1:x} : Reserved\n{last:x}-{last + 0xFFF:x} : System RAM\n"
    (tmp_path / "iomem").write_text(text)
    with pytest.raises(BarfsError, match=f"phys {last:#x}"):
        memory.open(0, last + 0x1000, writable=False)
    opened = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    assert str(tmp_path / "mem") not in opened
    assert str(tmp_path / "mem") not in Path("/proc/self/maps").read_text()
