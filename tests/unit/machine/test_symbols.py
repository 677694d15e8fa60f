"""Symbols from a text as /proc/kallsyms has it."""

import os

import pytest

from barfs.errors import NoSuchNode
from barfs.machine.symbols import Symbol, Symbols

TEXT = """\
0000000000000000 A fixed_percpu_data
000000000001c000 D runqueues
ffffffff9a000000 T _text
ffffffff9a000000 T _stext
ffffffff9a000010 t twice
ffffffff9a000080 t twice
ffffffff9a0000a0 t alias_of
ffffffff9a0000a0 t alias_to
ffffffff9a0000b0 t foo.cold
ffffffff9c010240 D init_uts_ns
ffffffff9c0103c8 D init_task
ffffffff9c013000 D last_of_data
ffffffffc0201000 t helper\t[e1000]
ffffffffc0201040 t other\t[e1000]
ffffffffc0100000 t early\t[nvme]
"""


@pytest.fixture
def symbols(tmp_path):
    (tmp_path / "kallsyms").write_text(TEXT)
    found = Symbols(tmp_path)
    yield found
    found.close()


@pytest.mark.parametrize(
    ("name", "address", "size", "module"),
    [
        ("init_uts_ns", 0xFFFFFFFF9C010240, 0x188, None),
        ("_text", 0xFFFFFFFF9A000000, 0x10, None),
        ("_stext", 0xFFFFFFFF9A000000, 0x10, None),  # another name of the same place
        ("alias_of", 0xFFFFFFFF9A0000A0, 0x10, None),
        ("foo.cold", 0xFFFFFFFF9A0000B0, 0x2010190, None),
        ("runqueues", 0x1C000, 0xFFFFFFFF9A000000 - 0x1C000, None),
        ("last_of_data", 0xFFFFFFFF9C013000, 0xFFFFFFFFC0100000 - 0xFFFFFFFF9C013000, None),
        ("helper", 0xFFFFFFFFC0201000, 0x40, "e1000"),
        ("early", 0xFFFFFFFFC0100000, 0x101000, "nvme"),  # modules are in no order
        ("other", 0xFFFFFFFFC0201040, 0, "e1000"),  # nothing comes after it
    ],
)
def test_a_symbol_reaches_to_the_next(symbols, name, address, size, module):
    found = symbols.find(name)
    assert (found.address, found.size, found.module) == (address, size, module)


def test_two_of_a_name_are_refused_and_both_places_said(symbols):
    words = "2 symbols twice: at 0xffffffff9a000010, 0xffffffff9a000080"
    with pytest.raises(NoSuchNode, match=words):
        symbols.find("twice")


@pytest.mark.parametrize(
    "name", ["nothing", "", "init_uts", "nit_uts_ns", "a b", "x\ny", "[e1000]", ".*", "é"]
)
def test_what_is_no_symbol(symbols, name):
    with pytest.raises(NoSuchNode, match="no symbol"):
        symbols.find(name)


def test_a_kernel_without_names_of_data_says_what_it_lacks(tmp_path):
    (tmp_path / "kallsyms").write_text("ffffffff9a000000 T _text\n")
    with pytest.raises(NoSuchNode, match="CONFIG_KALLSYMS_ALL"):
        Symbols(tmp_path).find("init_uts_ns")


def test_addresses_that_are_withheld_are_no_addresses(tmp_path):
    (tmp_path / "kallsyms").write_text("0000000000000000 T _text\n0000000000000000 D init_task\n")
    with pytest.raises(NoSuchNode, match="kptr_restrict"):
        Symbols(tmp_path).find("init_task")


def test_a_kernel_without_symbols_says_what_it_lacks(tmp_path):
    with pytest.raises(NoSuchNode, match="CONFIG_KALLSYMS"):
        Symbols(tmp_path).find("init_task")


def test_patterns_list_by_address(symbols):
    assert list(symbols.matching("init_*")) == [
        Symbol("init_uts_ns", 0xFFFFFFFF9C010240, 0x188, "D"),
        Symbol("init_task", 0xFFFFFFFF9C0103C8, 0x2C38, "D"),
    ]
    assert [one.name for one in symbols.matching("*e*r")] == ["helper", "other"]
    assert [one.size for one in symbols.matching("_*text")] == [0x10, 0x10]


def test_a_module_that_is_loaded_again_elsewhere_is_found_there(symbols, tmp_path):
    assert symbols.find("helper").address == 0xFFFFFFFFC0201000
    (tmp_path / "kallsyms").write_text(TEXT.replace("c0201000 t helper", "c0301000 t helper"))
    assert symbols.find("helper").address == 0xFFFFFFFFC0301000


def test_it_never_blocks_on_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "kallsyms")
    with pytest.raises(NoSuchNode):
        Symbols(tmp_path).find("init_task")
