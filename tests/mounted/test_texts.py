"""Texts reach a copy whole, whoever copies them. sendfile and splice end at the size."""

import os
import subprocess
import sys

import pytest

from barfs.machine import simulated
from mounted.conftest import mounted, sh, wait_until

TEXTS = [
    "status",
    "1af4:1110/info",
    "1af4:1110/regs/README",
    "1af4:1110/regs/INTRMASK",
    "1af4:1110/x32/bar0@8",
    "1af4:1110/decode/INTRMASK",
    "8086:100e/regs/FCAL.ADDRESS",  # shorter than its line may be
    "8086:100e/regs/config/COMMAND",
    "8086:100e/decode/STATUS",
    "8086:100e/decode/all",  # many pages
    "phys/x32/fee00020",
]
COPIES = {
    "busybox cat": "busybox cat {} > {}",
    "busybox cp": "busybox cp {} {}",
    "cat": "cat {} > {}",
    "cp": "cp --reflink=auto {} {}",
    "cp -p": "cp -p {} {}",
    "install": "install {} {}",
    "dd": "dd if={} of={} bs=7",
    "shutil": f"{sys.executable} -c 'import shutil, sys; shutil.copyfile(*sys.argv[1:])' {{}} {{}}",
}


def spliced(path):
    """What splice(2) gives of a file, which asks for no size at all."""
    fd = os.open(path, os.O_RDONLY)
    receive, send = os.pipe()
    found = b""
    while os.splice(fd, send, 1 << 16):
        found += os.read(receive, 1 << 16)
    for one in (fd, receive, send):
        os.close(one)
    return found


@pytest.fixture(scope="module")
def shared(fuse, tmp_path_factory):
    """One way to the BARs is enough: these are texts."""
    machine = simulated.build(tmp_path_factory.mktemp("machine"))
    with mounted(machine, tmp_path_factory.mktemp("texts")) as mount:
        yield mount


@pytest.fixture
def taken(shared, tmp_path):
    def take(name, command):
        path, copy = shared.path / name, tmp_path / "copy"
        done = sh(command.format(path, copy))
        assert (done.returncode, done.stderr if "dd " not in command else b"") == (0, b"")
        return copy.read_bytes()

    return take


@pytest.mark.parametrize("name", TEXTS)
def test_every_copy_is_whole(shared, taken, name):
    whole = (shared.path / name).read_bytes()
    assert whole.endswith(b"\n")
    for tool, command in COPIES.items():
        assert taken(name, command) == whole, tool
    assert spliced(shared.path / name) == whole


@pytest.mark.parametrize("name", [name for name in TEXTS if "FCAL" not in name])
def test_the_size_of_an_open_text_is_true(shared, tmp_path, name):
    with (shared.path / name).open("rb") as file:
        assert os.fstat(file.fileno()).st_size == len(file.read())
    done = sh(f"tar -C {shared.path} -chf {tmp_path}/tar {name} && tar -xOf {tmp_path}/tar")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == (shared.path / name).read_bytes()
    assert int(sh(f"wc -c < {shared.path / name}").stdout) == len(done.stdout)


def test_a_closed_text_has_no_size(shared):
    status = shared.path / "status"
    status.read_bytes()
    wait_until(lambda: status.stat().st_size == 0, "the text is not closed")


def test_a_text_that_others_look_at_meanwhile_is_whole(shared):
    looking = subprocess.Popen(
        ["sh", "-c", f"while :; do ls -lR {shared.path}/1af4:1110; done"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for name in ("1af4:1110/info", "1af4:1110/decode/all"):
            whole = (shared.path / name).read_bytes()
            for _ in range(15):
                assert sh(f"busybox cat {shared.path / name}").stdout == whole
    finally:
        looking.kill()
        looking.wait()


def test_the_log_is_copied_whole_and_followed(mount, tmp_path):
    bar, log = mount.path / "1af4:1110/x32/bar0@8", mount.path / "log"
    for value in range(200):
        bar.write_text(f"{value}\n")
    whole = log.read_bytes()
    assert whole.count(b"\n") == 400
    for command in COPIES.values():
        assert sh(command.format(log, tmp_path / "copy")).returncode == 0
        assert (tmp_path / "copy").read_bytes() == whole
    assert spliced(log) == whole
    with (tmp_path / "followed").open("wb") as file:
        following = subprocess.Popen(["tail", "-n", "1", "-f", log], stdout=file)
    try:
        wait_until(lambda: (tmp_path / "followed").stat().st_size, "nothing is followed")
        bar.write_text("0x77\n")
        wait_until(lambda: b"0x77" in (tmp_path / "followed").read_bytes(), "no new line")
    finally:
        following.kill()
        following.wait()
    assert (tmp_path / "followed").read_bytes().count(b"\n") == 3


def test_a_log_that_has_lost_lines_is_copied_in_order(mount, tmp_path):
    with (mount.path / "1af4:1110/x8/bar0@8").open("wb", buffering=0) as file:
        for _ in range(6000):
            file.write(b"5\n")
    log = mount.path / "log"
    whole = log.read_bytes()
    assert len(whole) < (1 << 20) + (1 << 18)
    assert log.stat().st_size == len(whole)
    done = sh(f"tar -C {mount.path} -cf {tmp_path}/tar log && tar -xOf {tmp_path}/tar")
    assert (done.stdout, done.stderr) == (whole, b"")
    for tool in ("busybox cat", "cp", "shutil"):
        assert sh(COPIES[tool].format(log, tmp_path / "copy")).returncode == 0
        assert (tmp_path / "copy").read_bytes() == whole, tool
    assert spliced(log) == whole
