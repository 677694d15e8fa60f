"""`--enable`: decoding is on while a BAR is open, on the simulated machine."""

import contextlib
import errno
import json
import os
import signal

import pytest

from mounted.conftest import TIMEOUT, Mount, sh, wait_until

ADDRESS = "0000:00:03.0"  # bar0 is memory, bar1 ports
ON = 3


class Command:
    """The command register and `enable` of the simulated device."""

    def __init__(self, machine):
        self.directory = machine.sysfs / "bus/pci/devices" / ADDRESS
        (self.directory / "driver").unlink()

    @property
    def register(self):
        return self.directory.joinpath("config").read_bytes()[4] & ON

    def set(self, value):
        with (self.directory / "config").open("r+b") as config:
            config.seek(4)
            config.write(bytes([value, 0]))

    @property
    def enabled(self):
        return int((self.directory / "enable").read_text())


@pytest.fixture
def command(machine):
    command = Command(machine)
    command.set(0)
    return command


@pytest.fixture
def enabling(machine, command, tmp_path):
    mount = Mount(machine, tmp_path, "--enable")
    yield mount
    assert mount.end() == 0
    assert "Traceback" not in mount.log


def test_without_it_decoding_off_is_an_error_with_its_mend(command, mount):
    for name, space in (("bar0", "memory"), ("x32/bar0@8", "memory"), ("bar1", "I/O")):
        for mode in (os.O_RDONLY, os.O_WRONLY):
            with pytest.raises(OSError) as caught:
                os.open(mount.path / "pci" / ADDRESS / name, mode)
            assert caught.value.errno == errno.EIO
            record = json.loads((mount.path / "log").read_bytes().splitlines()[-1])
            assert (record["event"], record["errno"]) == ("refused", "EIO")
            assert record["path"].startswith(f"pci/{ADDRESS}/{name}")
            assert f"{space} decoding is off in the command register; " in record["message"]
            assert f"echo 1 > {command.directory}/enable" in record["message"]
    assert (command.register, command.enabled) == (0, 0)
    # The mend where the kernel counts already; the simulated machine has no kernel to do the other.
    (command.directory / "enable").write_text("1\n")
    assert sh(f"cat {mount.path}/pci/{ADDRESS}/bar0").returncode != 0
    record = json.loads((mount.path / "log").read_bytes().splitlines()[-1])
    mend = record["message"].split("; ")[1]
    assert mend.startswith("setpci ")
    assert mend.endswith(f" -s {ADDRESS} COMMAND=2:2")


def test_it_is_on_from_the_first_open_to_the_last_close(command, enabling):
    bar = enabling.path / "pci" / ADDRESS / "bar0"
    assert sh(f"dd if={bar} bs=4 skip=2 count=1").stdout == bytes.fromhex("83070880")
    wait_until(lambda: command.register == 0, "it stays on")
    first = os.open(bar, os.O_RDONLY)
    assert (command.register, command.enabled) == (2, 1)
    second = os.open(enabling.path / "pci" / ADDRESS / "u32/bar0@40", os.O_RDWR)
    ports = os.open(enabling.path / "pci" / ADDRESS / "x16/bar1", os.O_RDWR)
    assert command.register == ON
    os.close(first)
    os.close(ports)
    os.pwrite(second, b"abcd", 0)
    assert (command.register, command.enabled) == (ON, 1)
    os.close(second)
    wait_until(lambda: command.register == 0, "it stays on")
    assert command.enabled == 0
    assert f"{ADDRESS}: decoding turned on in the command register (--enable)" in enabling.log
    assert f"{ADDRESS}: decoding turned off again" in enabling.log
    # Looking at it, or reading its config space, does not need it.
    sh(f"ls -lR {enabling.path}; cat {enabling.path}/pci/{ADDRESS}/{{config,info,rom}}")
    assert (command.register, command.enabled) == (0, 0)


def test_an_open_that_fails_leaves_it_off(command, enabling):
    for name in ("u64/bar1", "x32/bar0@2"):
        with pytest.raises(OSError) as caught:
            os.open(enabling.path / "pci" / ADDRESS / name, os.O_RDONLY)
        assert caught.value.errno == errno.EINVAL
    assert (command.register, command.enabled) == (0, 0)


@pytest.mark.parametrize("ending", ["umount", "umount -l", "SIGTERM"])
def test_it_is_off_after_the_mount_ends_with_files_open(machine, command, tmp_path, ending):
    mount = Mount(machine, tmp_path, "--enable")
    held = os.open(mount.path / "pci" / ADDRESS / "bar0", os.O_RDWR)
    assert command.register == 2
    if ending == "umount":
        os.close(held)
    if ending == "SIGTERM":
        mount.process.send_signal(signal.SIGTERM)
    else:
        assert sh(f"{ending} {mount.path}").returncode == 0
    if ending == "umount -l":
        assert command.register == 2, "still open"
        os.close(held)
    assert mount.process.wait(TIMEOUT) == 0
    if ending == "SIGTERM":
        with contextlib.suppress(OSError):  # what flush says to it
            os.close(held)
    assert (command.register, command.enabled) == (0, 0)
    assert "Traceback" not in mount.log
    assert mount.end() == 0


def test_the_first_of_two_mounts_to_close_leaves_it_on_for_the_other(
    machine, command, enabling, tmp_path
):
    (tmp_path / "second").mkdir()
    second = Mount(machine, tmp_path / "second", "--enable")
    files = [os.open(one.path / "pci" / ADDRESS / "bar0", os.O_RDWR) for one in (enabling, second)]
    os.close(files[0])
    wait_until(lambda: "another mount has it open" in enabling.log, "the close is not noticed")
    assert command.register == 2
    os.pwrite(files[1], b"abcd", 0)
    assert os.pread(files[1], 4, 0) == b"abcd"
    os.close(files[1])
    wait_until(lambda: command.register == 0, "it stays on")
    assert command.enabled == 0
    # One that is killed is not waited for.
    files = [os.open(one.path / "pci" / ADDRESS / "bar0", os.O_RDWR) for one in (enabling, second)]
    enabling.process.send_signal(signal.SIGSTOP)
    second.process.terminate()
    assert second.process.wait(TIMEOUT) == 0
    assert command.register == 2
    enabling.process.send_signal(signal.SIGCONT)
    for fd in files:
        with contextlib.suppress(OSError):
            os.close(fd)
    wait_until(lambda: command.register == 0, "it stays on")
