"""What `barfs ls` prints."""

import contextlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import termios

import pytest
from machines import Witness, functions_of

from barfs.errors import NoSuchNode
from barfs.machine import simulated
from barfs.machine.functions import Functions
from barfs.names import PciAddress
from barfs.registers.files import BUILT_IN
from barfs.report import info, listing
from barfs.report.listing import show
from barfs.report.looks import Look

PCI_IDS = """\
1af4  Red Hat, Inc.
\t1110  Inter-VM shared memory
\t\t1af4 1100  QEMU Virtual Machine
8086  Intel Corporation
\t100e  82540EM Gigabit Ethernet Controller
C 01  Mass storage controller
\t08  Non-Volatile memory controller
\t\t02  NVM Express
C 05  Memory controller
\t00  RAM memory
"""

IVSHMEM_ROW = ("1af4:1110", "Inter-VM shared memory", "-", "bar0 256  bar2 1M prefetchable")
NVME_CLASS = "class 010802 Non-Volatile memory controller, NVM Express"
ROWS = [
    (
        *("0000:00:03.0", "8086:100e", "82540EM Gigabit Ethernet Controller", "e1000"),
        "bar0 128K  bar1 64 I/O  rom 64K prefetchable",
    ),
    ("0000:00:04.0", *IVSHMEM_ROW),
    ("0000:00:05.0", *IVSHMEM_ROW),
    ("0000:01:00.0", "1b36:0010", NVME_CLASS, "-", "bar0 16K"),
]

FIRST = "0000:00:04.0"
SECOND = "0000:00:05.0"
E1000 = "0000:00:03.0"
NVME = "0000:01:00.0"
ALL = [E1000, FIRST, SECOND, NVME]


@pytest.fixture
def sysfs(tmp_path):
    return simulated.build(tmp_path).sysfs


@pytest.fixture
def devices(sysfs):
    return sysfs / "bus/pci/devices"


@pytest.fixture
def ls(sysfs, tmp_path):
    path = tmp_path / "pci.ids"
    path.write_text(PCI_IDS)

    def ls(pattern=None, form="table"):
        return "".join(f"{line}\n" for line in show(sysfs, pattern, form, [path]))

    return ls


def addresses(text):
    return [line.split()[0] for line in text.splitlines()]


def test_a_row_a_function_in_aligned_columns(ls):
    assert ls() == "".join(
        f"{address:12}  {number:9}  {name:56}  {driver:5}  {bars}\n"
        for address, number, name, driver, bars in ROWS
    )


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        (None, ALL),
        # one language of patterns
        ("*", ALL),
        ("1af4", [FIRST, SECOND]),
        ("1af4:", [FIRST, SECOND]),
        ("1AF4:*", [FIRST, SECOND]),
        (":100e", [E1000]),
        ("1af4-1110", [FIRST, SECOND]),
        ("1af4-1110.1", [SECOND]),
        ("*:*:1af4:1100", ALL),
        ("00:", [E1000, FIRST, SECOND]),
        ("00.0", [NVME]),
        ("00-05.0", [SECOND]),
        ("0000:00:0[45].?", [FIRST, SECOND]),
        # vendor:device, as links are named
        ("1af4:1110", [FIRST, SECOND]),
        ("1AF4:1110", [FIRST, SECOND]),
        ("1af4:1110.1", [SECOND]),
        ("1af4:1110:1af4:1100", [FIRST, SECOND]),
        ("1af4:1110:1AF4:1100.1", [SECOND]),
        ("8086:100e", [E1000]),
        ("8086:100E:1af4:1100", [E1000]),
        *((absent, []) for absent in ("1af4:1110.2", "1af4:1110:1af4:1101", "1af4:1111")),
        # PCI addresses
        ("0000:00:05.0", [SECOND]),
        ("0000:00:06.0", []),
        ("00:05.0", [SECOND]),
        ("0000:01", [NVME]),
        # parts of names
        ("ethernet", [E1000]),
        ("INTEL", [E1000]),
        ("Intel Corporation 82540", [E1000]),
        ("e1000", [E1000]),
        ("memory", [FIRST, SECOND, NVME]),
        ("nvm express", [NVME]),
        ("010802", [NVME]),
        ("red hat", [FIRST, SECOND]),
        ("1b36", [NVME]),
        *(
            (absent, [])
            for absent in (
                "none",
                "qemu virtual",
                "e1001",
                "1af4 1110",
                "1110",
                "\n\n",
                "\xe9",
                "\udcff",
            )
        ),
    ],
)
def test_patterns(ls, pattern, found):
    if found:
        assert addresses(ls(pattern)) == found
        return
    with pytest.raises(NoSuchNode, match=r"^nothing matches ") as caught:
        ls(pattern)
    assert str(caught.value).isascii()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pattern", [None, "1af4:1110.1", "memory"])
def test_the_text_of_info_separated_by_blank_lines(ls, sysfs, tmp_path, pattern):
    texts = [
        info.describe(functions_of(sysfs), PciAddress.parse(address), [tmp_path / "pci.ids"])
        for address in addresses(ls(pattern))
    ]
    assert ls(pattern, "text") == "\n".join(texts)


def test_json(ls):
    (first,) = json.loads(ls("0000:00:03.0", "json"))
    assert first == {
        "silent": [],
        "address": "0000:00:03.0",
        "id": "8086:100e",
        "vendor_name": "Intel Corporation",
        "device_name": "82540EM Gigabit Ethernet Controller",
        "subsystem": "1af4:1100",
        "subsystem_vendor_name": "Red Hat, Inc.",
        "subsystem_name": None,
        "class": "020000",
        "class_name": None,
        "revision": "00",
        "driver": "e1000",
        "power_state": "D0",
        "memory_decoding": True,
        "io_decoding": True,
        "bus_master": False,
        "numa_node": -1,
        "resources": [
            {
                "name": "bar0",
                "address": 0xFEB00000,
                "size": 0x20000,
                "space": "memory",
                "64bit": False,
                "prefetchable": False,
                "read_as": "registers",
                "read_as_why": "not prefetchable",
                "file": "pci/0000:00:03.0/bar0",
            },
            {
                "name": "bar1",
                "address": 0xC000,
                "size": 64,
                "space": "io",
                "64bit": False,
                "prefetchable": False,
                "read_as": "registers",
                "read_as_why": "I/O ports",
                "file": "pci/0000:00:03.0/bar1",
            },
            {
                "name": "rom",
                "address": 0xFEB30000,
                "size": 0x10000,
                "space": "memory",
                "64bit": False,
                "prefetchable": True,
                "read_as": None,
                "read_as_why": None,
                "file": "pci/0000:00:03.0/rom",
            },
        ],
        "registers": str(BUILT_IN / "8086:100e.json"),
        "registers_refused": None,
    }
    objects = json.loads(ls(None, "json"))
    assert [one["address"] for one in objects] == ALL
    assert {tuple(one) for one in objects} == {tuple(first)}
    assert objects[1]["resources"][1]["64bit"] is True


def test_what_is_unknown(ls, devices):
    directory = devices / FIRST
    shutil.rmtree(directory)
    directory.mkdir()
    row = next(line for line in ls().splitlines() if line.startswith(FIRST))
    assert row.split() == [FIRST, "unknown", "class", "unknown", "-"]
    (found,) = json.loads(ls(FIRST, "json"))
    assert found.pop("address") == FIRST
    assert set(found.values()) == {None}
    # Nor is it found by what it might be.
    assert addresses(ls("1af4:1110")) == [SECOND]
    with pytest.raises(NoSuchNode):
        ls("unknown")


def test_a_bar_without_an_address(ls, devices):
    (devices / FIRST / "resource").write_text("0x0 0xfff 0x20000200\n0x0 0x1f 0x20000101\n")
    row = ls(FIRST)
    assert row.endswith("bar0 4K not assigned  bar1 32 I/O not assigned\n")
    (found,) = json.loads(ls(FIRST, "json"))
    assert [(one["address"], one["size"]) for one in found["resources"]] == [
        (None, 4096),
        (None, 32),
    ]


def test_a_table_reads_no_config_space_and_the_others_only_that_of_what_they_show(ls, monkeypatch):
    sources = []

    def witness(machine, sysfs):
        assert machine is None
        sources.append(Witness(sysfs))
        return sources[-1]

    monkeypatch.setattr(listing, "source_at", witness)
    ls()
    assert sources.pop().touched() == []
    for form in ("text", "json"):
        ls("1af4:1110", form)
        assert set(sources.pop().touched()) == {f"{FIRST}/config", f"{SECOND}/config"}


@pytest.mark.parametrize("form", ["table", "text", "json"])
@pytest.mark.parametrize("moment", ["id", "resources", "read_config"])
def test_what_vanishes_meanwhile_is_left_out(ls, devices, monkeypatch, form, moment):
    asked = getattr(Functions, moment)

    def vanish_and_ask(pci, address, *where):
        shutil.rmtree(devices / FIRST, ignore_errors=True)
        return asked(pci, address, *where)

    monkeypatch.setattr(Functions, moment, vanish_and_ask)
    text = ls(None, form)
    # A table has been made before anybody asks for a command register.
    assert (FIRST in text) == (form == "table" and moment == "read_config")
    assert all(address in text for address in (E1000, SECOND, NVME))
    assert form != "text" or "\n\n\n" not in text


def test_the_table_is_aligned_for_any_number_of_rows(ls, devices):
    for address in ALL:
        shutil.rmtree(devices / address)
        left = ls().splitlines()
        assert len({line.index("bar0") for line in left}) <= 1
    assert ls() == ""
    assert ls(None, "text") == ""
    assert json.loads(ls(None, "json")) == []


def test_a_machine_without_pci_and_no_machine(tmp_path):
    with pytest.raises(NoSuchNode, match=f"{tmp_path} shows no PCI functions"):
        list(show(tmp_path, None, "table"))
    for path in (tmp_path / "nowhere", tmp_path / "file"):
        (tmp_path / "file").touch()
        with pytest.raises(NoSuchNode, match=f"--sysfs {path} is not a directory"):
            list(show(path, None, "table"))


def barfs(*arguments, **more):
    command = [sys.executable, "-m", "barfs", *arguments]
    more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    return subprocess.run(command, text=True, timeout=30, check=False, **more)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "bar0 128K"),
        (["-v"], "\nbus master: off\n"),
        (["--verbose", "00:03.0"], "\ndriver: e1000\n"),
        (["--json", "1AF4:1110.1"], '"address": "0000:00:05.0"'),
        (["-v", "-s", "3.0", "-d", "8086:"], "\ndriver: e1000\n"),
        (["-v", "-s", "00:03"], "\ndriver: e1000\n"),
        (["-s", "3"], "bar0 128K"),
    ],
)
def test_the_command(sysfs, arguments, expected):
    done = barfs("ls", "--sysfs", sysfs, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert expected in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "stderr"),
    [
        (["no such"], 1, "barfs: nothing matches 'no such'\n"),
        (["--json", "1af4:1110.7"], 1, "barfs: nothing matches '1af4:1110.7'\n"),
        (["--sysfs", "/nowhere"], 1, "barfs: --sysfs /nowhere is not a directory\n"),
        (["-v", "--json"], 2, "barfs ls: argument --json: not allowed with argument -v"),
        (["one", "two"], 2, "barfs ls: 'two' is a word too many; it takes at most one PATTERN\n"),
        (["-s", "1af4:1110"], 2, "barfs ls: argument -s: '1af4:1110' can match no function: it "),
        (["-d", "00:03.0"], 2, "barfs ls: argument -d: '00:03.0' can match no function: it takes"),
        (["-s", "00:07.0"], 1, "barfs: nothing matches 00:07.0\n"),
        ([""], 1, "barfs: the pattern is empty; leave it out to have all functions\n"),
    ],
)
def test_the_command_in_vain(sysfs, arguments, status, stderr):
    done = barfs("ls", "--sysfs", sysfs, *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(stderr)
    assert status == 2 or done.stderr == stderr


@pytest.mark.parametrize("copies", [0, 2000])
@pytest.mark.parametrize("form", ["", "-v", "--json"])
def test_a_closed_pipe_ends_it_silently(sysfs, devices, copies, form):
    """Both when the output fits in a buffer, written at the end, and when it does not."""
    for number in range(copies):
        (devices / f"{number:04x}:ff:1f.7").mkdir()
    receive, send = os.pipe()
    os.close(receive)
    # Unbuffered, nothing would be left to write at the end.
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = barfs("ls", "--sysfs", sysfs, *filter(None, [form]), stdout=send, env=buffered)
    os.close(send)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.fixture
def large(ls, devices, tmp_path):
    """A machine with long names and many BARs, as a list at a terminal has to fit."""
    resource = (devices / E1000 / "resource").read_text().splitlines()
    for index, line in ((2, "0x900000000 0x9003fffff 0x14220c"), (4, "0x0 0x3fff 0x40200")):
        resource[index] = line
    (devices / E1000 / "resource").write_text("\n".join(resource) + "\n")

    def large(**look):
        return list(
            show(devices.parents[2], None, "table", [tmp_path / "pci.ids"], look=Look(**look))
        )

    return large


@pytest.mark.parametrize("width", [72, 80, 100, 120, 200])
def test_at_a_terminal_it_has_a_heading_and_fits(large, width):
    lines = large(width=width)
    assert lines[0].split() == ["ADDRESS", "ID", "NAME", "DRIVER", "BARS"]
    assert max(map(len, lines)) <= width
    # Names are cut, sizes are not: all BARs are there, word for word.
    at = lines[0].index("BARS")
    assert [line[at:].split() for line in lines[1:] if line[:12].strip() == ""] or width > 150
    shown = " ".join(line[at:] for line in lines[1:])
    whole = [line.split(ROWS[0][3] if "e1000" in line else "  -  ")[-1] for line in large()]
    assert shown.split() == " ".join(whole).split()
    names = [line[lines[0].index("NAME") : lines[0].index("DRIVER")] for line in lines[1:]]
    assert (".." in "".join(names)) == (width < 150)


def test_through_a_pipe_it_is_whole_and_plain(large):
    assert all("  bar0 " in line for line in large())
    assert not any(".." in line or "\x1b" in line for line in large())


def test_colours_are_added_and_change_nothing_else(large):
    plain, coloured = large(width=80), large(width=80, colour=True)
    assert any("\x1b[" in line for line in coloured)
    assert [re.sub("\x1b\\[[0-9]*m", "", line) for line in coloured] == plain


@pytest.mark.parametrize(
    ("environment", "colour"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "xterm", "NO_COLOR": ""}, True),
        ({"TERM": "dumb"}, False),
        ({}, False),
    ],
)
@pytest.mark.parametrize("command", ["ls", "doctor"])
def test_the_command_at_a_terminal(tmp_path, command, environment, colour):
    machine = simulated.build(tmp_path)
    options = [f"--{name}={path}" for name, path in vars(machine).items()]
    command = [command, *(options if command == "doctor" else options[:1])]
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 77))
    env = {"PATH": os.environ["PATH"], **environment}
    done = barfs(*command, stdout=theirs, env=env)
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # it has all been read
        while piece := os.read(ours, 1 << 16):
            said += piece
    os.close(ours)
    assert done.stderr == ""
    assert (b"\x1b[" in said) is colour
    lines = re.sub(rb"\x1b\[[0-9]*m", b"", said).decode().splitlines()
    assert lines[0].split()[0] in {"ADDRESS", "STATE"}
    if command[0] == "ls":
        assert max(map(len, lines)) <= 77
    assert barfs(*command).stdout.splitlines()[0] != lines[0]
