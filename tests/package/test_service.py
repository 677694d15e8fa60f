"""The package in guests: its service under a real systemd, and on arm64."""

import contextlib
import dataclasses
import shlex
import subprocess
from pathlib import Path

import pytest
from vm.architecture import ARM64, HERE, X86, Architecture
from vm.machine import AGENT, Guest
from vm.test_service import TARGETS

from barfs.machine import simulated
from package.conftest import ROOT, system


class Debian(Architecture):
    """A machine whose guest has nothing but what its own root has."""

    def make_programs(self, root, directory):
        program = directory / "bin/python"
        program.parent.mkdir(parents=True)
        program.write_text('#!/bin/sh\nexec /usr/bin/python3 "$@"\n')
        program.chmod(0o755)


@contextlib.contextmanager
def booted(like, kernel, root, tmp_path_factory, units=None):
    """A guest of a root, which is thrown away afterwards."""
    machine = Debian(**{**dataclasses.asdict(like), "is_host": False})
    try:
        guest = Guest(machine, kernel, tmp_path_factory.mktemp("guest"), units=units, root=root)
        try:
            yield guest
        finally:
            guest.close()
    finally:
        subprocess.run(["rm", "-rf", root], check=True)


@pytest.fixture
def guest(roots, package, require, tmp_path_factory):
    """One with systemd, in which the package can be installed: what it depends on is there."""
    kernel = X86.find_kernel(require)
    with system(roots, package) as made:
        made.run(
            "apt install -y ./barfs.deb systemd && apt purge -y barfs && mkdir root &&"
            " tar -C / -c --one-file-system --exclude=./var/cache/apt --exclude='./usr/share/doc/*'"
            " --exclude='./usr/share/locale/*' . | tar -C root -x"
        )
    root = (package / "root").rename(tmp_path_factory.mktemp("debian") / "root")
    subprocess.run(["cp", HERE / "guest_init", root / "usr/sbin"], check=True)
    units = root / "units"
    units.mkdir()
    for name in TARGETS:
        (units / f"{name}.target").write_text("[Unit]\nDefaultDependencies=no\n")
    (units / "guest.target").write_text("[Unit]\nDefaultDependencies=no\nWants=agent.service\n")
    (units / "agent.service").write_text(
        f"[Unit]\nDefaultDependencies=no\n[Service]\nExecStart={shlex.join(AGENT)}\n"
    )
    with booted(X86, kernel, root, tmp_path_factory, Path("/units")) as guest:
        # The guest's root is an overlay without extended attributes, and dpkg renames directories.
        for number, directory in enumerate(("/usr/lib/python3/dist-packages", "/usr/share")):
            guest.run(
                f"cp -a {directory} /run/{number} && mount --bind /run/{number} {directory}",
                timeout=300,
            )
        yield guest


def test_the_service_of_the_package(guest, package):
    def pid():
        return guest.run("systemctl show barfs -p MainPID --value").text.strip()

    def install(name):
        guest.run(f"cd /mnt && dpkg -i {package}/{name}", timeout=300)

    install("barfs.deb")
    assert guest.try_run("systemctl is-enabled barfs").text == "disabled\n"
    assert guest.try_run("systemctl is-active barfs").text == "inactive\n"
    assert "barfs" not in guest.run("cat /proc/mounts").text
    guest.run("systemctl enable --now barfs && ls /mnt/bars/1af4:1110/bar2")
    guest.run("echo 0x2a > /mnt/bars/1af4:1110/x8/bar2@10")
    assert guest.peek(0, 0x10, 1) == b"\x2a"

    # An upgrade replaces the daemon, though somebody is in its mount.
    old = pid()
    guest.run(f"cd /mnt/bars/pci && dpkg -i {package}/next.deb", timeout=300)
    assert pid() not in {"0", old}
    guest.run(f"! test -e /proc/{old} && ls /mnt/bars/1af4:1110/bar2")
    assert guest.run("grep -c fuse.barfs /proc/mounts").text == "1\n"
    assert guest.try_run("systemctl is-enabled barfs").text == "enabled\n"

    # Purged, it leaves no mount, no process, no link and no mountpoint.
    last = pid()
    guest.run("cd /mnt/bars/pci && dpkg --purge barfs", timeout=300)
    guest.run(f"! grep fuse.barfs /proc/mounts && ! test -e /proc/{last} && ! test -e /mnt/bars")
    assert guest.run("find /etc /usr /var/lib -name '*barfs*'").text == ""
    assert guest.try_run("systemctl cat barfs").status != 0


def test_the_package_for_arm64(require, tmp_path_factory):
    """It is unpacked: that its scripts are run is seen on x86."""
    base, kernel = ARM64.find_root(require), ARM64.find_kernel(require)
    directory = tmp_path_factory.mktemp("arm64")
    subprocess.run([ROOT / "tools/deb", "--into", directory, "arm64"], check=True)
    (deb,) = directory.glob("barfs_*_arm64.deb")
    root = directory / "root"
    subprocess.run(["cp", "-a", base, root], check=True)
    subprocess.run(["dpkg-deb", "-x", deb, root], check=True)
    (directory / "machine").mkdir()
    machine = simulated.build(directory / "machine")
    with booted(ARM64, kernel, root, tmp_path_factory) as guest:
        assert guest.run("barfs --version").text.startswith("barfs 0.")
        assert "8086:100e" in guest.run(f"barfs ls --sysfs {machine.sysfs}").text
        assert "1af4:1110" in guest.run("barfs ls").text
        guest.run("echo 1 > /sys/bus/pci/devices/0000:00:10.0/enable; barfs mount /mnt/bars")
        guest.run("echo 0x2a > /mnt/bars/1af4:1110/x32/bar2@10; barfs umount /mnt/bars")
        assert guest.peek(0, 0x10, 4) == b"\x2a\0\0\0"
