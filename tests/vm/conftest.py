"""One boot of the guest for all tests of this tier, and one of each kernel that refuses more."""

import concurrent.futures
import contextlib
import os
import re

import pytest

from vm.architecture import ARCHITECTURES, HERE, X86
from vm.machine import Guest, Region

MOUNTS = {"resource": "/mnt/bars", "devmem": "/mnt/bars-devmem"}
ENGINE_BUILDS = [(cc, level) for cc in ("gcc", "clang") for level in ("-O2", "-O3")]


def pytest_generate_tests(metafunc):
    """Tests run in a guest of each machine that is asked for; on others than x86 if marked so."""
    if "architecture" in metafunc.fixturenames:
        names = os.environ.get("BARFS_VM_MACHINES", "x86 arm64").split()
        if not metafunc.definition.get_closest_marker("each_machine"):
            names = [name for name in names if name == "x86"]
        params = [
            pytest.param(name, marks=[] if name == "x86" else pytest.mark.arm64) for name in names
        ]
        metafunc.parametrize("architecture", params, indirect=True, scope="session")


def pytest_collection_modifyitems(config, items):
    """What says nothing more in a second mount runs in one of them on others than x86."""
    left_out = []
    for item in items:
        marker = item.get_closest_marker("each_machine")
        if marker and marker.args and item.get_closest_marker("arm64"):
            (via,) = marker.args
            if item.callspec.params.get("bars", via) != via:
                left_out.append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def architecture(request):
    return ARCHITECTURES[request.param]


@pytest.fixture(scope="session")
def kernel(require):
    """One for x86 that refuses nothing."""
    return X86.find_kernel(require)


@pytest.fixture(scope="session")
def strict_kernel(require):
    """One as distributions have it, with STRICT_DEVMEM, IO_STRICT_DEVMEM and lockdown."""
    return X86.find_kernel(require, HERE / "strict.config")


@pytest.fixture(scope="session")
def engines(architecture, require, tmp_path_factory):
    """The access engine in several builds, by name. Made before the guest sees the directory."""
    root = architecture.find_root(require)
    directory = tmp_path_factory.mktemp("engines")
    builds = {c + level: directory / f"{c}{level}" / "_mmio.so" for c, level in ENGINE_BUILDS}

    def build(compiler, level):
        path = builds[compiler + level]
        path.parent.mkdir()
        architecture.compile_engine(root, path, compiler, level)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(lambda words: build(*words), ENGINE_BUILDS))
    return builds


@contextlib.contextmanager
def running(architecture, kernel, directory, arguments="", vias=tuple(MOUNTS), **more):
    """A guest with barfs mounted in both ways, or in some. `more` is for the guest."""
    guest = Guest(architecture, kernel, directory, arguments, **more)
    try:
        if not architecture.has_firmware:
            # Nothing else has turned on the decoding of BARs.
            guest.run(
                "for device in /sys/bus/pci/devices/*; do echo 1 > $device/enable || true; done"
            )
        # test_article mounts in the background.
        guest.mount_all({MOUNTS[via]: (("--bars-via", via), log_of(via)) for via in vias})
        yield guest
        guest.unmount_all(*(MOUNTS[via] for via in vias))
    finally:
        guest.close()


def log_of(via):
    """What the daemon of one of the mounts prints goes to this file in the guest."""
    return f"/run/{via}.log"


@pytest.fixture(scope="session")
def guest(architecture, require, engines, tmp_path_factory):
    """One whose kernel refuses nothing."""
    root, kernel = architecture.find_root(require), architecture.find_kernel(require)
    directory = tmp_path_factory.mktemp("vm")
    with running(architecture, kernel, directory, architecture.arguments, root=root) as guest:
        yield guest


@pytest.fixture(scope="session")
def strict_guest(strict_kernel, tmp_path_factory):
    with running(X86, strict_kernel, tmp_path_factory.mktemp("strict")) as guest:
        yield guest


@pytest.fixture(scope="session")
def locked_guest(strict_kernel, tmp_path_factory):
    directory = tmp_path_factory.mktemp("locked")
    arguments = "lockdown=confidentiality"
    with running(X86, strict_kernel, directory, arguments) as guest:
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
    logs = {where: log_of(via) for via, where in MOUNTS.items()}
    sizes = guest.run(f"stat -c %s {' '.join(logs.values())}").text.split()
    start = {where: int(size) for where, size in zip(logs, sizes, strict=True)}
    return lambda where: guest.run(f"tail -c +{start[where] + 1} {logs[where]}").text


def bar_address(guest, address, index):
    lines = guest.run(f"cat /sys/bus/pci/devices/{address}/resource").text.splitlines()
    return int(re.match(r"0x[0-9a-f]+", lines[index])[0], 16)


@pytest.fixture(scope="session")
def edu(guest):
    """1234:11e8. It takes 4 bytes anywhere and 8 from 0x80.

    What it refuses, the bus still saw. Then x86 reads garbage, and arm64 gets an external abort.
    """
    return Region("edu-mmio", bar_address(guest, "0000:00:13.0", 0), "1234:11e8")


@pytest.fixture(scope="session")
def sdhci(guest):
    """1b36:0007: a BAR of 256 bytes. It takes 1, 2 and 4 bytes; from 0x80 on they do nothing."""
    return Region("sdhci", bar_address(guest, "0000:00:1a.0", 0), "1b36:0007")


@pytest.fixture(scope="session")
def takers(edu, sdhci):
    """A device that takes accesses of a width, from 0x80 on."""
    return {1: sdhci, 2: sdhci, 4: sdhci, 8: edu}


@pytest.fixture(scope="session")
def nvme(guest):
    """1b36:0010: registers in a 64-bit BAR."""
    return Region("nvme", bar_address(guest, "0000:00:16.0", 0))


@pytest.fixture(scope="session")
def virtio_common(guest):
    """A virtio device without a driver: registers in a prefetchable BAR."""
    return Region("virtio-pci-common-virtio-rng", bar_address(guest, "0000:00:17.0", 4))


@pytest.fixture(scope="session")
def all_registers(edu, sdhci, nvme, virtio_common):
    """Every region of the devices under test that QEMU can trace."""
    others = (
        "ivshmem-mmio",
        *("e1000-mmio", "e1000-io"),
        *("pci-testdev-mmio", "pci-testdev-portio"),
    )
    return [edu, sdhci, nvme, virtio_common, *(Region(name, 0) for name in others)]
