"""What a kernel lets through: how it was built and booted, its lockdown, this process's rights.

From the files of `sysfs`, `proc` and `boot`, of this machine or of a saved copy. What they don't
have or what is garbage in them is None, unknown.
"""

import functools
import re
import time
import zlib
from pathlib import Path
from typing import Final, NamedTuple

# include/uapi/linux/capability.h
CAP_SYS_RAWIO: Final = 17
CAP_SYS_ADMIN: Final = 21

# What /dev/mem and the files of sysfs ask for, by its bit in a capability mask.
CAPABILITIES: Final = {CAP_SYS_RAWIO: "CAP_SYS_RAWIO", CAP_SYS_ADMIN: "CAP_SYS_ADMIN"}

# security/lockdown/lockdown.c, lockdown_levels and lockdown_reasons
LOCKDOWN_LEVELS: Final = frozenset(("none", "integrity", "confidentiality"))

# UEFI's variable, by its name and the GUID of the specification's own variables; in efivarfs four
# bytes of attributes come before its value.
_SECURE_BOOT: Final = "firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"

# A configuration has some 300 KiB; one that is packed could have any size.
_CONFIG_LIMIT: Final = 16 << 20


def read_text(path: Path) -> str | None:
    """The text of a file; None if it can't be read."""
    try:
        return path.read_text(errors="replace")
    except (OSError, ValueError):  # ValueError: a zero byte in the path
        return None


class Config(NamedTuple):
    """What a kernel was built with: the options that are y or m, and the file that says so."""

    source: Path
    options: frozenset[str]


def parse_config(text: str) -> frozenset[str] | None:
    """The options that are y or m, without CONFIG_; None if the text is no configuration.

    An option that is not there is off: what depends on others is left out if they are off.
    """
    found = re.findall(r"^(?:CONFIG_(\w+)=(.*)|# CONFIG_\w+ is not set)$", text, re.MULTILINE)
    if not found:
        return None
    return frozenset(name for name, value in found if value in {"y", "m"})


@functools.lru_cache(maxsize=8)
def _read_config(path: Path, _mtime: int, _size: int) -> frozenset[str] | None:
    """Unpacked and parsed once, as long as the file is the same."""
    # Needed only here, and slow to import.
    import gzip  # noqa: PLC0415

    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            text = file.read(_CONFIG_LIMIT)
    except (OSError, EOFError, zlib.error):
        return None
    return parse_config(text.decode(errors="replace"))


def config_files(proc: Path, boot: Path) -> list[Path]:
    """Where a kernel's configuration may be."""
    release = (read_text(proc / "sys/kernel/osrelease") or "").strip()
    installed = [boot / f"config-{release}"] if re.fullmatch(r"[\w.+~-]+", release) else []
    return [proc / "config.gz", *installed]


def read_config(proc: Path, boot: Path) -> Config | None:
    """The configuration from the first file that has one."""
    for path in config_files(proc, boot):
        try:
            status = path.stat()
        except OSError:
            continue
        options = _read_config(path, status.st_mtime_ns, status.st_size)
        if options is not None:
            return Config(path, options)
    return None


def parameter(proc: Path, name: str) -> str | None:
    """The value of `name=` on the kernel's command line, the last one; None if it is not there."""
    words = (read_text(proc / "cmdline") or "").split()
    if "--" in words:  # what follows is for init
        words = words[: words.index("--")]
    values = [word.partition("=")[2] for word in words if word.startswith(f"{name}=")]
    return values[-1] if values else None


class Kernel(NamedTuple):
    """What is known of a kernel."""

    config: Config | None
    iomem: str | None  # the boot parameter
    lockdown: str | None  # of LOCKDOWN_LEVELS

    def has(self, option: str) -> bool | None:
        """Whether it was built with an option."""
        return None if self.config is None else option in self.config.options

    @property
    def relaxed(self) -> bool:
        """Booted with iomem=relaxed, which opens what drivers have claimed (kernel/resource.c)."""
        return self.iomem == "relaxed"

    @property
    def strict(self) -> bool | None:
        """Whether it keeps System RAM from /dev/mem, which iomem=relaxed does not change."""
        return self.has("STRICT_DEVMEM")

    @property
    def io_strict(self) -> bool | None:
        """Whether it keeps what drivers have claimed from /dev/mem and from `resourceN`."""
        return False if self.relaxed else self.has("IO_STRICT_DEVMEM")


def _read_lockdown(sysfs: Path, config: Config | None) -> str | None:
    directory = sysfs / "kernel/security"
    text = read_text(directory / "lockdown")
    if text is not None:
        match = re.search(r"\[([^]]*)\]", text)
        return match[1] if match and match[1] in LOCKDOWN_LEVELS else None
    if config is not None and "SECURITY_LOCKDOWN_LSM" not in config.options:
        return "none"
    try:
        others = any(path.name != "lockdown" for path in directory.iterdir())
    except OSError:
        return None
    # securityfs is mounted, and has no such file.
    return "none" if others else None


def read_kernel(sysfs: Path, proc: Path, boot: Path) -> Kernel:
    """The kernel that some directories are of."""
    config = read_config(proc, boot)
    return Kernel(config, parameter(proc, "iomem"), _read_lockdown(sysfs, config))


def has_secure_boot(sysfs: Path) -> bool:
    """Whether the firmware says that Secure Boot is on, with which some kernels lock down."""
    try:
        return (sysfs / _SECURE_BOOT).read_bytes()[4:] == b"\1"
    except OSError:
        return False


class Process(NamedTuple):
    """The rights of a process: effective user, capability mask, and whose root it is."""

    uid: int
    capabilities: int
    in_namespace: bool  # in a user namespace of its own, whose capabilities /dev/mem ignores

    @property
    def missing(self) -> list[str]:
        """Names of the capabilities that barfs needs and the process does not have."""
        return [name for bit, name in CAPABILITIES.items() if not self.capabilities >> bit & 1]


def cpu_time(pid: int) -> int:
    """The CPU time of a process in ns, of all its threads, those that have ended as well.

    OSError if `pid` is the number of a thread and of no process (clock_getcpuclockid(3);
    kernel/time/posix-cpu-timers.c, pid_for_clock).
    """
    return time.clock_gettime_ns(~pid << 3 | 2)


def read_process(proc: Path) -> Process | None:
    """The process that reads it, from `proc`/self."""
    text = read_text(proc / "self/status") or ""
    uid = re.search(r"^Uid:\s*[0-9]{1,10}\s+([0-9]{1,10})\b", text, re.MULTILINE)
    capabilities = re.search(r"^CapEff:\s*([0-9a-fA-F]{1,16})$", text, re.MULTILINE)
    if uid is None or capabilities is None:
        return None
    # The initial namespace maps all users to themselves (user_namespaces(7)).
    users = (read_text(proc / "self/uid_map") or "0 0 4294967295").split()
    return Process(int(uid[1]), int(capabilities[1], 16), users != ["0", "0", "4294967295"])
