"""What to mount, where and how, and the mistakes that can be seen before it is mounted."""

import grp
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, Self, TypeAlias, get_args

from barfs.daemon.mountpoint import MountError, absolute, check_free, mount_table, resolve
from barfs.daemon.options import (
    Option,
    bar_pattern,
    options_of,
    pattern,
    pattern_or_directory,
    share_mode,
)
from barfs.devmem import REAL_DEVMEM
from barfs.diagnosis.causes import NO_FUSERMOUNT, ROOT_ONLY
from barfs.diagnosis.checkup import FUSE_DEVICE, State, check_fuse
from barfs.machine.patterns import BarPattern, DevicePattern, Rules
from barfs.machine.source import REAL_PROC, REAL_SYSFS
from barfs.names import BarsVia
from barfs.registers.files import DIRECTORIES

# Mount options that break barfs, and why.
REFUSED_OPTIONS: Final = {
    "max_read": "cuts requests into other accesses than were asked for",
    "writeback_cache": "writes later than asked, in other pieces",
    "subtype": "hides from umount and others that it is barfs",
}

LoopName: TypeAlias = Literal["fast", "stock"]

SYSFS: Final = Option("--sysfs", "instead of /sys", takes="DIR", parse=Path)
PROC: Final = Option("--proc", "instead of /proc", takes="DIR", parse=Path)
REGISTERS: Final = Option(
    "--registers",
    "look for maps of registers in DIR first; may be repeated",
    takes="DIR",
    parse=lambda text: Path(text).absolute(),
    repeated=True,
)
DEVMEM: Final = Option("--devmem", "instead of /dev/mem", takes="PATH", parse=Path)
MACHINE: Final = Option(
    "--machine",
    "a recorded machine instead of this one: what barfs save wrote, or text of lspci",
    takes="FILE|DIR",
    parse=Path,
)


def _devices(spelling: str, what: str) -> Option:
    text = f"{what}: a PCI address or vendor:device, with * ? []; may be repeated"
    return Option(spelling, text, takes="PATTERN", parse=pattern, repeated=True)


@dataclass(frozen=True)
class Settings:
    """What to mount, where, and how. A field with an Option is an option of `barfs mount`."""

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
    machine: Annotated[Path | None, MACHINE] = None
    bars_via: Annotated[
        BarsVia,
        Option(
            "--bars-via",
            "reach BARs through sysfs's resourceN (default), through /dev/mem at their addresses,"
            " or through VFIO, where vfio-pci is their driver",
            choices=get_args(BarsVia),
        ),
    ] = "resource"
    noiommu: Annotated[
        bool,
        Option(
            "--noiommu",
            "with --bars-via vfio: functions without an IOMMU too, whose DMA reaches all memory",
        ),
    ] = False
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
    unclaimed: Annotated[
        bool,
        Option(
            "--unclaimed",
            "let phys open addresses that are in no line of /proc/iomem: some hang the machine",
        ),
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
    memory: Annotated[
        tuple[BarPattern, ...],
        Option(
            "--memory",
            "copy these BARs as memory: of a device, or one (1af4:1110/bar2); may be repeated",
            takes="PATTERN",
            parse=bar_pattern,
            repeated=True,
        ),
    ] = ()
    registers: Annotated[
        tuple[BarPattern | Path, ...],
        Option(
            "--registers",
            "access these BARs as registers (PATTERN as of --memory), or look for maps of registers"
            " in DIR first; may be repeated",
            takes="PATTERN|DIR",
            parse=pattern_or_directory,
            repeated=True,
        ),
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
        """Settings with the options that were given, by their names. None means not given.

        Relative paths count from the working directory.
        """
        known = {one.name: given[one.name] for one in OPTIONS if given.get(one.name) is not None}
        paths = {name: absolute(path) for name, path in known.items() if isinstance(path, Path)}
        return cls(absolute(mountpoint), **{**known, **paths})  # type: ignore[arg-type]

    @property
    def rules(self) -> Rules:
        """Which functions this mount has, and which of them may only be read."""
        registers = tuple(one for one in self.registers if isinstance(one, BarPattern))
        return Rules(self.allow_device, self.read_only_device, self.memory, registers)

    @property
    def map_directories(self) -> tuple[Path, ...]:
        """The directories in which maps of registers are searched."""
        return (*(one for one in self.registers if isinstance(one, Path)), *DIRECTORIES)

    @property
    def uses_devmem(self) -> bool:
        """Whether /dev/mem is read or mapped at all."""
        return self.machine is None and (self.phys or self.bars_via == "devmem")

    @property
    def read_only(self) -> bool:
        """Whether the whole mount is read-only. The last one of ro and rw counts, as in
        mount(8). A recorded machine is always read-only.
        """
        if self.machine is not None:
            return True
        chosen = [option for option in self.options if option in ("ro", "rw")]
        return bool(chosen) and chosen[-1] == "ro"


# The options of `barfs mount`, in the order of its usage.
OPTIONS: Final = (
    *options_of(Settings),
    Option("--read-only", "the same as -o ro", given=("ro",), repeated=True, name="options"),
)


def check(settings: Settings) -> None:
    """Raise MountError for mistakes that can be seen before mounting. Changes nothing."""
    for option in settings.options:
        reason = REFUSED_OPTIONS.get(option.partition("=")[0])
        if reason:
            raise MountError(f"-o {option} {reason}; leave it out")
    _check_ways(settings)
    _check_sharing(settings)
    check_free(settings.mountpoint, replace_dead=settings.force)
    maps = [one for one in settings.registers if isinstance(one, Path)]
    directories = [("registers", one) for one in maps]
    if settings.machine is None:
        directories.append(("sysfs", settings.sysfs))
        directories += [("proc", settings.proc)] if settings.phys else []
    for option, directory in directories:
        if not directory.is_dir():
            raise MountError(f"--{option} {directory} is not a directory")
    _check_covered(settings)
    if os.geteuid() != 0:
        devmem = settings.devmem if settings.uses_devmem else None
        # VFIO gives a function to whoever owns its file.
        by_vfio = settings.bars_via == "vfio" and not settings.uses_devmem
        is_real = settings.sysfs == REAL_SYSFS or devmem == REAL_DEVMEM
        if is_real and not by_vfio and settings.machine is None:
            raise MountError(f"{ROOT_ONLY}; run it with sudo, or try: barfs demo")
        if shutil.which("fusermount3") is None:
            raise MountError(str(NO_FUSERMOUNT))
    fuse = check_fuse(FUSE_DEVICE)
    if fuse.state is not State.OK:
        raise MountError(str(fuse.cause))


# Fields that mean nothing for a recorded machine, which is reached in one way and only read.
_WITHOUT_MACHINE: Final = (
    *("sysfs", "proc", "devmem", "bars_via", "noiommu"),
    *("write_combining", "enable", "unclaimed"),
)


def _check_ways(settings: Settings) -> None:
    """MountError for options that mean nothing together."""
    if settings.machine is not None:
        for name in _WITHOUT_MACHINE:
            if getattr(settings, name) != getattr(Settings, name):
                option = f"--{name.replace('_', '-')}"
                raise MountError(
                    f"--machine is a recorded one, which is only read; leave {option} out"
                )
    if settings.write_combining and settings.bars_via != "resource":
        via = settings.bars_via
        raise MountError(f"--write-combining maps through sysfs; leave --bars-via {via} out")
    if settings.noiommu and settings.bars_via != "vfio":
        raise MountError("--noiommu is for VFIO; add --bars-via vfio")


def _check_sharing(settings: Settings) -> None:
    """MountError for rights that nobody could use."""
    if settings.group is None and settings.mode is None:
        return
    if settings.mode is None:
        raise MountError("--group gives no rights by itself; add --mode 660, or 640 to read only")
    if "allow_other" not in settings.options:
        raise MountError("--mode is for others, who see nothing of a mount; add -o allow_other")
    group_id(settings)


def group_id(settings: Settings) -> int:
    """The group that --group names, or else the daemon's own. MountError if there is none."""
    if settings.group is None:
        return os.getgid()
    # A number need not be that of a group. To the kernel -1 means no group.
    if re.fullmatch("[0-9]{1,10}", settings.group) and int(settings.group) < (1 << 32) - 1:
        return int(settings.group)
    try:
        return grp.getgrnam(settings.group).gr_gid
    except (KeyError, ValueError):
        raise MountError(f"--group: there is no group {settings.group!a}") from None


def _check_covered(settings: Settings) -> None:
    """MountError if the mount would cover files that barfs reads: it would wait for itself for
    ever.
    """
    mounts = mount_table()
    mountpoint = resolve(settings.mountpoint, mounts)
    paths = [*settings.map_directories]
    if settings.machine is not None:
        paths.append(settings.machine)
    else:
        paths.append(settings.sysfs / "bus/pci/devices")
        paths += [settings.proc / "iomem"] if settings.phys else []
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
