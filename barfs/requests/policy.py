"""Who may open what: owner, group and mode bits of all that is in the tree.

The kernel enforces them, as the mount has default_permissions. Root is bound by no mode bits, so
what is read-only for everybody is refused at open as well (barfs.pci, barfs.fs).
"""

import dataclasses
import re
import stat
from typing import Final

from barfs.nodes import BARS, DIRECTORIES, READ_ONLY, Kind, Node

OWNER_ONLY: Final = 0o600
READ_BITS: Final = 0o444

# What --mode opens to others for reading, but never for writing: config space moves BARs and turns
# on DMA, by which a device reaches all memory.
_READ_SHARED: Final = frozenset((Kind.CONFIG, Kind.ROM, Kind.INFO))


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

    def mode_of(self, node: Node, *, writable: bool) -> int:
        """st_mode; `writable` is whether its device may be written to.

        Physical memory is everything, and /proc/iomem shows its addresses to root alone: no mode
        opens it to others.
        """
        kind = node.kind
        if kind is Kind.LINK:
            return stat.S_IFLNK | 0o777
        if kind in DIRECTORIES:
            return stat.S_IFDIR | (0o500 if kind is Kind.PHYS else 0o555)
        bits = OWNER_ONLY
        if kind in BARS:
            bits = self.mode
        elif kind in _READ_SHARED:
            bits |= self.mode & READ_BITS
        if kind in READ_ONLY or not writable:
            bits &= READ_BITS
        return stat.S_IFREG | bits
