"""Names that the kernel keeps: they save look-ups, and never lead to what is not there any more."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from barfs.machine import simulated
from mounted.conftest import mounted, wait_until

TIMES = 400
ADDRESS = "0000:00:04.0"
FILES = ("bar0", "x32/bar0@8", "config", "info", "regs/IntrMask", "decode/IntrMask", "sysfs")


@pytest.fixture
def maps(tmp_path):
    directory = tmp_path / "maps"
    directory.mkdir(mode=0o755)
    write_map(directory, "IntrMask")
    return directory


def write_map(directory, name):
    register = {"name": name, "offset": 0, "width": 32, "fields": []}
    content = {"format": "barfs registers 1", "for": ["1af4:1110"]}
    content["parts"] = [{"in": "bar0", "registers": [register]}]
    (directory / "1af4:1110.json").write_text(json.dumps(content))


@pytest.fixture
def mount(fuse, tmp_path, maps):
    (tmp_path / "machine").mkdir()
    with mounted(simulated.build(tmp_path / "machine"), tmp_path, "--registers", maps) as found:
        yield found


@pytest.fixture
def device(mount):
    return mount.machine.sysfs / "bus/pci/devices" / ADDRESS


def reads_of(mount, act):
    """How many system calls the daemon reads with while `act` is done. A request is one, and a
    look-up of a name reads in sysfs, too.
    """

    def count():
        (line,) = Path(f"/proc/{mount.process.pid}/io").read_text().splitlines()[2:3]
        return int(line.removeprefix("syscr: "))

    before = count()
    act()
    return count() - before


def test_names_are_kept(mount):
    """Each look-up would be a request more, and a read or more in sysfs. The kernel asks for what
    stat shows of each directory on the way, and of the file once a tick.
    """
    for name in FILES:
        path = mount.path / "pci" / ADDRESS / name
        for _ in range(3):
            os.lstat(path)
        spent = reads_of(mount, lambda path=path: [os.lstat(path) for _ in range(TIMES)])
        asked = name.count("/") + 1 + (name == "sysfs")
        assert spent < (asked + 0.5) * TIMES, path


def test_ranges_of_addresses_are_not_kept(mount):
    path = mount.path / "phys/00100000-07fdffff"
    assert reads_of(mount, lambda: [os.lstat(path) for _ in range(TIMES)]) >= TIMES


def test_a_name_that_is_not_there_is_not_kept(mount, maps, device):
    for path in ("pci/0000:00:12.0", "1af4:1110.2", "pci/0000:00:04.0/regs/Later"):
        assert not (mount.path / path).exists()
    shutil.copytree(device, device.with_name("0000:00:12.0"))
    write_map(maps, "Later")
    for path in ("pci/0000:00:12.0/bar0", "1af4:1110.2/bar0", "pci/0000:00:04.0/regs/Later"):
        assert (mount.path / path).exists(), path


@pytest.mark.parametrize("name", ["bar0", "x32/bar0@8", "config", "info", "regs/IntrMask"])
def test_a_file_of_what_has_gone_does_not_open_and_its_name_goes(mount, device, name):
    """An open waits for nothing: the daemon may not have heard of it, and is asked all the same."""
    path = mount.path / "pci" / ADDRESS / name
    away = device.parents[2] / "away"
    for _ in range(5):
        for _ in range(3):
            path.open("rb").close()
        device.rename(away)
        with pytest.raises(FileNotFoundError):
            path.open("rb")
        assert not path.exists()
        away.rename(device)
        assert path.exists()
    assert "Stale" not in mount.log
    assert "ESTALE" not in (mount.path / "log").read_text()


def test_a_directory_that_has_gone_is_not_listed(mount, device):
    path = mount.path / "pci" / ADDRESS
    for _ in range(3):
        os.listdir(path)
    shutil.rmtree(device)
    assert not path.exists()
    with pytest.raises(FileNotFoundError):
        os.listdir(path)


def test_a_link_leads_to_the_first_function_at_once(mount, device):
    for _ in range(20):
        assert os.readlink(mount.path / "1af4:1110") == f"pci/{ADDRESS}"
        shutil.copytree(device, device.with_name("0000:00:02.0"))
        assert os.readlink(mount.path / "1af4:1110") == "pci/0000:00:02.0"
        shutil.rmtree(device.with_name("0000:00:02.0"))


def test_a_register_that_a_map_has_lost_is_not_there_at_once(mount, maps):
    path = mount.path / "pci" / ADDRESS / "regs/IntrMask"
    for _ in range(5):
        for _ in range(3):
            assert path.read_text().startswith("0x")
        write_map(maps, "Another")
        with pytest.raises(FileNotFoundError):
            path.open()
        wait_until(lambda: not path.exists(), "the name is kept")
        write_map(maps, "IntrMask")


def test_a_new_id_is_another_name(mount, device):
    path = mount.path / "1af4:1110.1"
    assert os.readlink(path) == "pci/0000:00:05.0"
    (device.with_name("0000:00:05.0") / "device").write_text("0x1111\n")
    wait_until(lambda: not os.path.lexists(path), "the name is kept")
    assert os.readlink(mount.path / "1af4:1111") == "pci/0000:00:05.0"


def test_who_may_not_read_the_file_may_not_after_it_was_kept(mount):
    path = mount.path / "pci" / ADDRESS / "bar0"
    for _ in range(3):
        path.read_bytes()
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat", path]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stdout == ""
