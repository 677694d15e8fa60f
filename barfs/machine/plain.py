"""Plain files in the place of sysfs: whether they are, and what tells that they changed."""

import os
import time
from collections.abc import Hashable
from pathlib import Path
from typing import Final

# Times of change are those of the kernel's last clock tick, and ticks are 10 ms apart at the most:
# only after that is a second change sure to show.
_TICK: Final = 20_000_000  # ns


def is_sysfs(path: Path) -> bool:
    """Whether `path` is a real sysfs rather than a tree of plain files."""
    try:
        device = path.stat().st_dev
        mounts = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return False
    number = f"{os.major(device)}:{os.minor(device)}"
    # mountinfo: id, parent, major:minor, ... " - " type, source, options
    return any(
        line.split()[2] == number and line.partition(" - ")[2].startswith("sysfs ")
        for line in mounts
    )


def settled(changed: int) -> int | None:
    """A time of change in ns; None if a change right now could leave the same."""
    return changed if time.time_ns() - changed > _TICK else None


def directory_stamp(path: str) -> Hashable | None:
    """Something that changes when names in a directory of plain files do.

    None if it may have changed just now, or can't be told. sysfs keeps no such times.
    """
    try:
        return settled(os.stat(path).st_mtime_ns)
    except OSError:
        return None
