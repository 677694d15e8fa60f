"""Ways are tried in their order; a refusal leaves a place to those after it."""

import errno
import os
from types import SimpleNamespace

import pytest
from machines import STRICT, Fixture, machine_of, ways_of

from barfs.access import apertures
from barfs.devmem import Segment
from barfs.diagnosis.causes import explain
from barfs.errors import (
    BarfsError,
    CachingConflict,
    DeviceGone,
    DriverOwns,
    KernelRefused,
    NotDecoded,
)
from barfs.machine import simulated
from barfs.names import PciAddress
from barfs.spans import bars, ways
from barfs.spans.ways import Ways, through_devmem

PLACE = Segment(0x1000, 4, is_ram=False)
E1000, IVSHMEM = PciAddress(0, 0, 3, 0), PciAddress(0, 0, 4, 0)


class Way:
    def __init__(self, name, outcome=None):
        self.name, self.outcome = name, outcome
        self.asked = []

    def open(self, place, refused, *, writable):
        self.asked.append((place, refused, writable))
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


def first(*tried):
    return ways._first(tried, PLACE, PLACE.span, writable=True)


def test_the_first_that_leads_there_is_taken_and_says_so():
    aperture = SimpleNamespace()
    not_mine, taken, never = Way("a"), Way("b", aperture), Way("c", SimpleNamespace())
    assert first(not_mine, taken, never) is aperture
    assert aperture.way == "b"
    assert not_mine.asked == taken.asked == [(PLACE, None, True)]
    assert never.asked == []


@pytest.mark.parametrize("kind", [KernelRefused, DriverOwns])
def test_a_refusal_is_told_to_the_next_and_is_the_error_if_none_leads_there(kind):
    refused, again = kind("the first"), KernelRefused("the second")
    aperture = SimpleNamespace()
    last = Way("c", aperture)
    assert first(Way("a", refused), Way("b", again), last) is aperture
    assert last.asked == [(PLACE, refused, True)]
    with pytest.raises(kind) as caught:
        first(Way("a", refused), Way("b"), Way("c", again))
    assert caught.value is refused


@pytest.mark.parametrize("error", [DeviceGone("x"), NotDecoded("x"), BarfsError("x"), KeyError()])
def test_any_other_error_is_final(error):
    never = Way("b", SimpleNamespace())
    with pytest.raises(type(error)):
        first(Way("a", error), never)
    assert never.asked == []


def test_where_no_way_leads_is_an_error():
    with pytest.raises(BarfsError, match=r"^phys 0x1000\+0x4: no way leads there$") as caught:
        first(Way("a"))
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("via_devmem", [False, True])
def test_the_way_that_was_taken_is_known(tmp_path, via_devmem):
    opened = ways_of(machine_of(simulated.build(tmp_path), bars_via_devmem=via_devmem))
    memory = "devmem" if via_devmem else "resource"
    taken = [
        *((bars.open_bar(opened, IVSHMEM, 0, writable=False), memory),),
        *((bars.open_bar(opened, IVSHMEM, 2, writable=True), memory),),
        *((bars.open_bar(opened, E1000, 1, writable=False), "resource"),),
        *((one, "devmem") for one in opened.open_physical(0x9F000, 0x1000, writable=False)),
    ]
    for aperture, way in taken:
        assert aperture.way == way
        aperture.close()


def test_a_bar_is_never_copied(tmp_path):
    """What can't be mapped of a device is refused, though the address may be read."""
    machine = machine_of(simulated.build(tmp_path))
    memory = SimpleNamespace(map=None, copy=None)

    def refuse(*_, **__):
        raise KernelRefused("not this")

    memory.map = refuse
    with pytest.raises(KernelRefused, match="not this"):
        bars.open_bar(Ways(machine.pci, memory, through_devmem(memory)), IVSHMEM, 0, writable=False)


CLAIM = "    feb20000-feb200ff : ivshmem\n"


@pytest.mark.parametrize(
    ("options", "claimed", "visible", "kind"),
    [
        # A driver may have it for itself only if it has claimed it, and the kernel is strict.
        *(((), False, True, CachingConflict), ((), True, True, CachingConflict)),
        *((STRICT, False, True, CachingConflict), (STRICT, True, True, DriverOwns)),
        # What can't be told stays as it was.
        *((None, True, True, DriverOwns), (STRICT, False, False, DriverOwns)),
    ],
)
def test_a_mapping_that_is_refused_for_its_caching_type(
    tmp_path, monkeypatch, options, claimed, visible, kind
):
    fixture = Fixture(tmp_path)
    (fixture.proc / "config.gz").unlink()
    if options is not None:
        fixture.set_config("DEVMEM", *options)
    iomem = fixture.proc / "iomem"
    text = iomem.read_text()
    if claimed:
        before = "  feb20000-feb200ff : 0000:00:04.0\n"
        assert before in text
        iomem.write_text(text.replace(before, before + CLAIM))
    if not visible:
        iomem.write_text("00000000-00000000 : Reserved\n")

    class Span:
        def __init__(self, *_):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(apertures, "_mmio", SimpleNamespace(Span=Span, MAX_WIDTH=8))
    machine = fixture.machine
    with pytest.raises(kind) as caught:
        bars.open_bar(ways_of(machine), IVSHMEM, 0, writable=False)
    assert type(caught.value) is kind
    if kind is CachingConflict:
        words = explain(caught.value, machine)
        assert "has it mapped in another caching type, most likely cached, and" in words
        assert "iomem=relaxed" not in words
