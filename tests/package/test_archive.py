"""All of tests/mounted on the installed package and the libraries of Debian 13's archive."""

import shutil
from pathlib import Path

import pytest

from package.conftest import ROOT, system

# What the tests of the mounted tier use, besides what the package depends on.
TOOLS = (
    "python3-pytest python3-hypothesis python3-lxml python3-venv python3-dev libfuse3-dev"
    " pkg-config gcc clang make file tar hexedit pciutils plocate psmisc procps mandoc groff-base"
    " zsh busybox memtool diffutils git"
)
LIBRARIES = "systemrdl-compiler cmsis-svd shtab~=1.13.0 rich matplotlib python-periphery"


@pytest.fixture
def installed(roots, package):
    """A system for this module alone, with the package."""
    with system(roots, package) as made:
        made.run("apt install -y ./barfs.deb bsdextrautils xxd systemd")
        yield made


def test_all_of_the_tests_on_the_archives_libraries(installed, package):
    """With the archive's Python, pyfuse3, trio and pyudev, and the barfs that is installed."""
    clone = package / "clone"
    skipped = shutil.ignore_patterns(".venv", ".git", "build", "*.so", "__pycache__")
    shutil.copytree(ROOT, clone, ignore=skipped)
    installed.run(f"apt update && apt install -y --no-install-recommends {TOOLS}")
    # apt has made it anew; what this host trusts may be more.
    trusted = Path("/etc/ssl/certs/ca-certificates.crt")
    shutil.copy(trusted, package)
    installed.run(
        f"cp {trusted.name} {trusted} && python3 -m venv --system-site-packages /opt/tests &&"
        # The commands that are installed know nothing of the virtual environment.
        " /opt/tests/bin/pip install --target /usr/local/lib/python3.13/dist-packages"
        f" {LIBRARIES} && ln -s /usr/sbin/barfs /usr/sbin/mount.barfs /opt/tests/bin"
    )
    # The clone's own barfs is not in the way: only its tests and what they import are.
    installed.run(f"mkdir /opt/clone && ln -s {clone}/bench {clone}/survey /opt/clone")
    python = "cd /opt/clone && BARFS_REQUIRE=1 PYTHONDONTWRITEBYTECODE=1 /opt/tests/bin/python"
    where = installed.run(f"{python} -c 'import barfs, pyfuse3; print(barfs.__file__)'")
    assert where.startswith("/usr/lib/python3/dist-packages/"), where
    print(
        installed.run(
            f"{python} -m pytest -p no:cacheprovider -q -c {clone}/pyproject.toml"
            f" --rootdir {clone} -o pythonpath='/opt/clone {clone}/tests' {clone}/tests/mounted",
            timeout=3600,
        )
    )
