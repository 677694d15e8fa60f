"""One boot of the guest for all tests of this tier, and one of each kernel that refuses more."""

import contextlib
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from vm.machine import BIN, HERE, Guest, Region

MOUNTS = {"resource": "/mnt/bars", "devmem": "/mnt/bars-devmem"}
ENGINE_BUILDS = [(cc, level) for cc in ("gcc", "clang") for level in ("-O2", "-O3")]


def find_kernel(require, variable, *fragments):
    """The path of a test kernel, which is built if it is not in the cache."""
    require(shutil.which("qemu-system-x86_64"), "qemu-system-x86_64: apt install qemu-system-x86")
    require(
        list(Path("/usr/src").glob("linux-source-*.tar.*")) or variable in os.environ,
        "a kernel source package: apt install linux-source-6.12",
    )
    if variable in os.environ:
        return Path(os.environ[variable])
    built = subprocess.run(
        [HERE / "build-kernel", *fragments], stdout=subprocess.PIPE, text=True, check=True
    )
    return Path(built.stdout.strip())


@pytest.fixture(scope="session")
def kernel(require):
    """One that refuses nothing."""
    return find_kernel(require, "BARFS_KERNEL")


@pytest.fixture(scope="session")
def strict_kernel(require):
    """One as distributions have it, with STRICT_DEVMEM, IO_STRICT_DEVMEM and lockdown."""
    return find_kernel(require, "BARFS_STRICT_KERNEL", HERE / "strict.config")


@pytest.fixture(scope="session")
def engines(tmp_path_factory):
    """The access engine in several builds, by name. Made before the guest sees the directory."""
    directory = tmp_path_factory.mktemp("engines")
    include = sysconfig.get_path("include")
    builds = {}
    for compiler, level in ENGINE_BUILDS:
        path = directory / f"{compiler}{level}" / "_mmio.so"
        path.parent.mkdir()
        subprocess.run(
            [compiler, level, "-shared", "-fPIC", f"-I{include}"]
            + [HERE.parents[1] / "barfs/access/_mmio.c", "-o", path],
            check=True,
        )
        builds[compiler + level] = path
    return builds


@contextlib.contextmanager
def running(kernel, directory, arguments=""):
    """A guest with barfs mounted in both ways."""
    guest = Guest(kernel, directory, arguments)
    try:
        for via, where in MOUNTS.items():
            # test_article mounts in the background.
            guest.mount(where, "--bars-via", via, log=f"/run/{via}.log")
        yield guest
        for where in MOUNTS.values():
            guest.run(f"{BIN}/barfs umount {where}")
    finally:
        guest.close()


@pytest.fixture(scope="session")
def guest(kernel, engines, tmp_path_factory):
    # debugpat: the kernel says of each mapping whether it is write-combining.
    with running(kernel, tmp_path_factory.mktemp("vm"), "debugpat loglevel=5") as guest:
        yield guest


@pytest.fixture(scope="session")
def strict_guest(strict_kernel, tmp_path_factory):
    with running(strict_kernel, tmp_path_factory.mktemp("strict")) as guest:
        yield guest


@pytest.fixture(scope="session")
def locked_guest(strict_kernel, tmp_path_factory):
    directory = tmp_path_factory.mktemp("locked")
    with running(strict_kernel, directory, "lockdown=confidentiality") as guest:
        yield guest


@pytest.fixture(params=list(MOUNTS))
def bars(request, guest):
    """The mountpoint, once with BARs through resourceN and once through /dev/mem."""
    return MOUNTS[request.param]


@pytest.fixture
def refusals(guest):
    """The lines that the daemon behind a mountpoint has logged since the test began."""
    return new_lines(guest)


def new_lines(guest):
    """Makes a function that gives, of the daemon behind a mountpoint, what it logs from now on."""
    logs = {where: f"/run/{via}.log" for via, where in MOUNTS.items()}
    start = {where: len(guest.run(f"cat {log}").stdout) for where, log in logs.items()}
    return lambda where: guest.run(f"tail -c +{start[where] + 1} {logs[where]}").text


def bar_address(guest, address, index):
    lines = guest.run(f"cat /sys/bus/pci/devices/{address}/resource").text.splitlines()
    return int(re.match(r"0x[0-9a-f]+", lines[index])[0], 16)


@pytest.fixture(scope="session")
def edu(guest):
    """1234:11e8. It takes 4 bytes anywhere and 8 from 0x80; what it refuses, the bus still saw."""
    return Region("edu-mmio", bar_address(guest, "0000:00:13.0", 0))


@pytest.fixture(scope="session")
def nvme(guest):
    """1b36:0010: registers in a 64-bit BAR."""
    return Region("nvme", bar_address(guest, "0000:00:16.0", 0))


@pytest.fixture(scope="session")
def virtio_common(guest):
    """A virtio device without a driver: registers in a prefetchable BAR."""
    return Region("virtio-pci-common-virtio-rng", bar_address(guest, "0000:00:17.0", 4))


@pytest.fixture(scope="session")
def all_registers(edu, nvme, virtio_common):
    """Every region of the devices under test that QEMU can trace."""
    others = (
        "ivshmem-mmio",
        *("e1000-mmio", "e1000-io"),
        *("pci-testdev-mmio", "pci-testdev-portio"),
    )
    return [edu, nvme, virtio_common, *(Region(name, 0) for name in others)]
