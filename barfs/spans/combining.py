"""Which addresses are mapped write-combining, so that no exact access is made there meanwhile.

The CPU may merge stores to a write-combining mapping, or make them in another order. All mappings
of a page have the caching type of the first one (arch/x86/mm/pat/memtype.c, reserve_pfn_range). So
a mapping for exact accesses would be write-combining too, and nobody would be told.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from barfs.access.contract import overlap
from barfs.errors import CombinedElsewhere

Release: TypeAlias = Callable[[], None]

_MEND: Final = "close it there, or mount without --write-combining"


@dataclass(eq=False)
class _Claim:
    """The claim of one open file. Two claims of the same span are different claims."""

    span: range


class Combining:
    """The claims of all open files of a mount. Spans are bus addresses, and cover whole pages.

    Several threads may use it at once. A method returns a function that gives the claim up.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._combined: set[_Claim] = set()
        self._exact: set[_Claim] = set()

    def combine(self, span: range) -> Release | None:
        """Claim a span for write-combining. None if part of it is claimed for exact accesses."""
        with self._lock:
            if any(overlap(span, other.span) for other in self._exact):
                return None
            return self._add(self._combined, span)

    def keep_exact(self, span: range, what: str) -> Release:
        """Claim a span for exact accesses. CombinedElsewhere if part of it is write-combining."""
        with self._lock:
            if any(overlap(span, other.span) for other in self._combined):
                raise CombinedElsewhere(
                    f"the BAR is open for writing with write-combining, which merges accesses; "
                    f"{_MEND}",
                    what=what,
                )
            return self._add(self._exact, span)

    def _add(self, claims: set[_Claim], span: range) -> Release:
        """Add a claim. The caller holds the lock; the returned function takes it."""
        claim = _Claim(span)
        claims.add(claim)

        def release() -> None:
            with self._lock:
                claims.remove(claim)

        return release
