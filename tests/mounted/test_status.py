"""`status` in a mount, and the log's words about refusals."""

import errno
import json
import os
import re
import shutil
import stat
import subprocess

import pytest

from barfs.machine.simulated import NODENAME_ADDRESS
from mounted.conftest import BARFS, TIMEOUT, machine_options, mounted, sh, wait_until

FIRST = "0000:00:04.0"
SECOND = "0000:00:05.0"


def doctor(machine, *more):
    return subprocess.run(
        [*BARFS, "doctor", *machine_options(machine), *more],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def set_command(machine, address, command):
    config = machine.sysfs / "bus/pci/devices" / address / "config"
    with config.open("r+b") as file:
        file.seek(4)
        file.write(command.to_bytes(2, "little"))


def opening(path, flags=os.O_RDONLY):
    """The errno of open, None if it opens."""
    try:
        os.close(os.open(path, flags))
    except OSError as error:
        return error.errno
    return None


def logged(mount, words):
    wait_until(lambda: words in mount.log, f"{words!r} is not in the log: {mount.log}")
    (line,) = [line for line in mount.log.splitlines() if words in line]
    return line


def test_it_is_what_doctor_says(shared):
    text = (shared.path / "status").read_text()
    done = doctor(shared.machine)
    assert (done.returncode, done.stderr) == (0, "")
    assert text == done.stdout
    assert text.startswith("ok       fuse          /dev/fuse is there\n")
    assert text.endswith("ok       0000:01:00.0  D0; bar0 decoded; no driver\n")


def test_its_attributes(shared):
    path = shared.path / "status"
    status = path.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_size) == (0o400, 0)
    assert stat.S_ISREG(status.st_mode)
    assert "status" in os.listdir(shared.path)
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
        assert opening(path, flags) == errno.EACCES
    assert sh(f"grep -c ^ok {path}").stdout == b"7\n"
    assert sh(f"cp {path} /dev/stdout | cmp - {path}").returncode == 0


@pytest.mark.parametrize("via", ["resource", "devmem"])
def test_of_what_is_in_the_mount_only(machine, tmp_path, via):
    """Not of devices that are left out, nor of memory that nothing in it needs."""
    options = ["--no-phys", "--allow-device", "1af4:*", "--bars-via", via]
    with mounted(machine, tmp_path, *options) as mount:
        subjects = [line.split()[1] for line in (mount.path / "status").read_text().splitlines()]
    assert subjects == ["fuse", *(["devmem"] if via == "devmem" else []), FIRST, SECOND]


def test_each_open_shows_the_machine_as_it_is(mount):
    path = mount.path / "status"
    devices = mount.machine.sysfs / "bus/pci/devices"
    with path.open() as before:
        set_command(mount.machine, FIRST, 0)
        (devices / SECOND / "power_state").write_text("D3hot\n")
        assert "trouble" not in before.read()
    text = path.read_text()
    assert text.startswith(
        f"trouble  {FIRST}  bar0, bar2: memory decoding is off in the command register\n"
        f"                       echo 1 > {devices}/{FIRST}/enable\n"
        f"trouble  {SECOND}  it sleeps (D3hot): its BARs may not answer, and config space is not "
        "read here\n"
        f"                       echo on > {devices}/{SECOND}/power/control\n"
        "ok       fuse"
    )
    done = doctor(mount.machine)
    assert (done.returncode, done.stdout) == (0, text)
    assert doctor(mount.machine, FIRST).returncode == 1
    shutil.rmtree(devices / FIRST)
    assert FIRST not in path.read_text()
    assert mount.alive()


def test_decoding_that_is_off_in_the_same_words(mount):
    """In the log, for the BAR that was opened; in status, for all that are concerned."""
    set_command(mount.machine, FIRST, 0)
    assert opening(mount.path / "1af4:1110/bar2") == errno.EIO
    cause = "memory decoding is off in the command register"
    mend = f"echo 1 > {mount.machine.sysfs}/bus/pci/devices/{FIRST}/enable"
    line = logged(mount, cause)
    assert line == f"barfs: open: {FIRST} bar2: {cause}; {mend} (EIO)"
    refusals = [
        record
        for record in map(json.loads, (mount.path / "log").read_text().splitlines())
        if record["event"] == "refused" and record["operation"] == "open"
    ]
    assert [(record["errno"], record["message"]) for record in refusals] == [
        ("EIO", f"{FIRST} bar2: {cause}; {mend}")
    ]
    status = (mount.path / "status").read_text()
    assert f"  {FIRST}  bar0, bar2: {cause}\n" in status
    assert f"  {mend}\n" in status


def test_what_does_not_answer_in_the_same_words(mount):
    set_command(mount.machine, FIRST, 0xFFFF)
    assert opening(mount.path / "1af4:1110/bar0") == errno.EIO
    line = logged(mount, "the device does not answer")
    words = line.removeprefix(f"barfs: open: {FIRST} bar0: ").removesuffix(" (EIO)")
    sentence, _, mend = words.rpartition("; ")
    assert f"{sentence}\n" in (mount.path / "status").read_text()
    assert mend.startswith("echo 1 > ")
    assert f"  {mend}\n" in (mount.path / "status").read_text()


def test_a_bar_without_an_address_in_the_same_words(mount):
    device = mount.machine.sysfs / "bus/pci/devices" / FIRST
    (device / "resource").write_text("0x0 0xff 0x20040200\n")
    assert opening(mount.path / "1af4:1110/bar0") == errno.EIO
    line = logged(mount, "has given it no address")
    assert line.endswith("; reboot with pci=realloc on the kernel's command line (EIO)")
    assert "bar0: the kernel has given it no address\n" in (mount.path / "status").read_text()


def test_a_device_that_goes_while_it_is_open(mount):
    with (mount.path / "1af4:1110/bar0").open("rb", buffering=0) as file:
        assert len(file.read(4)) == 4
        shutil.rmtree(mount.machine.sysfs / "bus/pci/devices" / FIRST)
        with pytest.raises(OSError) as caught:
            file.read(4)
    assert caught.value.errno == errno.ENODEV
    mend = f"echo 1 > {mount.machine.sysfs}/bus/pci/rescan"
    assert logged(mount, "when it is back, open the file again").endswith(f"; {mend} (ENODEV)")


def test_no_devmem_in_the_same_words(mount):
    devmem = mount.machine.devmem
    devmem.unlink()
    assert opening(mount.path / f"phys/{NODENAME_ADDRESS:x}") == errno.ENODEV
    # No mend: a device there would be the memory of this machine.
    words = f"{devmem} is missing"
    assert logged(mount, words).endswith(f"{words} (ENODEV)")
    status = (mount.path / "status").read_text()
    assert re.search(rf"^trouble  devmem +{re.escape(words)}\n(?! )", status, re.MULTILINE)
    assert "mknod" not in status
    assert doctor(mount.machine).returncode == 1
    assert mount.alive()
