"""Giving up the rights that serving a mount does not need.

There is no kept library for this on the package index, and Debian's bindings of libcap-ng are not
to be had in a virtual environment. It takes three calls of libc.
"""

import ctypes
import enum
import os
from collections.abc import Set as AbstractSet
from typing import Final

from barfs.machine.kernel import CAP_SYS_ADMIN, CAP_SYS_RAWIO


class Capability(enum.IntEnum):
    """Those that barfs knows (include/uapi/linux/capability.h)."""

    DAC_OVERRIDE = 1
    DAC_READ_SEARCH = 2
    SYS_RAWIO = CAP_SYS_RAWIO
    SYS_ADMIN = CAP_SYS_ADMIN


# What serving a machine takes:
# - SYS_RAWIO: opening /dev/mem (drivers/char/mem.c, open_port).
# - SYS_ADMIN: the addresses in /proc/iomem, which are 0 without (kernel/resource.c, r_show);
#   config space from its 65th byte on (drivers/pci/pci-sysfs.c, pci_read_config); writing sysfs's
#   `enable` (the same file, enable_store); unmounting at the end (fs/namespace.c, may_mount).
# Root owns all of these files, so no right over other people's is needed.
SERVING: Final = frozenset({Capability.SYS_RAWIO, Capability.SYS_ADMIN})

# A saved copy or a simulated machine may be anybody's files, and so may the directory
# of the log on disk.
OTHER_PEOPLES_FILES: Final = frozenset({Capability.DAC_OVERRIDE})

# A mountpoint below a directory that is its owner's alone, a home for one: it is named once more
# when it is unmounted.
OTHER_PEOPLES_DIRECTORIES: Final = frozenset({Capability.DAC_READ_SEARCH})

# include/uapi/linux/prctl.h
_PR_CAPBSET_READ: Final = 23
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38

# include/uapi/linux/capability.h: version 3 has 64 bits a set, in two structures of 32.
_VERSION_3: Final = 0x20080522

_SETPCAP: Final = 8

_libc: Final = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    """struct __user_cap_header_struct; pid 0 is the calling thread."""

    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Half(ctypes.Structure):
    """struct __user_cap_data_struct."""

    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


class _Sets:
    """The calling thread's capability sets as integers, bit by bit."""

    def __init__(self) -> None:
        self._header = _Header(_VERSION_3, 0)
        self._halves = (_Half * 2)()
        _call("capget", ctypes.byref(self._header), self._halves)
        self.effective, self.permitted, self.inheritable = (
            getattr(self._halves[0], name) | getattr(self._halves[1], name) << 32
            for name in ("effective", "permitted", "inheritable")
        )

    def set(self, *, effective: int, permitted: int, inheritable: int) -> None:
        """Make them so. OSError if the kernel refuses."""
        for shift, half in zip((0, 32), self._halves, strict=True):
            half.effective = effective >> shift & 0xFFFFFFFF
            half.permitted = permitted >> shift & 0xFFFFFFFF
            half.inheritable = inheritable >> shift & 0xFFFFFFFF
        _call("capset", ctypes.byref(self._header), self._halves)


def _call(name: str, *arguments: object) -> int:
    """A call of libc; OSError with its errno."""
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
    """Whether names in a directory can be looked up, or made, with these capabilities alone.

    It is tried, with the others switched off for the moment.
    """
    sets = _Sets()
    fewer = sets.permitted & _bits(capabilities)
    sets.set(effective=fewer, permitted=sets.permitted, inheritable=sets.inheritable)
    try:
        # Not with the real IDs: of root that asks with all that is permitted (access(2)).
        wanted = os.X_OK | (os.W_OK if writing else 0)
        return os.access(directory, wanted, effective_ids=True)
    finally:
        sets.set(effective=sets.effective, permitted=sets.permitted, inheritable=sets.inheritable)


def keep_only(capabilities: AbstractSet[Capability]) -> None:
    """Give up all other capabilities for good, and what a program that is run could gain.

    All of this is the calling thread's alone and goes to those that it starts, so it has to be
    the only one. OSError if the kernel refuses; there are fewer rights then, but more than meant.
    """
    if len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError("there are threads already, and they would keep their capabilities")
    keep = _bits(capabilities)
    sets = _Sets()
    if sets.effective & 1 << _SETPCAP:
        _drop_from_bounding_set(keep)
    # Otherwise the bounding set has to stay, and does no harm: with no_new_privs a program that
    # root runs gets no more than the permitted set (security/commoncap.c,
    # cap_bprm_creds_from_file).
    #
    # The ambient set is cut to the inheritable one by the kernel (the same file, cap_capset).
    kept = sets.permitted & keep
    sets.set(effective=kept, permitted=kept, inheritable=0)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _drop_from_bounding_set(keep: int) -> None:
    for capability in range(64):
        try:
            there = _prctl(_PR_CAPBSET_READ, capability)
        except OSError:  # EINVAL: the last one that this kernel knows was before
            return
        if there and not keep & 1 << capability:
            _prctl(_PR_CAPBSET_DROP, capability)
