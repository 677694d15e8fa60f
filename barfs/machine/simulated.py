"""A simulated machine: a sysfs tree, /proc/iomem and memory made of plain files.

It runs the same code as a real one. But plain files hide what only hardware shows: access widths,
side effects, refused mappings. And a BAR's `resourceN` has other bytes than its addresses in
`devmem`, while they are the same on a real machine.
"""

import dataclasses
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from barfs.machine.resources import (
    IORESOURCE_IO,
    IORESOURCE_MEM,
    IORESOURCE_MEM_64,
    IORESOURCE_PREFETCH,
    N_BARS,
    ROM_RESOURCE,
    Resource,
)
from barfs.names import DeviceId, PciAddress

_IORESOURCE_SIZEALIGN: Final = 0x00040000  # include/linux/ioport.h
MEM: Final = IORESOURCE_MEM | _IORESOURCE_SIZEALIGN
MEM_64: Final = MEM | IORESOURCE_MEM_64
PREFETCH_64: Final = MEM_64 | IORESOURCE_PREFETCH
PORTS: Final = IORESOURCE_IO | _IORESOURCE_SIZEALIGN
ROM: Final = MEM | IORESOURCE_PREFETCH

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
  feb30000-feb3ffff : 0000:00:03.0
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

# `_text` lies where "Kernel code" begins.
_DISTANCE: Final = 0xFFFFFFFF81000000 - 0x01000000
KALLSYMS: Final = f"""\
{0x01000000 + _DISTANCE:x} T _text
{UTSNAME_ADDRESS + _DISTANCE:x} D init_uts_ns
{UTSNAME_ADDRESS + 65 * len(UTSNAME) + _DISTANCE:x} D init_task
{0x01E20000 + _DISTANCE:x} B _end
"""


@dataclasses.dataclass(frozen=True)
class Device:
    """A simulated PCI function. `contents` are the first bytes of some of its resources."""

    address: PciAddress
    id: DeviceId
    subsystem: DeviceId
    class_code: int
    resources: dict[int, Resource]
    config_size: int = 256
    driver: str | None = None
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


# The header of an expansion ROM and, at 0x1c, its data structure (PCI Local Bus Specification 3.0,
# 6.3.1): 64 KiB for x86, and the last image.
_ROM: Final = (
    struct.pack("<HB", 0xAA55, 128).ljust(0x18, b"\0")
    + struct.pack("<HH", 0x1C, 0)
    + struct.pack(
        "<4sHHHHB3sHHBBH", b"PCIR", 0x8086, 0x100E, 0, 24, 0, b"\0\0\2", 128, 0, 0, 128, 0
    )
)

DEVICES: Final = (
    Device(
        PciAddress(0, 0, 3, 0),
        DeviceId(0x8086, 0x100E),
        DeviceId(0x1AF4, 0x1100),
        0x020000,
        {
            0: Resource(0xFEB00000, 0xFEB1FFFF, MEM),
            1: Resource(0xC000, 0xC03F, PORTS),
            ROM_RESOURCE: Resource(0xFEB30000, 0xFEB3FFFF, ROM),
        },
        driver="e1000",
        contents={
            # CTRL and STATUS of an 82540EM with its link up. The ports are IOADDR and IODATA.
            0: struct.pack("<III", 0x00140240, 0, 0x80080783),
            1: struct.pack("<II", 0x8, 0x80080783),
            ROM_RESOURCE: _ROM,
        },
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
    """Config space with a type 0 header and decoding on (PCI Local Bus Specification 3.0, 6.1)."""
    config = bytearray(device.config_size)
    struct.pack_into("<HHHH", config, 0, device.id.vendor, device.id.device, 0x0003, 0x0010)
    struct.pack_into("<I", config, 8, device.class_code << 8)
    for index, resource in device.resources.items():
        if index == ROM_RESOURCE:
            struct.pack_into("<I", config, 0x30, resource.start)
        elif resource.is_memory:
            low = resource.start & 0xFFFFFFF0
            low |= resource.is_64bit << 2 | resource.prefetchable << 3
            struct.pack_into("<I", config, 0x10 + 4 * index, low)
        else:
            struct.pack_into("<I", config, 0x10 + 4 * index, resource.start | 1)
        if resource.is_64bit:
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
        "revision": "0x00",
        "numa_node": "-1",
        "power_state": "D0",
        "enable": "0",  # no driver has enabled it; firmware has turned decoding on
    }
    for name, text in texts.items():
        (directory / name).write_text(text + "\n")
    (directory / "config").write_bytes(_config_space(device))
    lines = []
    for index in range(N_BARS + 1):
        resource = device.resources.get(index, Resource(0, 0, 0))
        lines.append(f"{resource.start:#018x} {resource.end:#018x} {resource.flags:#018x}\n")
    (directory / "resource").write_text("".join(lines))
    for index, resource in device.resources.items():
        name = "rom" if index == ROM_RESOURCE else f"resource{index}"
        with (directory / name).open("wb") as file:
            file.write(device.contents.get(index, b""))
            file.truncate(resource.size)
        if resource.prefetchable:
            # The same memory, to be mapped write-combining.
            (directory / f"{name}_wc").hardlink_to(directory / name)
    if device.driver is not None:
        driver = devices.parent / "drivers" / device.driver
        driver.mkdir(parents=True, exist_ok=True)
        (directory / "driver").symlink_to(driver)


@dataclasses.dataclass(frozen=True)
class Paths:
    """Where a simulated machine's files are. `barfs mount` takes these paths."""

    sysfs: Path
    proc: Path
    devmem: Path


def build(directory: Path, devices: Iterable[Device] = DEVICES, iomem: str = IOMEM) -> Paths:
    """Make the files of a simulated machine in an empty directory.

    `devmem` is as large as the highest address. It is sparse, and takes a few KiB of disk.
    """
    machine = Paths(directory / "sys", directory / "proc", directory / "mem")
    for device in devices:
        _write_device(machine.sysfs / "bus/pci/devices", device)
    machine.proc.mkdir()
    (machine.proc / "iomem").write_text(iomem)
    (machine.proc / "kallsyms").write_text(KALLSYMS)
    (machine.proc / "sys/kernel").mkdir(parents=True)
    (machine.proc / "sys/kernel/arch").write_text("x86_64\n")
    highest = max(int(line.split()[0].split("-")[1], 16) for line in iomem.splitlines())
    with machine.devmem.open("wb") as memory:
        memory.truncate(highest + 1)
        memory.seek(UTSNAME_ADDRESS)
        memory.write(b"".join(struct.pack("65s", field.encode()) for field in UTSNAME))
    return machine
