"""The package under a real systemd: a QEMU guest whose root is Debian 13."""

import dataclasses
import shlex
import shutil
import subprocess

import pytest
from vm.architecture import HERE, X86, Architecture
from vm.machine import AGENT, Guest
from vm.test_service import TARGETS

from package.conftest import system


class Debian13(Architecture):
    """A machine whose guest has what its own root has, and the agent."""

    def make_programs(self, root, directory):
        program = directory / "bin/python"
        program.parent.mkdir(parents=True)
        program.write_text('#!/bin/sh\nexec /usr/bin/python3 "$@"\n')
        program.chmod(0o755)


@pytest.fixture
def guest(roots, package, require, tmp_path_factory):
    """A guest in which the package can be installed: what it depends on is there."""
    directory = tmp_path_factory.mktemp("debian")
    with system(roots, package) as made:
        made.run("apt install -y ./barfs.deb systemd && apt purge -y barfs && cp -ax / root")
    root = (package / "root").rename(directory / "root")
    shutil.copy(HERE / "guest_init", root / "usr/sbin")

    units = tmp_path_factory.mktemp("units")
    for name in TARGETS:
        (units / f"{name}.target").write_text("[Unit]\nDefaultDependencies=no\n")
    (units / "guest.target").write_text("[Unit]\nDefaultDependencies=no\nWants=agent.service\n")
    (units / "agent.service").write_text(
        f"[Unit]\nDefaultDependencies=no\n[Service]\nExecStart={shlex.join(AGENT)}\n"
    )
    machine = Debian13(**{**dataclasses.asdict(X86), "is_host": False})
    kernel = X86.find_kernel(require)
    guest = Guest(machine, kernel, tmp_path_factory.mktemp("guest"), units=units, root=root)
    try:
        yield guest
    finally:
        guest.close()
        subprocess.run(["rm", "-rf", root], check=True)


def test_the_service_of_the_package(guest, package):
    def pid():
        return guest.run("systemctl show barfs -p MainPID --value").text.strip()

    guest.run(f"dpkg -i {package}/barfs.deb")
    assert guest.try_run("systemctl is-enabled barfs").text == "disabled\n"
    assert guest.try_run("systemctl is-active barfs").text == "inactive\n"
    guest.run("systemctl enable --now barfs && ls /mnt/bars/1af4:1110/bar2")
    guest.run("echo 0x2a > /mnt/bars/1af4:1110/x8/bar2@10")
    assert guest.peek(0, 0x10, 1) == b"\x2a"

    # An upgrade replaces the daemon, though somebody is in its mount.
    old = pid()
    guest.run(f"cd /mnt/bars/pci && dpkg -i {package}/next.deb")
    assert pid() not in {"0", old}
    guest.run(f"! test -e /proc/{old} && ls /mnt/bars/1af4:1110/bar2")
    assert guest.run("grep -c fuse.barfs /proc/mounts").text == "1\n"
    assert guest.try_run("systemctl is-enabled barfs").text == "enabled\n"

    # Purged, it leaves no mount, no process, no link and no mountpoint.
    last = pid()
    guest.run("dpkg --purge barfs")
    guest.run(f"! grep fuse.barfs /proc/mounts && ! test -e /proc/{last} && ! test -e /mnt/bars")
    assert guest.run("find /etc /usr /var/lib -name '*barfs*'").text == ""
    assert guest.try_run("systemctl cat barfs").status != 0
