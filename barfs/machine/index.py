"""Functions by their ids, so that looking up a link need not read every function's."""

from collections.abc import Callable, Hashable, Sequence
from typing import Final, Generic, TypeVar

from barfs.names import PciAddress

K = TypeVar("K", bound=Hashable)

# How many functions are read anew when a look-up finds nothing and nothing has come or gone.
SOME: Final = 64


class Index(Generic[K]):
    """All functions by what `key_of` reads of each. It is kept as long as `stamp` gives the same.

    The index may be wrong about a function whose ids were changed without its going away. Only a
    simulated function can change so. The user of the index checks what it finds. If he finds
    nothing, he asks once more for a `fresh` one. Then some functions are read again, and others the
    next time, because anybody may look up what is not there.
    """

    def __init__(
        self,
        addresses: Callable[[], Sequence[PciAddress]],
        key_of: Callable[[PciAddress], K | None],
        stamp: Callable[[], Hashable | None],
    ) -> None:
        self._addresses = addresses
        self._key_of = key_of
        self._stamp = stamp
        self._then: Hashable | None = None
        self._keys: dict[PciAddress, K | None] = {}  # lowest address first
        self._by_key: dict[K, list[PciAddress]] = {}
        self._next = 0  # the place of the function that is read again next

    def find(self, key: K, *, fresh: bool = False) -> Sequence[PciAddress]:
        """The functions of a key, lowest address first."""
        now = self._stamp()
        if now is None or now != self._then:
            if now is not None or not fresh:  # it has been read a moment ago if it is asked again
                self._keys = {address: self._key_of(address) for address in self._addresses()}
                self._sort()
            self._then = now
        elif fresh:
            self._read_some()
        return self._by_key.get(key, ())

    def _read_some(self) -> None:
        places = list(self._keys)
        begin = self._next if self._next < len(places) else 0
        self._next = begin + SOME
        found = {address: self._key_of(address) for address in places[begin : self._next]}
        if any(self._keys[address] != key for address, key in found.items()):
            self._keys.update(found)
            self._sort()

    def _sort(self) -> None:
        self._by_key = {}
        for address, key in self._keys.items():
            if key is not None:
                self._by_key.setdefault(key, []).append(address)
