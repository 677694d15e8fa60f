"""Giving up the rights that serving a mount does not need.

The package index has no maintained library for this, and a virtual environment can't have Debian's
bindings of libcap-ng. Three calls of libc are enough.
"""

import ctypes
import enum
import os
from collections.abc import Set as AbstractSet
from typing import Final

from barfs.machine.kernel import CAP_SYS_ADMIN, CAP_SYS_RAWIO


class Capability(enum.IntEnum):
    """The capabilities that barfs knows (include/uapi/linux/capability.h)."""

    DAC_OVERRIDE = 1
    DAC_READ_SEARCH = 2
    SYS_RAWIO = CAP_SYS_RAWIO
    SYS_ADMIN = CAP_SYS_ADMIN


# Serving a machine needs these:
# - SYS_RAWIO: to open /dev/mem (drivers/char/mem.c, open_port).
# - SYS_ADMIN: to see the addresses in /proc/iomem, which are 0 otherwise (kernel/resource.c,
# r_show);
#   to read config space beyond its 64th byte (drivers/pci/pci-sysfs.c, pci_read_config); to write
#   sysfs's `enable` (the same file, enable_store); to unmount (fs/namespace.c, may_mount).
# Root owns all of these files, so no right over other people's files is needed.
SERVING: Final = frozenset({Capability.SYS_RAWIO, Capability.SYS_ADMIN})

# The files of a saved copy or a simulated machine may be anybody's. So may the directory of the log
# on disk.
OTHER_PEOPLES_FILES: Final = frozenset({Capability.DAC_OVERRIDE})

# The mountpoint may be below a directory that only its owner may enter, such as a home. Its path is
# needed again to unmount.
OTHER_PEOPLES_DIRECTORIES: Final = frozenset({Capability.DAC_READ_SEARCH})

# include/uapi/linux/prctl.h
_PR_CAPBSET_READ: Final = 23
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38

# include/uapi/linux/capability.h: version 3 has sets of 64 bits, in two structures of 32 bits.
_VERSION_3: Final = 0x20080522

_SETPCAP: Final = 8

_libc: Final = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    """struct __user_cap_header_struct. A pid of 0 is the calling thread."""

    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Half(ctypes.Structure):
    """struct __user_cap_data_struct."""

    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


class _Sets:
    """The calling thread's capability sets. Each bit of an integer is a capability."""

    def __init__(self) -> None:
        self._header = _Header(_VERSION_3, 0)
        self._halves = (_Half * 2)()
        _call("capget", ctypes.byref(self._header), self._halves)
        self.effective, self.permitted, self.inheritable = (
            getattr(self._halves[0], name) | getattr(self._halves[1], name) << 32
            for name in ("effective", "permitted", "inheritable")
        )

    def set(self, *, effective: int, permitted: int, inheritable: int) -> None:
        """Change the thread's sets. OSError if the kernel refuses."""
        for shift, half in zip((0, 32), self._halves, strict=True):
            half.effective = effective >> shift & 0xFFFFFFFF
            half.permitted = permitted >> shift & 0xFFFFFFFF
            half.inheritable = inheritable >> shift & 0xFFFFFFFF
        _call("capset", ctypes.byref(self._header), self._halves)


def _call(name: str, *arguments: object) -> int:
    """Call a function of libc. Raises OSError with its errno."""
    result: int = getattr(_libc, name)(*arguments)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def _prctl(option: int, argument: int) -> int:
    unused = ctypes.c_ulong(0)
    return _call("prctl", option, ctypes.c_ulong(argument), unused, unused, unused)


def _bits(capabilities: AbstractSet[Capability]) -> int:
    return sum(1 << capability for capability in capabilities)


def may_enter(
    directory: str, capabilities: AbstractSet[Capability], *, writing: bool = False
) -> bool:
    """Whether names in a directory can be looked up with these capabilities alone.

    `writing` asks whether they can be made, too. It is tried, with the other capabilities switched
    off for a moment.
    """
    sets = _Sets()
    fewer = sets.permitted & _bits(capabilities)
    sets.set(effective=fewer, permitted=sets.permitted, inheritable=sets.inheritable)
    try:
        # With the real IDs access(2) would use all of root's permitted capabilities.
        wanted = os.X_OK | (os.W_OK if writing else 0)
        return os.access(directory, wanted, effective_ids=True)
    finally:
        sets.set(effective=sets.effective, permitted=sets.permitted, inheritable=sets.inheritable)


def keep_only(capabilities: AbstractSet[Capability]) -> None:
    """Give up all other capabilities for good. A program that is run can gain none, either.

    This changes the calling thread only, and threads that it starts later. So it has to be the only
    thread. OSError if the kernel refuses. Some rights may be gone then, but not all that should be.
    """
    if len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError("there are threads already, and they would keep their capabilities")
    keep = _bits(capabilities)
    sets = _Sets()
    if sets.effective & 1 << _SETPCAP:
        _drop_from_bounding_set(keep)
    # Without CAP_SETPCAP the bounding set has to stay. It does no harm: with no_new_privs a program
    # that root runs gets no more than the permitted set (security/commoncap.c,
    # cap_bprm_creds_from_file).
    #
    # The kernel cuts the ambient set to the inheritable one (the same file, cap_capset).
    kept = sets.permitted & keep
    sets.set(effective=kept, permitted=kept, inheritable=0)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _drop_from_bounding_set(keep: int) -> None:
    for capability in range(64):
        try:
            there = _prctl(_PR_CAPBSET_READ, capability)
        except OSError:  # EINVAL: the kernel knows no capability of this number
            return
        if there and not keep & 1 << capability:
            _prctl(_PR_CAPBSET_DROP, capability)
