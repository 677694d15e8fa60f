"""What to mount, where and how, and what can be said of it before it is mounted."""

import dataclasses
import grp
import os
import re
import shutil
from pathlib import Path
from typing import Final, Literal

from barfs.daemon.mountpoint import MountError, check_free, mount_table, resolve
from barfs.diagnosis.checkup import FUSE_DEVICE, State, check_fuse
from barfs.machine.patterns import NO_RULES, Rules

REAL_SYSFS: Final = Path("/sys")
REAL_PROC: Final = Path("/proc")
REAL_DEVMEM: Final = Path("/dev/mem")

# Mount options that break barfs, and why.
REFUSED_OPTIONS: Final = {
    "max_read": "cuts requests into other accesses than were asked for",
    "writeback_cache": "writes later than asked, in other pieces",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to mount, where, and how."""

    mountpoint: Path
    options: tuple[str, ...] = ()
    sysfs: Path = REAL_SYSFS
    proc: Path = REAL_PROC
    devmem: Path = REAL_DEVMEM
    bars_via: Literal["resource", "devmem"] = "resource"
    write_combining: bool = False
    force: bool = False  # replace a dead mount
    enable: bool = False
    log_file: Path | None = None
    log_reads: bool = False
    loop: Literal["fast", "stock"] = "fast"
    phys: bool = True
    group: str | None = None  # a name or a number
    mode: int | None = None
    rules: Rules = NO_RULES

    @property
    def uses_devmem(self) -> bool:
        """Whether /dev/mem is read or mapped at all."""
        return self.phys or self.bars_via == "devmem"

    @property
    def read_only(self) -> bool:
        """Of ro and rw the last one counts, as for mount(8)."""
        chosen = [option for option in self.options if option in ("ro", "rw")]
        return bool(chosen) and chosen[-1] == "ro"


def check(settings: Settings) -> None:
    """Raise MountError for what can be known before mounting. Changes nothing."""
    for option in settings.options:
        reason = REFUSED_OPTIONS.get(option.partition("=")[0])
        if reason:
            raise MountError(f"-o {option} {reason}; leave it out")
    if settings.write_combining and settings.bars_via == "devmem":
        raise MountError("--write-combining maps through sysfs; leave --bars-via devmem out")
    _check_sharing(settings)
    check_free(settings.mountpoint, replace_dead=settings.force)
    if not settings.sysfs.is_dir():
        raise MountError(f"--sysfs {settings.sysfs} is not a directory")
    if settings.phys and not settings.proc.is_dir():
        raise MountError(f"--proc {settings.proc} is not a directory")
    _check_covered(settings)
    fuse = check_fuse(FUSE_DEVICE)
    if fuse.state is not State.OK:
        raise MountError(str(fuse.cause))
    if os.geteuid() != 0:
        devmem = settings.devmem if settings.uses_devmem else None
        if settings.sysfs == REAL_SYSFS or devmem == REAL_DEVMEM:
            raise MountError("device memory is for root only; run it with sudo, or try: barfs demo")
        if shutil.which("fusermount3") is None:
            raise MountError("fusermount3 is missing; install it with: apt install fuse3")


def _check_sharing(settings: Settings) -> None:
    """Rights that nobody could use are a mistake."""
    if settings.group is None and settings.mode is None:
        return
    if settings.mode is None:
        raise MountError("--group gives no rights by itself; add --mode 660, or 640 to read only")
    if "allow_other" not in settings.options:
        raise MountError("--mode is for others, who see nothing of a mount; add -o allow_other")
    group_id(settings)


def group_id(settings: Settings) -> int:
    """Of the group that --group names, else the daemon's own. MountError if there is none."""
    if settings.group is None:
        return os.getgid()
    # Numbers that no group has are as good as those that one has; -1 means none to the kernel.
    if re.fullmatch("[0-9]{1,10}", settings.group) and int(settings.group) < (1 << 32) - 1:
        return int(settings.group)
    try:
        return grp.getgrnam(settings.group).gr_gid
    except (KeyError, ValueError):
        raise MountError(f"--group: there is no group {settings.group!a}") from None


def _check_covered(settings: Settings) -> None:
    """A mount over what barfs itself reads would wait for itself for ever."""
    mounts = mount_table()
    mountpoint = resolve(settings.mountpoint, mounts)
    paths = [settings.sysfs / "bus/pci/devices"]
    if settings.phys:
        paths.append(settings.proc / "iomem")
    if settings.uses_devmem:
        paths.append(settings.devmem)
    for path in paths:
        read = resolve(path, mounts)
        if os.path.commonpath((mountpoint, read)) in {mountpoint, read}:
            raise MountError(f"{mountpoint} would hide {path}; choose another directory")
    if settings.log_file is not None:
        written = resolve(settings.log_file, mounts)
        if os.path.commonpath((mountpoint, written)) == mountpoint:
            raise MountError(f"{mountpoint} would hide {settings.log_file}; log to another place")
