"""Simulated machines that look like real ones: with a kernel, and a process that asks."""

import gzip
import re
import struct
from pathlib import Path

from barfs.devmem import PhysicalMemory
from barfs.diagnosis import causes, checkup
from barfs.diagnosis.causes import Machine
from barfs.journal.records import Journal
from barfs.machine import simulated
from barfs.machine.functions import AllFunctions, Allowed
from barfs.machine.patterns import NO_RULES
from barfs.machine.source import PlainSource
from barfs.nodes import Node, Tree, Type
from barfs.registers.devices import DeviceMaps
from barfs.registers.files import BUILT_IN, MapFiles
from barfs.spans.choosing import ways_to_bars
from barfs.spans.opening import Spans
from barfs.spans.ways import Ways
from barfs.tree import functions, log, physical, root
from barfs.tree.branches import branches

NOWHERE = Path("/nowhere")

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


class Witness(PlainSource):
    """Plain files, and a note of all that is asked of them: by whom, and the path.

    Paths of functions are short: `0000:00:04.0/config`.
    """

    def __init__(self, sysfs, proc=NOWHERE, boot=NOWHERE):
        super().__init__(sysfs, proc, boot)
        self.seen = []

    def _note(self, how, path):
        self.seen.append((how, str(path).removeprefix(f"{self.sysfs}/bus/pci/devices/")))

    def read(self, path, *where):
        self._note("read", path)
        return super().read(path, *where)

    def read_all(self, path, *where):
        self._note("read", path)
        return super().read_all(path, *where)

    def names(self, path):
        self._note("list", path)
        return super().names(path)

    def target(self, path):
        self._note("link", path)
        return super().target(path)

    def size(self, path):
        self._note("size", path)
        return super().size(path)

    def exists(self, path):
        self._note("exists", path)
        return super().exists(path)

    def is_directory(self, path):
        self._note("exists", path)
        return super().is_directory(path)

    def write(self, path, data):
        self._note("write", path)
        super().write(path, data)

    def presence(self, path, address):
        self._note("watch", path)
        return super().presence(path, address)

    def open_config(self, path, what, *, writable):
        self._note("open", path)
        return super().open_config(path, what, writable=writable)

    def open_rom(self, path, what):
        self._note("open", path)
        return super().open_rom(path, what)

    def bar_file(self, path, start):
        self._note("open", path)
        return super().bar_file(path, start)

    def touched(self):
        """What of functions may make a device answer: their config space, ROMs and BARs."""
        files = re.compile(r"[0-9a-f:.]+/(config|rom|resource[0-9]\w*)")
        return [
            path
            for how, path in self.seen
            if how in {"read", "write", "open"} and files.fullmatch(path)
        ]


def functions_of(sysfs, rules=NO_RULES, source=PlainSource):
    """The functions below a sysfs of plain files."""
    return Allowed(AllFunctions(source(sysfs, NOWHERE, NOWHERE)), rules)


def machine_of(
    paths,
    *,
    rules=NO_RULES,
    phys=True,
    boot=NOWHERE,
    bars_via_devmem=False,
    source=PlainSource,
    registers=(BUILT_IN,),
    kernel=(None, None),
):
    """The machine that is made of the files of a simulated one; `kernel` is symbols and core."""
    source = source(paths.sysfs, paths.proc, boot)
    pci = Allowed(AllFunctions(source), rules)
    memory = PhysicalMemory(source, paths.devmem)
    maps = DeviceMaps(pci, memory, MapFiles(registers))
    return Machine(pci, memory, maps, phys, bars_via_devmem, *kernel)


def ways_of(machine):
    """The ways to a machine's bytes."""
    via = "devmem" if machine.bars_via_devmem else "resource"
    bars = ways_to_bars(machine.pci, machine.memory, via, None)
    return Ways(machine.pci, machine.memory, bars, core=machine.core)


def tree_of(machine, journal=None, **wanted):
    """The tree over a machine; `wanted` is what opening takes: a decoder, claims of combining."""
    spans = Spans(ways_of(machine), machine.memory, **wanted)
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


# A core file without ranges: the header of an ELF file, and no program headers.
NO_RANGES = struct.pack(
    "=16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 4, 62, 1, 0, 64, 0, 0, 64, 56, 0, 0, 0, 0
)
# BTF without types: its header, and a text of one empty name.
NO_TYPES = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, 0, 0, 1) + b"\0"


def as_this_machine(fixture, monkeypatch):
    """A fixture's files count as those of the machine that barfs runs on: what mends it, helps."""
    for module in (causes, checkup):
        for name, path in (
            ("REAL_SYSFS", fixture.paths.sysfs),
            ("REAL_PROC", fixture.proc),
            ("REAL_DEVMEM", fixture.paths.devmem),
        ):
            monkeypatch.setattr(module, name, path, raising=False)


class Fixture:
    """The files of a machine, and what is made of them. As made, nothing is amiss."""

    def __init__(self, directory, source=PlainSource):
        self.directory = directory
        self.source = source
        self.sources = []  # of all machines that were made
        self.paths = simulated.build(directory)
        self.boot = directory / "boot"
        self.fuse = directory / "fuse"
        self.fuse.touch()
        self.devices = self.paths.sysfs / "bus/pci/devices"
        self.security = self.paths.sysfs / "kernel/security"
        self.btf = self.paths.sysfs / "kernel/btf/vmlinux"
        for path in (self.boot, self.security, self.proc / "self", self.btf.parent):
            path.mkdir(parents=True)
        (self.proc / "kcore").write_bytes(NO_RANGES)
        self.btf.write_bytes(NO_TYPES)
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
        return self._made()

    def _made(self, **more):
        machine = machine_of(self.paths, boot=self.boot, source=self.source, **more)
        self.sources.append(machine.source)
        return machine

    def via_devmem(self):
        return self._made(bars_via_devmem=True)

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
