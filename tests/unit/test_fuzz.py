"""Nonsense for all that parses: no crash, no hang, and what is made is understood again."""

import contextlib
import datetime as dt
import errno
import gzip
import os
import string
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from machines import PCI, PHYS, ROOT, functions_of, machine_of, tree_of, walk
from walks import contract as model

from barfs.access import contract
from barfs.devmem import PAGE_SIZE, IomemRange, parse_iomem, split_by_kind
from barfs.errors import BadRequest, BarfsError, DeviceGone, NoSuchAddress, NoSuchNode
from barfs.machine import simulated
from barfs.machine.configspace import command_of
from barfs.machine.pciids import PciIds
from barfs.machine.resources import parse_hex, parse_resource
from barfs.names import VIEWS, AddressRange, BarName, DeviceId, LinkName, PciAddress, ViewKind
from barfs.nodes import Node, Type
from barfs.report.info import describe
from barfs.tree.config import CONFIG
from barfs.tree.functions import FUNCTION

OFFSET_MAX = (1 << 63) - 1  # the largest st_size
WORD = st.integers(0, 0xFFFF)
NUMBER = st.one_of(
    st.integers(0, 300),
    st.integers(0, 1 << 64),
    st.builds(
        lambda power, beside: max(0, (1 << power) + beside), st.integers(0, 65), st.integers(-2, 2)
    ),
)


def fuzz(**strategies):
    """The same examples each time; one that takes seconds has hung."""

    def decorate(test):
        return settings(
            max_examples=200,
            derandomize=True,
            database=None,
            deadline=dt.timedelta(seconds=5),
            suppress_health_check=list(HealthCheck),
        )(given(**strategies)(test))

    return decorate


def alike(valid):
    """Valid texts, damaged ones, others of the same characters, any, and very long ones."""
    characters = st.text(
        string.hexdigits + ":.-+@x \n\t\0/_gz\N{ARABIC-INDIC DIGIT ONE}", max_size=30
    )
    damaged = st.builds(
        lambda text, at, cut, more: text[: at % (len(text) + 1)] + more + text[at + cut :],
        *(valid, st.integers(0, 30), st.integers(0, 3), st.text(string.printable, max_size=2)),
    )
    long = st.builds(
        lambda text, more, times, end: text + more * times + end,
        *(valid, st.text(" 0f-:.+@\t\n", min_size=1, max_size=2)),
        *(st.sampled_from([1000, 50000]), st.text("g-:. \n", max_size=1)),
    )
    return st.one_of(valid, damaged, characters, st.text(), long)


# Names

ADDRESSES = st.builds(
    PciAddress,
    st.one_of(WORD, st.integers(0, 0xFFFFFFFF)),
    *(st.integers(0, 0xFF), st.integers(0, 0x1F), st.integers(0, 7)),
)
IDS = st.builds(DeviceId, WORD, WORD)
LINKS = st.builds(LinkName, IDS, st.none() | IDS, st.integers(0, 999_999_999))
HEX = st.builds(
    lambda number, form: form.format(number), NUMBER, st.sampled_from(["{:x}", "0x{:X}"])
)
RANGES = st.builds("".join, st.lists(st.one_of(HEX, st.sampled_from("+-")), max_size=4))
BARS = st.builds("bar{}{}{}".format, st.integers(0, 7), st.sampled_from(["", "@"]), RANGES)


@fuzz(address=ADDRESSES, link=LINKS)
def test_names_are_understood_as_they_are_written(address, link):
    assert PciAddress.parse(str(address)) == address
    assert LinkName.parse(str(link)) == link


@fuzz(name=alike(st.one_of(ADDRESSES.map(str), LINKS.map(str))))
def test_a_name_has_one_spelling(name):
    for kind in (PciAddress, LinkName):
        found = kind.parse(name)
        assert found is None or str(found) == name


@fuzz(
    start=NUMBER,
    more=NUMBER,
    bar=st.integers(0, 5),
    form=st.sampled_from(["{:x}", "0X{:X}", "00{:x}"]),
)
def test_ranges_and_windows_are_understood_in_each_spelling(start, more, bar, form):
    end = start + more
    for text, last, empty in (
        (form.format(start), None, False),
        (f"{form.format(start)}-{form.format(end)}", end, False),
        (f"{form.format(start)}+{form.format(more)}", end - 1, more == 0),
    ):
        reachable = start < 1 << 64 and (last is None or last < 1 << 64) and not empty
        wanted = AddressRange(start, last) if reachable else None
        assert AddressRange.parse(text) == wanted
        assert BarName.parse(f"bar{bar}@{text}") == (wanted and BarName(bar, wanted))


@fuzz(name=alike(st.one_of(RANGES, BARS)))
def test_a_range_or_window_is_never_empty_nor_out_of_reach(name):
    found = AddressRange.parse(name)
    window = BarName.parse(name)
    assert window is None or 0 <= window.bar <= 5
    for one in filter(None, (found, window and window.window)):
        assert 0 <= one.start < 1 << 64
        assert one.end is None or one.start <= one.end < 1 << 64


# sysfs, /proc/iomem


def number_or_none(parse, *arguments, **keywords):
    try:
        return parse(*arguments, **keywords)
    except ValueError:
        return None


@fuzz(text=alike(HEX), bits=st.sampled_from([8, 16, 63]))
def test_a_number_is_in_its_bits(text, bits):
    number = number_or_none(parse_hex, text, bits=bits)
    assert number is None or 0 <= number < 1 << bits
    assert number is None or parse_hex(f"{number:#x}\n", bits=bits) == number


@fuzz(line=alike(st.builds("{:#018x} {:#018x} {:#018x}".format, NUMBER, NUMBER, NUMBER)))
@example(line="0x0 0x7fffffffffffffff 0x200")
def test_a_resource_has_a_size_that_a_file_can_have(line):
    found = number_or_none(parse_resource, line)
    if found is not None:
        assert 0 < found.size <= OFFSET_MAX
        assert found.flags
        assert parse_resource("{:#x} {:#x} {:#x}".format(*found)) == found


def ranges_of(rows):
    return "".join(
        f"{'  ' * depth}{start:08x}-{start + size - 1:08x} : {name}\n"
        for depth, start, size, name in rows
    )


ROWS = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.one_of(st.integers(0, 5 * PAGE_SIZE), st.integers(0, 1 << 62)),
        st.one_of(st.integers(1, 3 * PAGE_SIZE), st.integers(1, 1 << 62)),
        st.sampled_from(["System RAM", "System RAM (kmem)", "Reserved", "PCI Bus", " : ", ""]),
    ),
    max_size=8,
)


@fuzz(rows=ROWS)
def test_iomem_is_understood_as_it_is_written(rows):
    found = list(parse_iomem(ranges_of(rows)))
    wanted = [IomemRange(start, start + size - 1, name, depth) for depth, start, size, name in rows]
    assert found == ([] if all(entry.end == 0 for entry in wanted) else wanted)


@fuzz(text=alike(ROWS.map(ranges_of)))
@example(text="0-7fffffffffffffff : System RAM")
def test_any_iomem_gives_ranges_that_a_file_can_have(text):
    for entry in parse_iomem(text):
        assert 0 <= entry.start <= entry.end
        assert entry.end + 1 - entry.start <= OFFSET_MAX


@fuzz(rows=ROWS, start=st.integers(0, 6 * PAGE_SIZE), size=st.integers(1, 4 * PAGE_SIZE))
def test_a_range_is_cut_into_all_of_its_kinds(rows, start, size):
    ranges = parse_iomem(ranges_of(rows))
    segments = split_by_kind(start, size, ranges)
    at = start
    for segment in segments:
        assert segment.start == at
        assert segment.size > 0
        at += segment.size
    assert at == start + size
    ram = [entry for entry in ranges if entry.is_ram]
    edges = {segment.start for segment in segments} | {entry.start for entry in ram}
    edges |= {entry.end + 1 for entry in ram} | {start}
    for edge in edges:
        for segment in segments:
            if segment.start <= edge < segment.start + segment.size:
                assert segment.is_ram == any(one.start <= edge <= one.end for one in ram)
                if segment.is_ram and not segment.shared:
                    page = edge - edge % PAGE_SIZE
                    assert any(one.start <= page <= page + PAGE_SIZE - 1 <= one.end for one in ram)


# Text views

NUMBER_TEXTS = st.one_of(HEX, NUMBER.map(str), NUMBER.map(bin))


@fuzz(
    text=alike(
        st.one_of(NUMBER_TEXTS, st.builds("{}:{}\n".format, NUMBER_TEXTS, NUMBER_TEXTS))
    ).map(lambda text: text.encode(errors="replace")),
    width=st.sampled_from([1, 2, 4, 8]),
)
def test_a_line_of_text_means_what_the_contract_says(text, width):
    try:
        found = tuple(contract.parse_update(text, width))
    except BadRequest:
        found = None
    assert found == model.update(text, width)


@fuzz(value=st.integers(0, (1 << 64) - 1), width=st.sampled_from([1, 2, 4, 8]))
def test_a_value_is_understood_as_it_is_shown(value, width):
    value &= (1 << 8 * width) - 1
    assert contract.parse_update(contract.format_value(value, width), width) == (value, None)
    assert len(contract.format_value(value, width)) == contract.text_size(width)


# pci.ids

IDS_LINES = st.sampled_from(
    [b"8086  Intel", b"\t100e  82540EM", b"\t\t1af4 1100  QEMU", b"C 02  Net", b"\t00  Ethernet"]
)


@fuzz(
    pieces=st.lists(st.one_of(IDS_LINES, st.binary(max_size=20)), max_size=12),
    packed=st.sampled_from([None, gzip.compress, lambda data: gzip.compress(data)[:-9], bytes]),
    times=st.sampled_from([1, 1, 3000]),
)
def test_any_pci_ids_gives_printable_names_or_none(pieces, packed, times):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / ("pci.ids.gz" if packed else "pci.ids")
        data = b"\n".join(pieces * times)
        path.write_bytes(packed(data) if packed else data)
        ids = PciIds([Path(directory), path])
        device = DeviceId(0x8086, 0x100E)
        for name in (
            *(ids.vendor(0x8086), ids.device(device)),
            *(ids.subsystem(device, DeviceId(0x1AF4, 0x1100)), ids.device_class(0x020000)),
        ):
            assert name is None or (name.isprintable() and name == name.strip() != "")


# A function whose files hold anything

ATTRIBUTES = (
    *("vendor", "device", "subsystem_vendor", "subsystem_device", "class", "revision"),
    *("numa_node", "power_state", "enable", "config", "resource", "resource0", "resource2"),
    *("rom", "driver", "physfn"),
)


HUGE = 10000  # bytes; the kernel gives no more than a page


def spoil(path, how, data):
    """Put something else where an attribute was."""
    if path.is_symlink() or path.exists():
        path.unlink()
    if how == "directory":
        path.mkdir()
    elif how == "link":
        path.symlink_to(os.fsencode(data.replace(b"\0", b"") or b"nowhere"))
    elif how == "loop":
        path.symlink_to(path.name)
    elif how == "data":
        path.write_bytes(data)
    elif how == "huge":
        path.write_bytes(((data or b"\xff") * HUGE)[:HUGE])
    else:
        assert how == "missing"


RESOURCES = st.lists(
    st.builds(
        # BARs of memory are 16 bytes and aligned so, at the least (PCI 3.0, 6.2.5.1).
        lambda start, size, flags: f"{start << 4:#018x} {(start + size << 4) - 1:#018x} {flags:#x}",
        st.integers(0, 1 << 60),
        st.integers(0, 1 << 60),
        st.sampled_from([0, 0x100, 0x200, 0x2200, 0x300, 0x20000200]),
    ),
    max_size=8,
).map(lambda lines: "\n".join(lines).encode())
SPOILT = st.dictionaries(
    st.sampled_from(ATTRIBUTES),
    st.tuples(
        st.sampled_from(["data", "data", "directory", "link", "loop", "huge", "missing"]),
        st.one_of(
            st.binary(max_size=40),
            RESOURCES,
            HEX.map(str.encode),
            st.sampled_from([b"", b"\n", b"0x", b"-1", b"D3hot", b"\xff" * 256, b"\0" * 4096]),
        ),
    ),
    min_size=1,
    max_size=5,
)


@contextlib.contextmanager
def machine_with(spoilt):
    """A bus whose function 0000:00:04.0 is spoilt, and its directory."""
    with tempfile.TemporaryDirectory() as directory:
        machine = simulated.Paths(*(Path(directory) / name for name in ("s", "p", "m")))
        for device in simulated.DEVICES[1:3]:
            simulated._write_device(machine.sysfs / "bus/pci/devices", device)
        machine.proc.mkdir()
        (machine.proc / "iomem").write_text("00001000-0009fbff : System RAM\n")
        machine.devmem.write_bytes(bytes(0xA0000))
        where = machine.sysfs / "bus/pci/devices/0000:00:04.0"
        for name, (how, data) in spoilt.items():
            spoil(where / name, how, data)
        yield machine


SPOILT_FUNCTION = PciAddress(0, 0, 4, 0)


@fuzz(spoilt=SPOILT)
@example(spoilt={"driver": ("link", b"two\nlines"), "vendor": ("data", b"")})
def test_info_is_lines_whatever_sysfs_holds(spoilt):
    with machine_with(spoilt) as machine:
        text = describe(functions_of(machine.sysfs), SPOILT_FUNCTION, [])
        keys = [line.partition(": ")[0] for line in text.splitlines()]
        assert keys[:11] == [
            *("address", "id", "subsystem", "class", "revision", "driver", "power state"),
            *("memory decoding", "I/O decoding", "bus master", "NUMA node"),
        ]
        assert set(keys[11:]) <= {*(f"bar{n}" for n in range(6)), "rom", "BARs", "registers"}


def refusal(call):
    """What it raises, and else what it gives."""
    try:
        return None, call()
    except BarfsError as error:
        return error, None


def look_and_open(tree, node):
    assert 0 <= tree.attributes(node).size <= OFFSET_MAX
    if node.kind.type is not Type.FILE:
        return None
    return tree.open(node, writable=False)


@fuzz(spoilt=SPOILT)
def test_a_spoilt_function_spoils_nothing_else(spoilt):
    """Whatever is listed is found, and opens and is read, or is refused with an errno."""
    with machine_with(spoilt) as machine:
        tree = tree_of(machine_of(machine))
        found = {name for _, name, _ in walk(tree)}
        assert {"0000:00:04.0", "0000:00:05.0", "00001000-0009fbff"} <= found
        for parent, name, node in walk(tree):
            assert tree.lookup(parent, name) == node
            refused, view = refusal(lambda node=node: look_and_open(tree, node))
            if refused:
                assert node.address == SPOILT_FUNCTION or node.view
                assert refused.errno in errno.errorcode
            if view is None:
                continue
            try:
                for offset, length in ((0, 4), (3, 6), (1 << 40, 8)):
                    with contextlib.suppress(BarfsError):
                        view.read(offset, length)
            finally:
                view.close()


@fuzz(data=st.binary(max_size=8), how=st.sampled_from(["data", "directory", "missing", "loop"]))
def test_the_command_register_is_16_bits_or_the_device_is_gone(data, how):
    with machine_with({"config": (how, data)}) as machine:
        refused, command = refusal(lambda: command_of(functions_of(machine.sysfs), SPOILT_FUNCTION))
        if how == "data" and len(data) >= 6:
            assert command == int.from_bytes(data[4:6], "little")
        else:
            assert isinstance(refused, DeviceGone) or how in {"directory", "loop"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return tree_of(machine_of(simulated.build(tmp_path_factory.mktemp("machine"))))


ANY_NAME = alike(
    st.one_of(
        *(ADDRESSES.map(str), LINKS.map(str), RANGES, BARS),
        *(st.sampled_from(["config", "rom", "info", *VIEWS]), st.binary().map(os.fsdecode)),
    )
)
DIRECTORY = st.sampled_from(
    [
        *(ROOT, PCI, PHYS, Node(PHYS.kind, view=VIEWS["x32"])),
        *(Node(FUNCTION, SPOILT_FUNCTION, view=view) for view in ViewKind),
        *(Node(CONFIG, SPOILT_FUNCTION), Node(FUNCTION, PciAddress(0, 9, 9, 0))),
    ]
)


@fuzz(directory=DIRECTORY, name=ANY_NAME)
def test_a_name_is_found_or_refused_and_the_refusal_can_be_logged(tree, directory, name):
    refused, node = refusal(lambda: tree.lookup(directory, name))
    if refused:
        assert isinstance(refused, (NoSuchNode, NoSuchAddress))
        assert str(refused).isascii()
        assert str(refused).isprintable()
        assert len(str(refused)) < 10 * len(name) + 200
    else:
        assert 0 <= tree.attributes(node).size <= OFFSET_MAX
        assert tree.lookup(directory, name) == node
