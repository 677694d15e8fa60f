"""What a kernel lets through: how it was built and booted, its lockdown, this process's rights.

The facts come from the files of a source, which is this machine or a saved copy. A fact is None,
unknown, if the files don't have it or have garbage in its place.
"""

import functools
import io
import os
import re
import time
import zlib
from pathlib import Path
from typing import Final, NamedTuple

from barfs.access.files import PAGE_SIZE, read_file
from barfs.machine.source import REAL_PROC, Source

# include/uapi/linux/capability.h
CAP_SYS_RAWIO: Final = 17
CAP_SYS_ADMIN: Final = 21

# The capabilities that /dev/mem and the files of sysfs ask for, by their bits in a mask.
CAPABILITIES: Final = {CAP_SYS_RAWIO: "CAP_SYS_RAWIO", CAP_SYS_ADMIN: "CAP_SYS_ADMIN"}

# security/lockdown/lockdown.c, lockdown_levels and lockdown_reasons
LOCKDOWN_LEVELS: Final = frozenset(("none", "integrity", "confidentiality"))

# The variable of UEFI: its name, and the GUID of the specification's own variables. In efivarfs
# four bytes of attributes come before its value.
_SECURE_BOOT: Final = "firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"

# A configuration has about 300 KiB. A packed one could unpack to any size.
_CONFIG_LIMIT: Final = 16 << 20


class Config(NamedTuple):
    """The options that a kernel was built with, y or m, and the file that says so."""

    source: Path
    options: frozenset[str]


def parse_config(text: str) -> frozenset[str] | None:
    """The options that are y or m, without CONFIG_. None if the text is no configuration.

    An option that is not there is off: a configuration leaves out options whose conditions are off.
    """
    found = re.findall(r"^(?:CONFIG_(\w+)=(.*)|# CONFIG_\w+ is not set)$", text, re.MULTILINE)
    if not found:
        return None
    return frozenset(name for name, value in found if value in {"y", "m"})


@functools.lru_cache(maxsize=2)  # the same bytes mean the same
def _unpack(data: bytes) -> frozenset[str] | None:
    # Needed only here, and slow to import.
    import gzip  # noqa: PLC0415

    try:
        with gzip.open(io.BytesIO(data)) as file:
            text = file.read(_CONFIG_LIMIT)
    except (OSError, EOFError, zlib.error):
        return None
    return parse_config(text.decode(errors="replace"))


def config_files(source: Source) -> list[Path]:
    """The files where a kernel's configuration may be."""
    release = (source.text(source.proc / "sys/kernel/osrelease") or "").strip()
    named = re.fullmatch(r"[\w.+~-]+", release)
    return [source.proc / "config.gz", *([source.boot / f"config-{release}"] if named else [])]


def read_config(source: Source) -> Config | None:
    """The configuration from the first file that has one."""
    for path in config_files(source):
        try:
            data = source.read_all(path, _CONFIG_LIMIT)
        except OSError:
            continue
        packed = path.suffix == ".gz"
        options = _unpack(data) if packed else parse_config(data.decode(errors="replace"))
        if options is not None:
            return Config(path, options)
    return None


def parameter(source: Source, name: str) -> str | None:
    """The last value of `name=` on the kernel's command line. None if it is not there."""
    words = (source.text(source.proc / "cmdline") or "").split()
    if "--" in words:  # the words after it are for init
        words = words[: words.index("--")]
    values = [word.partition("=")[2] for word in words if word.startswith(f"{name}=")]
    return values[-1] if values else None


class Kernel(NamedTuple):
    """What is known of a kernel."""

    config: Config | None
    iomem: str | None  # the boot parameter
    lockdown: str | None  # one of LOCKDOWN_LEVELS

    def has(self, option: str) -> bool | None:
        """Whether it was built with an option. None if that is not known."""
        return None if self.config is None else option in self.config.options

    @property
    def relaxed(self) -> bool:
        """Whether iomem=relaxed opens what drivers have claimed (kernel/resource.c)."""
        return self.iomem == "relaxed"

    @property
    def strict(self) -> bool | None:
        """Whether it keeps System RAM from /dev/mem. iomem=relaxed does not change that."""
        return self.has("STRICT_DEVMEM")

    @property
    def io_strict(self) -> bool | None:
        """Whether it keeps what drivers have claimed from /dev/mem and from `resourceN`."""
        return False if self.relaxed else self.has("IO_STRICT_DEVMEM")


def _read_lockdown(source: Source, config: Config | None) -> str | None:
    directory = source.sysfs / "kernel/security"
    text = source.text(directory / "lockdown")
    if text is not None:
        match = re.search(r"\[([^]]*)\]", text)
        return match[1] if match and match[1] in LOCKDOWN_LEVELS else None
    if config is not None and "SECURITY_LOCKDOWN_LSM" not in config.options:
        return "none"
    try:
        others = set(source.names(directory)) - {"lockdown"}
    except OSError:
        return None
    # securityfs is mounted, and has no such file.
    return "none" if others else None


def read_kernel(source: Source) -> Kernel:
    """The kernel of a machine."""
    config = read_config(source)
    return Kernel(config, parameter(source, "iomem"), _read_lockdown(source, config))


def has_secure_boot(source: Source) -> bool:
    """Whether the firmware says that Secure Boot is on. Some kernels then lock down."""
    try:
        return source.read_all(source.sysfs / _SECURE_BOOT)[4:] == b"\1"
    except OSError:
        return False


def architecture(source: Source) -> str | None:
    """What the kernel is built for, as uname(1) calls it; from 6.1 on /proc says it."""
    text = source.text(source.proc / "sys/kernel/arch")
    if text is not None:
        return text.strip()
    return os.uname().machine if source.proc == REAL_PROC else None


class Process(NamedTuple):
    """The rights of a process: effective user, capability mask, user namespace."""

    uid: int
    capabilities: int
    in_namespace: bool  # in a user namespace of its own: /dev/mem ignores its capabilities

    @property
    def missing(self) -> list[str]:
        """The names of the capabilities that barfs needs and the process does not have."""
        return [name for bit, name in CAPABILITIES.items() if not self.capabilities >> bit & 1]


def read_process(source: Source) -> Process | None:
    """The rights of this process, from `self` in /proc. None if they can't be told."""
    text = source.text(source.proc / "self/status") or ""
    uid = re.search(r"^Uid:\s*[0-9]{1,10}\s+([0-9]{1,10})\b", text, re.MULTILINE)
    capabilities = re.search(r"^CapEff:\s*([0-9a-fA-F]{1,16})$", text, re.MULTILINE)
    if uid is None or capabilities is None:
        return None
    # The initial namespace maps all users to themselves (user_namespaces(7)).
    users = (source.text(source.proc / "self/uid_map") or "0 0 4294967295").split()
    return Process(int(uid[1]), int(capabilities[1], 16), users != ["0", "0", "4294967295"])


# The processes that make requests. They are always this machine's own.


def cpu_time(pid: int) -> int:
    """The CPU time of a process in ns. All its threads count, also those that have ended.

    OSError if `pid` is the number of a thread and not of a process (clock_getcpuclockid(3);
    kernel/time/posix-cpu-timers.c, pid_for_clock).
    """
    return time.clock_gettime_ns(~pid << 3 | 2)


def process_of(thread: int) -> int:
    """The number of the process that a thread belongs to. OSError if it has ended."""
    try:
        # Only a process has a CPU time. Asking for it is fast, and nearly always enough.
        cpu_time(thread)
    except OSError:
        status = read_file(f"/proc/{thread}/status", PAGE_SIZE)
        found = re.search(rb"^Tgid:\s*([0-9]+)$", status, re.MULTILINE)
        if found is None:
            raise ProcessLookupError(f"/proc/{thread}/status has no Tgid") from None
        return int(found[1])
    return thread


def name_of(process: int) -> str:
    """The name of a process, as `comm` in /proc has it. OSError if it has ended."""
    return read_file(f"/proc/{process}/comm", 512).rstrip(b"\n").decode(errors="replace")
