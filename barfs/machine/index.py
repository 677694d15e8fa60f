"""Functions by vendor:device, so that looking up a link need not read every function's ids."""

from collections.abc import Callable, Hashable, Iterable, Sequence

from barfs.names import DeviceId, PciAddress


class IdIndex:
    """All functions by id, as `scan` found them. They are kept as long as `stamp` gives the same.

    The index may be wrong about a function whose ids were changed without its going away. Only a
    simulated function can change so. The user of the index checks what it finds, and asks for a
    fresh one if it finds nothing.
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
        """The functions with an id, lowest address first. `fresh` has them all read again."""
        now = self._stamp()
        if fresh or now is None or now != self._then:
            by_id: dict[DeviceId, list[PciAddress]] = {}
            for address, found in self._scan():
                by_id.setdefault(found, []).append(address)
            self._by_id, self._then = by_id, now
        return self._by_id.get(device, ())
