"""contrib/systemd/barfs.service under a real systemd."""

import shlex

import pytest

from vm.architecture import BIN, HERE, X86
from vm.machine import AGENT, Guest

SERVICE = (HERE.parents[1] / "contrib/systemd/barfs.service").read_text()

# The command as it was installed once: a link into somebody's home.
PRIVATE = "/run/private/barfs"

# What the unit's default dependencies name, with nothing behind.
TARGETS = ("sysinit", "basic", "shutdown", "umount", "multi-user")


@pytest.fixture(scope="module")
def booted(kernel, tmp_path_factory):
    """A guest whose first process is systemd."""
    units = tmp_path_factory.mktemp("units")
    for name in TARGETS:
        (units / f"{name}.target").write_text("[Unit]\nDefaultDependencies=no\n")
    (units / "guest.target").write_text("[Unit]\nDefaultDependencies=no\nWants=agent.service\n")
    (units / "agent.service").write_text(
        f"[Unit]\nDefaultDependencies=no\n[Service]\nExecStart={shlex.join(AGENT)}\n"
    )
    assert SERVICE.count("/usr/local/bin/barfs ") == 2
    (units / "barfs.service").write_text(SERVICE.replace("/usr/local/bin/barfs", f"{BIN}/barfs"))
    private = SERVICE.replace("/usr/local/bin/barfs", PRIVATE)
    private = private.replace("[Service]\n", "[Service]\nStandardError=append:/run/private.log\n")
    (units / "private.service").write_text(private)
    guest = Guest(X86, kernel, tmp_path_factory.mktemp("systemd"), units=units)
    try:
        yield guest
    finally:
        guest.close()


@pytest.fixture
def service(booted):
    """The guest with the service started, if it is not yet: that takes some seconds."""
    booted.run("systemctl reset-failed; systemctl start barfs")
    return booted


def properties(guest, *names, service="barfs"):
    """Properties of a service, as systemd has them."""
    asked = ",".join(names)
    lines = guest.run(f"systemctl show {service} -p {asked}").text.splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_start_returns_when_it_is_mounted(booted):
    booted.run("systemctl start barfs && ls /mnt/bars/1af4:1110/bar2")
    assert properties(booted, "ActiveState", "SubState", "StatusText") == {
        "ActiveState": "active",
        "SubState": "running",
        "StatusText": "mounted on /mnt/bars",
    }
    booted.run("systemctl stop barfs && ! grep -q fuse.barfs /proc/mounts")


def test_the_mount_is_the_systems(service):
    """Who has a mount namespace of his own that follows the system's sees it come and go."""
    service.run("systemctl stop barfs")
    service.run(
        "unshare -m --propagation slave sleep infinity >/dev/null 2>&1 & echo $! > /run/peer;"
        " until [ $(readlink /proc/$!/ns/mnt) != $(readlink /proc/1/ns/mnt) ]; do :; done"
    )
    seen = "grep -q fuse.barfs /proc/$(cat /run/peer)/mounts"
    service.run(f"! {seen} && systemctl start barfs && {seen}")
    service.run("ls /proc/$(cat /run/peer)/root/mnt/bars/1af4:1110/bar2")
    service.run(f"systemctl stop barfs && ! {seen}; kill $(cat /run/peer)")


def test_confined_it_does_all_that_barfs_does(service):
    assert service.run("stat -Lc %s /mnt/bars/1b36:0010/config").text == "4096\n"
    assert len(service.run("cat /mnt/bars/1b36:0010/config").stdout) == 4096
    service.run("echo 0x2a > /mnt/bars/1af4:1110/x8/bar2@10")
    assert service.run("cat /mnt/bars/1af4:1110/x8/bar2@10").text == "0x2a\n"
    address = service.run("head -n 3 /sys/bus/pci/devices/0000:00:10.0/resource").text
    start = int(address.splitlines()[2].split()[0], 16)
    assert service.run(f"cat /mnt/bars/phys/x8/{start + 0x10:x}").text == "0x2a\n"
    assert service.run("head -c 2 /mnt/bars/8086:100e/rom").stdout == b"\x55\xaa"
    assert len(service.run("od -An -tx4 -N4 /mnt/bars/1b36:0005/bar1").stdout) > 8
    assert "System RAM" not in service.run("ls /mnt/bars/phys").text


def test_confined_it_does_no_more(service):
    (process,) = properties(service, "MainPID").values()
    status = service.run(f"cat /proc/{process}/status").text
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    needed = 1 << 17 | 1 << 21
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert int(fields[name], 16) == needed, name
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    # In its cgroup a device that is not its own cannot be opened, as root neither.
    cgroup = "/sys/fs/cgroup/system.slice/barfs.service/cgroup.procs"
    for device, allowed in (("/dev/mem", True), ("/dev/port", False), ("/dev/hwrng", False)):
        done = service.try_run(f"echo $BASHPID > {cgroup}; exec 3<{device}")
        assert (done.status == 0) == allowed, done


def test_stop_unmounts_though_it_is_in_use(service):
    service.run("cd /mnt/bars/pci && exec 3</mnt/bars/1af4:1110/bar2 && systemctl stop barfs")
    assert "barfs" not in service.run("cat /proc/mounts").text
    assert properties(service, "Result") == {"Result": "success"}


def test_killed_it_is_mounted_again(service):
    """By kill -9, with a shell's working directory in it and a file open."""
    killed = properties(service, "MainPID")["MainPID"]
    service.run(
        f"cd /mnt/bars/pci && exec 3</mnt/bars/1af4:1110/bar2 && kill -9 {killed} && "
        "for i in {1..600}; do "
        f"[ $(systemctl show barfs -p SubState --value) = running ] && "
        f"[ $(systemctl show barfs -p MainPID --value) != {killed} ] && exit;"
        " sleep 0.1; done; exit 1"
    )
    service.run("ls /mnt/bars/1af4:1110/bar2")
    assert service.run("grep -c fuse.barfs /proc/mounts").text == "1\n"
    assert properties(service, "NRestarts") != {"NRestarts": "0"}


def test_unmounted_by_somebody_it_stays_so(service):
    service.run("umount /mnt/bars")
    service.run(
        "for i in {1..600}; do systemctl is-active -q barfs || exit 0; sleep 0.1; done; exit 1"
    )
    assert "barfs" not in service.run("cat /proc/mounts").text


def test_options_from_the_environment_file(booted):
    booted.run("echo 'BARFS_OPTIONS=-o ro' > /etc/default/barfs && systemctl restart barfs")
    assert b"Read-only" in booted.try_run("> /mnt/bars/1af4:1110/bar2").stderr
    booted.run("systemctl stop barfs")
    booted.run("echo 'BARFS_OPTIONS=--fly' > /etc/default/barfs")
    assert booted.try_run("systemctl start barfs").status == 1
    assert properties(booted, "NRestarts")["NRestarts"] == "0"
    booted.run("rm /etc/default/barfs; systemctl reset-failed")


@pytest.mark.parametrize(("mode", "starts"), [(0o755, True), (0o700, False)])
def test_in_a_private_home_it_says_why_it_does_not_start(booted, mode, starts):
    """A link into the clone of a user: this root may not follow it, if the home is private."""
    booted.run(
        f"mkdir -p /run/private && mount -t tmpfs -o mode={mode:o},uid=1000 none /home &&"
        f" ln -s {BIN}/barfs /home/barfs && ln -sf /home/barfs {PRIVATE}; rm -f /run/private.log"
    )
    done = booted.try_run("systemctl start private")
    assert (done.status == 0) == starts
    if not starts:
        said = booted.run("grep service /run/private.log").text
        assert " ".join(said.split()) == (
            f"this service may not run {PRIVATE}, a link to /home/barfs; install barfs with:"
            " sudo make install"
        )
        # Once is enough: it would be the same again.
        assert properties(booted, "ActiveState", "NRestarts", service="private") == {
            "ActiveState": "failed",
            "NRestarts": "0",
        }
    booted.run("systemctl stop private; systemctl reset-failed; umount /home")
    assert "barfs" not in booted.run("cat /proc/mounts").text


MOUNT_UNIT = r"""
mkdir -p /run/systemd/system /run/unit
mount -t tmpfs sbin "$(readlink -f /sbin)"
cat > /sbin/mount.barfs << END
#!/bin/sh
exec {bin}/python -c 'from barfs.commands.mount_helper import main; main()' "\$@"
END
chmod 755 /sbin/mount.barfs
cat > /run/systemd/system/run-unit.mount << END
[Unit]
DefaultDependencies=no
[Mount]
What=barfs
Where=/run/unit
Type=barfs
END
systemctl daemon-reload
systemctl start run-unit.mount
"""


def test_a_mount_unit_that_is_reloaded_stays_as_it_is(booted):
    """systemd asks mount(8) for a remount then, and that is refused."""
    booted.run(MOUNT_UNIT.format(bin=BIN))
    try:
        seen = "grep ' /run/unit ' /proc/self/mountinfo"
        before = booted.run(seen).text
        assert "fuse.barfs" in before
        assert booted.try_run("systemctl reload run-unit.mount").status != 0
        assert booted.run(seen).text == before
        assert properties(booted, "ActiveState", service="run-unit.mount") == {
            "ActiveState": "active"
        }
        booted.run("printf abcd | dd of=/run/unit/1af4:1110/bar2 status=none")
    finally:
        booted.run('systemctl stop run-unit.mount; umount "$(readlink -f /sbin)"')
    assert "/run/unit" not in booted.run("cat /proc/mounts").text
