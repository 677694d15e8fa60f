"""What to mount, where and how, and what can be said of it before it is mounted."""

import grp
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, Self, TypeAlias, get_args

from barfs.daemon.mountpoint import MountError, absolute, check_free, mount_table, resolve
from barfs.daemon.options import Option, options_of, pattern, share_mode
from barfs.diagnosis.causes import NO_FUSERMOUNT, ROOT_ONLY
from barfs.diagnosis.checkup import FUSE_DEVICE, State, check_fuse
from barfs.machine.patterns import DevicePattern, Rules
from barfs.machine.source import REAL_PROC, REAL_SYSFS

REAL_DEVMEM: Final = Path("/dev/mem")

# Mount options that break barfs, and why.
REFUSED_OPTIONS: Final = {
    "max_read": "cuts requests into other accesses than were asked for",
    "writeback_cache": "writes later than asked, in other pieces",
}

BarsVia: TypeAlias = Literal["resource", "devmem"]
LoopName: TypeAlias = Literal["fast", "stock"]

SYSFS: Final = Option("--sysfs", "instead of /sys", takes="DIR", parse=Path)
PROC: Final = Option("--proc", "instead of /proc", takes="DIR", parse=Path)
DEVMEM: Final = Option("--devmem", "instead of /dev/mem", takes="PATH", parse=Path)


def _devices(spelling: str, what: str) -> Option:
    text = f"{what}: a PCI address or vendor:device, with * ? []; may be repeated"
    return Option(spelling, text, takes="PATTERN", parse=pattern, repeated=True)


@dataclass(frozen=True)
class Settings:
    """What to mount, where, and how; a field with an Option is an option of `barfs mount`."""

    mountpoint: Path
    options: Annotated[
        tuple[str, ...],
        Option(
            "-o",
            "mount options, comma-separated: ro, allow_other, ...",
            takes="OPTIONS",
            repeated=True,
            separator=",",
        ),
    ] = ()
    force: Annotated[bool, Option("--force", "replace a dead mount; a live one never")] = False
    sysfs: Annotated[Path, SYSFS] = REAL_SYSFS
    proc: Annotated[Path, PROC] = REAL_PROC
    devmem: Annotated[Path, DEVMEM] = REAL_DEVMEM
    bars_via: Annotated[
        BarsVia,
        Option(
            "--bars-via",
            "map BARs through sysfs's resourceN (default) or through /dev/mem at their addresses",
            choices=get_args(BarsVia),
        ),
    ] = "resource"
    write_combining: Annotated[
        bool,
        Option(
            "--write-combining",
            "let the CPU merge what is written to prefetchable BARs: large writes get faster",
        ),
    ] = False
    enable: Annotated[
        bool,
        Option("--enable", "turn on decoding of a device while one of its BARs is open"),
    ] = False
    log_file: Annotated[
        Path | None,
        Option(
            "--log",
            "append the mount's log to FILE: opens, writes and refusals, as lines of JSON",
            takes="FILE",
            parse=Path,
        ),
    ] = None
    log_reads: Annotated[bool, Option("--log-reads", "have reads in the log too")] = False
    loop: Annotated[
        LoopName,
        Option(
            "--loop",
            "how requests are waited for: barfs's own way (default), or as pyfuse3 does",
            choices=get_args(LoopName),
        ),
    ] = "fast"
    group: Annotated[
        str | None,
        Option("--group", "a name or number: the group of the files of devices", takes="GROUP"),
    ] = None
    mode: Annotated[
        int | None,
        Option(
            "--mode",
            "of BARs, in octal: 660 lets the group read and write them; needs -o allow_other",
            takes="MODE",
            parse=share_mode,
        ),
    ] = None
    allow_device: Annotated[
        tuple[DevicePattern, ...], _devices("--allow-device", "show only these functions")
    ] = ()
    read_only_device: Annotated[
        tuple[DevicePattern, ...], _devices("--read-only-device", "never write to these functions")
    ] = ()
    phys: Annotated[bool, Option("--no-phys", "leave physical memory out", given=False)] = True
    kcore: Annotated[
        bool,
        Option(
            "--no-kcore",
            "do not read System RAM through /proc/kcore where /dev/mem keeps it back",
            given=False,
        ),
    ] = True

    @classmethod
    def of(cls, mountpoint: Path, given: Mapping[str, object]) -> Self:
        """With what was given of the options, by their names; None is not given.

        Relative paths count from the working directory.
        """
        known = {one.name: given[one.name] for one in OPTIONS if given.get(one.name) is not None}
        paths = {name: absolute(path) for name, path in known.items() if isinstance(path, Path)}
        return cls(absolute(mountpoint), **{**known, **paths})  # type: ignore[arg-type]

    @property
    def rules(self) -> Rules:
        """Which functions there are for this mount, and which only to read."""
        return Rules(self.allow_device, self.read_only_device)

    @property
    def uses_devmem(self) -> bool:
        """Whether /dev/mem is read or mapped at all."""
        return self.phys or self.bars_via == "devmem"

    @property
    def read_only(self) -> bool:
        """Of ro and rw the last one counts, as for mount(8)."""
        chosen = [option for option in self.options if option in ("ro", "rw")]
        return bool(chosen) and chosen[-1] == "ro"


# The options of `barfs mount`, in the order of its usage.
OPTIONS: Final = (
    *options_of(Settings),
    Option("--read-only", "the same as -o ro", given=("ro",), repeated=True, name="options"),
)


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
            raise MountError(f"{ROOT_ONLY}; run it with sudo, or try: barfs demo")
        if shutil.which("fusermount3") is None:
            raise MountError(str(NO_FUSERMOUNT))


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
