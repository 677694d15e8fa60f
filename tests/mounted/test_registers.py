"""Registers and fields as files, on the simulated machine: names, rights, maps that change."""

import errno
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from barfs.machine import simulated
from mounted.conftest import TIMEOUT, mounted
from mounted.test_docs import fits, run, steps

DOCUMENT = (Path(__file__).parents[2] / "docs/registers.md").read_text()


@pytest.fixture
def maps(tmp_path):
    directory = tmp_path / "maps"
    directory.mkdir(mode=0o755)
    return directory


@pytest.fixture
def mount(fuse, tmp_path, maps):
    (tmp_path / "machine").mkdir()
    machine = simulated.build(tmp_path / "machine")
    with mounted(machine, tmp_path, "--registers", maps, "--log-reads") as found:
        yield found


def write_map(maps, subject, registers, *, bar=0):
    content = {"format": "barfs registers 1", "for": [subject]}
    content["parts"] = [{"in": f"bar{bar}", "registers": registers}]
    file = maps / f"{subject}.json"
    file.write_text(json.dumps(content))
    file.chmod(0o644)
    return file


def register(name, offset, *fields, **more):
    return {"name": name, "offset": offset, "width": 32, "fields": list(fields), **more}


def test_the_document(fuse, tmp_path, monkeypatch):
    """Its commands, in a directory with its description, print what it shows."""
    (source,) = re.findall(r"^```systemrdl\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)
    (tmp_path / "fpga.rdl").write_text(source)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    (block,) = re.findall(r"^```console\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)
    said = steps(block)
    try:
        printed = run([command for command, _ in said], tmp_path)
    finally:
        if os.path.ismount(tmp_path / "bars"):
            subprocess.run(["umount", tmp_path / "bars"], timeout=TIMEOUT, check=True)
    for (command, expected), lines in zip(said, printed, strict=True):
        assert fits(expected, lines), (command, lines)


def test_the_example_of_the_format_is_a_map(tmp_path):
    from barfs.registers.maps import Map

    (example,) = re.findall(r"^```json\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)
    assert Map.parse(example.encode()).name == "My FPGA"


def test_a_field_is_read_and_written_by_number_name_and_mask(mount):
    regs = mount.path / "8086:100e/regs"
    assert (regs / "STATUS").read_text() == "0x80080783\n"
    assert (regs / "STATUS.LU").read_text() == "1\n"
    assert (regs / "STATUS.SPEED").read_text() == "0x2 M1000\n"
    (regs / "CTRL.SPEED").write_text("M100\n")
    assert (regs / "CTRL.SPEED").read_text() == "0x1 M100\n"
    assert (regs / "CTRL").read_text() == "0x00140140\n"
    (regs / "CTRL.SPEED").write_text("0x2:0x2")
    assert (regs / "CTRL.SPEED").read_text() == "0x3\n"
    (regs / "CTRL").write_text("0x0:0x300\n")
    assert (regs / "CTRL").read_text() == "0x00140040\n"
    records = [json.loads(line) for line in (mount.path / "log").read_text().splitlines()]
    named = [r for r in records if r.get("field") == "SPEED" and r["event"] == "write"]
    assert [(r["register"], r["value"], r["raw"]) for r in named] == [
        ("CTRL", "M100", "0x00140140"),
        ("CTRL", "0x2:0x2", "0x00140340"),
    ]


def refused(path, flags, data=None):
    """The errno of opening, of one request, or of closing: that carries out a line that is none."""
    found = None
    try:
        fd = os.open(path, flags)
    except OSError as error:
        return error.errno
    try:
        if data is None:
            os.read(fd, 100)
        else:
            os.write(fd, data)
    except OSError as error:
        found = error.errno
    try:
        os.close(fd)
    except OSError as error:
        found = found or error.errno
    return found


def test_access_is_kept_for_root_too(mount):
    regs = mount.path / "8086:100e/regs"
    before = (mount.path / "8086:100e/bar0").read_bytes()
    for name in ("STATUS", "STATUS.LU", "ICR.LSC", "config/VENDOR_ID"):
        written = refused(regs / name, os.O_WRONLY, b"1")
        assert written == (None if name == "ICR.LSC" else errno.EROFS), name
    for name in ("IMC", "ICS.LSC"):
        assert refused(regs / name, os.O_RDONLY) == errno.EACCES
    for name, text in (("CTRL.FD", b"2"), ("CTRL.FD", b"x"), ("MDIC.OP", b"1"), ("CTRL", b"")):
        expected = errno.EINVAL if text else None
        assert refused(regs / name, os.O_WRONLY, text) == expected, name
    after = bytearray((mount.path / "8086:100e/bar0").read_bytes())
    after[0xC0:0xC4] = before[0xC0:0xC4]
    assert bytes(after) == before


def test_what_reading_has_an_effect_on_opens_and_is_not_listed(mount):
    directory = mount.path / "8086:100e"
    for where in ("regs", "decode"):
        names = os.listdir(directory / where)
        assert "STATUS" in names
        assert not [name for name in names if name.startswith(("ICR", "GPRC"))]
    assert (directory / "regs/ICR.LSC").read_text() == "0\n"
    assert (directory / "decode/ICR").read_text().startswith("ICR 0x00000000 ")
    readme = (directory / "regs/README").read_text()
    assert "  ICR: ICR.TXDW and 12 more are cleared by reading\n" in readme
    text = (directory / "decode/all").read_text()
    assert "ICR is not read: ICR.TXDW and 12 more are cleared by reading\n" in text
    assert "IMC is not read: it is write-only\n" in text
    assert "STATUS 0x80080783 device status\n" in text
    assert "config/COMMAND 0x0003 command\n" in text
    records = [json.loads(line) for line in (mount.path / "log").read_text().splitlines()]
    assert {r["path"] for r in records if r.get("offset") == "0xc0"} == {
        "pci/0000:00:03.0/regs/ICR.LSC"
    }


def test_a_map_that_is_changed_is_read_anew_and_one_that_is_wrong_is_told_of(mount, maps):
    regs = mount.path / "1b36:0010/regs"
    assert (regs / "CAP.DSTRD").exists()
    file = write_map(maps, "1b36:0010", [register("MINE", 0)])
    assert sorted(os.listdir(regs)) == ["MINE", "README", "config"]
    assert f"registers: {file}" in (mount.path / "1b36:0010/info").read_text()
    write_map(maps, "1b36:0010", [register("OTHER", 0x3FFC, {"name": "F", "lsb": 0})])
    assert sorted(os.listdir(regs)) == ["OTHER", "OTHER.F", "README", "config"]
    status = mount.path / "status"
    assert str(maps) not in status.read_text()
    write_map(maps, "1b36:0010", [register("OTHER", 0x4000)])
    reason = f"{file} is refused: OTHER at 0x4000 is past the end of bar0, which has 0x4000 bytes"
    assert reason in status.read_text()
    assert reason in (regs / "README").read_text()
    assert sorted(os.listdir(regs)) == ["README", "config"]
    with pytest.raises(FileNotFoundError):
        (regs / "OTHER").read_text()
    write_map(maps, "1b36:0010", [register("OTHER", 0)])
    file.chmod(0o666)
    assert "others may write it" in status.read_text()
    file.chmod(0o644)
    assert (regs / "OTHER").read_text() == "0x0f0107ff\n"
    opened = os.open(regs / "OTHER", os.O_RDONLY | os.O_PATH)
    file.unlink()
    with pytest.raises(FileNotFoundError):
        open(f"/proc/self/fd/{opened}").close()
    os.close(opened)
    assert (regs / "CAP.DSTRD").exists()


def test_a_directory_of_18000_names_is_listed_in_reasonable_time(mount, maps):
    fields = [{"name": f"F{n}", "lsb": 4 * n, "msb": 4 * n + 3} for n in range(8)]
    write_map(maps, "1b36:0010", [register(f"REG{n}", 4 * n, *fields) for n in range(2000)])
    started = time.monotonic()
    listed = subprocess.run(
        ["ls", "-f", mount.path / "1b36:0010/regs"], stdout=subprocess.PIPE, text=True, check=True
    )
    assert len(listed.stdout.split()) == 18_000 + 2
    assert time.monotonic() - started < TIMEOUT / 2
    assert (mount.path / "1b36:0010/regs/REG1999.F7").read_text() == "0x0\n"


def test_a_register_in_halves_and_arrays(mount, maps):
    wide = register("WIDE", 0, {"name": "LOW", "lsb": 4, "msb": 7}, {"name": "HIGH", "lsb": 40})
    wide |= {"width": 64, "access_width": 32}
    grid = {"name": "GRID", "offset": 0x100, "width": 16, "count": [2, 3], "stride": 4}
    write_map(maps, "1b36:0010", [wide, grid])
    regs = mount.path / "1b36:0010/regs"
    assert (regs / "WIDE").read_text() == "0x004018200f0107ff\n"
    (regs / "WIDE.HIGH").write_text("1")
    assert (regs / "WIDE").read_text() == "0x004019200f0107ff\n"
    (regs / "WIDE").write_text("0x1122334455667788")
    assert (mount.path / "1b36:0010/u32/bar0").read_bytes()[:8].hex() == "8877665544332211"
    assert sorted(os.listdir(regs / "GRID/1")) == ["0", "1", "2"]
    (regs / "GRID/1/2").write_text("0x1234")
    assert (mount.path / "1b36:0010/x16/bar0@114").read_text() == "0x1234\n"


def test_where_registers_say_that_others_are(mount, maps):
    """As xHCI's operational registers, and its ports."""
    ports = {"name": "PORT", "offset": 0x20, "count": 8, "stride": 4, "limit": "PARAMS.PORTS"}
    base = {"name": "OP", "offset": 0, "base": "LENGTH"}
    write_map(
        maps,
        "1b36:0010",
        [
            register("LENGTH", 0x100) | {"width": 8},
            register("PARAMS", 0x104, {"name": "PORTS", "lsb": 4, "msb": 7}),
            {
                **base,
                "registers": [register("CMD", 4), {**ports, "registers": [register("SC", 0)]}],
            },
        ],
    )
    regs = mount.path / "1b36:0010/regs"
    (regs / "LENGTH").write_text("0x40")
    (regs / "PARAMS.PORTS").write_text("3")
    (regs / "OP/CMD").write_text("0x12345678")
    assert (mount.path / "1b36:0010/x32/bar0@44").read_text() == "0x12345678\n"
    (regs / "OP/PORT/2/SC").write_text("7")
    assert (mount.path / "1b36:0010/x32/bar0@68").read_text() == "0x00000007\n"
    records = [json.loads(line) for line in (mount.path / "log").read_text().splitlines()]
    written = [r for r in records if r["event"] == "write" and r.get("register") == "OP/CMD"]
    assert [r["offset"] for r in written] == ["0x44"]
    with pytest.raises(FileNotFoundError):
        (regs / "OP/PORT/3/SC").read_text()
    text = (mount.path / "1b36:0010/decode/all").read_text()
    assert "OP/CMD 0x12345678" in text
    assert "OP/PORT/2/SC 0x00000007" in text
    assert "OP/PORT/3/SC" not in text
    (regs / "LENGTH").write_text("0x41")
    assert refused(regs / "OP/CMD", os.O_RDONLY) == errno.EINVAL


def test_config_space_and_physical_ranges(mount):
    config = mount.path / "8086:100e/regs/config"
    assert (config / "VENDOR_ID").read_text() == "0x8086\n"
    assert (config / "COMMAND.MEM").read_text() == "1\n"
    (config / "COMMAND.MASTER").write_text("1")
    assert (mount.path / "8086:100e/config").read_bytes()[4:6] == b"\x07\x00"
    ioapic = mount.path / "phys/regs/IOAPIC0"
    (ioapic / "IOREGSEL.INDEX").write_text("1")
    assert (mount.path / "phys/x32/fec00000").read_text() == "0x00000001\n"
    assert "IOWIN.DATA" in os.listdir(ioapic)
