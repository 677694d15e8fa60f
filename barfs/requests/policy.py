"""Who may open what: owner, group and mode bits of all that is in the tree.

The kernel enforces them, as the mount has default_permissions. Root is bound by no mode bits, so
what is read-only for everybody is refused at open as well (Tree.open, fs.py).
"""

import dataclasses
import re
import stat
from typing import Final

from barfs.nodes import Kind, Node, Share, Type

OWNER_ONLY: Final = 0o600
READ_BITS: Final = 0o444


def parse_mode(text: str) -> int | None:
    """`660` or `0660`; None unless it is rw for the owner and r, w, both or nothing for others.

    A mode without rw for the owner would only seem to protect: the owner is root, as a rule.
    """
    if re.fullmatch("0?6[0246]{2}", text) is None:
        return None
    return int(text, 8)


@dataclasses.dataclass(frozen=True)
class Policy:
    """Of one mount. `group` and `mode` are those of a function's files."""

    uid: int
    gid: int
    group: int
    mode: int = OWNER_ONLY
    read_only: bool = False  # all of the mount

    def group_of(self, node: Node) -> int:
        """st_gid."""
        return self.gid if node.address is None else self.group

    def mode_of(self, kind: Kind, *, writable: bool) -> int:
        """st_mode; `writable` is whether the node may be written."""
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
