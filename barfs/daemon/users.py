"""Who uses a mount: its files, or a directory of it."""

import os
from pathlib import Path
from typing import Final

from barfs.names import quoted

# How many processes are named.
_SHOWN: Final = 3


def who_uses(where: str) -> str:
    """Who uses the mount at a resolved path, as far as this user may see it, and what to do."""
    found = _users(where)
    if not found:
        return f"see who uses it with: fuser -vm {quoted(where)}"
    shown = [*found[:_SHOWN], *(["others"] if len(found) > _SHOWN else [])]
    return f"{', '.join(shown)}; leave it (cd) or end them first"


def _users(where: str) -> list[str]:
    """The processes that use a mount. Reads links in /proc, and does not touch the mount."""
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        for link, how in (("cwd", "is in it"), ("root", "has its root there")):
            if _leads_into(process / link, where):
                found.append(f"{_name_of(process)} {how}")
                break
        else:
            try:
                files = list((process / "fd").iterdir())
            except OSError:  # it is somebody else's, or gone
                continue
            if any(_leads_into(file, where) for file in files):
                found.append(f"{_name_of(process)} has a file of it open")
    return found


def _leads_into(link: Path, where: str) -> bool:
    try:
        return os.path.commonpath((where, os.readlink(link))) == where
    except (OSError, ValueError):  # it can't be read, or is a socket or the like
        return False


def _name_of(process: Path) -> str:
    """`bash (731)`."""
    try:
        name = (process / "comm").read_bytes().decode(errors="replace").rstrip("\n")
    except OSError:
        name = "a process"
    return f"{name} ({process.name})"
