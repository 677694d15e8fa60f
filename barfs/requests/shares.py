"""How many files each user may have open, so that nobody takes the last descriptors from others."""

import os
import resource
from collections import Counter
from typing import Final

from barfs.errors import TooManyFiles

# How many users there have to be to open as many files as there may be descriptors. A file takes up
# to two, so one user takes a quarter of them at the most. Root and who mounted have no share: they
# may take what is left.
PART: Final = 8

# The limit where there is none.
_MOST: Final = 1 << 15


def _share() -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (_MOST if limit == resource.RLIM_INFINITY else limit) // PART


class Shares:
    """The open files of each user."""

    def __init__(self) -> None:
        self._files: Counter[int] = Counter()
        self._share = _share()
        self._free = frozenset((0, os.geteuid()))

    def is_limited(self, uid: int) -> bool:
        """Whether a user's files count."""
        return uid not in self._free

    def take(self, uid: int) -> None:
        """Count a file of a user, until `give`. TooManyFiles if he has too many."""
        if uid in self._free:
            return
        if self._files[uid] >= self._share:
            raise TooManyFiles(
                f"user {uid} has {self._share} files open, and one user may have no more of them;"
                " close some"
            )
        self._files[uid] += 1

    def give(self, uid: int) -> None:
        """A file that was taken is closed."""
        if uid in self._free:
            return
        self._files[uid] -= 1
        if not self._files[uid]:
            del self._files[uid]
