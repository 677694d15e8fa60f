"""The machines that guests are, and what differs between them."""

import dataclasses
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
ENGINE = REPOSITORY / "barfs/access/_mmio.c"

# Where guests find the programs `python` and `barfs`.
BIN = Path("/opt/barfs/bin")
LIB = Path("/opt/barfs/lib")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A machine that QEMU emulates, with the root that its guest boots from."""

    name: str
    qemu: str
    machine: tuple[str, ...]  # QEMU's arguments
    console: str
    kernel: tuple[str, ...]  # what build-kernel is told
    variable: str  # of the environment; names a kernel to take instead
    packages: str  # what has to be installed
    arguments: str  # the kernel's, in the guest that all tests share
    # Whether firmware runs first. It turns on the decoding of BARs, and a kernel does not.
    has_firmware: bool
    # The address at which the CPU sees I/O port 0, by which QEMU's trace goes.
    ports: int
    # A chip that is on no PCI bus: the address of some of its registers, and what they hold.
    chip: tuple[int, tuple[int, ...]]
    # The guest's root is the host's own.
    is_host: bool = False

    @property
    def init(self):
        """Where guest_init is in the root."""
        return HERE / "guest_init" if self.is_host else "/usr/sbin/guest_init"

    def find_kernel(self, require, *fragments):
        """The path of a test kernel, which is built if it is not in the cache."""
        require(shutil.which(self.qemu), f"{self.qemu}: apt install {self.packages}")
        if self.variable in os.environ:
            return Path(os.environ[self.variable])
        require(
            list(Path("/usr/src").glob("linux-source-*.tar.*")),
            "a kernel source package: apt install linux-source-6.12",
        )
        return printed_path(HERE / "build-kernel", *self.kernel, *fragments)

    def find_root(self, require):
        """The directory that the guest boots from; it is made if it is not in the cache."""
        if self.is_host:
            return Path("/")
        require(shutil.which("mmdebstrap"), "mmdebstrap: apt install mmdebstrap")
        return printed_path(HERE / "make-root")

    def compile_engine(self, root, path, compiler="gcc", level="-O2"):
        """Make the extension for the guest's Python."""
        words = [compiler]
        if self.is_host:
            include = [f"-I{sysconfig.get_path('include')}"]
        else:
            # The C library's headers are the cross compiler's; two of them do not mix.
            (python,) = root.glob("usr/include/python3.*")
            include = [f"-I{python}", "-idirafter", root / "usr/include"]
            cross = "/usr/aarch64-linux-gnu/include"
            words = {
                "gcc": ["aarch64-linux-gnu-gcc"],
                "clang": ["clang", "--target=aarch64-linux-gnu", "-isystem", cross],
            }[compiler]
        subprocess.run(
            [*words, level, "-shared", "-fPIC", *include, ENGINE, "-o", path], check=True
        )

    def make_programs(self, root, directory):
        """Fill the directory with what the guest has as /opt/barfs."""
        programs = {"python": f"{sys.prefix}/bin/python", "barfs": f"{sys.prefix}/bin/barfs"}
        if not self.is_host:
            package = directory / "lib/barfs"
            skipped = shutil.ignore_patterns("*.so", "__pycache__")
            shutil.copytree(REPOSITORY / "barfs", package, ignore=skipped)
            self.compile_engine(root, package / "access/_mmio.so")
            python = f"env PYTHONPATH={LIB} /usr/bin/python3"
            programs = {"python": python, "barfs": f"{python} -m barfs"}
        (directory / "bin").mkdir(parents=True)
        for name, command in programs.items():
            program = directory / "bin" / name
            program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
            program.chmod(0o755)


def printed_path(*command):
    """The path that a program prints."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Path(done.stdout.strip())


X86 = Architecture(
    name="x86",
    qemu="qemu-system-x86_64",
    machine=("-M", "q35", "-smp", "2", "-m", "512"),
    console="ttyS0",
    kernel=("x86",),
    variable="BARFS_KERNEL",
    packages="qemu-system-x86",
    # debugpat: the kernel says of each mapping whether it is write-combining.
    arguments="debugpat loglevel=5",
    has_firmware=True,
    ports=0,
    # The HPET's general capabilities and ID register (IA-PC HPET specification, 2.3.4).
    chip=(0xFED00000, (0x8086A201, 0x009896_80)),
    is_host=True,
)

# With an IOMMU, which remaps interrupts, too.
X86_IOMMU = dataclasses.replace(
    X86,
    name="x86-iommu",
    machine=(
        *("-M", "q35,kernel-irqchip=split", "-smp", "2", "-m", "512"),
        *("-device", "intel-iommu,intremap=on"),
    ),
)

ARM64 = Architecture(
    name="arm64",
    qemu="qemu-system-aarch64",
    machine=("-M", "virt", "-cpu", "cortex-a72", "-smp", "2", "-m", "1024"),
    console="ttyAMA0",
    kernel=("arm64", str(HERE / "arm64-4k.config")),
    variable="BARFS_ARM64_KERNEL",
    packages="qemu-system-arm",
    arguments="loglevel=5",
    has_firmware=False,
    # QEMU, hw/arm/virt.c: base_memmap, VIRT_PCIE_PIO and VIRT_UART.
    ports=0x3EFF0000,
    # PrimeCell UART (PL011) technical reference manual, 3.4: peripheral and PrimeCell ID.
    chip=(0x09000FE0, (0x11, 0x10, 0x14, 0x00, 0x0D, 0xF0, 0x05, 0xB1)),
)

ARM64_64K = dataclasses.replace(
    ARM64,
    name="arm64-64k",
    kernel=("arm64", str(HERE / "arm64-64k.config")),
    variable="BARFS_ARM64_64K_KERNEL",
)

ARCHITECTURES = {one.name: one for one in (X86, ARM64, ARM64_64K)}
