"""Everything that is in the tree of a mount, in the order in which it is listed."""

from barfs.diagnosis.causes import Machine
from barfs.journal.records import Journal
from barfs.nodes import Branch
from barfs.spans.kernel import KernelMemory
from barfs.spans.opening import Spans
from barfs.tree.bars import Bars
from barfs.tree.config import Config
from barfs.tree.decode import All, Decode
from barfs.tree.functions import FunctionDirectories, Pci
from barfs.tree.info import Info
from barfs.tree.ksym import KernelSymbols, Ksym
from barfs.tree.links import Aliases, Links
from barfs.tree.log import Log
from barfs.tree.physical import Physical, Ranges
from barfs.tree.registers import FunctionRegisters, Maps, PhysicalRegisters, Readme
from barfs.tree.rom import Rom
from barfs.tree.root import Root
from barfs.tree.status import Status
from barfs.tree.sysfs import Sysfs
from barfs.tree.views import Views


def branches(machine: Machine, spans: Spans, journal: Journal) -> list[Branch]:
    """The branches of a machine's tree, the root first."""
    pci, memory = machine.pci, machine.memory
    maps = Maps(pci, machine.maps)
    physical = [Physical(), Ranges(memory, spans), PhysicalRegisters(maps, spans)]
    return [
        Root(),
        Pci(),
        FunctionDirectories(pci),
        Bars(pci, spans),
        Config(pci),
        Rom(pci, spans),
        Info(pci, machine.maps, spans),
        FunctionRegisters(maps, spans),
        Readme(maps),
        Decode(maps, spans),
        All(maps, spans),
        Sysfs(pci),
        Views(pci),
        *(physical if machine.phys else []),
        *_kernel_memory(machine, spans),
        Log(journal),
        Status(machine),
        Links(pci),
        Aliases(pci),
    ]


def _kernel_memory(machine: Machine, spans: Spans) -> list[Branch]:
    if not machine.phys or machine.symbols is None:
        return []
    memory = KernelMemory(machine.memory, machine.symbols, machine.core)
    return [Ksym(), KernelSymbols(memory, spans)]
