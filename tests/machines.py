"""Simulated machines that look like real ones: with a kernel, and a process that asks."""

import gzip

from barfs.devmem import PhysicalMemory
from barfs.diagnosis.causes import Machine
from barfs.journal.records import Journal
from barfs.machine import simulated
from barfs.machine.functions import PciBus
from barfs.machine.patterns import NO_RULES
from barfs.nodes import Node, Tree, Type
from barfs.spans.opening import Spans
from barfs.tree import functions, log, physical, root
from barfs.tree.branches import branches

ROOT, PCI, PHYS, LOG = map(Node, (root.ROOT, functions.PCI, physical.PHYS, log.LOG))

E1000 = "0000:00:03.0"
FIRST = "0000:00:04.0"
SECOND = "0000:00:05.0"
NVME = "0000:01:00.0"

ALL = 0x1FFFFFFFFFF  # all capabilities
RAWIO, ADMIN = 1 << 17, 1 << 21

STATUS = "Name:\tpython3\nUid:\t1000\t{uid}\t0\t0\nGid:\t0\t0\t0\t0\nCapEff:\t{mask:016x}\n"

OPEN = ("DEVMEM", "SECURITY_LOCKDOWN_LSM")
STRICT = (*OPEN, "STRICT_DEVMEM", "IO_STRICT_DEVMEM")
CLAIM = "    feb00000-feb1ffff : e1000\n"


def config_text(*options):
    lines = [
        *("# Linux/x86 6.12.0 Kernel Configuration", "CONFIG_64BIT=y", 'CONFIG_NAME="y"'),
        *(f"# CONFIG_{option} is not set" for option in STRICT if option not in options),
        *(f"CONFIG_{option}=y" for option in options),
    ]
    return "\n".join(lines) + "\n"


def machine_of(paths, *, rules=NO_RULES, phys=True):
    """The machine that is made of the files of a simulated one."""
    memory = PhysicalMemory(paths.proc, paths.devmem)
    return Machine(PciBus(paths.sysfs, rules=rules), memory, phys=phys)


def tree_of(machine, journal=None, **wanted):
    """The tree over a machine; `wanted` is what opening takes: a decoder, claims of combining."""
    spans = Spans(machine.pci, machine.memory, **wanted)
    return Tree(branches(machine, spans, journal or Journal()))


def find(tree, path):
    """The node of a path from the root of the tree."""
    node = tree.root
    for name in path.split("/"):
        node = tree.lookup(node, name)
    return node


def walk(tree, directory=None):
    """Directory, name and node of all that is listed, from a directory downward."""
    directory = directory or tree.root
    for name, node in tree.entries(directory):
        yield directory, name, node
        if node.kind.type is Type.DIRECTORY:
            yield from walk(tree, node)


class Fixture:
    """The files of a machine, and what is made of them. As made, nothing is amiss."""

    def __init__(self, directory):
        self.directory = directory
        self.paths = simulated.build(directory)
        self.boot = directory / "boot"
        self.fuse = directory / "fuse"
        self.fuse.touch()
        self.devices = self.paths.sysfs / "bus/pci/devices"
        self.security = self.paths.sysfs / "kernel/security"
        for path in (self.boot, self.security, self.proc / "self", self.proc / "sys/kernel"):
            path.mkdir(parents=True)
        (self.proc / "sys/kernel/osrelease").write_text("6.12.0-sim\n")
        self.set_process()
        self.set_config(*OPEN)
        self.set_lockdown("[none] integrity confidentiality")
        self.set_parameters("ro quiet")

    @property
    def proc(self):
        return self.paths.proc

    @property
    def machine(self):
        memory = PhysicalMemory(self.proc, self.paths.devmem)
        return Machine(PciBus(self.paths.sysfs), memory, self.boot)

    def via_devmem(self):
        memory = PhysicalMemory(self.proc, self.paths.devmem)
        return Machine(PciBus(self.paths.sysfs, memory), memory, self.boot)

    def set_process(self, uid=0, mask=ALL, users="0 0 4294967295"):
        (self.proc / "self/status").write_text(STATUS.format(uid=uid, mask=mask))
        (self.proc / "self/uid_map").write_text(f"         {users}\n")

    def set_config(self, *options):
        (self.proc / "config.gz").write_bytes(gzip.compress(config_text(*options).encode()))

    def set_lockdown(self, text):
        (self.security / "lockdown").write_text(f"{text}\n")

    def set_parameters(self, text):
        (self.proc / "cmdline").write_text(f"BOOT_IMAGE=/vmlinuz {text}\n")

    def set_command(self, address, command):
        with (self.devices / address / "config").open("r+b") as config:
            config.seek(4)
            config.write(command.to_bytes(2, "little"))

    def set_attribute(self, address, name, text):
        path = self.devices / address / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{text}\n")

    def claim(self):
        """The e1000 driver has requested its BAR, as /proc/iomem shows."""
        iomem = self.proc / "iomem"
        before = f"feb00000-feb1ffff : {E1000}\n"
        text = iomem.read_text()
        assert before in text
        iomem.write_text(text.replace(before, before + CLAIM))
