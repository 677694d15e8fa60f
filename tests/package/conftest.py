"""The package, and systems of Debian 13 to install it in."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHROOT = ROOT / "tools/chroot"

# `make test-deb` sets it: what is missing is made then.
MAKE = os.environ.get("BARFS_PACKAGE") == "make"

# All of the mounted tier takes several minutes, and systemd in a guest one.
collect_ignore = [] if MAKE else ["test_archive.py", "test_service.py"]

TIMEOUT = 600

UNPACK = "dpkg-deb -R barfs.deb next"
REPACK = "dpkg-deb -b next next.deb >/dev/null && rm -r next"


class System:
    """A copy of a root that is thrown away. `directory` is at the same path in it."""

    def __init__(self, root, directory):
        self.directory = directory
        self._holder = subprocess.Popen(
            [CHROOT, "--run", root, "sh", "-c", "echo made; exec sleep infinity"],
            cwd=directory,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout.readline() == "made\n"
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children")
        self._first = children.read_text().split()[0]

    def close(self):
        self._holder.kill()
        self._holder.wait()
        self._holder.stdout.close()

    def try_run(self, script, user=0, timeout=TIMEOUT):
        """Run a shell command, however it ends."""
        return subprocess.run(
            [
                *("nsenter", f"--target={self._first}", "--mount", "--pid", "--root"),
                *(f"--wdns={self.directory}", "setpriv", f"--reuid={user}", f"--regid={user}"),
                *("--clear-groups", "bash", "-c", f"set -e -o pipefail; {script}"),
            ],
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME": "/root",
                "LANG": "C.UTF-8",
                "DEBIAN_FRONTEND": "noninteractive",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )

    def run(self, script, user=0, timeout=TIMEOUT):
        """The output of a shell command, which has to succeed."""
        done = self.try_run(script, user, timeout)
        assert done.returncode == 0, f"{script}\n{done.stdout}"
        return done.stdout


@pytest.fixture(scope="session")
def roots(require):
    """The roots that tools/chroot makes, by kind, if they are in the cache or are to be made."""
    require(os.geteuid() == 0, "root, for a root of its own")
    require(shutil.which("mmdebstrap"), "mmdebstrap: apt install mmdebstrap")
    found = {}
    for kind in ("bare", "build"):
        command = [CHROOT, *([] if MAKE else ["--cached"]), kind]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=MAKE)
        if done.returncode != 0:
            # With BARFS_REQUIRE=1 too: a first run would take minutes, and the network.
            pytest.skip("no root of Debian 13 is in the cache; `make test-deb` makes it")
        found[kind] = done.stdout.strip()
    return found


@pytest.fixture(scope="session")
def package(roots, tmp_path_factory):
    """A directory with the package and one of another version, and what else a test may need."""
    directory = tmp_path_factory.mktemp("package")
    directory.parent.chmod(0o755)
    directory.chmod(0o755)
    subprocess.run([ROOT / "tools/deb", "--into", directory], check=True)
    (deb,) = directory.glob("barfs_*.deb")
    deb.rename(directory / "barfs.deb")
    subprocess.run(
        [
            *(CHROOT, "--run", roots["build"], "bash", "-c"),
            f"{UNPACK} && sed -i 's/^Version: .*/Version: 9.8.7/' next/DEBIAN/control && {REPACK}",
        ],
        cwd=directory,
        check=True,
    )
    return directory


@contextlib.contextmanager
def system(roots, directory):
    """A fresh system for a block."""
    made = System(roots["bare"], directory)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def installed(roots, package):
    """A fresh system in which apt has installed the package."""
    with system(roots, package) as made:
        assert made.try_run("command -v barfs").returncode != 0
        made.run("apt install -y ./barfs.deb")
        # What the article's session shows bytes with, and what enables a service.
        made.run("apt install -y bsdextrautils xxd systemd")
        yield made
