"""Text of lspci: what it says is known, and what it does not say is unknown."""

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barfs.errors import BadRecording, NotRecorded
from barfs.machine import lspci as lspci_text
from barfs.machine import simulated
from barfs.machine.functions import AllFunctions
from barfs.machine.lspci import parse_lspci
from barfs.machine.pciids import PciIds
from barfs.machine.recorded import RecordedSource
from barfs.machine.source import PlainSource
from barfs.names import DeviceId, PciAddress
from barfs.report import info
from barfs.report.info import inspect

NIC = PciAddress(0, 0, 3, 0)

# As lspci 3.9.0 prints them.
CONFIG = """\
00: 86 80 0e 10 07 01 10 00 03 00 00 02 00 00 00 00
10: 00 00 b8 fe 01 c0 00 00 00 00 00 00 00 00 00 00
20: 00 00 00 00 00 00 00 00 00 00 00 00 f4 1a 00 11
30: 00 00 b0 fe 00 00 00 00 00 00 00 00 0b 01 00 00
"""
SLOTS = {
    "": "00:03.0 Ethernet controller: Intel Corporation 82540EM Gigabit Ethernet (rev 03)",
    "-n": "00:03.0 0200: 8086:100e (rev 03)",
    "-nn": "00:03.0 Ethernet controller [0200]: Intel Corporation 82540EM [8086:100e] (rev 03)",
    "-nnD": "0000:00:03.0 Ethernet controller [0200]: Intel [Foo] 82540EM [8086:100e] (rev 03)",
}
VERBOSE = """\
\tSubsystem: Red Hat, Inc. QEMU Virtual Machine [1af4:1100]
\tControl: I/O+ Mem+ BusMaster+ SpecCycle- MemWINV- VGASnoop- ParErr- Stepping- SERR+ FastB2B-
\tStatus: Cap- 66MHz- UDF- FastB2B- ParErr- DEVSEL=fast >TAbort- <TAbort- <MAbort- >SERR- INTx-
\tLatency: 0
\tInterrupt: pin A routed to IRQ 11
\tNUMA node: 1
\tIOMMU group: 7
\tRegion 0: Memory at feb80000 (32-bit, non-prefetchable) [size=128K]
\tRegion 1: I/O ports at c000 [size=64]
\tRegion 4: Memory at 7000000000 (64-bit, prefetchable) [disabled] [size=8G]
\tExpansion ROM at feb00000 [disabled] [size=512K]
\tKernel driver in use: e1000
\tKernel modules: e1000
"""
# With a single -v the BARs have no numbers.
BRIEF = """\
\tSubsystem: Red Hat, Inc. QEMU Virtual Machine [1af4:1100]
\tFlags: bus master, fast devsel, latency 0, IRQ 11
\tMemory at feb80000 (32-bit, non-prefetchable) [size=128K]
\tI/O ports at c000 [size=64]
\tExpansion ROM at feb00000 [disabled] [size=512K]
"""


def source_of(text):
    recording = parse_lspci(Path("/lspci.txt"), text)
    return None if recording is None else RecordedSource(recording)


def functions_in(text):
    return AllFunctions(source_of(text))


@pytest.mark.parametrize("form", ["-n", "-nn", "-nnD"])
def test_ids(form):
    pci = functions_in(SLOTS[form] + "\n")
    assert pci.addresses() == [NIC]
    assert pci.id(NIC) == DeviceId(0x8086, 0x100E)
    assert pci.attribute(NIC, "revision") == "0x03"
    for name in ("class", "subsystem_vendor", "resource", "numa_node", "power_state"):
        assert pci.attribute(NIC, name) is None, name


def test_what_is_not_said_is_unknown():
    pci = functions_in(SLOTS[""] + "\n")
    function = inspect(pci, NIC, PciIds(()))
    found = info.complete(pci, function, PciIds(()))
    said = {key: value for key, value in found.as_object.items() if value is not None}
    assert said == {"address": "0000:00:03.0", "revision": "03"}
    lines = found.text.splitlines()
    assert "driver: unknown" in lines
    assert "id: unknown" in lines
    config = pci.open_config(NIC, writable=False)
    with pytest.raises(NotRecorded):
        config.read(0, 4)


def test_config_space_alone_says_ids_and_class():
    pci = functions_in(f"{SLOTS['']}\n{CONFIG}")
    assert pci.id(NIC) == DeviceId(0x8086, 0x100E)
    assert pci.subsystem(NIC) == DeviceId(0x1AF4, 0x1100)
    assert pci.attribute(NIC, "class") == "0x020000"
    assert pci.known(NIC, pci.bars) is None  # how large they are nobody says
    config = pci.open_config(NIC, writable=False)
    assert config.read(0, 4096) == b"".join(bytes.fromhex(row[4:]) for row in CONFIG.splitlines())
    assert config.size == 256
    with pytest.raises(NotRecorded):
        config.read(64, 4)


def test_verbose_text():
    pci = functions_in(f"{SLOTS['-nn']}\n{VERBOSE}")
    resources = pci.resources(NIC)
    assert sorted(resources) == [0, 1, 4, 6]
    assert (resources[0].start, resources[0].size) == (0xFEB80000, 128 << 10)
    assert (resources[1].start, resources[1].size, resources[1].is_memory) == (0xC000, 64, False)
    assert (resources[4].start, resources[4].size) == (0x7000000000, 8 << 30)
    assert resources[4].is_64bit
    assert resources[4].prefetchable
    assert not resources[0].prefetchable
    assert pci.rom_size(NIC) == 512 << 10
    assert pci.driver(NIC) == "e1000"
    assert pci.attribute(NIC, "numa_node") == "1"
    assert pci.attribute(NIC, "class") == "0x020000"  # an interface that is 0 is not printed
    assert pci.group(NIC) == [NIC]


def test_bars_without_numbers_have_them_from_config_space():
    pci = functions_in(f"{SLOTS['-nn']}\n{BRIEF}{CONFIG}")
    assert {n: bar.start for n, bar in pci.resources(NIC).items()} == {
        0: 0xFEB80000,
        1: 0xC000,
        6: 0xFEB00000,
    }


def test_bars_without_numbers_are_unknown_without_it():
    source = source_of(f"{SLOTS['-nn']}\n{BRIEF}")
    assert AllFunctions(source).attribute(NIC, "resource") is None
    assert "lspci -vv has them" in source.recording.notes[NIC][0]


def test_a_bar_without_a_size_is_left_out_and_said():
    text = VERBOSE.replace("(32-bit, non-prefetchable) [size=128K]", "(32-bit, non-prefetchable)")
    source = source_of(f"{SLOTS['-nn']}\n{text}")
    assert sorted(AllFunctions(source).resources(NIC)) == [1, 4, 6]
    assert source.recording.notes[NIC] == ["bar0: its size is not in this text"]


def test_a_bar_without_an_address():
    text = VERBOSE.replace("at feb80000", "at <unassigned>")
    resource = functions_in(f"{SLOTS['-nn']}\n{text}").resources(NIC)[0]
    assert not resource.assigned
    assert resource.size == 128 << 10


def test_text_that_is_quoted_in_a_mail():
    text = f"{SLOTS['-nn']}\n{VERBOSE}\n{SLOTS['-nn'].replace('03.0', '04.0')}\n{CONFIG}"

    def said(text):
        functions = parse_lspci(Path("x"), text).functions
        return {address: one.attributes for address, one in functions.items()}

    plain = said(text)
    assert len(plain) == 2
    for front in ("> ", ">", "> > "):
        quoted = "".join(f"{front}{line}\n" for line in text.splitlines())
        assert said(quoted) == plain


def test_more_functions_than_any_machine_has(monkeypatch):
    monkeypatch.setattr(lspci_text, "_MOST_FUNCTIONS", 2)
    lines = [f"00:0{n}.0 0200: 8086:100e" for n in range(3)]
    assert len(parse_lspci(Path("x"), "\n".join(lines[:2])).functions) == 2
    with pytest.raises(BadRecording, match="it has more than 2 functions"):
        parse_lspci(Path("x"), "\n".join(lines))


def test_several_outputs_one_after_the_other():
    pci = functions_in(f"{SLOTS['-nn']}\n{VERBOSE}\n{SLOTS['']}\n{CONFIG}")
    assert pci.addresses() == [NIC]
    assert pci.driver(NIC) == "e1000"
    assert len(pci.bars(NIC)) == 3
    assert pci.open_config(NIC, writable=False).read(0, 2) == b"\x86\x80"


def test_no_driver_is_only_none_where_the_text_has_drivers():
    text = f"{SLOTS['-nn']}\n{VERBOSE}\n00:04.0 RAM memory [0500]: Red Hat [1af4:1110]\n"
    other = PciAddress(0, 0, 4, 0)
    assert inspect(functions_in(text), other, PciIds(())).as_object["driver"] is None
    assert "driver: none\n" in inspect(functions_in(text), other, PciIds(())).text
    alone = text.replace("\tKernel driver in use: e1000\n", "").replace(
        "\tKernel modules: e1000\n", ""
    )
    assert "driver: unknown\n" in inspect(functions_in(alone), other, PciIds(())).text


def test_express_devices_have_4096_bytes():
    """By the capability in the first 256 bytes; the rest is not known."""
    config = bytearray(256)
    config[0:12] = bytes.fromhex("f41a411007041000 01 00 00 02".replace(" ", ""))
    config[0x34] = 0x40
    config[0x40:0x42] = b"\x10\0"
    lines = [f"{at:02x}: {config[at : at + 16].hex(' ')}\n" for at in range(0, 256, 16)]
    pci = functions_in(f"{SLOTS['-n']}\n{''.join(lines)}")
    assert pci.config_size(NIC) == 4096
    file = pci.open_config(NIC, writable=False)
    assert file.read(0, 4096) == bytes(config)
    with pytest.raises(NotRecorded):
        file.read(256, 4)


@pytest.fixture(scope="module")
def lspci(require, tmp_path_factory):
    """Runs lspci on the simulated machine, with what it needs besides; and the machine."""
    require(shutil.which("lspci") is not None, "lspci")
    paths = simulated.build(tmp_path_factory.mktemp("machine"))
    for directory in (paths.sysfs / "bus/pci/devices").iterdir():
        (directory / "irq").write_text("11\n")

    def run(options):
        where = ["-A", "linux-sysfs", "-O", f"sysfs.path={paths.sysfs}/bus/pci"]
        done = subprocess.run(
            ["lspci", *where, *options.split()], capture_output=True, text=True, check=True
        )
        source = PlainSource(paths.sysfs, paths.proc, paths.proc)
        return functions_in(done.stdout), AllFunctions(source)

    return run


@pytest.mark.parametrize(
    "options",
    [
        *("-n", "-nn", "-x", "-xxx", "-xxxx", "-Dn", "-nnk", "-vn", "-vnn", "-vvn", "-vvx"),
        *("-vx", "-vvnnxxxx", "-vvvnnxxxx", "-nnxxx", "-Dvvnnxxxx -s 00:03.0"),
    ],
)
def test_what_lspci_says_is_what_sysfs_has(lspci, options):
    said, real = lspci(options)
    wanted = [NIC] if "-s" in options else real.addresses()
    assert said.addresses() == wanted
    for address in wanted:
        assert said.id(address) == real.id(address)
        if "v" in options or "x" in options:
            assert said.attribute(address, "class") == real.attribute(address, "class")
            assert said.subsystem(address) == real.subsystem(address)
        if "vv" in options or "vx" in options:
            bars, expected = said.resources(address), real.resources(address)
            assert bars.keys() == expected.keys()
            for index, bar in expected.items():
                assert bars[index][:2] == bar[:2]
                assert bars[index].is_memory == bar.is_memory
                assert bars[index].is_64bit == bar.is_64bit
                assert bars[index].prefetchable == bar.prefetchable
                assert index == 6 or said.reading(address, bars, index) == real.reading(
                    address, expected, index
                )
        else:
            assert said.known(address, said.bars) is None
        length = {"xxxx": 4096, "xxx": 256, "x": 64}.get(options[options.find("x") :].split()[0], 0)
        length = min(length if "x" in options else 0, real.config_size(address))
        if length:
            config = said.open_config(address, writable=False)
            assert config.read(0, 4096) == real.read_config(address, 0, length)
        else:
            assert "config" not in said.source.recording.functions[address].parts


@pytest.mark.parametrize("text", ["", "hello\n", "03.0 x\n", "# lspci\n", "00:03.0\n"])
def test_what_is_no_text_of_lspci(text):
    assert parse_lspci(Path("/x"), text) is None


LINES = [*SLOTS.values(), *VERBOSE.splitlines(), *BRIEF.splitlines(), *CONFIG.splitlines(), ""]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(LINES), st.text(max_size=60)), max_size=30))
def test_any_text_gives_functions_or_none(lines):
    source = source_of("\n".join(lines))
    if source is None:
        return
    pci = AllFunctions(source)
    for address in pci.addresses():
        function = info.complete(pci, inspect(pci, address, PciIds(())), PciIds(()))
        assert all(line.isprintable() for line in function.text.splitlines())
        assert function.as_object["address"] == str(address)
