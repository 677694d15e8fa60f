"""The kernel's memory by name, on the simulated machine and on core files made for it."""

import os
import shutil
import struct

import pytest
from compilers import compile_btf
from machines import find, machine_of, tree_of

from barfs.devmem import PhysicalMemory
from barfs.errors import BadRequest, KernelRefused, NoSuchAddress, NoSuchNode, ReadOnly
from barfs.machine import simulated
from barfs.machine.kcore import CoreFile
from barfs.machine.simulated import NODENAME_ADDRESS, UTSNAME_ADDRESS
from barfs.machine.symbols import Symbols
from barfs.names import VIEWS
from barfs.spans.kernel import KernelMemory
from barfs.tree.ksym import ELEMENTS, SYMBOL

TEXT = 0xFFFFFFFF81000000
CODE = 0x01000000
NO_ADDRESS = (1 << 64) - 1
MODULE = 0xFFFFFFFFC0201000
DATA = bytes(n * 7 % 256 for n in range(0x3000))

SYMBOLS = simulated.KALLSYMS + f"{MODULE:x} d of_module\t[e1000]\n{MODULE + 64:x} d rest\t[e1000]\n"


def core_file(*segments):
    """A core file: (virtual, physical, bytes) each, with the bytes in it."""
    head = 64 + 56 * len(segments)
    headers, contents = [], b""
    for virtual, physical, data in segments:
        place = (1, 7, head + len(contents), virtual, physical, len(data), len(data), 4096)
        headers.append(struct.pack("<IIQQQQQQ", *place))
        contents += data
    ident = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        *(4, 62, 1, 0, 64, 0, 0, 64, 56, len(segments), 0, 0, 0),
    )
    return ident + b"".join(headers) + contents


@pytest.fixture
def make(tmp_path):
    """Makes the tree of a machine, with a core file or without."""
    opened = []

    def made(*segments, symbols=SYMBOLS, kcore=True):
        paths = simulated.build(tmp_path)
        (paths.proc / "kallsyms").write_text(symbols)
        if segments:
            (paths.proc / "kcore").write_bytes(core_file(*segments))
        kernel = (Symbols(paths.proc), CoreFile(paths.proc) if kcore else None)
        opened.extend(filter(None, kernel))
        return tree_of(machine_of(paths, kernel=kernel))

    yield made
    for one in opened:
        one.close()


def contents(tree, path, size=1 << 16):
    view = tree.open(find(tree, path), writable=False)
    try:
        return bytes(view.read(0, size))
    finally:
        view.close()


def test_a_symbol_is_the_bytes_up_to_the_next(make):
    tree = make()
    whole = contents(tree, "ksym/init_uts_ns")
    assert len(whole) == 65 * 6
    assert whole[:6] == b"Linux\0"
    assert whole[65:69] == b"lab\0"


@pytest.mark.parametrize(
    ("name", "start", "size"),
    [
        ("init_uts_ns", 0, 390),
        ("init_uts_ns@41", 65, 325),
        ("init_uts_ns@0x41", 65, 325),
        ("init_uts_ns@41+41", 65, 65),
        ("init_uts_ns@41-81", 65, 65),
        ("u8/init_uts_ns@41+3", 65, 3),
    ],
)
def test_a_window_is_one_as_in_a_bar(make, name, start, size):
    tree = make()
    node = find(tree, f"ksym/{name}")
    assert tree.attributes(node).size == size
    assert dict(tree.subject(node).fields(0))["address"] == hex(UTSNAME_ADDRESS + start)
    assert contents(tree, f"ksym/{name}") == contents(tree, "ksym/init_uts_ns")[start:][:size]


def test_what_is_written_is_in_physical_memory(make):
    tree = make()
    view = tree.open(find(tree, "ksym/init_uts_ns@41"), writable=True)
    assert view.write(0, b"NinjaNinja\0") == 11
    view.close()
    assert contents(tree, f"phys/{NODENAME_ADDRESS:x}+b") == b"NinjaNinja\0"


def test_text_views_show_one_register(make):
    tree = make()
    assert contents(tree, "ksym/x8/init_uts_ns@41") == b"0x6c\n"
    assert contents(tree, "ksym/x32/init_uts_ns") == b"0x756e694c\n"
    with pytest.raises(BadRequest, match="3 bytes hold no register of 4"):
        tree.open(find(tree, "ksym/x32/init_uts_ns@41+3"), writable=False)


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("nothing", NoSuchNode, "the kernel has no symbol 'nothing'"),
        ("init_uts_ns@186", NoSuchAddress, "it ends at 0x186"),
        ("init_uts_ns@0+187", NoSuchAddress, "0x187 bytes at 0x0, but it ends at 0x186"),
        ("init_uts_ns@", NoSuchNode, "is no <symbol>"),
        ("init_uts_ns@zz", NoSuchNode, "is no <symbol>"),
        ("init_uts_ns:", NoSuchNode, "is no <symbol>"),
        ("init_uts_ns:uts_namespace.name", NoSuchNode, "CONFIG_DEBUG_INFO_BTF"),
        ("of_module", NoSuchAddress, "is in no memory of the kernel's"),
        ("u8/u8", NoSuchNode, "no symbol 'u8'"),
    ],
)
def test_names_that_mean_nothing(make, name, error, words):
    tree = make()
    with pytest.raises(error, match=words):
        find(tree, f"ksym/{name}")


def test_only_views_are_listed(make):
    tree = make()
    directory = find(tree, "ksym")
    assert [name for name, _ in tree.entries(directory)] == list(VIEWS)
    assert list(tree.entries(find(tree, "ksym/u8"))) == []


def test_the_core_file_says_where_the_image_is(make):
    """With KASLR and phys_base at work, so that the distance from `_text` would be wrong."""
    tree = make((TEXT, CODE + 0x100000, bytes(0x1000000)))
    start = dict(tree.subject(find(tree, "ksym/init_uts_ns")).fields(0))["address"]
    assert start == hex(UTSNAME_ADDRESS + 0x100000)


def test_without_a_core_file_only_x86_is_known(make, tmp_path):
    tree = make()
    (tmp_path / "proc/sys/kernel/arch").write_text("aarch64\n")
    with pytest.raises(NoSuchAddress, match="kcore"):
        find(tree, "ksym/init_uts_ns")


def test_a_place_outside_of_the_kernels_ranges_is_none(make):
    symbols = SYMBOLS + f"{TEXT + 0x1F40000:x} D after_data\n"
    with pytest.raises(NoSuchAddress):
        find(make(symbols=symbols), "ksym/after_data")


def refuse_ram(monkeypatch):
    """As CONFIG_STRICT_DEVMEM does."""

    def refused(*_, what, **__):
        raise KernelRefused("Operation not permitted", what=what)

    monkeypatch.setattr(PhysicalMemory, "map", refused)


def test_ram_that_is_kept_back_is_read_through_the_core_file(make, monkeypatch):
    tree = make((0xFFFF888001000000, 0x01000000, DATA))
    refuse_ram(monkeypatch)
    assert contents(tree, "phys/1000000+3000") == DATA
    assert contents(tree, "phys/1000ffd+8") == DATA[0xFFD:0x1005]
    assert contents(tree, "phys/u16/1000ffe+8") == DATA[0xFFE:0x1006]
    view = tree.open(find(tree, "phys/1000000+10"), writable=False)
    assert view.way == "kcore"
    view.close()


@pytest.mark.parametrize(
    ("name", "writable"),
    [
        ("phys/1000000+10", True),  # it is only read
        ("phys/1002ff8+10", False),  # the rest is in no range of the core file
        ("phys/7000000+10", False),
    ],
)
def test_what_the_core_file_has_not_is_refused_as_without_it(make, monkeypatch, name, writable):
    tree = make((0xFFFF888001000000, 0x01000000, DATA))
    refuse_ram(monkeypatch)
    with pytest.raises(KernelRefused, match="Operation not permitted"):
        tree.open(find(tree, name), writable=writable)


def test_without_a_core_file_it_is_refused(make, monkeypatch):
    tree = make((0xFFFF888001000000, 0x01000000, DATA), kcore=False)
    refuse_ram(monkeypatch)
    with pytest.raises(KernelRefused):
        tree.open(find(tree, "phys/1000000+10"), writable=False)


def test_a_module_is_read_through_the_core_file_and_never_written(make):
    tree = make((TEXT, CODE, bytes(0x1000)), (MODULE, NO_ADDRESS, DATA[:0x1000]))
    assert contents(tree, "ksym/of_module") == DATA[:64]
    assert contents(tree, "ksym/of_module@3f+1") == DATA[63:64]
    assert contents(tree, "ksym/x16/of_module@2") == f"0x{DATA[3]:02x}{DATA[2]:02x}\n".encode()
    node = find(tree, "ksym/of_module")
    assert not tree.is_writable(node)
    with pytest.raises(ReadOnly, match="outside of the kernel's image"):
        tree.open(node, writable=True)


def test_a_core_file_that_is_cut_gives_an_error_and_no_zeros(make, tmp_path):
    tree = make((MODULE, NO_ADDRESS, DATA[:0x1000]))
    view = tree.open(find(tree, "ksym/of_module"), writable=False)
    path = tmp_path / "proc/kcore"
    os.truncate(path, path.stat().st_size - 0x1000 + 16)
    assert bytes(view.read(0, 16)) == DATA[:16]
    with pytest.raises(Exception, match="nothing there"):
        view.read(8, 16)
    view.close()


def test_arrays_are_directories_but_for_text(make, tmp_path, require):
    require(shutil.which("clang"), "clang")
    source = """
        struct part { short number; char name[5]; };
        struct whole { char name[65]; struct part parts[3]; unsigned grid[2][2]; } whole;
    """
    tree = make()
    directory = tmp_path / "sys/kernel/btf"
    directory.mkdir(parents=True)
    (directory / "vmlinux").write_bytes(compile_btf(source, tmp_path))
    assert find(tree, "ksym/init_uts_ns:whole.name").kind is SYMBOL
    assert contents(tree, "ksym/init_uts_ns:whole.name")[:6] == b"Linux\0"
    parts = find(tree, "ksym/init_uts_ns:whole.parts")
    assert parts.kind is ELEMENTS
    assert [name for name, _ in tree.entries(parts)] == ["0", "1", "2"]
    whole = contents(tree, "ksym/init_uts_ns")
    assert contents(tree, "ksym/init_uts_ns:whole.parts/1") == whole[74:82]
    assert contents(tree, "ksym/init_uts_ns:whole.parts/1.name") == whole[76:81]
    assert contents(tree, "ksym/init_uts_ns:whole.parts@0") == whole[66:90]
    assert contents(tree, "ksym/init_uts_ns:whole.grid/1/0") == whole[100:104]
    assert contents(tree, "ksym/u32/init_uts_ns:whole.grid/0/1") == whole[96:100]
    with pytest.raises(NoSuchNode, match="elements 0 to 2, not 3"):
        find(tree, "ksym/init_uts_ns:whole.parts/3")


@pytest.mark.parametrize("kcore", [True, False])
def test_a_look_up_asks_once_where_things_lie(make, monkeypatch, kcore):
    """Both the core file and /proc/iomem are made anew by the kernel each time they are read."""
    tree = make((TEXT + 0xE10000, CODE + 0xE10000, DATA)) if kcore else make()
    asked = []
    segments, within = CoreFile.segments, PhysicalMemory.within

    def ask_core(core):
        asked.append("core")
        return segments(core)

    def ask_iomem(memory, *where):
        asked.append("iomem")
        return within(memory, *where)

    find(tree, "ksym/init_uts_ns")
    monkeypatch.setattr(CoreFile, "segments", ask_core)
    monkeypatch.setattr(PhysicalMemory, "within", ask_iomem)
    node = find(tree, "ksym/init_uts_ns")
    assert asked.count("core") == 1
    assert asked.count("iomem") == (not kcore)
    asked.clear()
    tree.attributes(node)
    assert asked.count("core") == 1
    assert asked.count("iomem") == (not kcore)


def test_a_list_of_symbols_asks_once_where_things_lie(tmp_path, monkeypatch):
    paths = simulated.build(tmp_path)
    (paths.proc / "kallsyms").write_text(SYMBOLS)
    read = PhysicalMemory.within
    asked = []

    def ask(memory, *where):
        asked.append(where)
        return read(memory, *where)

    monkeypatch.setattr(PhysicalMemory, "within", ask)
    symbols = Symbols(paths.proc)
    try:
        found = list(KernelMemory(machine_of(paths).memory, symbols, None).located("*"))
    finally:
        symbols.close()
    assert len(found) > 4
    assert {address for _, address in found} > {None}
    assert len(asked) == 1
