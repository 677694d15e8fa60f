"""Whether a BAR is read as registers or as memory, and why."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from barfs.machine.resources import ROM_RESOURCE, Resource

# PCI Code and ID Assignment Specification: class and subclass of a RAM controller, and the class of
# display controllers.
_RAM: Final = 0x0500
_DISPLAY: Final = 0x03


class Reading(NamedTuple):
    """How a BAR is read: as memory, or as registers; `why` follows the word in a sentence."""

    is_memory: bool
    why: str

    @property
    def word(self) -> str:
        """`memory` or `registers`."""
        return "memory" if self.is_memory else "registers"

    def __str__(self) -> str:
        return f"{self.word} ({self.why})"


def _registers(why: str) -> Reading:
    return Reading(is_memory=False, why=why)


def _memory(why: str) -> Reading:
    return Reading(is_memory=True, why=why)


def reading_of(device_class: int | None, bars: Mapping[int, Resource], index: int) -> Reading:
    """How one of a function's BARs is read. A class of None is not known. `bars` may have its ROM.

    Prefetchable says only that a bridge may put a BAR above 4 GiB, so makers set it on registers:
    network cards and all modern virtio devices do (PCI Express 5.0, 7.5.1.2.1).
    """
    resource = bars[index]
    if not resource.is_memory:
        return _registers("I/O ports")
    if not resource.prefetchable:
        return _registers("not prefetchable")
    if device_class is None:
        return _registers("prefetchable, but of an unknown class")
    if device_class >> 8 == _RAM:
        return _memory("prefetchable, of a RAM controller")
    if device_class >> 16 != _DISPLAY:
        return _registers("prefetchable, which says nothing of what it holds")
    sizes = [
        bar.size
        for other, bar in bars.items()
        if other != ROM_RESOURCE and bar.is_memory and bar.prefetchable
    ]
    if resource.size == max(sizes):
        return _memory("the largest prefetchable one of a display controller")
    return _registers("not the largest prefetchable one of a display controller")
