"""The package for Debian 13 in a fresh system: installed, used, upgraded, purged."""

import shutil

from barfs.machine import simulated
from package.conftest import ROOT

NOBODY = 65534

# Where the package may have files, besides these directories.
DIRECTORIES = ("/usr/lib/python3/dist-packages/barfs", "/usr/share/doc/barfs")
FILES = {
    "/etc/default/barfs",
    "/usr/lib/systemd/system/barfs.service",
    "/usr/sbin/barfs",
    "/usr/sbin/mount.barfs",
    "/usr/share/bash-completion/completions/barfs.bash",
    "/usr/share/lintian/overrides/barfs",
    "/usr/share/man/man8/barfs.8.gz",
    "/usr/share/man/man8/mount.barfs.8.gz",
    "/usr/share/zsh/vendor-completions/_barfs",
}

# All files but those in which apt and dpkg keep what they have done, and in which caches are.
FIND = r"""find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /tmp -o -path /var/log
    -o -path /var/cache -o -path /var/lib/apt -o -path '/var/lib/dpkg/*' -o -path /run \) -prune
    -o -printf '%p %y %m %l\n' | sort""".replace("\n", " ")


def test_what_is_in_it(installed):
    assert "install ok installed" in installed.run("dpkg -s barfs")
    listed = installed.run(
        "dpkg -L barfs | while read -r name; do [ -d $name ] || echo $name; done"
    ).split()
    assert {name for name in listed if not name.startswith(DIRECTORIES)} == FILES
    documents = installed.run("cd /usr/share/doc/barfs; ls README.md copyright docs/*").split()
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} <= set(documents)
    maps = installed.run("ls /usr/lib/python3/dist-packages/barfs/registers/maps").split()
    assert set(maps) == {path.name for path in (ROOT / "barfs/registers/maps").iterdir()}
    # It keeps an interruption from being a traceback while Python starts, as tools/launcher says.
    for name in ("barfs", "mount.barfs"):
        assert "--block-signal=INT" in installed.run(f"head -n 1 /usr/sbin/{name}")
    unit = installed.run("cat /usr/lib/systemd/system/barfs.service")
    assert unit.count("/usr/sbin/barfs ") == 2
    assert "/usr/local" not in unit
    # The service is neither enabled nor started.
    assert installed.run("find /etc/systemd -name '*barfs*'") == ""
    assert installed.run("grep -c fuse.barfs /proc/mounts || :") == "0\n"


def test_it_runs(installed, package):
    shutil.copytree(ROOT / "tools", package / "tools")
    assert installed.run("barfs --version").startswith("barfs 0.")
    # Neither of the two ways to install it spoils the other's files.
    assert "sudo apt purge barfs" in installed.run("! tools/install")
    assert "/etc/default/barfs" in installed.run("dpkg --verify barfs; tools/install --remove")
    assert installed.run("dpkg --verify barfs") == ""
    session = installed.run("BARFS=/usr/sbin/barfs tools/article")
    assert "|Dunia,vipi?.....|" in session
    assert "|NinjaNinja" in session
    # As an ordinary user, by fusermount3. udev lets everybody open the device; here is none.
    installed.run("mknod -m 666 /tmp/fuse c 10 229 && mount --bind /tmp/fuse /dev/fuse")
    said = installed.run(
        "mkdir -m 777 /tmp/user && cd /tmp/user && mkdir bars && barfs demo bars &&"
        " cat bars/8086:100e/regs/STATUS.SPEED bars/8086:100e/x32/bar0@8 && barfs umount bars",
        NOBODY,
    )
    assert said.endswith("0x2 M1000\n0x80080783\n"), said


def test_mount_finds_its_helper(installed, package):
    machine = package / "machine"
    machine.mkdir()
    options = ",".join(f"{name}={path}" for name, path in vars(simulated.build(machine)).items())
    assert "1af4:1110" in installed.run(
        f"mkdir /mnt/here && mount -t barfs none /mnt/here -o {options} && ls /mnt/here &&"
        " umount /mnt/here && rmdir /mnt/here"
    )


def test_upgrade_and_purge_leave_nothing(installed):
    """What the first purge leaves is what the packages have brought that barfs depends on."""
    installed.run("apt purge -y barfs")
    assert installed.run(f"{FIND} | grep barfs || :") == ""
    before = installed.run(FIND)

    installed.run("apt install -y ./barfs.deb; echo BARFS_OPTIONS=--no-phys > /etc/default/barfs")
    # A mount that is not the service's, its mountpoint, and what an administrator enables.
    installed.run("mkdir /tmp/bars && barfs demo /tmp/bars && cat /tmp/bars/status")
    installed.run("mkdir /mnt/bars && systemctl enable barfs")
    installed.run("apt install -y ./next.deb")
    assert installed.run("dpkg-query -f '${Version}' -W barfs") == "9.8.7"
    assert installed.run("cat /etc/default/barfs") == "BARFS_OPTIONS=--no-phys\n"
    # Installing stops no mount but the service's.
    installed.run("ls /tmp/bars/1af4:1110/bar2 && barfs umount /tmp/bars")
    installed.run("apt purge -y barfs")
    assert installed.run(FIND) == before
    installed.run("apt install -y ./barfs.deb")


def test_what_becomes_of_the_service(installed):
    """What the package tells the manager of services, which is not there but notes it."""
    installed.run(
        r"mkdir -p /run/systemd/system /tmp/told && cd /tmp/told &&"
        r" printf '#!/bin/sh\necho \"$@\" >>/tmp/told/log\n' >systemctl && chmod 755 systemctl"
    )

    def told(command):
        installed.run(f">/tmp/told/log && PATH=/tmp/told:$PATH {command}")
        lines = installed.run("cat /tmp/told/log").splitlines()
        return [line for line in lines if "daemon-reload" not in line]

    assert told("dpkg --purge barfs") == ["stop barfs.service"]
    assert told("dpkg -i barfs.deb") == []
    assert told("dpkg -i next.deb") == ["try-restart barfs.service"]
    assert told("dpkg --remove barfs") == ["stop barfs.service"]
    installed.run("rmdir /run/systemd/system && dpkg -i barfs.deb")
