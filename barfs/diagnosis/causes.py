"""Why something is refused, and what would mend it.

The words are the same everywhere: in the log when something happens, and in `status` and `barfs
doctor` before it happens (checkup.py).
"""

import errno
import logging
import shlex
from collections.abc import Iterable
from typing import Final, NamedTuple

from barfs.access.contract import overlap
from barfs.devmem import REAL_DEVMEM, PhysicalMemory
from barfs.diagnosis import mends
from barfs.diagnosis.text import printable
from barfs.errors import (
    BarfsError,
    CachingConflict,
    Cause,
    DeviceGone,
    DriverOwns,
    FunctionPart,
    KernelRefused,
    Mmap,
    NotAllowed,
    NotMappable,
    Opening,
    PhysicalSpan,
)
from barfs.machine import kernel
from barfs.machine.functions import Allowed, Functions
from barfs.machine.kcore import CoreFile
from barfs.machine.kernel import Kernel, Process
from barfs.machine.source import REAL_PROC, REAL_SYSFS, Source
from barfs.machine.symbols import Symbols
from barfs.names import PciAddress
from barfs.registers.devices import DeviceMaps

log = logging.getLogger(__name__)

_COMMAND_LINE: Final = "on the kernel's command line"
_RELAX: Final = f"reboot with iomem=relaxed {_COMMAND_LINE}"

STRICT: Final = Cause(
    "the kernel keeps System RAM from /dev/mem (CONFIG_STRICT_DEVMEM)",
    advice="boot a kernel built without CONFIG_STRICT_DEVMEM; no parameter changes it",
)
IO_STRICT: Final = Cause(
    "the kernel keeps what drivers own from others (CONFIG_IO_STRICT_DEVMEM)", advice=_RELAX
)

ROOT_ONLY: Final = "device memory is for root only"

NO_FUSERMOUNT: Final = Cause("fusermount3 is missing", "sudo apt install fuse3")

_CACHING: Final = Cause("the kernel uses it in another caching type, and refuses a second one")
_CACHED: Final = Cause(
    "a driver or another program has it mapped in another caching type, most likely cached, and "
    "the kernel refuses a second one",
    advice="close it there, or keep to its other pages",
)
_CONFINED: Final = Cause(
    "something confines this process",
    advice="look at the container, or at DeviceAllow= and PrivateDevices= of the systemd unit",
)


NOT_VIABLE: Final = "its IOMMU group has functions that other drivers use"

# What functions of a group may be bound to while another one is opened through VFIO
# (drivers/iommu/iommu.c, driver_managed_dma).
_HARMLESS: Final = frozenset((None, mends.VFIO_DRIVER, "pci-stub", "pcieport"))

# drivers/uio/uio_pci_generic.c, probe
UIO_OFFERS: Final = f"{mends.UIO_DRIVER} has 32-bit BARs only that are not prefetchable"


def without_iommu(pci: Functions, address: PciAddress) -> Cause | None:
    """Why a function that is bound to vfio-pci opens only on request: nothing confines its DMA."""
    # drivers/vfio/group.c, vfio_noiommu_group_alloc
    if pci.attribute(address, "iommu_group/name") != "vfio-noiommu":
        return None
    return Cause(
        "there is no IOMMU, so its DMA can reach all memory",
        advice="mount with --noiommu to open it all the same",
    )


class Machine(NamedTuple):
    """The machine that is looked at: this one, a saved copy, or the simulated one.

    `phys` tells whether the mount has `phys/`. `bars_via_devmem` tells whether memory BARs are
    reached through /dev/mem, and `bars_via_vfio` whether BARs are reached through VFIO. `symbols`
    and `core` are those of its kernel, if they are wanted.
    """

    pci: Allowed
    memory: PhysicalMemory
    maps: DeviceMaps
    phys: bool = True
    bars_via_devmem: bool = False
    symbols: Symbols | None = None
    core: CoreFile | None = None
    bars_via_vfio: bool = False

    @property
    def source(self) -> Source:
        """The source of its facts."""
        return self.pci.source

    def kernel(self) -> Kernel:
        """What is known of its kernel now."""
        return kernel.read_kernel(self.source)


def locked_down(machine: Machine, facts: Kernel) -> Cause | None:
    """The cause, if lockdown is in force. None if it is not, or if that can't be told."""
    if facts.lockdown in {None, "none"}:
        return None
    asked = kernel.parameter(machine.source, "lockdown")
    forced = f"LOCK_DOWN_KERNEL_FORCE_{str(facts.lockdown).upper()}"
    if asked in kernel.LOCKDOWN_LEVELS:
        advice = f"reboot without lockdown={asked} {_COMMAND_LINE}"
    elif kernel.has_secure_boot(machine.source):
        advice = "turn Secure Boot off in the firmware's set-up, and reboot"
    elif facts.has(forced):
        advice = f"boot a kernel built without CONFIG_{forced}"
    else:
        advice = "reboot: it lasts until then"
    return Cause(
        f"lockdown is in force ({facts.lockdown}): the kernel refuses memory BARs, /dev/mem, and "
        "writes to I/O ports and config space",
        advice=advice,
    )


def lockdown_unknown(machine: Machine) -> Cause:
    """Why it can't be told whether lockdown is in force."""
    directory = machine.source.sysfs / "kernel/security"
    mend = f"mount -t securityfs securityfs {shlex.quote(str(directory))}"
    is_real = machine.source.sysfs == REAL_SYSFS
    return Cause(
        f"whether lockdown is in force can't be told without {directory}/lockdown",
        mend if machine.source.is_directory(directory) and is_real else None,
    )


def unprivileged(process: Process) -> Cause | None:
    """What a process lacks that barfs needs. None if it lacks nothing."""
    if process.uid != 0:
        return Cause(f"{ROOT_ONLY}, and this is not root", "sudo -s")
    if process.missing:
        options = " ".join(f"--cap-add={name.removeprefix('CAP_')}" for name in process.missing)
        return Cause(
            f"this root is without {' and '.join(process.missing)}",
            advice=f"if it is in a container, start that with {options}",
        )
    if process.in_namespace:
        return Cause(
            "this is root in a user namespace only, and the kernel asks for the machine's root",
            advice="run it outside of the container",
        )
    return None


def lacking(machine: Machine) -> Cause | None:
    """What this process lacks that barfs needs. None if it lacks nothing, or that can't be told."""
    process = kernel.read_process(machine.source)
    cause = None if process is None else unprivileged(process)
    if cause is None or machine.source.proc == REAL_PROC:
        return cause
    # What the files of another machine say of a process there is not mended here.
    return cause._replace(mend=None)


def others_in_group(pci: Functions, address: PciAddress) -> list[tuple[PciAddress, str | None]]:
    """The other functions of an IOMMU group, and their drivers. None if there is no group."""
    everything = pci.everything
    return [
        (other, everything.driver(other)) for other in everything.group(address) if other != address
    ]


def named(functions: Iterable[tuple[PciAddress, str | None]]) -> str:
    """Functions and their drivers, for a sentence."""
    return ", ".join(f"{address} ({driver or 'no driver'})" for address, driver in functions)


def not_bound(pci: Functions, address: PciAddress) -> Cause | None:
    """Why a function does not open through VFIO, if its driver is another one."""
    driver = pci.driver(address)
    if driver == mends.VFIO_DRIVER:
        return None
    owner = "no driver" if driver is None else f"the driver {driver}"
    return Cause(
        f"{owner} has it, and --bars-via vfio takes {mends.VFIO_DRIVER}",
        mends.bind(pci, address, mends.VFIO_DRIVER),
    )


def not_viable(pci: Functions, address: PciAddress) -> Cause | None:
    """Why a function does not open through VFIO, if drivers use others of its IOMMU group."""
    using = [one for one in others_in_group(pci, address) if one[1] not in _HARMLESS]
    return Cause(f"{NOT_VIABLE}: {named(using)}") if using else None


def devmem_missing(machine: Machine, facts: Kernel) -> Cause:
    """Why there is no /dev/mem."""
    sentence = f"{machine.memory.devmem} is missing"
    if facts.has("DEVMEM") is False:
        return Cause(sentence, advice="boot a kernel built with CONFIG_DEVMEM")
    if machine.memory.devmem != REAL_DEVMEM:
        # A device there would be this machine's memory in the place of the other's.
        return Cause(sentence)
    # Documentation/admin-guide/devices.txt
    return Cause(sentence, f"mknod -m 600 {shlex.quote(str(REAL_DEVMEM))} c 1 1")


def devmem_closed(machine: Machine, facts: Kernel, error: OSError) -> Cause | None:
    """Why /dev/mem does not open (drivers/char/mem.c, open_port). None if no cause is known."""
    match error.errno:
        case errno.ENOENT:
            return devmem_missing(machine, facts)
        case errno.EACCES:
            return lacking(machine)
        case errno.EPERM:
            unknown = lockdown_unknown(machine) if facts.lockdown is None else _CONFINED
            return lacking(machine) or locked_down(machine, facts) or unknown
        case _:
            return None


def driver_owns(pci: Functions, address: PciAddress, driver: str) -> Cause:
    """Why a function is refused: its driver has claimed its BARs, and the kernel keeps them."""
    return Cause(
        f"driver {driver} owns it, and {IO_STRICT.sentence}",
        mends.take_from_driver(pci, address),
        f"or {_RELAX}",
    )


def explain(error: BarfsError, machine: Machine) -> str:
    """The sentence of an error, with cause and mend if they can be found out. Never raises.

    It is for the log, when something was refused. It reads what the kernel knows, and touches no
    device.
    """
    try:
        cause = _cause(error, machine)
    except BarfsError:  # a fact that the cause depends on is not there
        cause = None
    except Exception:
        log.exception("diagnosis of %r failed", error)
        cause = None
    return str(error) if cause is None else printable(f"{error}: {cause}")


def _cause(error: BarfsError, machine: Machine) -> Cause | None:
    if not isinstance(error, (KernelRefused, DriverOwns, DeviceGone, NotAllowed)):
        return None
    if error.system is not None and error.during == Opening(str(machine.memory.devmem)):
        return devmem_closed(machine, machine.kernel(), error.system)
    match error:
        case DeviceGone():
            return _why_gone(error, machine)
        case DriverOwns():
            return _why_owned(error, machine)
        case CachingConflict() if isinstance(error.what, FunctionPart):
            return _CACHED
        case CachingConflict() | NotMappable():
            return _CACHING
        case KernelRefused() if error.system is not None:
            return _why_refused(error, machine)
        case NotAllowed():
            return lacking(machine)
        case _:
            return None


def _why_gone(error: BarfsError, machine: Machine) -> Cause | None:
    if not isinstance(error.what, FunctionPart) or machine.pci.everything.exists(
        error.what.address
    ):
        return None
    return Cause(
        "when it is back, open the file again; this looks for it",
        mends.look_for_functions(machine.pci),
    )


def _why_owned(error: BarfsError, machine: Machine) -> Cause:
    """Why the kernel keeps something from others. The error itself has said who owns it."""
    address = None
    match error.what:
        case FunctionPart():
            address = error.what.address
        case PhysicalSpan(start, size):
            owner = machine.memory.owner(start, size)
            address = None if owner is None else _at(machine.pci, owner.start, owner.end)
    driver = None if address is None else machine.pci.driver(address)
    if address is None or driver is None:
        return IO_STRICT
    return driver_owns(machine.pci, address, driver)._replace(sentence=IO_STRICT.sentence)


def _at(pci: Functions, start: int, end: int) -> PciAddress | None:
    """The function that has a memory BAR in a physical range. The end belongs to the range."""
    for address in pci.addresses():
        for bar in pci.bars(address).values():
            if bar.is_mapped and overlap(bar.span, range(start, end + 1)):
                return address
    return None


def _why_refused(error: BarfsError, machine: Machine) -> Cause | None:
    """Why the kernel refused a mapping, or a read or write of an open file."""
    facts = machine.kernel()
    cause = locked_down(machine, facts)
    if cause is not None:
        return cause
    via_devmem = machine.bars_via_devmem and isinstance(error.during, Mmap)
    if isinstance(error.what, FunctionPart) and not via_devmem:
        return lockdown_unknown(machine) if facts.lockdown is None else None
    # /dev/mem opened, so lockdown is not in force. CONFIG_STRICT_DEVMEM or CONFIG_IO_STRICT_DEVMEM
    # is the reason (drivers/char/mem.c, range_is_allowed).
    if isinstance(error.what, PhysicalSpan) and machine.memory.is_ram(*error.what):
        return STRICT
    return _why_owned(error, machine)
