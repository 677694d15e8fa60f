"""What works on a machine, what does not, and how to mend it: `status` and `barfs doctor`.

This looks at the machine that the paths name: this one, a saved copy, or the simulated one, which
has no kernel and no users. Where the paths have no files, nothing is said. The config space of a
sleeping function is not read, because that would wake it.
"""

import enum
import os
import shutil
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from barfs.diagnosis import causes, mends
from barfs.diagnosis.causes import Machine
from barfs.diagnosis.obstacles import Look, Obstacles
from barfs.diagnosis.text import printable
from barfs.errors import Cause, DeviceGone, NoSuchAddress, NoSuchNode
from barfs.machine import kernel
from barfs.machine.btf import read_types
from barfs.machine.functions import Functions
from barfs.machine.kcore import BadCore, CoreFile
from barfs.machine.kernel import Kernel
from barfs.machine.power import sleeping
from barfs.machine.resources import Resource
from barfs.machine.source import REAL_PROC
from barfs.names import PciAddress, quoted
from barfs.registers.files import BUILT_IN

FUSE_DEVICE: Final = Path("/dev/fuse")

# The subject of what is said of a recording.
RECORDING: Final = "recording"

# PCI Code and ID Assignment Specification: class and subclass of a PCI-to-PCI bridge.
_BRIDGE: Final = "0x0604"


class State(enum.StrEnum):
    """How much a finding matters. The worst comes first."""

    TROUBLE = "trouble"  # something does not work
    NOTE = "note"  # something is kept back, or can't be told
    OK = "ok"


class Finding(NamedTuple):
    """What was looked at, and what was found. `device` is None if it concerns all of barfs."""

    subject: str
    state: State
    cause: Cause
    device: PciAddress | None = None


def examine(
    machine: Machine, addresses: Iterable[PciAddress], fuse: Path = FUSE_DEVICE
) -> list[Finding]:
    """Everything that is found about a machine and some of its functions, the worst first."""
    facts = machine.kernel()
    found = [*_about_machine(machine, facts, fuse)]
    for address in addresses:
        found += _recorded(machine, address)
        try:
            found += _about_function(machine, facts, address)
            found += _around_lockdown(machine, facts, address)
        except DeviceGone:
            continue
    order = list(State)
    # Whose machine it is comes before what is the matter with it.
    return sorted(found, key=lambda one: (one.subject != RECORDING, order.index(one.state)))


def text(findings: Iterable[Finding]) -> str:
    """Aligned lines: state, subject, and what was found. Below is the command that mends it.

    Advice that is no command is a comment. So the lines below the troubles can be pasted as they
    are.
    """
    rows = [(finding.state, finding.subject, finding.cause) for finding in findings]
    width = max((len(subject) for _, subject, _ in rows), default=0)
    indent = " " * (7 + 2 + width + 2)
    lines = []
    for state, subject, cause in rows:
        lines.append(f"{state:7}  {subject:{width}}  {cause.sentence}")
        if cause.mend is not None:
            lines.append(indent + cause.mend)
        if cause.advice is not None:
            lines.append(f"{indent}# {cause.advice}")
    return "".join(f"{printable(line)}\n" for line in lines)


def status(machine: Machine) -> str:
    """The text of `status`."""
    return text(examine(machine, machine.pci.addresses()))


def _around_lockdown(machine: Machine, facts: Kernel, address: PciAddress) -> Iterator[Finding]:
    """How the memory BARs of a function can be reached though the kernel is locked down, if at all.

    Nothing is said of a function that has a driver of its own, because the system may need that.
    """
    pci = machine.pci
    bars = {index: bar for index, bar in pci.bars(address).items() if bar.is_memory}
    if facts.lockdown in {None, "none"} or not bars:
        return
    match pci.driver(address):
        case mends.VFIO_DRIVER:
            words = f"lockdown leaves VFIO open, and it is bound to {mends.VFIO_DRIVER}"
            unconfined = causes.without_iommu(pci, address)
            if unconfined is not None:
                words += f"; {unconfined.sentence}"
            more = "" if unconfined is None else " --noiommu"
            advice = f"mount with --bars-via vfio{more}"
            cause = causes.not_viable(pci, address) or Cause(words, advice=advice)
        case mends.UIO_DRIVER:
            kept = [index for index, bar in bars.items() if not _through_uio(bar)]
            if not kept:
                return
            names = ", ".join(f"bar{index}" for index in kept)
            cause = _to_vfio(pci, address, f"{names}: {causes.UIO_OFFERS}")
        case None if pci.everything.group(address):
            others = causes.named(causes.others_in_group(pci, address))
            along = f"; its IOMMU group takes along {others}" if others else ""
            words = "lockdown leaves VFIO open: bind it to vfio-pci, which resets it"
            cause = _to_vfio(pci, address, words + along)
        case None if any(map(_through_uio, bars.values())):
            cause = Cause(
                f"lockdown leaves UIO open, without an IOMMU: bind it to {mends.UIO_DRIVER}",
                mends.bind(pci, address, mends.UIO_DRIVER),
            )
        case _:
            return
    yield _note(address, cause)


_VIA_VFIO: Final = "then mount with --bars-via vfio"


def _through_uio(bar: Resource) -> bool:
    return not (bar.is_64bit or bar.prefetchable)


def _to_vfio(pci: Functions, address: PciAddress, sentence: str) -> Cause:
    """A cause that VFIO mends, if there is an IOMMU for it."""
    if not pci.everything.group(address):
        return Cause(sentence)
    return Cause(sentence, mends.bind(pci, address, mends.VFIO_DRIVER), _VIA_VFIO)


# The whole machine


def _about_machine(machine: Machine, facts: Kernel, fuse: Path) -> Iterator[Finding]:
    source = machine.source
    if source.recording is not None:
        yield _ok(RECORDING, source.recording.about)
        yield from _about_recorded(machine, facts)
        return
    if source.exists(source.proc / "self/status"):
        yield _rights(machine)
    yield check_fuse(fuse)
    yield from _fusermount()
    if machine.phys or machine.bars_via_devmem:
        yield _devmem(machine, facts)
    if machine.phys:
        yield _iomem(machine)
    if source.is_directory(source.sysfs / "kernel"):
        yield _lockdown(machine, facts)
    yield from _maps(machine)
    if facts.config is not None or source.exists(source.proc / "sys/kernel/osrelease"):
        yield from _strictness(machine, facts)
        yield from _kernel_memory(machine)


def _about_recorded(machine: Machine, facts: Kernel) -> Iterator[Finding]:
    """What a recording tells of its machine. What this process may does not matter."""
    source = machine.source
    if machine.phys and source.exists(source.proc / "iomem"):
        yield _iomem(machine)
    if source.is_directory(source.sysfs / "kernel"):
        yield _lockdown(machine, facts)
    yield from _maps(machine)
    if facts.config is not None:
        yield from _strictness(machine, facts)


def _recorded(machine: Machine, address: PciAddress) -> Iterator[Finding]:
    """What a recording has of a function's BARs, and what it does not have, and why."""
    recording = machine.source.recording
    if recording is None or address not in recording.functions:
        return
    has = [
        f"{name}@{extent}"
        for name, part in recording.functions[address].parts.items()
        if name != "config"
        for extent in part.extents()
    ]
    if has:
        yield _ok(str(address), f"recorded: {', '.join(has)}", address)
    for why in recording.notes.get(address, ()):
        yield _note(address, Cause(f"not recorded: {why}"))


def _ok(subject: str, sentence: str, device: PciAddress | None = None) -> Finding:
    return Finding(subject, State.OK, Cause(sentence), device)


def _rights(machine: Machine) -> Finding:
    process = kernel.read_process(machine.source)
    if process is None:
        sentence = f"{machine.source.proc}/self/status does not say what this process may"
        return Finding("root", State.NOTE, Cause(sentence))
    cause = causes.lacking(machine)
    if cause is not None:
        return Finding("root", State.TROUBLE, cause)
    return _ok("root", "this is root, with the capabilities that barfs needs")


def check_fuse(device: Path) -> Finding:
    """Whether this user can mount through /dev/fuse. fusermount3 opens it as the user, too."""
    if not device.exists():
        return Finding("fuse", State.TROUBLE, Cause(f"{device} is missing", "modprobe fuse"))
    if not os.access(device, os.R_OK | os.W_OK):
        mend = f"sudo chmod 666 {quoted(device)}"
        return Finding("fuse", State.TROUBLE, Cause(f"this user may not open {device}", mend))
    return _ok("fuse", f"{device} is there")


def _fusermount() -> Iterator[Finding]:
    """Whether fusermount3 is there. Only others than root need it."""
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        yield Finding("fuse", State.TROUBLE, causes.NO_FUSERMOUNT)


def _devmem(machine: Machine, facts: Kernel) -> Finding:
    devmem = machine.memory.devmem
    try:
        machine.memory.try_open()
    except FileNotFoundError:
        return Finding("devmem", State.TROUBLE, causes.devmem_missing(machine, facts))
    except OSError as error:
        cause = causes.devmem_closed(machine, facts, error)
        sentence = f"{devmem} does not open ({error.strerror})"
        if cause is None:
            return Finding("devmem", State.TROUBLE, Cause(sentence))
        sentence += f": {cause.sentence}"
        return Finding("devmem", State.TROUBLE, cause._replace(sentence=sentence))
    return _ok("devmem", f"{devmem} opens")


def _iomem(machine: Machine) -> Finding:
    iomem = machine.source.proc / "iomem"
    try:
        ranges = machine.memory.ranges()
    except NoSuchAddress as error:
        return Finding("iomem", State.TROUBLE, Cause(f"phys/ is empty: {error}"))
    if not ranges:
        sentence = f"phys/ is empty: {machine.memory.why_blank()}"
        return Finding("iomem", State.TROUBLE, Cause(sentence))
    return _ok("iomem", f"{iomem} shows {len(ranges)} ranges")


def _lockdown(machine: Machine, facts: Kernel) -> Finding:
    cause = causes.locked_down(machine, facts)
    if cause is not None:
        return Finding("lockdown", State.TROUBLE, cause)
    if facts.lockdown is None:
        return Finding("lockdown", State.NOTE, causes.lockdown_unknown(machine))
    return _ok("lockdown", "lockdown is not in force")


def _maps(machine: Machine) -> Iterator[Finding]:
    """Maps of registers that are none. One that barfs brings does not fit where BARs are missing.

    The kernel may have given them no addresses. That is no trouble of the map.
    """
    for concerned, found in machine.maps.refused():
        cause = Cause(f"the map {found.file} is refused: {found.refusal}")
        device = concerned if isinstance(concerned, PciAddress) else None
        state = State.NOTE if found.file.parent == BUILT_IN else State.TROUBLE
        yield Finding(str(concerned), state, cause, device)


def _strictness(machine: Machine, facts: Kernel) -> Iterator[Finding]:
    if facts.config is None:
        files = kernel.config_files(machine.source)
        sentence = f"how the kernel was built is in none of {', '.join(map(str, files))}"
        mend = "modprobe configs" if machine.source.proc == REAL_PROC else None
        yield Finding("kernel", State.NOTE, Cause(sentence, mend))
    if facts.strict:
        yield Finding("System RAM", State.NOTE, causes.STRICT)
    elif facts.strict is not None:
        yield _ok("System RAM", "the kernel gives System RAM (no CONFIG_STRICT_DEVMEM)")
    if facts.io_strict:
        yield Finding("drivers", State.NOTE, causes.IO_STRICT)
    elif facts.io_strict is not None:
        why = "iomem=relaxed" if facts.relaxed else "no CONFIG_IO_STRICT_DEVMEM"
        yield _ok("drivers", f"the kernel gives what drivers own to others, too ({why})")


def _kernel_memory(machine: Machine) -> Iterator[Finding]:
    """Whether System RAM can be read through /proc/kcore, and `ksym/` has names and types."""
    if machine.core is not None:
        yield _kcore(machine.core)
    if machine.symbols is None:
        return
    for subject, what, ask in (
        ("ksym", f"{machine.symbols.path} shows the kernel's symbols", machine.symbols.check),
        ("types", "the kernel says its types", partial(read_types, machine.source.sysfs)),
    ):
        try:
            ask()
        except NoSuchNode as error:
            yield Finding(subject, State.NOTE, Cause(str(error)))
        else:
            yield _ok(subject, what)


def _kcore(core: CoreFile) -> Finding:
    try:
        core.segments()
    except FileNotFoundError:
        sentence = f"there is no {core.path}, through which System RAM could be read"
        advice = "boot a kernel built with CONFIG_PROC_KCORE"
        return Finding("kcore", State.NOTE, Cause(sentence, advice=advice))
    except (OSError, BadCore) as error:
        sentence = f"{core.path} does not open ({getattr(error, 'strerror', None) or error})"
        advice = "it takes CAP_SYS_RAWIO, and lockdown=confidentiality refuses it"
        return Finding("kcore", State.NOTE, Cause(sentence, advice=advice))
    sentence = (
        f"{core.path} opens: what /dev/mem keeps back of System RAM is read through it (pages "
        "that are ballooned, poisoned or offline are zeros there)"
    )
    return _ok("kcore", sentence)


# One function


def _about_function(machine: Machine, facts: Kernel, address: PciAddress) -> list[Finding]:
    """What does not work, or one finding that everything does. Raises DeviceGone."""
    pci = machine.pci
    # This comes first, because what follows may wake the function.
    sleep = sleeping(pci, address)
    bars = pci.known(address, pci.bars) or {}  # a saved copy may not have them
    found = [*_claims(machine, facts, address, bars), *_binding(machine, address, bars)]
    if sleep is not None:
        found.append(_sleep(pci, address, sleep, bars))
        return [*found, *_silent(address, Look(pci, address), bars)]
    look = pci.known(address, Obstacles(pci).look)
    found += _link(pci, address)
    if look is not None and look.cause is not None:
        return [*found, _trouble(address, look.cause)]
    found += _silent(address, look or Look(pci, address), bars)
    if look is None and not found:
        return [_note(address, Cause("its command register can't be read"))]
    return found or [_works(pci, address, bars)]


def _trouble(address: PciAddress, cause: Cause) -> Finding:
    return Finding(str(address), State.TROUBLE, cause, address)


def _note(address: PciAddress, cause: Cause) -> Finding:
    return Finding(str(address), State.NOTE, cause, address)


def _sleep(pci: Functions, address: PciAddress, how: str, bars: dict[int, Resource]) -> Finding:
    if not bars:
        return _note(address, Cause(f"it sleeps ({how})", mends.wake(pci, address)))
    sentence = f"it sleeps ({how}): its BARs may not answer, and config space is not read here"
    return _trouble(address, Cause(sentence, mends.wake(pci, address)))


def _silent(address: PciAddress, look: Look, bars: dict[int, Resource]) -> Iterator[Finding]:
    """BARs that don't answer."""
    for names, cause in look.obstacles(bars):
        yield _trouble(address, cause._replace(sentence=f"{names}: {cause.sentence}"))


def _binding(machine: Machine, address: PciAddress, bars: dict[int, Resource]) -> Iterator[Finding]:
    """What keeps a function from being opened through VFIO, where BARs are reached that way."""
    if not machine.bars_via_vfio or not bars:
        return
    pci = machine.pci
    cause = causes.not_bound(pci, address) or causes.not_viable(pci, address)
    if cause is not None:
        yield _note(address, cause)


def _claims(
    machine: Machine, facts: Kernel, address: PciAddress, bars: dict[int, Resource]
) -> Iterator[Finding]:
    """The driver that owns a function's BARs, if the kernel keeps them from others."""
    driver = machine.pci.driver(address) if facts.io_strict else None
    spans = [bar for bar in bars.values() if bar.is_mapped]
    if driver is None or not spans:
        return
    cause = causes.driver_owns(machine.pci, address, driver)
    try:
        known = bool(machine.memory.ranges())
        # The kernel asks for the page that a BAR begins with (pci_mmap_resource).
        claimed = any(machine.memory.owner(bar.start, 1) for bar in spans)
    except NoSuchAddress:
        known = claimed = False
    if claimed:
        yield _trouble(address, cause)
    elif not known:
        sentence = f"whether driver {driver} owns its BARs is in iomem, which shows no addresses"
        yield _note(address, Cause(sentence))


def _link(pci: Functions, address: PciAddress) -> Iterator[Finding]:
    """Whether a bridge's link is down. The kernel reads config space for this attribute."""
    is_bridge = (pci.attribute(address, "class") or "").startswith(_BRIDGE)
    if is_bridge and pci.attribute(address, "current_link_width") == "0":
        cause = Cause("its link is down: nothing answers behind it", mends.look_for_functions(pci))
        yield _note(address, cause)


def _works(pci: Functions, address: PciAddress, bars: dict[int, Resource]) -> Finding:
    state = pci.attribute(address, "power_state")
    words = [] if state in {None, "", "unknown"} else [state]
    if bars:
        words.append(f"{', '.join(f'bar{index}' for index in bars)} decoded")
    driver = pci.driver(address)
    if driver or pci.knows_driver(address):
        words.append(f"driver {driver}" if driver else "no driver")
    return _ok(str(address), "; ".join(words) or "nothing is known to be amiss", address)
