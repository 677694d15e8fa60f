"""Who may open what: owner, group and mode bits of everything in the tree.

The kernel enforces them, because the mount has default_permissions. Mode bits do not bind root. So
a file that is read-only for everybody is also refused at open (Tree.open, fs.py).
"""

import dataclasses
import re
import stat
from typing import Final

from barfs.nodes import Kind, Node, Share, Type

OWNER_ONLY: Final = 0o600
READ_BITS: Final = 0o444


def parse_mode(text: str) -> int | None:
    """Parse `660` or `0660`. None if it is not rw for the owner, or has x for anybody.

    A mode without rw for the owner would only seem to protect, since the owner is usually root.
    """
    if re.fullmatch("0?6[0246]{2}", text) is None:
        return None
    return int(text, 8)


@dataclasses.dataclass(frozen=True)
class Policy:
    """The policy of one mount. `group` and `mode` are those of a function's files."""

    uid: int
    gid: int
    group: int
    mode: int = OWNER_ONLY
    read_only: bool = False  # whether the whole mount is

    def group_of(self, node: Node) -> int:
        """The group of a node, for st_gid."""
        return self.gid if node.address is None else self.group

    def mode_of(self, kind: Kind, *, writable: bool) -> int:
        """The mode of a node, for st_mode. `writable` tells whether it may be written."""
        if kind.type is Type.LINK:
            return stat.S_IFLNK | 0o777
        if kind.type is Type.DIRECTORY:
            return stat.S_IFDIR | (0o500 if kind.share is Share.NOBODY else 0o555)
        bits = OWNER_ONLY
        if kind.share is Share.ALL:
            bits = self.mode
        elif kind.share is Share.READ:
            bits |= self.mode & READ_BITS
        return stat.S_IFREG | (bits if writable else bits & READ_BITS)
