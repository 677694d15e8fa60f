"""mount -t barfs and lines of fstab, by mount(8) itself."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from barfs.commands import mount_helper
from barfs.daemon.options import Option
from mounted.conftest import TIMEOUT, daemons, wait_until

HELPER = Path(sys.executable).parent / "mount.barfs"

# In a mount namespace of its own, with nothing in /sbin but the helper, which may be from there.
PREPARE = f"""
mount --make-rprivate /
exec 3<{HELPER}
mount -t tmpfs sbin "$(readlink -f /sbin)"
cat <&3 >/sbin/mount.barfs
chmod 755 /sbin/mount.barfs
exec 3<&-
"""


@pytest.fixture
def run(machine, where):
    """Runs a script with mount.barfs installed; {options} and {where} are filled in."""
    options = f"sysfs={machine.sysfs},proc={machine.proc},devmem={machine.devmem}"

    def run(script):
        script = script.replace("{options}", options).replace("{where}", str(where))
        done = subprocess.run(
            ["unshare", "-m", "bash", "-s"],
            input=PREPARE + script,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        wait_until(lambda: not daemons(where), "a daemon is left")
        return done

    return run


def test_mount_and_umount(run):
    done = run(
        """
        mount -t barfs none {where} -o ro,{options} && echo status $?
        ls {where}/1af4:1110/bar2 && echo > {where}/1af4:1110/bar2
        findmnt -n -o SOURCE,FSTYPE {where}
        umount {where} && ls {where} && echo unmounted
        """
    )
    assert done.stdout.split("\n")[0] == "status 0"
    assert "/1af4:1110/bar2\n" in done.stdout
    assert re.search("^none +fuse.barfs$", done.stdout, re.MULTILINE)
    assert done.stdout.endswith("\nunmounted\n")
    assert "Read-only file system" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("prepare", ["", "ln -s mount.barfs /sbin/mount.fuse.barfs"])
def test_a_mount_that_is_remounted_is_as_it_was(run, tmp_path, prepare):
    """Also as a line of fstab, and as systemd reloads a mount unit."""
    form = "" if prepare else f"-T {tmp_path}/fstab"
    done = run(
        f"""
        {prepare}
        echo "none {{where}} barfs {{options}} 0 0" > {tmp_path}/fstab
        mount -T {tmp_path}/fstab {{where}}
        for options in remount,ro remount,rw remount; do
            mount {form} -o $options {{where}}; echo "status $?"
            grep ' {{where}} ' /proc/self/mountinfo
            printf 1 > {{where}}/1af4:1110/bar2 && echo written
        done
        mount -o remount,bind,ro {{where}}; printf 1 > {{where}}/1af4:1110/bar2 || echo refused
        mount -o remount,bind,rw {{where}}; printf 1 > {{where}}/1af4:1110/bar2 && echo written
        umount {{where}}
        """
    )
    *lines, refused, written = done.stdout.splitlines()
    assert lines[::3] == ["status 32"] * 3
    assert lines[2::3] == ["written"] * 3
    assert len(set(lines[1::3])) == 1
    assert (refused, written) == ("refused", "written")
    sentences = [line for line in done.stderr.splitlines() if line.startswith("mount.barfs: ")]
    assert len(sentences) == 3
    assert "can't be remounted" in sentences[0]
    assert len(done.stderr.splitlines()) == 4  # and the shell's word about the read-only mount


def test_a_line_of_fstab(run, tmp_path):
    """All of it twice: what is mounted is left alone."""
    done = run(
        f"""
        echo "none {{where}} barfs noauto,user,nofail,_netdev,x-systemd.automount,comment=hi,bars_via=devmem,allow_other,noatime,{{options}} 0 0" > {tmp_path}/noauto
        mount -T {tmp_path}/noauto -a; findmnt {{where}}
        mount -T {tmp_path}/noauto {{where}} && findmnt -n -o OPTIONS {{where}}
        umount {{where}}
        echo "bars {{where}} barfs defaults,{{options}} 0 0" > {tmp_path}/fstab
        mount -T {tmp_path}/fstab -a && mount -T {tmp_path}/fstab -av
        findmnt -n -o SOURCE {{where}}
        umount {{where}}
        """  # noqa: E501
    )
    assert done.stderr == ""
    options, again, source = done.stdout.splitlines()
    for option in ("nosuid", "nodev", "noexec", "noatime", "allow_other"):
        assert option in options.split(",")
    assert "already mounted" in again
    assert source == "bars"


def test_fake_and_verbose(run):
    done = run("mount -f -v -t barfs none {where} -o {options},bars-via=devmem; findmnt {where}")
    assert "barfs mount -o fsname=none" in done.stdout
    assert "--bars-via=devmem" in done.stdout


@pytest.mark.parametrize(
    ("command", "status", "words"),
    [
        ("mount -t barfs none {where}/nowhere", 32, "does not exist"),
        ("mount.barfs none {where}/nowhere", 32, "does not exist; create it with"),
        ("mount.barfs none {where} -o sysfs", 1, "the option sysfs needs a value"),
        ("mount.barfs none {where} -o force=1", 1, "the option force takes no value"),
        ("mount.barfs none {where} -o bars_via=magic", 1, "invalid choice: 'magic'"),
        ("mount.barfs none {where} -N 1", 1, "nsenter --mount=NAMESPACE"),
        ("mount.barfs none", 1, "usage: mount.barfs"),
        ("mount -t barfs none {where} -o {options},nonsense", 32, "unknown option(s)"),
    ],
)
def test_what_cannot_be(run, command, status, words):
    done = run(f"{command.replace('mount.barfs', '/sbin/mount.barfs')}; echo $?")
    assert done.stdout == f"{status}\n"
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_every_long_option_is_a_mount_option():
    known = mount_helper.long_options()
    assert {"sysfs", "proc", "devmem", "bars-via", "force"} <= set(known)
    assert not {"help", "foreground"} & set(known)


# The forms of options that the command has.
OPTIONS = [
    Option("--group", "", takes="GROUP"),
    Option("--allow-device", "", takes="PATTERN", repeated=True),
    Option("--no-phys", "", given=False),
    Option("-o", "", takes="OPTIONS"),
]


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("", []),
        ("ro,allow_other", ["-o", "ro", "-o", "allow_other"]),
        ("group=dev,no_phys", ["--group=dev", "--no-phys"]),
        ("no-phys", ["--no-phys"]),
        ("allow_device=1af4:*,allow-device=b", ["--allow-device=1af4:*", "--allow-device=b"]),
        ('group="a,b",ro', ["--group=a,b", "-o", "ro"]),
        ('group="a,b', ["--group=a,b"]),
        ("defaults,auto,noauto,nofail,_netdev,user,users,nouser,owner,user=jo", []),
        ("x-systemd.automount,X-a=b,comment=c,uhelper=x,,", []),
        ("group=a=b", ["--group=a=b"]),
    ],
)
def test_translation(text, arguments):
    known = mount_helper.long_options(OPTIONS)
    assert mount_helper.translate(mount_helper.split(text), known) == arguments
