"""Recordings: what is in one is believed only if it has the form. What is not is never zeros."""

import gzip
import io
import json
import lzma
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import tree_of, walk

from barfs.devmem import PhysicalMemory
from barfs.diagnosis.causes import Machine
from barfs.diagnosis.checkup import status
from barfs.errors import (
    BadRecording,
    BarfsError,
    DeviceGone,
    NotRecorded,
    ReadOnly,
)
from barfs.machine.functions import AllFunctions, Allowed
from barfs.machine.kernel import read_kernel
from barfs.machine.recorded import RecordedSymbols, recorded_source
from barfs.machine.recording import Part, Range
from barfs.names import PciAddress
from barfs.nodes import Type
from barfs.registers.devices import DeviceMaps
from barfs.registers.files import MapFiles

ADDRESS = PciAddress(0, 0, 4, 0)
ABOUT = {"format": 1, "host": "lab7", "kernel": "6.12.0", "time": "2026-11-30T20:00:00Z"}
ABOUT |= {"barfs": "1.0", "root": True}
RESOURCE = "".join(
    f"{start:#018x} {end:#018x} {flags:#018x}\n"
    for start, end, flags in [(0xFEB20000, 0xFEB200FF, 0x40200), *[(0, 0, 0)] * 6]
)
FACTS = {
    "attributes": {
        "vendor": "0x1af4\n",
        "device": "0x1110\n",
        "class": "0x050000\n",
        "resource": RESOURCE,
        "power_state": "D0\n",
    },
    "links": {"driver": "../../../bus/pci/drivers/ivshmem"},
    "group": ["0000:00:04.0"],
    "exists": [],
    "sizes": {"config": 256, "rom": 4096},
    "refused": {"config": "beyond 40 the kernel shows it to root only"},
    "read": {"config": [[0, 64, None]], "bar0": [[0, 4, 4], [8, 8, 8], [16, 4, 4]]},
}
CONFIG = bytes.fromhex("f41a1011 03000000").ljust(64, b"\1")
DATA = bytes(range(1, 17))
IOMEM = b"00000000-00000fff : Reserved\nfeb20000-feb200ff : 0000:00:04.0\n"


def tar_of(facts=FACTS, about=ABOUT, **more):
    files = {
        "recording.json": about,
        "pci/0000:00:04.0/facts.json": facts,
        "pci/0000:00:04.0/config": CONFIG,
        "pci/0000:00:04.0/bar0": DATA,
        **more,
    }
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in files.items():
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return data.getvalue()


@pytest.fixture
def opened(tmp_path):
    def open_recording(*arguments, **more):
        path = tmp_path / "lab7.tar"
        path.write_bytes(tar_of(*arguments, **more))
        return recorded_source(path)

    return open_recording


def machine_of(source):
    pci = Allowed(AllFunctions(source))
    memory = PhysicalMemory(source, source.proc / "nothing")
    symbols = RecordedSymbols(source.proc)
    maps = DeviceMaps(pci, memory, MapFiles())
    phys = source.exists(source.proc / "iomem")
    return Machine(pci, memory, maps, phys, symbols=symbols if phys else None)


def part_of(*ranges):
    at, found = 0, []
    for start, length in ranges:
        found.append(Range(start, length, None, at))
        at += length
    return Part(found, lambda offset, length: bytes(range(1, 100))[offset : offset + length])


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, 4, b"\1\2\3\4"),
        (2, 4, b"\3\4"),
        (4, 4, b""),
        (8, 20, bytes(range(5, 17))),  # two ranges that touch
        (13, 1, b"\x0a"),
        (20, 1, b""),
        (7, 2, b""),
        (0, 0, b""),
    ],
)
def test_bytes_end_where_they_were_not_read(offset, length, expected):
    assert part_of((0, 4), (8, 8), (16, 4)).at(offset, length) == expected


def test_facts(opened):
    pci = AllFunctions(opened())
    source = pci.source
    assert pci.addresses() == [ADDRESS]
    assert str(pci.id(ADDRESS)) == "1af4:1110"
    assert pci.driver(ADDRESS) == "ivshmem"
    assert pci.group(ADDRESS) == [ADDRESS]
    assert pci.attribute(ADDRESS, "revision") is None
    assert not pci.is_virtual(ADDRESS)
    assert pci.rom_size(ADDRESS) == 4096
    assert pci.bar(ADDRESS, 0).size == 256
    assert pci.read_config(ADDRESS, 60, 16) == b"\1" * 4  # as a user who is not root reads it
    assert pci.presence(ADDRESS).check() is None
    assert list(pci.with_id(pci.id(ADDRESS))) == [ADDRESS]
    assert source.stamp() is not None
    other = PciAddress(0, 0, 5, 0)
    with pytest.raises(DeviceGone):
        pci.id(other)
    with pytest.raises(DeviceGone):
        pci.presence(other)
    for path in (source.sysfs / "bus/pci/devices/0000:00:04.0/x", "/etc/passwd", source.proc / "x"):
        for ask in (source.read, source.read_all, source.names, source.target, source.size):
            with pytest.raises(OSError, match="No such file"):
                ask(path)
        assert not source.exists(path)
    with pytest.raises(OSError, match="Read-only"):
        source.write(source.sysfs / "bus/pci/devices/0000:00:04.0/enable", b"1")
    assert read_kernel(source).config is None


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress])
def test_compressed(tmp_path, compress):
    path = tmp_path / "lab7.tar.gz"
    path.write_bytes(compress(tar_of()))
    source = recorded_source(path)
    path.unlink()
    assert str(AllFunctions(source).id(ADDRESS)) == "1af4:1110"
    assert source.recording.functions[ADDRESS].parts["bar0"].at(8, 12) == DATA[4:]


def test_what_was_not_read_is_not_zeros(opened):
    tree = tree_of(machine_of(opened(**{"proc/iomem": IOMEM})))

    def view(path):
        node = tree.root
        for name in path.split("/"):
            node = tree.lookup(node, name)
        return tree.open(node, writable=False)

    at = "pci/0000:00:04.0"
    assert bytes(view(f"{at}/bar0").read(0, 4)) == DATA[:4]
    assert bytes(view(f"{at}/bar0").read(8, 12)) == DATA[4:]
    assert bytes(view(f"{at}/x32/bar0@8").read(0, 11)) == b"0x08070605\n"
    assert bytes(view(f"{at}/u8/bar0@9+3").read(0, 3)) == DATA[5:8]
    assert bytes(view(f"{at}/mem/bar0@9+3").read(0, 3)) == DATA[5:8]
    assert bytes(view(f"{at}/config").read(0, 256)) == CONFIG
    for path, offset, length, words in (
        (f"{at}/bar0", 4, 4, "which has 0-3, 8-f, 10-13 of it"),
        (f"{at}/bar0", 0, 256, "which has"),
        (f"{at}/x32/bar0@4", 0, 11, "not in this recording"),
        (f"{at}/x64/bar0@0", 0, 19, "not in this recording"),
        (f"{at}/config", 64, 4, "to root only"),
        (f"{at}/rom", 0, 4, "not in this recording"),
    ):
        with pytest.raises(NotRecorded, match=words) as refused:
            view(path).read(offset, length)
        assert refused.value.errno == 5
    with pytest.raises(NotRecorded):
        tree.lookup(tree.lookup(tree.root, "ksym"), "init_uts_ns")
    bar = tree.lookup(tree.lookup(tree.lookup(tree.root, "pci"), "0000:00:04.0"), "bar0")
    config = tree.lookup(tree.lookup(tree.lookup(tree.root, "pci"), "0000:00:04.0"), "config")
    for node in (bar, config):
        with pytest.raises(ReadOnly):
            tree.open(node, writable=True)


def test_status_says_whose_machine_it_is_and_what_is_missing(opened):
    text = status(machine_of(opened(**{"proc/iomem": IOMEM})))
    first, *rest = text.splitlines()
    assert "recorded on lab7 at 2026-11-30T20:00:00Z by root (kernel 6.12.0, barfs 1.0)" in first
    assert any("recorded: bar0@0-3, bar0@8-f, bar0@10-13" in line for line in rest)
    assert any("not recorded: config: beyond 40" in line for line in rest)
    assert not any("/dev/" in line for line in rest)


def test_text_of_a_stranger_commands_no_terminal(opened):
    about = {**ABOUT, "host": "\x1b[2Jlab\n"}
    facts = {**FACTS, "refused": {"config": "\x1b]0;x\7"}, "links": {"driver": "x/\x1b[1m"}}
    source = opened(facts, about)
    assert "\x1b" not in status(machine_of(source))
    tree = tree_of(machine_of(source))
    for _, _, node in walk(tree):
        if node.kind.type is Type.FILE and node.kind.name == "info":
            assert b"\x1b" not in bytes(tree.open(node, writable=False).read(0, 1 << 16))


@pytest.mark.parametrize(
    ("about", "facts", "more"),
    [
        ({**ABOUT, "format": 2}, FACTS, {}),
        ({**ABOUT, "host": 7}, FACTS, {}),
        ({**ABOUT, "time": "x" * 10_000}, FACTS, {}),
        ([], FACTS, {}),
        (b"{", FACTS, {}),
        (b"[" * 100_000, FACTS, {}),
        (b'{"format": ' + b"9" * 10_000 + b"}", FACTS, {}),
        (ABOUT, [], {}),
        (ABOUT, {**FACTS, "attributes": {"vendor": 7}}, {}),
        (ABOUT, {**FACTS, "attributes": []}, {}),
        (ABOUT, {**FACTS, "attributes": {"vendor": "\ud800"}}, {}),
        (ABOUT, {**FACTS, "group": ["\udcff"]}, {}),
        ({**ABOUT, "host": "lab\udfff"}, FACTS, {}),
        (ABOUT, {**FACTS, "links": {"driver": None}}, {}),
        (ABOUT, {**FACTS, "group": "0000:00:04.0"}, {}),
        (ABOUT, {**FACTS, "sizes": {"config": -1}}, {}),
        (ABOUT, {**FACTS, "sizes": {"rom": 1 << 64}}, {}),
        (ABOUT, {**FACTS, "sizes": {"rom": True}}, {}),
        (ABOUT, {**FACTS, "read": {"bar9": []}}, {}),
        (ABOUT, {**FACTS, "read": {"../config": [[0, 1, 1]]}}, {}),
        *(
            (ABOUT, {**FACTS, "read": {"bar0": ranges}}, {})
            for ranges in (
                *([[0, 15, 4]], [[0, 17, 4]], [[0, 8, 4], [4, 8, 4]], [[8, 8, 4], [0, 8, 4]]),
                *([[0, 16, 3]], [[0, 16]], [[-4, 16, 4]], [[0, 0, 4], [0, 16, 4]], [["0", 16, 4]]),
                *([[0.0, 16, 4]], [[1 << 63, 16, 4]], 7, [7], [[0, 1, 1]] * 24_000, {"0": 16}),
                *([[True, 16, 4]], [[0, 16, []]], [[0, 16, {}]], [[0, 16, True]], [[0, 16, 4.0]]),
            )
        ),
        (ABOUT, FACTS, {"pci/nonsense/facts.json": FACTS}),
        (ABOUT, FACTS, {"pci/0000:00:05.0/facts.json": FACTS}),  # without its data
        (ABOUT, {**FACTS, "attributes": {"x": "y" * 300_000}}, {}),
        (ABOUT, FACTS, {"proc/iomem": b"x" * (17 << 20)}),
    ],
)
def test_what_is_not_of_the_form_is_refused(opened, about, facts, more):
    with pytest.raises(BadRecording):
        opened(facts, about, **more)


_TEXT = st.text(st.characters(), max_size=8)  # halves of a UTF-16 pair, too
_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), _TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_TEXT, inner, max_size=4)),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([*sorted(FACTS), "text", "range"]), _JSON, st.text(st.characters(), max_size=40)
)
def test_a_recording_of_a_stranger_is_refused_or_harmless(tmp_path_factory, key, value, text):
    """Whatever is in it: what is listed can be looked at and read, and only errors come."""
    path = tmp_path_factory.mktemp("fuzz") / "lab7.tar"
    facts = {**FACTS, key: value}
    if key == "text":
        facts["attributes"] = {**FACTS["attributes"], "resource": text, "class": text}
    elif key == "range":
        facts["read"] = {"bar0": [[0, 16, value]]}
    path.write_bytes(tar_of(facts, **{"proc/iomem": text.encode(errors="surrogatepass")}))
    try:
        source = recorded_source(path)
    except BadRecording:
        return
    machine = machine_of(source)
    assert status(machine)
    tree = tree_of(machine)
    pci = tree.lookup(tree.root, "pci")
    directories = [tree.root, pci, tree.lookup(tree.root, "phys")]
    directories += [node for _, node in tree.entries(pci)]
    for node in [node for one in directories for _, node in tree.entries(one)]:
        try:
            tree.attributes(node)
            if node.kind.type is Type.FILE:
                view = tree.open(node, writable=False)
                view.read(0, 64)
                view.close()
        except BarfsError:
            continue
