"""Registers and fields by name, against what the bus saw.

What each file has to do is from the specifications of the devices: 8254x manual, NVMe 2.0, AHCI
1.3.1, SD Host Controller 3.00, docs/specs of QEMU for edu and ivshmem.
"""

import json

import pytest

from vm.conftest import bar_address
from vm.machine import Access, Region

DEVICES = {
    # Link, or path, of the function; its address, BAR, and what QEMU calls the region.
    "e1000": ("8086:100e", "0000:00:15.0", 0, "e1000-mmio"),
    "edu": ("1234:11e8", "0000:00:13.0", 0, "edu-mmio"),
    "nvme": ("pci/0000:00:16.0", "0000:00:16.0", 0, "nvme"),
    "ahci": ("pci/0000:00:1f.2", "0000:00:1f.2", 5, "ahci"),
    "sdhci": ("pci/0000:00:1a.0", "0000:00:1a.0", 0, "sdhci"),
    "ivshmem": ("pci/0000:00:10.0", "0000:00:10.0", 0, "ivshmem-mmio"),
}


@pytest.fixture(scope="module")
def regions(guest):
    """The regions of the devices, for the trace."""
    return {
        name: Region(region, bar_address(guest, address, bar))
        for name, (_, address, bar, region) in DEVICES.items()
    }


def at(bars, device, path):
    return f"{bars}/{DEVICES[device][0]}/{path}"


# Device, file, and the width and offset of each read.
READS = [
    ("e1000", "regs/STATUS", [(4, 0x8)]),
    ("e1000", "regs/STATUS.LU", [(4, 0x8)]),
    ("e1000", "decode/STATUS", [(4, 0x8)]),
    ("e1000", "regs/ICR", [(4, 0xC0)]),  # not listed; opens
    ("e1000", "regs/RA/0/RAH.AV", [(4, 0x5404)]),
    ("edu", "regs/ID.MAGIC", [(4, 0x0)]),
    ("edu", "regs/DMA_SRC", [(8, 0x80)]),
    ("edu", "regs/DMA_CMD.IRQ", [(8, 0x98)]),
    ("nvme", "regs/CAP", [(8, 0x0)]),
    ("nvme", "regs/CAP.DSTRD", [(8, 0x0)]),
    ("nvme", "decode/CAP", [(8, 0x0)]),
    ("nvme", "regs/VS.MJR", [(4, 0x8)]),
    ("ahci", "regs/CAP.NP", [(4, 0x0)]),
    ("ahci", "regs/PORT/2/IS", [(4, 0x210)]),
    ("ahci", "regs/PORT/2/SSTS.DET", [(4, 0x228)]),
    ("sdhci", "regs/NORINTSTS", [(2, 0x30)]),
    ("sdhci", "regs/NORINTSTS.ERR", [(2, 0x30)]),
    ("sdhci", "regs/PWRCON.POWER", [(1, 0x29)]),
    ("sdhci", "regs/PRNSTS", [(4, 0x24)]),
    ("sdhci", "regs/CAPAB", [(4, 0x40), (4, 0x44)]),
    ("sdhci", "regs/CAPAB.ADMA2", [(4, 0x40)]),
    ("sdhci", "regs/CAPAB.SDR50", [(4, 0x44)]),
    ("sdhci", "regs/HCVER.SPEC", [(2, 0xFE)]),
    ("ivshmem", "regs/IVPOSITION", [(4, 0x8)]),
    ("ivshmem", "regs/INTRSTATUS", [(4, 0x4)]),
]


@pytest.mark.parametrize(("device", "path", "accesses"), READS)
def test_reading_a_file_is_the_reads_of_its_register(guest, bars, regions, device, path, accesses):
    with guest.traced(regions[device]) as seen:
        guest.run(f"cat {at(bars, device, path)}")
    assert seen == [Access("read", offset, width) for width, offset in accesses]


# Device, file, text; whether the register is read first; width and offset.
WRITES = [
    # A register: what was written, and nothing else.
    ("e1000", "regs/RDBAL", "0x1000", False, (4, 0x2800)),
    ("edu", "regs/LIVENESS", "7", False, (4, 0x4)),
    ("edu", "regs/DMA_DST", "0x40000", False, (8, 0x88)),
    ("sdhci", "regs/TIMEOUTCON", "3", False, (1, 0x2E)),
    ("e1000", "regs/TIPG", "0x8:0x3ff", True, (4, 0x410)),
    # Nothing beside the field is kept by its value: causes of interrupts, status that 1 clears.
    ("e1000", "regs/IMC.LSC", "1", False, (4, 0xD8)),
    ("e1000", "regs/ICR.LSC", "1", False, (4, 0xC0)),
    ("ahci", "regs/PORT/0/IS.DHRS", "1", False, (4, 0x110)),
    ("sdhci", "regs/NORINTSTS.TRSCMP", "1", False, (2, 0x30)),
    ("sdhci", "regs/ERRINTSTS.DATCRC", "1", False, (2, 0x32)),
    ("edu", "regs/INTR_ACK.BITS", "0", False, (4, 0x64)),
    # The others are kept.
    ("e1000", "regs/CTRL.ASDE", "1", True, (4, 0x0)),
    ("e1000", "regs/RCTL.RDMTS", "QUARTER", True, (4, 0x100)),
    ("edu", "regs/STATUS.IRQFACT", "0", True, (4, 0x20)),
    ("nvme", "regs/CC.IOSQES", "6", True, (4, 0x14)),
    ("ahci", "regs/PORT/0/SCTL.SPD", "NONE", True, (4, 0x12C)),
    ("sdhci", "regs/HOSTCTL.LED", "1", True, (1, 0x28)),
    ("sdhci", "regs/CLKCON.GENERATOR", "0", True, (2, 0x2C)),
    ("sdhci", "regs/NORINTSTSEN.TRSCMP", "1", True, (2, 0x34)),
]


@pytest.mark.parametrize(("device", "path", "text", "reads", "access"), WRITES)
def test_writing_a_file_is_a_write_and_a_read_only_where_something_is_kept(
    guest, bars, regions, device, path, text, reads, access
):
    width, offset = access
    with guest.traced(regions[device]) as seen:
        guest.run(f"echo {text} > {at(bars, device, path)}")
    kinds = ["read", "write"] if reads else ["write"]
    assert seen == [Access(kind, offset, width) for kind in kinds]


REFUSED = [
    ("e1000", "echo 1 > {}", "regs/STATUS", "EROFS"),
    ("e1000", "echo 1 > {}", "regs/STATUS.LU", "EROFS"),
    ("e1000", "cat {}", "regs/IMC", "EACCES"),
    ("e1000", "cat {}", "regs/IMC.LSC", "EACCES"),
    ("e1000", "echo 1 > {}", "regs/MDIC.REGADD", "EINVAL"),  # any write begins a transaction
    ("e1000", "echo 2 > {}", "regs/CTRL.ASDE", "EINVAL"),
    ("ivshmem", "echo 1 > {}", "regs/DOORBELL.PEER", "EINVAL"),  # beside it is write-only
    ("nvme", "echo 0 > {}", "regs/CAP.TO", "EROFS"),
    ("sdhci", "echo 1 > {}", "regs/CMDREG.INDEX", "EINVAL"),
]


@pytest.mark.parametrize(("device", "command", "path", "error"), REFUSED)
def test_what_is_refused_makes_no_access(guest, bars, regions, device, command, path, error):
    with guest.traced(regions[device]) as seen:
        assert guest.try_run(command.format(at(bars, device, path))).status != 0
    assert seen == []
    last = json.loads(guest.run(f"grep refused {bars}/log | tail -n 1").text)
    assert last["errno"] == error
    assert last["path"].endswith(path)


def test_a_bit_that_1_clears_survives_a_write_beside_it(guest, bars):
    """Two causes of an interrupt are raised, one is cleared. Reading the causes clears them all."""
    regs = at(bars, "e1000", "regs")
    guest.run(f"echo 0xffffffff > {regs}/IMC; cat {regs}/ICR")
    guest.run(f"echo 0x6 > {regs}/ICS")  # LSC and TXQE
    guest.run(f"echo 1 > {regs}/ICR.LSC")
    assert int(guest.run(f"cat {regs}/ICR").text, 0) & 0x6 == 0x2
    assert int(guest.run(f"cat {regs}/ICR").text, 0) & 0x6 == 0


def test_listing_and_reading_all_that_is_listed_eats_no_cause(guest, bars, regions):
    regs = at(bars, "e1000", "regs")
    with guest.traced(*regions.values()) as seen:
        for device in ("e1000", "sdhci"):
            guest.run(f"ls -l {at(bars, device, 'regs')} {at(bars, device, 'decode')}")
    assert seen == []
    guest.run(f"echo 0x4 > {regs}/ICS")
    with guest.traced(regions["e1000"]) as seen:
        listed = guest.try_run(f"cat {regs}/I*").text
    assert Access("read", 0xD0, 4) in seen  # IMS is listed
    assert listed
    with guest.traced(regions["e1000"]) as more:
        guest.run(f"cat {bars}/8086:100e/decode/all")
    seen += more
    assert Access("read", 0xC0, 4) not in seen
    assert all(access.kind == "read" for access in seen)
    assert int(guest.run(f"cat {regs}/ICR").text, 0) & 0x4


def test_decode_all_reads_each_register_once(guest, bars, regions):
    with guest.traced(regions["sdhci"]) as seen:
        text = guest.run(f"cat {at(bars, 'sdhci', 'decode/all')}").text
    assert len(set(seen)) == len(seen) > 30
    assert "BDATA is not read: BDATA.DATA is changed by reading" in text
    assert "FEERR is not read: it is write-only" in text


def test_the_log_has_the_names_and_what_was_written(guest, bars):
    guest.run(f"echo 1 > {at(bars, 'e1000', 'regs/ICR.LSC')}")
    last = json.loads(guest.run(f"grep '\"write\"' {bars}/log | tail -n 1").text)
    assert (last["register"], last["field"], last["raw"]) == ("ICR", "LSC", "0x00000004")
    assert (last["offset"], last["width"], last["value"]) == ("0xc0", 4, "1")


# What pciutils and the maps call the same; in each header.
HEADER = (
    "VENDOR_ID DEVICE_ID COMMAND STATUS REVISION CLASS_PROG CLASS_DEVICE CACHE_LINE_SIZE"
    " LATENCY_TIMER HEADER_TYPE BIST INTERRUPT_LINE INTERRUPT_PIN CAPABILITIES"
)
DEVICE = f"{HEADER} BASE_ADDRESS_0 BASE_ADDRESS_5 SUBSYSTEM_VENDOR_ID SUBSYSTEM_ID ROM_ADDRESS"
BRIDGE = (
    f"{HEADER} PRIMARY_BUS SECONDARY_BUS SUBORDINATE_BUS IO_BASE IO_LIMIT SEC_STATUS MEMORY_BASE"
    " MEMORY_LIMIT PREF_MEMORY_BASE PREF_LIMIT_UPPER32 IO_BASE_UPPER16 BRIDGE_ROM_ADDRESS"
    " BRIDGE_CONTROL"
)
CAPABILITIES = {
    "CAP_PM/CAP": "CAP_PM+2.w",
    "CAP_PM/CTRL": "CAP_PM+4.w",
    "CAP_MSI/FLAGS": "CAP_MSI+2.w",
    "CAP_MSIX/FLAGS": "CAP_MSIX+2.w",
    "CAP_MSIX/TABLE": "CAP_MSIX+4.l",
    "CAP_EXP/FLAGS": "CAP_EXP+2.w",
    "CAP_EXP/DEVCAP": "CAP_EXP+4.l",
    "CAP_EXP/DEVSTA": "CAP_EXP+a.w",
    "CAP_EXP/LNKSTA": "CAP_EXP+12.w",
    "CAP_EXP/SLTCAP": "CAP_EXP+14.l",
    "CAP_EXP/DEVCTL2": "CAP_EXP+28.w",
    "ECAP_AER/UNCOR_SEVER": "ECAP_AER+c.l",
    "ECAP_AER/CAP": "ECAP_AER+18.l",
    "ECAP_SRIOV/CTRL": "ECAP_SRIOV+8.w",
}


# What lspci says of a function that has the capability.
KNOWN = {
    "CAP_PM": "Power Management version",
    "CAP_MSI": "MSI: Enable",
    "CAP_MSIX": "MSI-X: Enable",
    "CAP_EXP": "] Express",
    "ECAP_AER": "Advanced Error Reporting",
}


def test_config_space_has_setpcis_names_and_values(guest, bars):
    functions = guest.run("ls /sys/bus/pci/devices").text.split()
    compared = set()
    for function in functions:
        is_bridge = guest.run(f"cat /sys/bus/pci/devices/{function}/class").text.startswith(
            "0x0604"
        )
        pairs = [(name, name) for name in (BRIDGE if is_bridge else DEVICE).split()]
        # They open, and are not listed, since a listing touches nothing.
        there = guest.run(
            f"cd {bars}/pci/{function}/regs/config; "
            f" for name in {' '.join([*CAPABILITIES, *KNOWN])}; do"
            " if [ -e $name ]; then echo $name; fi; done"
        ).text.split()
        pairs += [pair for pair in CAPABILITIES.items() if pair[0] in there]
        # The root complex's port and 1.1 parts have less in CAP_EXP than setpci would read.
        names = " ".join(name for name, _ in pairs)
        ours = guest.run(f"cd {bars}/pci/{function}/regs/config; cat {names}").text.split()
        words = " ".join(word for _, word in pairs)
        theirs = guest.run(f"setpci -s {function} {words}").text.split()
        assert [int(value, 16) for value in ours] == [int(value, 16) for value in theirs], function
        compared |= {name for name, _ in pairs}
        known = guest.run(f"lspci -vv -s {function}").text
        for capability, said in KNOWN.items():
            assert (said in known) == (capability in there), (function, capability)
    assert {"CAP_MSIX/TABLE", "CAP_EXP/DEVCAP", "CAP_EXP/SLTCAP", "BRIDGE_CONTROL"} <= compared


def test_bits_of_the_command_register_as_lspci_says_them(guest, bars):
    said = guest.run("lspci -vv -s 0000:00:13.0").text
    control = next(line for line in said.splitlines() if "Control:" in line)
    config = f"{bars}/pci/0000:00:13.0/regs/config"
    for word, field in {"I/O": "IO", "Mem": "MEM", "BusMaster": "MASTER"}.items():
        bit = guest.run(f"cat {config}/COMMAND.{field}").text.strip()
        assert f"{word}{'+' if bit == '1' else '-'}" in control
    guest.run(f"echo 1 > {config}/COMMAND.MASTER")
    assert "BusMaster+" in guest.run("lspci -vv -s 0000:00:13.0").text
    guest.run(f"echo 0 > {config}/COMMAND.MASTER")
    assert "BusMaster-" in guest.run("lspci -vv -s 0000:00:13.0").text
    assert guest.run(f"cat {config}/COMMAND.MEM").text == "1\n"


def test_virtio_is_found_through_its_capability(guest, bars):
    regs = f"{bars}/pci/0000:00:17.0/regs"
    # A driver has set it up: ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK (virtio 1.2, 2.1).
    status = int(guest.run(f"cat {regs}/device_status").text, 0)
    assert status & ~0xF == 0
    assert guest.run(f"cat {regs}/num_queues").text == "0x0001\n"
    listed = guest.run(f"ls {regs}").text.split()
    assert "queue_desc" in listed
    assert "isr_status" not in listed
