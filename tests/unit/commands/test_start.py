"""What a command loads before it does anything: no more than it uses."""

import re
import subprocess
import sys

import pytest

from barfs.machine import simulated

# What takes long to load, and who needs it: FUSE, a mount of the real machine, compressed files,
# the simulated machine, the bench.
FUSE = {"pyfuse3", "trio"}
SELDOM = {"pyudev", "gzip", "tempfile", "barfs.machine.simulated", "numpy", "matplotlib", "bench"}


def loaded(*arguments):
    """The modules that a command loads, as the interpreter counts them."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "barfs", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.findall(r"^import time:\s+\d+ \|\s+\d+ \| +(\S+)$", done.stderr, re.MULTILINE)
    assert "barfs.commands.cli" in found, done.stderr
    return set(found)


@pytest.fixture
def machine(tmp_path):
    return simulated.build(tmp_path)


@pytest.mark.parametrize(
    "command", ["--help", "umount -q", "ls --sysfs", "ls -v --sysfs", "doctor --sysfs"]
)
def test_only_a_mount_loads_fuse(machine, command):
    arguments = command.split()
    if "--help" not in arguments:
        arguments.append(machine.sysfs)
    found = loaded(*arguments)
    assert not found & FUSE
    assert not found & (SELDOM - {"gzip"})  # pci.ids and the kernel's configuration may be packed


def test_a_mount_loads_what_it_uses(machine, tmp_path):
    paths = [f"--{name}={path}" for name, path in vars(machine).items()]
    found = loaded("mount", *paths, "-f", "-o", "nonsense", tmp_path)
    assert found >= FUSE
    # Beside those of pyfuse3 and trio: some of these load what is seldom used, too.
    alone = subprocess.run(
        [sys.executable, "-c", "import sys, pyfuse3, trio; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not (found - set(alone.stdout.split())) & SELDOM
