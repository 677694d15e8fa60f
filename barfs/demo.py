"""A simulated machine: a sysfs tree, /proc/iomem and memory made of plain files.

It takes the same code as a real one, but plain files hide what only hardware shows: access widths,
side effects, refused mappings. Nor is a BAR's `resourceN` the same bytes as its addresses in
`devmem`, as it would be on a real machine.
"""

import dataclasses
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from barfs.names import DeviceId, PciAddress
from barfs.nodes import DIRECTORIES, ROOT, Kind, Node, Tree
from barfs.pci import IORESOURCE_MEM, IORESOURCE_PREFETCH, Resource

# include/linux/ioport.h
_IORESOURCE_MEM_64: Final = 0x00100000
_IORESOURCE_SIZEALIGN: Final = 0x00040000
MEM: Final = IORESOURCE_MEM | _IORESOURCE_SIZEALIGN
MEM_64: Final = MEM | _IORESOURCE_MEM_64
PREFETCH_64: Final = MEM_64 | IORESOURCE_PREFETCH

IOMEM: Final = """\
00000000-00000fff : Reserved
00001000-0009fbff : System RAM
0009fc00-0009ffff : Reserved
000a0000-000bffff : PCI Bus 0000:00
000f0000-000fffff : Reserved
  000f0000-000fffff : System ROM
00100000-07fdffff : System RAM
  01000000-01bfffff : Kernel code
  01c00000-01f3ffff : Kernel data
07fe0000-07ffffff : Reserved
c0000000-febfffff : PCI Bus 0000:00
  fea00000-feafffff : PCI Bus 0000:01
  feb00000-feb1ffff : 0000:00:03.0
  feb20000-feb200ff : 0000:00:04.0
  feb21000-feb210ff : 0000:00:05.0
fec00000-fec003ff : IOAPIC 0
fee00000-fee00fff : Local APIC
800000000-8ffffffff : PCI Bus 0000:00
  800000000-8000fffff : 0000:00:04.0
  800100000-8001fffff : 0000:00:05.0
  800200000-800203fff : 0000:01:00.0
"""

# The kernel's `init_uts_ns.name` is six fields of 65 bytes: sysname, nodename, release, ...
# (include/uapi/linux/utsname.h).
UTSNAME: Final = ("Linux", "lab", "6.12.0-sim", "#1 SMP", "x86_64", "(none)")
UTSNAME_ADDRESS: Final = 0x1E10284
NODENAME_ADDRESS: Final = UTSNAME_ADDRESS + 65


@dataclasses.dataclass(frozen=True)
class Device:
    """A simulated PCI function; `contents` are the first bytes of some BARs."""

    address: PciAddress
    id: DeviceId
    subsystem: DeviceId
    class_code: int
    bars: dict[int, Resource]
    config_size: int = 256
    contents: dict[int, bytes] = dataclasses.field(default_factory=dict)


def _ivshmem(slot: int, registers: int, memory: int) -> Device:
    return Device(
        PciAddress(0, 0, slot, 0),
        DeviceId(0x1AF4, 0x1110),
        DeviceId(0x1AF4, 0x1100),
        0x050000,
        {
            0: Resource(registers, registers + 0xFF, MEM),
            2: Resource(memory, memory + 0xFFFFF, PREFETCH_64),
        },
    )


DEVICES: Final = (
    Device(
        PciAddress(0, 0, 3, 0),
        DeviceId(0x8086, 0x100E),
        DeviceId(0x1AF4, 0x1100),
        0x020000,
        {0: Resource(0xFEB00000, 0xFEB1FFFF, MEM)},
        # CTRL and STATUS of an 82540EM with its link up.
        contents={0: struct.pack("<III", 0x00140240, 0, 0x80080783)},
    ),
    _ivshmem(4, 0xFEB20000, 0x800000000),
    _ivshmem(5, 0xFEB21000, 0x800100000),
    Device(
        PciAddress(0, 1, 0, 0),
        DeviceId(0x1B36, 0x0010),
        DeviceId(0x1AF4, 0x1100),
        0x010802,
        {0: Resource(0x800200000, 0x800203FFF, MEM_64)},
        config_size=4096,
        # CAP and VS of an NVMe 1.4 controller.
        contents={0: struct.pack("<QI", 0x004018200F0107FF, 0x00010400)},
    ),
)


def _config_space(device: Device) -> bytes:
    """A type 0 header (PCI Local Bus Specification 3.0, 6.1) with decoding on."""
    config = bytearray(device.config_size)
    struct.pack_into("<HHHH", config, 0, device.id.vendor, device.id.device, 0x0003, 0x0010)
    struct.pack_into("<I", config, 8, device.class_code << 8)
    for index, resource in device.bars.items():
        wide = bool(resource.flags & _IORESOURCE_MEM_64)
        low = resource.start & 0xFFFFFFF0 | (wide << 2) | (resource.prefetchable << 3)
        struct.pack_into("<I", config, 0x10 + 4 * index, low)
        if wide:
            struct.pack_into("<I", config, 0x14 + 4 * index, resource.start >> 32)
    struct.pack_into("<HH", config, 0x2C, device.subsystem.vendor, device.subsystem.device)
    return bytes(config)


def _write_device(devices: Path, device: Device) -> None:
    directory = devices / str(device.address)
    directory.mkdir(parents=True)
    texts = {
        "vendor": f"{device.id.vendor:#06x}",
        "device": f"{device.id.device:#06x}",
        "subsystem_vendor": f"{device.subsystem.vendor:#06x}",
        "subsystem_device": f"{device.subsystem.device:#06x}",
        "class": f"{device.class_code:#08x}",
        "enable": "0",  # no driver has enabled it; firmware has turned decoding on
    }
    for name, text in texts.items():
        (directory / name).write_text(text + "\n")
    (directory / "config").write_bytes(_config_space(device))
    lines = []
    for index in range(7):  # six BARs and the expansion ROM
        resource = device.bars.get(index, Resource(0, 0, 0))
        lines.append(f"{resource.start:#018x} {resource.end:#018x} {resource.flags:#018x}\n")
    (directory / "resource").write_text("".join(lines))
    for index, resource in device.bars.items():
        with (directory / f"resource{index}").open("wb") as file:
            file.write(device.contents.get(index, b""))
            file.truncate(resource.size)


@dataclasses.dataclass(frozen=True)
class SimulatedMachine:
    """Where a simulated machine's files are; the paths that `barfs mount` takes."""

    sysfs: Path
    proc: Path
    devmem: Path


def build(directory: Path) -> SimulatedMachine:
    """Make the files of a simulated machine in an empty directory.

    `devmem` is as large as the highest address and sparse: it takes a few KiB of disk.
    """
    machine = SimulatedMachine(directory / "sys", directory / "proc", directory / "mem")
    for device in DEVICES:
        _write_device(machine.sysfs / "bus/pci/devices", device)
    machine.proc.mkdir()
    (machine.proc / "iomem").write_text(IOMEM)
    highest = max(int(line.split()[0].split("-")[1], 16) for line in IOMEM.splitlines())
    with machine.devmem.open("wb") as memory:
        memory.truncate(highest + 1)
        memory.seek(UTSNAME_ADDRESS)
        memory.write(b"".join(struct.pack("65s", field.encode()) for field in UTSNAME))
    return machine


def describe(tree: Tree, node: Node = ROOT, prefix: str = "") -> Iterator[str]:
    """The lines of a drawn tree: names, where links point to, sizes in bytes. Touches no device."""
    entries = list(tree.list(node))
    for name, child in entries:
        last = name == entries[-1][0]
        text = name
        if child.kind is Kind.LINK:
            text += f" -> {tree.target(child)}"
        elif child.kind not in DIRECTORIES:
            text += f"  {tree.attributes(child).size:#x}"
        yield f"{prefix}{'`-- ' if last else '|-- '}{text}"
        if child.kind in DIRECTORIES:
            yield from describe(tree, child, prefix + ("    " if last else "|   "))


def suggestions(mountpoint: Path) -> list[str]:
    """Three commands to try."""
    return [
        f"printf 'Dunia,vipi?\\r' | dd of={mountpoint}/1af4:1110/bar2 bs=1",
        f"hd -n 32 {mountpoint}/1af4:1110/bar2",
        f"printf 'NinjaNinja\\0' | dd of={mountpoint}/phys/{NODENAME_ADDRESS:x} conv=notrunc",
    ]
