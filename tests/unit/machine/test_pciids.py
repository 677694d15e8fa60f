"""Names from pci.ids, as it is and as it may be."""

import gzip
from pathlib import Path

import pytest

from barfs.machine.pciids import PATHS, PciIds
from barfs.names import DeviceId

TEXT = """\
80861  One digit too many
0e11  First Vendor
# a comment between a vendor and its devices
\t1110  First's 1110

\t0001  First's 1
\t\t1af4 1100  First's subsystem
1af4  Red Hat, Inc.
\t1000  Virtio network device
\t\t01de fffb  Propolis
\t\t1af4 0001  QEMU
# another
\t11101  One digit too many
\t1110  Inter-VM shared memory
\t\t1af4 1100  QEMU Virtual Machine
\t1111
\t1112  Tab\there and \x1b[31mred \N{LATIN SMALL LETTER O WITH DIAERESIS}\x85
1AF5  In capitals
8086  Intel Corporation
C 02  Network controller
\t00  Ethernet controller
\t80  Network controller
C 01  Mass storage controller
\t08  Non-Volatile memory controller
\t\t02  NVM Express
C 0c  Serial bus controller"""

IVSHMEM = DeviceId(0x1AF4, 0x1110)
OF_FIRST = DeviceId(0x0E11, 0x1110)

# What is asked, and the name.
NAMES = [
    ("vendor", [0x0E11], "First Vendor"),
    ("vendor", [0x1AF4], "Red Hat, Inc."),
    ("vendor", [0x8086], "Intel Corporation"),
    ("vendor", [0x1110], None),
    ("vendor", [0x0001], None),
    ("vendor", [0x1AF5], None),
    ("vendor", [0x0C], None),
    ("device", [IVSHMEM], "Inter-VM shared memory"),
    ("device", [OF_FIRST], "First's 1110"),
    ("device", [DeviceId(0x0E11, 0x0001)], "First's 1"),
    ("device", [DeviceId(0x0E11, 0x1000)], None),
    ("device", [DeviceId(0x1AF4, 0x01DE)], None),
    ("device", [DeviceId(0x1AF4, 0x1111)], None),
    ("device", [DeviceId(0x1AF4, 0x1112)], "Tabhere and [31mred \xf6"),
    ("device", [DeviceId(0x8086, 0x1110)], None),
    ("device", [DeviceId(0xDEAD, 0x1110)], None),
    ("subsystem", [IVSHMEM, DeviceId(0x1AF4, 0x1100)], "QEMU Virtual Machine"),
    ("subsystem", [OF_FIRST, DeviceId(0x1AF4, 0x1100)], None),
    ("subsystem", [DeviceId(0x0E11, 1), DeviceId(0x1AF4, 0x1100)], "First's subsystem"),
    ("subsystem", [DeviceId(0x1AF4, 0x1000), DeviceId(0x1AF4, 1)], "QEMU"),
    ("subsystem", [DeviceId(0x1AF4, 0x1000), DeviceId(0x1AF4, 0x1100)], None),
    ("device_class", [0x020000], "Ethernet controller"),
    ("device_class", [0x010802], "Non-Volatile memory controller, NVM Express"),
    ("device_class", [0x010800], "Non-Volatile memory controller"),
    ("device_class", [0x020800], "Network controller"),
    ("device_class", [0x010000], "Mass storage controller"),
    ("device_class", [0x0C0330], "Serial bus controller"),
    ("device_class", [0x030000], None),
]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "pci.ids"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize(("kind", "numbers", "name"), NAMES)
def test_names(path, kind, numbers, name):
    assert getattr(PciIds([path]), kind)(*numbers) == name


def test_one_object_gives_them_all_in_any_order(path):
    ids = PciIds([path])
    for order in (NAMES, reversed(NAMES), NAMES):
        for kind, numbers, name in order:
            assert getattr(ids, kind)(*numbers) == name


def test_dos_line_ends(path):
    path.write_bytes(TEXT.replace("\n", "\r\n").encode())
    assert PciIds([path]).subsystem(IVSHMEM, DeviceId(0x1AF4, 0x1100)) == "QEMU Virtual Machine"
    assert PciIds([path]).device(OF_FIRST) == "First's 1110"
    assert PciIds([path]).device(DeviceId(0x0E11, 0x0001)) == "First's 1"


def test_read_when_first_asked_and_only_then(path):
    path.rename(path.with_name("later"))
    ids = PciIds([path])
    path.with_name("later").rename(path)
    assert ids.vendor(0x8086) == "Intel Corporation"
    path.write_text("1af4  Changed\n")
    assert ids.vendor(0x1AF4) == "Red Hat, Inc."
    assert PciIds([path]).vendor(0x1AF4) == "Changed"


GARBAGE = {
    "empty": b"",
    "newlines": b"\n\n\n",
    "nul": bytes(1000),
    "binary": bytes(range(256)) * 16,
    "numbers only": b"1af4\n\t1110\n\t\t1af4 1100\nC 05\n\t00",
    "blank names": b"1af4  \n\t1110  \n\t\t1af4 1100  \nC 05  \n\t00  ",
    "tabs": b"\t\t\t\n\t\n\t1110  no vendor\n\t\t1af4 1100  no device\n",
    "UTF-16": TEXT.encode("utf-16"),
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize("name", ["pci.ids", "pci.ids.gz"])
def test_garbage_has_no_names(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    ids = PciIds([path])
    assert ids.vendor(0x1AF4) is None
    assert ids.device(IVSHMEM) is None
    assert ids.subsystem(IVSHMEM, DeviceId(0x1AF4, 0x1100)) is None
    assert ids.device_class(0x050000) is None


def test_bytes_that_are_no_utf8_cost_only_themselves(path):
    path.write_bytes(b"1af4  Red \xff\xfe Hat\n\t1110  Inter-VM\n")
    assert PciIds([path]).vendor(0x1AF4) == "Red \ufffd\ufffd Hat"
    assert PciIds([path]).device(IVSHMEM) == "Inter-VM"


PACKED = gzip.compress(b"1af4  Packed\n")


@pytest.mark.parametrize(
    "unreadable",
    [
        None,
        "directory",
        PACKED[:-4],
        PACKED[:12],
        b"",
        b"1af4  Not packed\n",
        PACKED[:10] + b"\xff" * 20,
    ],
)
def test_the_first_that_can_be_read_counts(path, unreadable):
    first = path.with_name("first.gz")
    if unreadable == "directory":
        first.mkdir()
    elif unreadable is not None:
        first.write_bytes(unreadable)
    expected = "" if unreadable == b"" else "Red Hat, Inc."
    assert (PciIds([first, path]).vendor(0x1AF4) or "") == expected
    assert PciIds([first]).vendor(0x1AF4) is None
    packed = path.with_name("packed.gz")
    packed.write_bytes(PACKED)
    assert PciIds([packed, path]).vendor(0x1AF4) == "Packed"
    assert PciIds([path, packed]).vendor(0x1AF4) == "Red Hat, Inc."


def test_no_file_at_all():
    assert PciIds([]).vendor(0x8086) is None


@pytest.mark.parametrize("directory", ["/usr/share/misc", "/usr/share/hwdata", "/usr/share"])
def test_where_distributions_have_it(directory):
    assert {Path(directory, "pci.ids"), Path(directory, "pci.ids.gz")} <= set(PATHS)
