"""Where facts come from: what differs between a real sysfs and plain files, and what does not."""

import os
import re
import subprocess
import types
from contextlib import closing
from pathlib import Path

import pytest
from machines import functions_of

from barfs.access.files import RomFile, SysfsFile
from barfs.devmem import parse_iomem
from barfs.errors import DeviceGone, FunctionPart
from barfs.machine import simulated, source
from barfs.machine.power import low_power
from barfs.machine.presence import PlainPresence, Presence
from barfs.machine.source import PlainSource, RealSource, source_of
from barfs.names import PciAddress

ADDRESS = PciAddress(0, 0, 4, 0)
MOUNTINFO = "22 28 {number} / {path} rw,nosuid - {kind} sysfs rw\n"


@pytest.fixture(params=[PlainSource, RealSource])
def files(request, tmp_path):
    return request.param(tmp_path, tmp_path / "proc", tmp_path / "boot")


@pytest.mark.parametrize(
    ("kind", "expected"), [("sysfs", RealSource), ("tmpfs", PlainSource), ("xsysfs", PlainSource)]
)
def test_a_real_sysfs_is_told_by_what_is_mounted_there(tmp_path, monkeypatch, kind, expected):
    device = tmp_path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    mounts = MOUNTINFO.format(number="0:4711", path="/sys", kind="sysfs")
    mounts += MOUNTINFO.format(number=number, path=tmp_path, kind=kind)
    real = Path.read_text

    def read_text(path, **more):
        return mounts if path == Path("/proc/self/mountinfo") else real(path, **more)

    monkeypatch.setattr(source.Path, "read_text", read_text)
    found = source_of(tmp_path, tmp_path / "p", tmp_path / "b")
    assert type(found) is expected
    assert (found.sysfs, found.proc, found.boot) == (tmp_path, tmp_path / "p", tmp_path / "b")


def test_what_is_not_there_is_no_sysfs(tmp_path):
    assert type(source_of(tmp_path / "absent")) is PlainSource


def test_reading(files, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(200)) * 100)
    assert files.read(path, 4, 2) == bytes((2, 3, 4, 5))
    assert files.read(str(path)) == path.read_bytes()[:4096]
    assert files.read_all(path) == path.read_bytes()
    assert files.read_all(path, 5000) == path.read_bytes()[:5000]
    assert files.read_all(path, 1 << 20) == path.read_bytes()
    assert files.size(path) == 20000
    path.write_bytes(b"D\xff\n")
    assert files.text(path) == "D\N{REPLACEMENT CHARACTER}\n"
    assert files.text(tmp_path / "absent") is None
    assert files.text("zero\0byte") is None


def test_directories_and_links(files, tmp_path):
    (tmp_path / "driver").symlink_to("../drivers/e1000")
    (tmp_path / "inside").mkdir()
    assert files.target(tmp_path / "driver") == "../drivers/e1000"
    assert sorted(files.names(tmp_path)) == ["driver", "inside"]
    asked = [files.exists(tmp_path / name) for name in ("driver", "inside", "absent")]
    assert asked == [False, True, False]  # the link leads nowhere
    assert [files.is_directory(tmp_path / name) for name in ("inside", "absent")] == [True, False]


@pytest.mark.parametrize("ask", ["read", "read_all", "names", "target", "size"])
def test_what_is_not_there_is_an_oserror(files, tmp_path, ask):
    with pytest.raises(FileNotFoundError):
        getattr(files, ask)(tmp_path / "absent")


def test_writing_makes_no_file(files, tmp_path):
    path = tmp_path / "enable"
    with pytest.raises(FileNotFoundError):
        files.write(path, b"1")
    assert not path.exists()
    path.write_text("0\n")
    files.write(path, b"1")
    assert path.read_text() == "1\n"


def test_what_differs(tmp_path):
    plain, real = (kind(tmp_path, tmp_path, tmp_path) for kind in (PlainSource, RealSource))
    path = tmp_path / "rom"
    path.write_bytes(bytes(64))
    opened = [
        one
        for kind in (plain, real)
        for one in (
            kind.open_rom(path, FunctionPart(ADDRESS, "rom")),
            kind.open_config(path, FunctionPart(ADDRESS, "config"), writable=True),
            kind.presence(path, ADDRESS),
        )
    ]
    for one in opened:
        one.close()
    kinds = [SysfsFile, SysfsFile, PlainPresence, RomFile, SysfsFile, Presence]
    assert [type(one) for one in opened] == kinds
    assert plain.bar_file("resource0", 0xFEB20300) == ("resource0", 0)
    assert real.bar_file("resource0", 0xFEB20300) == ("resource0", 0x300)
    assert plain.watch is None
    plain.hear()
    with pytest.raises(DeviceGone, match=r"^0000:00:04\.0: .*absent"):
        plain.presence(tmp_path / "absent", ADDRESS)


def test_functions_of_a_real_sysfs_come_and_go_with_what_was_heard(tmp_path):
    real = RealSource(tmp_path, tmp_path, tmp_path)
    assert real.stamp() is None, "nobody listens yet"
    waiting = [types.SimpleNamespace(sys_name="0000:00:04.0", action="add")]
    real.watch._monitor = types.SimpleNamespace(poll=lambda _: waiting.pop() if waiting else None)
    before = real.stamp()
    assert before is not None
    assert real.stamp() == before, "to compare is not to hear"
    assert waiting
    real.hear()
    assert real.stamp() != before
    assert not waiting


def test_a_copy_that_tar_made(tmp_path):
    """An attribute says that it has 4096 bytes; tar fills up with NULs what it does not have."""
    paths = simulated.build(tmp_path / "machine")
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in (paths.sysfs / "bus/pci/devices").glob("*/*"):
        if path.is_file() and not re.fullmatch(r"config|rom|resource\d.*", path.name):
            with path.open("r+b") as file:
                file.truncate(4096)
    tar = subprocess.run(
        ["tar", "-C", tmp_path / "machine", "-cf", "-", "sys"], capture_output=True, check=True
    )
    subprocess.run(["tar", "-C", copy, "-xf", "-"], input=tar.stdout, check=True)
    plain, saved = functions_of(paths.sysfs), functions_of(copy / "sys")
    assert (copy / "sys/bus/pci/devices/0000:00:04.0/vendor").read_bytes().endswith(b"\0\0")
    assert saved.addresses() == simulated_addresses()
    assert [str(saved.id(one)) for one in saved.addresses()] == [
        str(device.id) for device in simulated.DEVICES
    ]
    for address in saved.addresses():
        assert saved.resources(address) == plain.resources(address)
        assert saved.attribute(address, "power_state") == "D0"
        with closing(saved.presence(address)) as presence:
            assert presence.resources(address) == saved.resources(address)
    (copy / "sys/bus/pci/devices/0000:00:04.0/power_state").write_bytes(
        b"D3hot\n".ljust(4096, b"\0")
    )
    assert low_power(saved, ADDRESS) == "D3hot"


def simulated_addresses():
    return sorted(device.address for device in simulated.DEVICES)


def test_what_is_garbage_is_shown_in_a_line_at_the_most(tmp_path, caplog):
    pci = functions_of(simulated.build(tmp_path).sysfs)
    directory = tmp_path / "sys/bus/pci/devices" / str(ADDRESS)
    (directory / "vendor").write_bytes(b"\0garbage" * 500)
    (directory / "resource").write_bytes(b"z" * 5000 + b"\n")
    assert pci.id(ADDRESS) is None
    assert pci.resources(ADDRESS) == {}
    parse_iomem("y" * 5000)
    assert len(caplog.messages) == 3
    assert all(len(message) < 300 and message.isprintable() for message in caplog.messages)
