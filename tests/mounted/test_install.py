"""`make install` and `make uninstall`, as root in a copy of this system that is thrown away."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
USER = 1000

# An installation may have to compile.
TIMEOUT = 300

SOURCES = ("barfs", "contrib", "docs", "tools", "Makefile", "pyproject.toml", "README.md")

# Where it puts things.
PLACES = "/opt /usr/local /usr/sbin/mount.barfs /etc/default /etc/systemd/system"


@pytest.fixture(scope="module")
def system(fuse, tmp_path_factory, require):
    """Runs commands in a copy of this system, with a clone in an ordinary user's private home."""
    clone = tmp_path_factory.mktemp("clone")
    directory = tmp_path_factory.mktemp("system")
    begin = f"""
        set -e
        mount -t tmpfs none {directory}
        cd {directory}
        mkdir upper work root
        mount -t overlay none -o lowerdir=/,upperdir=upper,workdir=work root
        for name in proc dev; do mount --rbind /$name root/$name; done
        # It may be on another file system than the root is.
        mkdir -p root{tmp_path_factory.getbasetemp()}
        mount --bind {tmp_path_factory.getbasetemp()} root{tmp_path_factory.getbasetemp()}
        echo made
        exec sleep infinity
    """
    command = ["unshare", "--mount", "--propagation", "private", "bash", "-c", begin]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        require(holder.stdout.readline() == "made\n", "overlayfs")
        for name in SOURCES:
            path = ROOT / name
            copy = shutil.copytree if path.is_dir() else shutil.copy
            more = (
                {"ignore": shutil.ignore_patterns("__pycache__", "*.so")} if path.is_dir() else {}
            )
            copy(path, clone / name, **more)

        def run(script, user=0, status=0):
            inner = f"cd /; {script}"
            as_user = f"setpriv --reuid={user} --regid={user} --clear-groups bash -c"
            done = subprocess.run(
                [
                    *("nsenter", f"--target={holder.pid}", "--mount", "chroot"),
                    *(directory / "root", *shlex.split(as_user), inner),
                ],
                env={
                    **os.environ,
                    "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin",
                    # pip keeps there what it has compiled.
                    "HOME": "/home/dev" if user else "/root",
                },
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=False,
            )
            assert done.returncode == status, done.stdout + done.stderr
            return done.stdout + done.stderr

        subprocess.run(
            [
                *("nsenter", f"--target={holder.pid}", "--mount", "bash", "-c"),
                f"""
                set -e -o pipefail
                rm -rf {directory}/root/home/{{dev,elsewhere}} {directory}/root/tmp/staged
                mkdir -p {directory}/root/home/dev
                tar -C {clone} -c . | tar -C {directory}/root/home/dev -x
                chown -R {USER}:{USER} {directory}/root/home/dev
                chmod 700 {directory}/root/home/dev
                """,
            ],
            check=True,
        )
        # `make install` refuses beside the package; tests/package holds that.
        run("if dpkg -s barfs >/dev/null 2>&1; then dpkg --purge barfs; fi")
        # This system may have installed it, too.
        run("make -C /home/dev uninstall; rm -f /etc/default/barfs")
        yield run
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def listed(system):
    return system(f"find {PLACES} -not -path '/opt/barfs/*' 2>/dev/null | sort || :").splitlines()


def test_install_upgrade_and_uninstall(system, machine):
    system("ln -s /home/dev/.venv/bin/barfs /usr/local/sbin/barfs")
    before = listed(system)

    said = system("make -C /home/dev install").splitlines()
    assert any("barfs is installed: /usr/local/bin/barfs" in line for line in said)
    # Nobody but root has a part in it, and the clone is as its owner left it.
    assert system("find /opt/barfs ! -user root -o -perm /022 -type f") == ""
    assert system(f"find /home/dev ! -user {USER} -o -name '*.egg-info' -o -name '*.so'") == ""
    assert "/usr/local/sbin/barfs" not in listed(system)

    # The clone may go.
    system("mv /home/dev /home/elsewhere")
    assert system("barfs --version", USER).startswith("barfs 0.")
    assert "Begin with: barfs demo" in system("barfs help", USER)
    assert "1af4:1110" in system(f"barfs ls --sysfs {machine.sysfs}")
    for name in (
        "/usr/local/share/man/man8/barfs.8",
        "/usr/local/share/bash-completion/completions/barfs",
        "/usr/local/share/zsh/site-functions/_barfs",
        "/usr/local/lib/systemd/system/barfs.service",
        "/etc/default/barfs",
    ):
        assert system(f"stat -c '%a %U' {name}") == "644 root\n"
    assert "/usr/local/bin/barfs mount" in system("cat /usr/local/lib/systemd/system/barfs.service")
    options = ",".join(f"{name}={path}" for name, path in vars(machine).items())
    assert "1af4:1110" in system(
        f"mkdir -p /mnt/bars && mount -t barfs none /mnt/bars -o {options} && ls /mnt/bars &&"
        " umount /mnt/bars"
    )
    system("mv /home/elsewhere /home/dev")

    # An upgrade keeps what was changed. One that fails changes nothing.
    system("echo BARFS_OPTIONS=--no-phys > /etc/default/barfs")
    system("sed -i 's/__version__ = .*/__version__ = \"9.8.7\"/' /home/dev/barfs/__init__.py")
    system("sed -i 's/^name = .*/name =/' /home/dev/pyproject.toml", USER)
    assert "what was installed is as it was" in system("make -C /home/dev install", status=2)
    assert system("barfs --version", USER).startswith("barfs 0.")
    system("sed -i 's/^name =$/name = \"barfs\"/' /home/dev/pyproject.toml", USER)
    system("make -C /home/dev install")
    assert system("barfs --version", USER) == "barfs 9.8.7\n"
    assert system("cat /etc/default/barfs") == "BARFS_OPTIONS=--no-phys\n"

    said = system("make -C /home/dev uninstall")
    assert "left as it was changed: /etc/default/barfs" in said
    system("rm /etc/default/barfs; cp /home/dev/contrib/systemd/barfs.default /etc/default/barfs")
    system("make -C /home/dev uninstall")
    left = set(listed(system)) - set(before)
    # Directories that it had to make may stay.
    assert all(system(f"test -d {name} && echo yes || :") == "yes\n" for name in left), left
    assert set(before) - set(listed(system)) == {"/usr/local/sbin/barfs"}
    assert system("test -e /opt/barfs || echo gone") == "gone\n"


def test_into_another_place(system):
    """For a package, and for somebody without root."""
    system("DESTDIR=/tmp/staged PREFIX=/usr make -C /home/dev install", USER)
    staged = system("cd /tmp/staged && find . -not -path './opt/barfs/*' -not -type d | sort")
    assert staged.split() == [
        "./etc/default/barfs",
        "./usr/bin/barfs",
        "./usr/lib/systemd/system/barfs.service",
        "./usr/sbin/mount.barfs",
        "./usr/share/bash-completion/completions/barfs",
        "./usr/share/man/man8/barfs.8",
        "./usr/share/zsh/site-functions/_barfs",
    ]
    assert system("readlink /tmp/staged/usr/bin/barfs") == "/opt/barfs/bin/barfs\n"
    # It does not say where it was made.
    assert system("grep -rlI /tmp/staged /tmp/staged || :") == ""
    assert " sh /usr/bin/barfs mount -f" in system(
        "cat /tmp/staged/usr/lib/systemd/system/barfs.service"
    )
    system("DESTDIR=/tmp/staged PREFIX=/usr make -C /home/dev uninstall", USER)
    assert system("find /tmp/staged -not -type d") == ""
    system("PREFIX=/home/dev/.local make -C /home/dev install", USER)
    assert system("/home/dev/.local/bin/barfs --version", USER).startswith("barfs ")
    system("PREFIX=/home/dev/.local make -C /home/dev uninstall", USER)
    assert system("find /home/dev/.local -not -type d") == ""


def test_what_is_missing_is_named(system):
    for name in ("gcc", "pkg-config"):
        system(f"mv /usr/bin/{name} /usr/bin/{name}.away")
    said = system("make -C /home/dev install", USER, status=2)
    for name in ("gcc", "pkg-config"):
        system(f"mv /usr/bin/{name}.away /usr/bin/{name}")
    assert "install it with: sudo apt install gcc libc6-dev pkg-config libfuse3-dev" in said
