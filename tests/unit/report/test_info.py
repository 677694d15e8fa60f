"""The text of `info`, on machines that have everything and on those that don't."""

import os
import shutil
from unittest import mock

import pytest
from machines import Witness, functions_of

from barfs.access.files import PAGE_SIZE
from barfs.errors import DeviceGone
from barfs.machine import simulated
from barfs.names import PciAddress
from barfs.report.info import describe, size_text

E1000 = PciAddress(0, 0, 3, 0)
IVSHMEM = PciAddress(0, 0, 4, 0)
ABSENT = PciAddress(0, 0, 2, 0)

PCI_IDS = """\
1af4  Red Hat, Inc.
\t1110  Inter-VM shared memory
\t\t1af4 1100  QEMU Virtual Machine
8086  Intel Corporation
C 02  Network controller
\t00  Ethernet controller
C 05  Memory controller
\t00  RAM memory
"""

IVSHMEM_INFO = """\
address: 0000:00:04.0
id: 1af4:1110 Red Hat, Inc. Inter-VM shared memory
subsystem: 1af4:1100 Red Hat, Inc. QEMU Virtual Machine
class: 050000 RAM memory
revision: 00
driver: none
power state: D0
memory decoding: on
I/O decoding: on
bus master: off
NUMA node: none
bar0: address 0xfeb20000, size 0x100 (256), memory 32-bit, file pci/0000:00:04.0/bar0, \
read as registers (not prefetchable)
bar2: address 0x800000000, size 0x100000 (1M), memory 64-bit prefetchable, \
file pci/0000:00:04.0/bar2, read as memory (prefetchable, of a RAM controller)
registers: 1af4:1110.json (ivshmem)
"""

# The device's id has a vendor's name only, the subsystem's id none for its device.
E1000_INFO = """\
address: 0000:00:03.0
id: 8086:100e Intel Corporation
subsystem: 1af4:1100 Red Hat, Inc.
class: 020000 Ethernet controller
revision: 00
driver: e1000
power state: D0
memory decoding: on
I/O decoding: on
bus master: off
NUMA node: none
bar0: address 0xfeb00000, size 0x20000 (128K), memory 32-bit, file pci/0000:00:03.0/bar0, \
read as registers (not prefetchable)
bar1: address 0xc000, size 0x40 (64), I/O, file pci/0000:00:03.0/bar1, \
read as registers (I/O ports)
rom: address 0xfeb30000, size 0x10000 (64K), memory 32-bit prefetchable, file pci/0000:00:03.0/rom
registers: 8086:100e.json (Intel 8254x)
"""


@pytest.fixture
def bus(tmp_path):
    return functions_of(simulated.build(tmp_path).sysfs)


@pytest.fixture
def devices(bus, tmp_path):
    return tmp_path / "sys/bus/pci/devices"


@pytest.fixture
def pci_ids(tmp_path):
    path = tmp_path / "pci.ids"
    path.write_text(PCI_IDS)
    return [path]


def lines(text):
    """Key to value. Each line has both, and each key is there once."""
    pairs = [line.split(": ", 1) for line in text.splitlines()]
    assert text.endswith("\n")
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def differences(before, after):
    """The lines that `after` has otherwise, or new; None: that it has not."""
    before, after = lines(before), lines(after)
    return {key: after.get(key) for key in {**before, **after} if before.get(key) != after.get(key)}


@pytest.mark.parametrize(("address", "text"), [(IVSHMEM, IVSHMEM_INFO), (E1000, E1000_INFO)])
def test_all_of_it(bus, pci_ids, address, text):
    assert describe(bus, address, pci_ids) == text


def test_without_pci_ids_only_the_numbers(bus, pci_ids):
    assert differences(describe(bus, IVSHMEM, pci_ids), describe(bus, IVSHMEM, [])) == {
        "id": "1af4:1110",
        "subsystem": "1af4:1100",
        "class": "050000",
    }


# The subsystem's name is that of a device in it, and no other device's.
OTHER = {"subsystem": "1af4:1100 Red Hat, Inc."}

NO_MAP = {"registers": "none"}

# What an attribute says, and the lines that change for it.
ASLEEP = mock.ANY

ATTRIBUTES = [
    ("vendor", "0x8086", {"id": "8086:1110 Intel Corporation", **OTHER, **NO_MAP}),
    ("vendor", "0x000a", {"id": "000a:1110", **OTHER, **NO_MAP}),
    ("device", "0x1111", {"id": "1af4:1111 Red Hat, Inc.", **OTHER, **NO_MAP}),
    ("subsystem_vendor", "0x8086", {"subsystem": "8086:1100 Intel Corporation"}),
    ("class", "0x020000", {"class": "020000 Ethernet controller"}),
    ("class", "0x020700", {"class": "020700 Network controller"}),
    ("class", "0x000000", {"class": "000000"}),
    ("revision", "0xff", {"revision": "ff"}),
    ("revision", "0x0a", {"revision": "0a"}),
    ("power_state", "D3hot", {"power state": "D3hot", "does not answer": ASLEEP}),
    ("power_state", "unknown", {"power state": "unknown"}),
    ("numa_node", "0", {"NUMA node": "0"}),
    ("numa_node", "12", {"NUMA node": "12"}),
]

# No such attribute, and what is no value of it.
UNKNOWN = [
    ("vendor", ["", "garbage"], ["id"]),
    ("device", ["0x10000"], ["id"]),
    ("subsystem_vendor", [""], ["subsystem"]),
    ("subsystem_device", ["0x1 0x2"], ["subsystem"]),
    ("class", ["", "RAM", "0x1000000", "-0x1"], ["class"]),
    ("revision", ["", "0x100", "ff\nff"], ["revision"]),
    ("power_state", ["", "D0\nid: fake", "\x1b[31m"], ["power state"]),
    ("numa_node", ["", "-2", "none", "\u0661", "9" * 5000], ["NUMA node"]),
]


@pytest.mark.parametrize(("name", "text", "changes"), ATTRIBUTES)
def test_attributes(bus, devices, pci_ids, name, text, changes):
    (devices / str(IVSHMEM) / name).write_text(f"{text}\n")
    changed = differences(IVSHMEM_INFO, describe(bus, IVSHMEM, pci_ids))
    if name == "class":  # it says whether bar2 is memory
        assert "read as registers" in changed.pop("bar2")
    assert changed == changes


@pytest.mark.parametrize(("name", "texts", "keys"), UNKNOWN)
def test_what_is_missing_or_garbage_is_unknown(bus, devices, pci_ids, name, texts, keys):
    path = devices / str(IVSHMEM) / name
    for text in texts:
        path.write_text(f"{text}\n")
        changed = differences(IVSHMEM_INFO, describe(bus, IVSHMEM, pci_ids))
        assert {key: changed.get(key) for key in keys} == dict.fromkeys(keys, "unknown"), text
        assert set(changed) <= {*keys, "subsystem", "registers", *(["bar2"] * (name == "class"))}
    path.unlink()
    assert {key: lines(describe(bus, IVSHMEM, pci_ids))[key] for key in keys} == dict.fromkeys(
        keys, "unknown"
    )


def test_a_subsystem_of_zeros_is_none(bus, devices, pci_ids):
    for name in ("subsystem_vendor", "subsystem_device"):
        (devices / str(IVSHMEM) / name).write_text("0x0000\n")
    pci_ids[0].write_text("0000  Gammagraphx, Inc. (or missing ID)\n" + PCI_IDS)
    changed = differences(IVSHMEM_INFO, describe(bus, IVSHMEM, pci_ids))
    assert changed == {"subsystem": "none"}


DECODING = ["memory decoding", "I/O decoding", "bus master"]


@pytest.mark.parametrize(
    ("config", "bits"),
    [
        (bytes(4) + b"\x00\x00", ["off", "off", "off"]),
        (bytes(4) + b"\x01\x00", ["off", "on", "off"]),
        (bytes(4) + b"\x02\x00", ["on", "off", "off"]),
        (bytes(4) + b"\x04\x00", ["off", "off", "on"]),
        (bytes(4) + b"\xf8\xff", ["off", "off", "off"]),
        (b"\xff" * 4 + b"\x07\x04", ["on", "on", "on"]),
        # A function that does not answer, a cut copy, an empty one, none at all.
        *((config, ["unknown"] * 3) for config in (b"\xff" * 64, bytes(5), b"", None)),
    ],
)
def test_decoding(bus, devices, pci_ids, config, bits):
    path = devices / str(IVSHMEM) / "config"
    path.unlink()
    if config is not None:
        path.write_bytes(config)
    text = describe(bus, IVSHMEM, pci_ids)
    assert [lines(text)[key] for key in DECODING] == bits
    assert set(differences(IVSHMEM_INFO, text)) <= {*DECODING, "does not answer"}


def test_of_the_device_only_its_header_is_read_and_after_the_power_state(devices, pci_ids):
    read = []

    class Source(Witness):
        def read(self, path, length=PAGE_SIZE, offset=0):
            read.append((os.path.basename(path), offset, length))
            return super().read(path, length, offset)

    pci = functions_of(devices.parents[2], source=Source)
    describe(pci, E1000, pci_ids)
    assert pci.source.touched() == ["0000:00:03.0/config"] * 2
    names = [name for name, *_ in read]
    assert names.index("power_state") < names.index("config")
    assert [part for part in read if part[0] == "config"] == [("config", 4, 2), ("config", 0, 64)]


SILENCE = (
    "the device does not answer, its config space reads all ones: its link is down or its power off"
)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (0, "bar0, bar2: memory decoding is off in the command register; echo 1 > {}/enable"),
        (
            0xFFFF,
            (
                f"bar0, bar2: {SILENCE}; echo 1 > {{0}}/remove && echo 1 > {{1}}/rescan"
                " && echo 1 > {0}/enable"
            ),
        ),
    ],
)
def test_what_does_not_answer_and_what_mends_it(bus, devices, command, words):
    directory = devices / str(IVSHMEM)
    with (directory / "config").open("r+b") as config:
        config.seek(4)
        config.write(command.to_bytes(2, "little"))
    text = describe(bus, IVSHMEM, [])
    wanted = words.format(directory, devices.parent)
    assert lines(text)["does not answer"] == wanted
    assert "does not answer" not in lines(describe(bus, E1000, []))


RESOURCES = [
    ("0xfeb20000 0xfeb200ff 0x200", "address 0xfeb20000, size 0x100 (256), memory 32-bit"),
    (
        "0x1000 0x1fff 0x2200",
        "address 0x1000, size 0x1000 (4K), memory 32-bit prefetchable",
    ),
    (
        "0x4000000000 0x7fffffffff 0x102200",
        "address 0x4000000000, size 0x4000000000 (256G), memory 64-bit prefetchable",
    ),
    ("0x0 0x3fffffff 0x20100200", "not assigned, size 0x40000000 (1G), memory 64-bit"),
    ("0x0 0xfff 0x10000200", "not assigned, size 0x1000 (4K), memory 32-bit"),
    ("0xc000 0xc007 0x101", "address 0xc000, size 0x8 (8), I/O"),
    ("0x0 0x1f 0x20000101", "not assigned, size 0x20 (32), I/O"),
    ("0x0 0x0 0x0", None),
    ("garbage", None),
]


@pytest.mark.parametrize(("line", "text"), RESOURCES)
@pytest.mark.parametrize(("index", "name"), [(0, "bar0"), (5, "bar5"), (6, "rom")])
def test_resources(bus, devices, pci_ids, line, text, index, name):
    directory = devices / str(E1000)
    resources = (directory / "resource").read_text().splitlines()
    resources[index] = line
    (directory / "resource").write_text("\n".join(resources))
    found = lines(describe(bus, E1000, pci_ids)).get(name)
    why = "not prefetchable"
    if text and "prefetchable" in text:
        why = "prefetchable, which says nothing of what it holds"
    elif text and text.endswith("I/O"):
        why = "I/O ports"
    read = "" if name == "rom" else f", read as registers ({why})"
    assert found == (text and f"{text}, file pci/0000:00:03.0/{name}{read}")


def test_a_rom_that_the_mount_does_not_have_has_no_file(bus, devices, pci_ids):
    (devices / str(E1000) / "rom").unlink()
    assert differences(E1000_INFO, describe(bus, E1000, pci_ids)) == {
        "rom": "address 0xfeb30000, size 0x10000 (64K), memory 32-bit prefetchable, no file"
    }


def test_without_resource_the_bars_are_unknown(bus, devices, pci_ids):
    (devices / str(IVSHMEM) / "resource").unlink()
    changed = differences(IVSHMEM_INFO, describe(bus, IVSHMEM, pci_ids))
    assert changed == {"bar0": None, "bar2": None, "BARs": "unknown"}


def test_no_bars_at_all(bus, devices, pci_ids):
    (devices / str(IVSHMEM) / "resource").write_text("0x0 0x0 0x0\n" * 7)
    changed = differences(IVSHMEM_INFO, describe(bus, IVSHMEM, pci_ids))
    assert changed.pop("registers").endswith("1af4:1110.json is refused: there is no bar0")
    assert changed == {"bar0": None, "bar2": None}


def test_drivers_come_and_go(bus, devices, pci_ids):
    link = devices / str(IVSHMEM) / "driver"
    link.symlink_to("../../../bus/pci/drivers/uio_pci_generic")
    assert differences(IVSHMEM_INFO, describe(bus, IVSHMEM, pci_ids)) == {
        "driver": "uio_pci_generic"
    }
    link.unlink()
    assert describe(bus, IVSHMEM, pci_ids) == IVSHMEM_INFO


def test_nothing_but_its_directory_is_all_unknown(bus, devices, pci_ids):
    directory = devices / str(IVSHMEM)
    shutil.rmtree(directory)
    directory.mkdir()
    found = lines(describe(bus, IVSHMEM, pci_ids))
    assert [found.pop(key) for key in ("address", "driver", "registers")] == [
        *("0000:00:04.0", "none", "none"),
    ]
    assert set(found.values()) == {"unknown"}


@pytest.mark.parametrize("method", ["attribute", "driver"])
def test_a_function_that_is_not_there_is_gone(bus, method):
    arguments = ["revision"] if method == "attribute" else []
    with pytest.raises(DeviceGone, match=r"0000:00:02\.0"):
        getattr(bus, method)(ABSENT, *arguments)
    with pytest.raises(DeviceGone, match=r"0000:00:02\.0"):
        describe(bus, ABSENT, [])


@pytest.mark.parametrize(
    "moment", ["id", "subsystem", "attribute", "driver", "resources", "rom_size", "read_config"]
)
def test_a_function_that_vanishes_meanwhile_is_gone(bus, devices, monkeypatch, moment):
    asked = getattr(bus, moment)

    def vanish_and_ask(*arguments):
        shutil.rmtree(devices / str(IVSHMEM), ignore_errors=True)
        return asked(*arguments)

    monkeypatch.setattr(bus, moment, vanish_and_ask)
    with pytest.raises(DeviceGone, match=r"0000:00:04\.0"):
        describe(bus, IVSHMEM, [])


@pytest.mark.parametrize(
    ("size", "text"),
    [
        *((1, "1"), (256, "256"), (1000, "1000"), (1023, "1023"), (1024, "1K"), (1536, "1536")),
        *((64 << 10, "64K"), (1 << 20, "1M"), (1025 << 10, "1025K"), (256 << 30, "256G")),
        *((1 << 40, "1T"), (1 << 52, "4096T"), ((1 << 40) + 1, "1099511627777")),
    ],
)
def test_sizes(size, text):
    assert size_text(size) == text
