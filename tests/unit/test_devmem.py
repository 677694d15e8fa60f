"""Physical memory: what /proc/iomem says, and what is opened of it."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from barfs import devmem
from barfs.access.apertures import CopiedAperture, MappedAperture
from barfs.access.files import OFFSET_END
from barfs.devmem import (
    MOST_RANGES,
    IomemRange,
    PhysicalMemory,
    Segment,
    owner_of,
    parse_iomem,
    split_by_kind,
)
from barfs.errors import (
    BarfsError,
    CachingConflict,
    DeviceGone,
    DriverOwns,
    KernelRefused,
    Mmap,
    NoSuchAddress,
    NotMappable,
)
from barfs.machine.resources import Resource
from barfs.machine.simulated import MEM, PREFETCH_64
from barfs.machine.source import PlainSource
from barfs.names import AddressRange
from barfs.spans.ways import BarPart, Ways, through_devmem

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
    return PhysicalMemory(PlainSource(tmp_path, tmp_path, tmp_path), tmp_path / "mem")


def ways_to(memory, bars=()):
    """Functions are only asked where they come from."""
    return Ways(SimpleNamespace(source=memory.source), memory, bars)


@pytest.fixture
def ways(memory):
    return ways_to(memory)


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
def test_an_address_in_no_range_is_named(memory, ways, start, end, missing):
    with pytest.raises(NoSuchAddress, match=f"{missing:#x} is in no range") as caught:
        memory.resolve(AddressRange(start, end))
    assert caught.value.errno == errno.ENXIO
    with pytest.raises(NoSuchAddress):
        ways.open_physical(start, (end or start) + 1 - start, writable=False)


@pytest.mark.parametrize(
    "expected",
    [
        *([(0, 0x1000, False)], [(0x1403, 5, True)], [(0x5101, 6, False)]),
        [(0xFFF, 1, False), (0x1000, 1, True)],
        [(0, 0x1000, False), (0x1000, 0x2000, True), (0x3000, 0x800, False)],
        [(0x5FFC, 4, False), (0x6000, 0x2000, True)],
    ],
)
def test_a_range_opens_as_its_stretches_of_one_kind(memory, ways, tmp_path, expected):
    start, size = expected[0][0], sum(size for _, size, _ in expected)
    assert split_by_kind(start, size, parse_iomem(IOMEM)) == [Segment(*part) for part in expected]
    assert memory.is_ram(start, size) == all(is_ram for *_, is_ram in expected)
    apertures = ways.open_physical(start, size, writable=True)
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


def test_a_refusal_of_one_stretch_gives_up_those_before_it(ways, tmp_path):
    last = (1 << 63) - 0x1000  # past what any file can be mapped at
    text = f"0-{last - 1:x} : Reserved\n{last:x}-{last + 0xFFE:x} : System RAM\n"
    (tmp_path / "iomem").write_text(text)
    with pytest.raises(BarfsError, match=f"phys {last:#x}"):
        ways.open_physical(0, last + 0xFFF, writable=False)
    opened = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    assert str(tmp_path / "mem") not in opened
    assert str(tmp_path / "mem") not in Path("/proc/self/maps").read_text()


class Mappings(list):
    """Stands in for MappedAperture: notes each mapping and refuses as the kernel would.

    `refuse` gives the errno by whether the mapping would be uncached, 0 for none. What this small
    memory has is above what x86 takes for low memory, unless `low` says otherwise.
    """

    def __init__(self, monkeypatch, refuse, low=0):
        super().__init__()
        monkeypatch.setattr(devmem, "_LOW_MEMORY_END", low)
        self.refuse = refuse
        monkeypatch.setattr(devmem, "MappedAperture", self.map)

    def map(self, path, start, size, *, what, refuse, **keywords):
        uncached = keywords["uncached"]
        self.append((start, size, "uncached" if uncached else "cached"))
        code = self.refuse.get(uncached, 0)
        if code:
            error = OSError(code, os.strerror(code))
            raise refuse(what, Mmap(0, size), error, start) from error
        return MappedAperture(path, start, size, what=what, refuse=refuse, **keywords)


RAM, DEVICE = (0x1800, 0x80), (0x5100, 0x80)


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EINVAL], ids=["EAGAIN", "EINVAL"])
@pytest.mark.parametrize("writable", [False, True])
def test_ram_that_cannot_be_mapped_is_copied_by_the_kernel(
    ways, tmp_path, monkeypatch, code, writable
):
    """x86 refuses with EINVAL, and with EAGAIN where it is in use in another caching type."""
    made = Mappings(monkeypatch, {False: code})
    (aperture,) = ways.open_physical(*RAM, writable=writable)
    assert made == [(*RAM, "cached")]
    assert type(aperture) is CopiedAperture
    assert (aperture.base, aperture.size, aperture.memory_like) == (*RAM, True)
    aperture.copy_out(8, data := bytearray(8))
    assert data == CONTENTS[0x1808:0x1810]
    if writable:
        aperture.copy_in(8, b"abcdefgh")
        with (tmp_path / "mem").open("rb") as file:
            file.seek(0x1806)
            assert file.read(12) == CONTENTS[0x1806:0x1808] + b"abcdefgh" + CONTENTS[0x1810:0x1812]
    else:
        with pytest.raises(BarfsError):
            aperture.copy_in(8, b"abcdefgh")
    aperture.close()


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EINVAL], ids=["EAGAIN", "EINVAL"])
def test_low_memory_is_never_copied_because_reads_of_it_may_give_zeros(ways, monkeypatch, code):
    made = Mappings(monkeypatch, {False: code}, low=1 << 20)
    with pytest.raises(KernelRefused, match=r"^phys 0x1800\+0x80"):
        ways.open_physical(*RAM, writable=False)
    assert made == [(*RAM, "cached")]


def test_pages_that_ram_has_only_part_of_are_mapped_apart_and_never_copied(
    ways, tmp_path, monkeypatch
):
    (tmp_path / "iomem").write_text("00000c00-00003bff : System RAM\n00003c00-00004fff : ACPI\n")
    whole = Segment(0x1000, 0x2000, is_ram=True)
    head = Segment(0xC00, 0x400, is_ram=True, shared=True)
    tail = Segment(0x3000, 0xC00, is_ram=True, shared=True)
    ranges = parse_iomem((tmp_path / "iomem").read_text())
    rest = Segment(0x3C00, 0x400, is_ram=False)
    assert split_by_kind(0xC00, 0x3400, ranges) == [head, whole, tail, rest]
    assert split_by_kind(0x3400, 0x10, ranges) == [Segment(0x3400, 0x10, is_ram=True, shared=True)]
    (tmp_path / "iomem").write_text("00001100-00001eff : System RAM\n")
    ranges = parse_iomem((tmp_path / "iomem").read_text())
    inside = Segment(0x1100, 0xE00, is_ram=True, shared=True)
    assert split_by_kind(0x1100, 0xE00, ranges) == [inside]
    Mappings(monkeypatch, {False: errno.EINVAL})
    with pytest.raises(KernelRefused):
        ways.open_physical(0x1100, 0xE00, writable=False)


@pytest.mark.parametrize("memory_like", [False, True])
def test_device_memory_that_the_kernel_has_cached_is_mapped_so(
    memory, ways, monkeypatch, memory_like
):
    """ACPI's tables, in reserved memory."""
    made = Mappings(monkeypatch, {True: errno.EAGAIN})
    (aperture,) = ways.open_physical(*DEVICE, writable=True)
    start, size = DEVICE
    resource = Resource(start, start + size - 1, PREFETCH_64)
    part = BarPart("bar", None, 0, resource, 0, size, False, memory_like)
    bar = ways_to(memory, through_devmem(memory)).open_part(part, writable=False)
    assert made == [(*DEVICE, "uncached"), (*DEVICE, "cached")] * 2
    assert (aperture.base, aperture.size, aperture.memory_like) == (*DEVICE, False)
    assert (bar.base, bar.size, bar.memory_like) == (*DEVICE, memory_like)
    for one in (aperture, bar):
        one.load_run(4, 4, data := bytearray(4))
        assert data == CONTENTS[0x5104:0x5108]
        one.close()


def test_what_can_be_mapped_is_mapped_once_ram_cached_and_the_rest_not(ways, monkeypatch):
    made = Mappings(monkeypatch, {})
    for aperture in ways.open_physical(0xF80, 0x100, writable=False):
        assert type(aperture) is MappedAperture
        aperture.close()
    assert made == [(0xF80, 0x80, "uncached"), (0x1000, 0x80, "cached")]


@pytest.mark.parametrize(
    ("place", "refuse", "kind", "result", "tried"),
    [
        (RAM, {False: errno.EPERM}, KernelRefused, errno.EPERM, ["cached"]),
        (RAM, {False: errno.ENOMEM}, BarfsError, errno.ENOMEM, ["cached"]),
        (RAM, {False: errno.ENODEV}, DeviceGone, errno.ENODEV, ["cached"]),
        (DEVICE, {True: errno.EPERM}, KernelRefused, errno.EPERM, ["uncached"]),
        (DEVICE, {True: errno.EINVAL}, NotMappable, errno.EPERM, ["uncached"]),
        (DEVICE, {True: errno.ENOMEM}, BarfsError, errno.ENOMEM, ["uncached"]),
        *(
            (DEVICE, {True: errno.EAGAIN, False: code}, kind, errno.EPERM, both)
            for code, kind in (
                *((errno.EAGAIN, CachingConflict), (errno.EPERM, KernelRefused)),
                (errno.EINVAL, NotMappable),
            )
            for both in [["uncached", "cached"]]
        ),
    ],
)
def test_any_other_refusal_stays_one(ways, monkeypatch, place, refuse, kind, result, tried):
    made = Mappings(monkeypatch, refuse)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(kind, match=f"^phys {place[0]:#x}\\+0x80: ") as caught:
        ways.open_physical(*place, writable=False)
    assert (type(caught.value), caught.value.errno) == (kind, result)
    assert made == [(*place, how) for how in tried]
    assert os.listdir("/proc/self/fd") == before


def test_a_refusal_after_a_copied_stretch_closes_that(ways, monkeypatch):
    made = Mappings(monkeypatch, {False: errno.EINVAL, True: errno.EPERM})
    before = os.listdir("/proc/self/fd")
    with pytest.raises(DriverOwns, match=r"^phys 0x3000\+0x80"):
        ways.open_physical(0x2F80, 0x100, writable=False)
    assert made == [(0x2F80, 0x80, "cached"), (0x3000, 0x80, "uncached")]
    assert os.listdir("/proc/self/fd") == before


def test_ram_is_copied_where_it_must_be_and_the_rest_of_a_range_still_mapped(ways, monkeypatch):
    Mappings(monkeypatch, {False: errno.EINVAL})
    apertures = ways.open_physical(0xF80, 0x100, writable=False)
    assert [type(one) for one in apertures] == [MappedAperture, CopiedAperture]
    for one in apertures:
        one.copy_out(0, data := bytearray(one.size))
        assert data == CONTENTS[one.base : one.base + one.size]
        one.close()


CLAIMED = """\
00001000-00002dff : System RAM
00002e00-00003fff : Reserved
c0000000-c0ffffff : PCI Bus 0000:00
  c0000000-c00fffff : PCI Bus 0000:01
    c0000000-c0003fff : 0000:01:00.0
      c0000000-c0001fff : nvme
    c0004000-c0007fff : 0000:01:00.1
  c0100000-c01000ff : 0000:00:03.0
    c0100000-c010003f : one
    c0100080-c01000ff : other
fec00000-fec003ff : IOAPIC 0
fed00000-fed003ff : HPET 0
  fed00000-fed003ff : PNP0103:00
"""


@pytest.mark.parametrize(
    ("start", "size", "owner"),
    [
        *((0xC0000000, 4, "nvme"), (0xC0001FFC, 8, "nvme"), (0xC0000000, 0x1000000, "nvme")),
        *((0xC0002000, 4, None), (0xC0004000, 0x4000, None), (0xC0800000, 4, None)),
        # The kernel judges whole pages.
        *((0xC0100040, 4, "one"), (0xC01000F0, 4, "one"), (0xC0100800, 4, "one")),
        *((0xFEC00000, 4, "IOAPIC 0"), (0xFED00000, 4, "PNP0103:00")),
        *((0x1000, 4, None), (0x2E00, 4, None), (0x2000, 0x2000, None), (0x3000, 4, "Reserved")),
    ],
)
def test_a_mapping_that_is_refused_for_a_claim_names_who_has_it(
    memory, tmp_path, monkeypatch, start, size, owner
):
    (tmp_path / "iomem").write_text(CLAIMED)
    assert getattr(owner_of(start, size, parse_iomem(CLAIMED)), "name", None) == owner
    Mappings(monkeypatch, {True: errno.EPERM, False: errno.EPERM})
    part = BarPart("it", None, 0, Resource(start, start + size - 1, MEM), 0, size, False)
    with pytest.raises(DriverOwns if owner else KernelRefused) as caught:
        ways_to(memory, through_devmem(memory)).open_part(part, writable=False)
    if owner:
        assert str(caught.value).startswith(f"it: mapping {size:#x} bytes at 0x0: {owner} owns ")
        assert caught.value.errno == errno.EBUSY
    else:
        assert caught.value.errno == errno.EPERM


# Addresses that /proc/iomem does not have


@pytest.fixture
def unclaimed(memory):
    return PhysicalMemory(memory.source, memory.devmem, unclaimed=True)


@pytest.mark.parametrize(
    ("wanted", "register", "found"),
    [
        # What is in there is as without.
        *(((0x1404, None), None, (0x1404, 0x1BFC)), ((0x1404, None), 4, (0x1404, 0x1BFC))),
        *(((0x4000, 0x4003), None, (0x4000, 4)), ((0x4000, None), 4, (0x4000, 4))),
        *(((0x4000, 0x4003), 8, (0x4000, 4)), ((0x8000, 0xFFFF), None, (0x8000, 0x8000))),
        # Part of it is in there.
        *(((0x37FC, 0x3803), None, (0x37FC, 8)), ((0x4FFC, 0x5003), None, (0x4FFC, 8))),
        *(((1 << 40, (1 << 40) + 0xFFF), None, (1 << 40, 0x1000)),),
        ((OFFSET_END - 4, OFFSET_END - 1), None, (OFFSET_END - 4, 4)),
    ],
)
def test_addresses_that_nobody_has_claimed(unclaimed, memory, wanted, register, found):
    assert unclaimed.resolve(AddressRange(*wanted), register) == found
    if found[0] >= 0x3800:
        with pytest.raises(NoSuchAddress, match="is in no range"):
            memory.resolve(AddressRange(*wanted), register)


def test_addresses_that_nobody_has_claimed_need_a_length(unclaimed):
    with pytest.raises(NoSuchAddress, match=r"^phys: 0x4000 .*; it needs a length, as in 4000\+4$"):
        unclaimed.resolve(AddressRange(0x4000, None))
    for end in (OFFSET_END, (1 << 64) - 1):
        with pytest.raises(NoSuchAddress):
            unclaimed.resolve(AddressRange(0x4000, end))


@pytest.mark.parametrize(
    "text", ["", "\0" * 4096, "00000000-00000000 : Reserved\n  00000000-00000000 : x\n"]
)
def test_where_no_range_is_shown_nothing_is_unclaimed(unclaimed, tmp_path, text):
    (tmp_path / "iomem").write_text(text)
    with pytest.raises(NoSuchAddress) as caught:
        unclaimed.resolve(AddressRange(0x4000, 0x4003))
    empty = not text.strip("\0")
    words = "is empty (tar saves nothing of /proc, cat does)" if empty else "only to root"
    assert words in str(caught.value)
    assert "tar" in unclaimed.why_blank() if empty else "CAP_SYS_ADMIN" in unclaimed.why_blank()


def test_what_is_unclaimed_is_always_registers(unclaimed, monkeypatch):
    """Nor is it mapped in the kernel's own caching type, where that differs."""
    ways = ways_to(unclaimed)
    made = Mappings(monkeypatch, {})
    for aperture in ways.open_physical(0x2FF0, 0x1020, writable=True):
        assert aperture.memory_like == (aperture.base < 0x3000)
        aperture.close()
    assert made == [(0x2FF0, 0x10, "cached"), (0x3000, 0x1010, "uncached")]
    made = Mappings(monkeypatch, {True: errno.EAGAIN})
    with pytest.raises(CachingConflict):
        ways.open_physical(0x4000, 4, writable=False)
    assert made == [(0x4000, 4, "uncached")]


@pytest.mark.parametrize(
    ("start", "size", "claimed"),
    [
        *((0, 0x3800, True), (0x37FF, 1, True), (0x37FF, 2, False), (0x3800, 4, False)),
        *((0x4FFF, 2, False), (0x5FFF, 2, True), (0x7FFF, 2, False)),
    ],
)
def test_whether_all_of_a_range_is_claimed(unclaimed, start, size, claimed):
    assert unclaimed.is_claimed(start, size) == claimed


def test_no_more_ranges_than_a_machine_has(caplog):
    lines = [f"{0x1000 * n:x}-{0x1000 * n + 0xFFF:x} : System RAM" for n in range(MOST_RANGES + 5)]
    assert len(parse_iomem("\n".join(lines))) == MOST_RANGES
    assert f"only the first {MOST_RANGES} ranges" in caplog.text


def test_what_is_ram_is_what_the_parts_are(tmp_path):
    """By the parts that are opened, at each edge of each range."""
    text = (
        "00001000-00001fff : System RAM\n00002000-00002fff : System RAM\n"
        "00002800-00004fff : System RAM (kmem)\n00005000-00005fff : Reserved\n"
        "00006000-000063ff : System RAM\n  00007000-00007fff : System RAM\n"
    )
    (tmp_path / "iomem").write_text(text)
    memory = PhysicalMemory(PlainSource(tmp_path, tmp_path, tmp_path), tmp_path / "mem")
    edges = range(0, 0x9000, 0x400)
    found = 0
    for start in edges:
        for end in range(start + 0x400, 0x9000, 0x400):
            parts = split_by_kind(start, end - start, parse_iomem(text))
            wanted = all(part.is_ram for part in parts)
            assert memory.is_ram(start, end - start) == wanted, (start, end)
            found += wanted
    assert found > 100
