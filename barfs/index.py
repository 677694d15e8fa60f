"""Functions by vendor:device, for look-ups of links that need not read every function's ids."""

import os
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Final

from barfs.names import DeviceId, PciAddress

# A directory's time of change has the kernel's tick, at the most 10 ms: only after that is a
# second change sure to show.
_TICK: Final = 20_000_000  # ns


def directory_stamp(path: str) -> Hashable | None:
    """Something that changes when names in a directory of plain files do.

    None if it may have changed just now, or can't be told. sysfs keeps no such times.
    """
    try:
        changed = os.stat(path).st_mtime_ns
    except OSError:
        return None
    return changed if time.time_ns() - changed > _TICK else None


class IdIndex:
    """All functions by id, as `scan` found them, for as long as `stamp` says the same.

    It may be wrong about a function whose ids were changed where it is, as only a simulated one's
    can be: whoever uses it checks what it finds, and asks for a fresh one if there is nothing.
    """

    def __init__(
        self,
        scan: Callable[[], Iterable[tuple[PciAddress, DeviceId]]],
        stamp: Callable[[], Hashable | None],
    ) -> None:
        self._scan = scan
        self._stamp = stamp
        self._then: Hashable | None = None
        self._by_id: dict[DeviceId, list[PciAddress]] = {}

    def find(self, device: DeviceId, *, fresh: bool = False) -> Sequence[PciAddress]:
        """The functions with an id, lowest address first."""
        now = self._stamp()
        if fresh or now is None or now != self._then:
            by_id: dict[DeviceId, list[PciAddress]] = {}
            for address, found in self._scan():
                by_id.setdefault(found, []).append(address)
            self._by_id, self._then = by_id, now
        return self._by_id.get(device, ())
