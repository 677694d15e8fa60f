"""A QEMU guest with PCI devices, its command channel, and what its bus saw."""

import base64
import contextlib
import dataclasses
import json
import os
import re
import shlex
import socket
import struct
import subprocess
import time

from qemu.qmp import QMPError
from qemu.qmp.legacy import QEMUMonitorProtocol

from vm.architecture import BIN, HERE, REPOSITORY

P9 = "trans=virtio,version=9p2000.L,msize=512000,cache=loose"

BOOT_TIMEOUT = 180
COMMAND_TIMEOUT = 120

# The program in the guest that carries out commands.
AGENT = [str(BIN / "python"), str(HERE / "guest" / "agent.py")]

MIB = 1 << 20
GIB = 1 << 30


def program_line(name, *arguments):
    """The shell command that runs one of the programs in `guest/`."""
    return shlex.join(map(str, [BIN / "python", HERE / "guest" / name, *arguments]))


@dataclasses.dataclass(frozen=True)
class Access:
    """One access that the bus saw; `offset` is from the start of the device's region."""

    kind: str
    offset: int
    width: int

    def __repr__(self):
        return f"{self.kind} {self.width} at {self.offset:#x}"


class Done:
    """How a command in the guest ended."""

    def __init__(self, command, answer):
        self.command = command
        self.status = answer["status"]
        self.stdout = base64.b64decode(answer["stdout"])
        self.stderr = base64.b64decode(answer["stderr"])

    @property
    def text(self):
        return self.stdout.decode()

    def __repr__(self):
        return f"{self.command}\nstatus {self.status}\n{self.stdout!r}\n{self.stderr!r}"


class Guest:
    """A running guest. `directory` receives its files: console, trace, memory of devices.

    It boots `kernel` from the directory `root`, which stays as it is. It sees the repository and
    what lies beside `directory` at the same paths as the host. `arguments` are more of the
    kernel's. With `units`, a directory, its first process is systemd with these units alone;
    guest.target has to start the agent. `devices` are more of QEMU's arguments.
    """

    def __init__(
        self, architecture, kernel, directory, arguments="", units=None, root="/", devices=()
    ):
        self.architecture = architecture
        self.arguments = arguments
        self.directory = directory
        self.units = units
        self.console = directory / "console"
        self.trace_log = directory / "trace"
        self.memory = [directory / f"ivshmem{n}" for n in range(3)]
        self.memory_sizes = [MIB, MIB, 4 * GIB]
        for path, size in zip(self.memory, self.memory_sizes, strict=True):
            with path.open("wb") as file:
                file.truncate(size)
        self.rom = directory / "rom"
        self.rom.write_bytes(expansion_rom())
        disk = directory / "nvme"
        with disk.open("wb") as file:
            file.truncate(MIB)
        command = [
            architecture.qemu,
            *("-accel", os.environ.get("BARFS_VM_ACCEL", "tcg,thread=multi")),
            *architecture.machine,
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-serial", f"file:{self.console}"),
            *("-D", self.trace_log, "-d", refused_accesses(architecture)),
            *("-qmp", f"unix:{directory / 'qmp'},server=on,wait=off"),
            *("-kernel", kernel, "-append", self._command_line()),
            *shared_directory("root", root),
            *("-device", "virtio-serial-pci"),
            *("-chardev", f"socket,id=agent,path={directory / 'agent'},server=on,wait=off"),
            *("-device", "virtserialport,chardev=agent,name=barfs.agent"),
        ]
        for n, size in enumerate(self.memory_sizes):
            command += [
                *(
                    "-object",
                    f"memory-backend-file,id=m{n},size={size},share=on,mem-path={self.memory[n]}",
                ),
                *("-device", f"ivshmem-plain,memdev=m{n},addr={0x10 + n:#x}"),
            ]
        command += [
            *("-device", "edu,addr=0x13"),
            *("-device", "pci-testdev,addr=0x14"),
            *("-device", f"e1000,addr=0x15,romfile={self.rom}"),
            *("-drive", f"if=none,id=disk,format=raw,file={disk}"),
            *("-device", "nvme,drive=disk,serial=barfs,addr=0x16"),
            *("-device", "virtio-rng-pci,disable-legacy=on,addr=0x17"),
            *("-device", "virtio-net-pci,disable-legacy=on,romfile=,addr=0x1b"),
            # Firmware keeps room for what is plugged in later only if it is told how much.
            *("-device", "pcie-root-port,id=slot1,chassis=1,slot=1,addr=0x18,mem-reserve=8M"),
            *("-device", "pcie-root-port,id=slot2,chassis=2,slot=2,addr=0x19,mem-reserve=8M"),
            *("-device", "sdhci-pci,addr=0x1a"),
            *devices,
        ]
        if not architecture.is_host:
            command += shared_directory("host", "/")
        architecture.make_programs(root, directory / "programs")
        with (directory / "qemu-stderr").open("wb") as stderr:
            self.process = subprocess.Popen(
                [str(word) for word in command], stdin=subprocess.DEVNULL, stderr=stderr
            )
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

    def _command_line(self):
        """Boot the root, read-only, over 9p; init gets what the kernel does not know."""
        init = shlex.join(AGENT if self.units is None else ["--systemd", str(self.units)])
        environment = f"PROGRAMS={self.directory / 'programs'}"
        if not self.architecture.is_host:
            environment += f" FROM_HOST={REPOSITORY}:{self.directory.parent}"
        return (
            f"root=root rootfstype=9p rootflags={P9} ro init={self.architecture.init}"
            f" console={self.architecture.console} panic=-1 {self.arguments} {environment}"
            f" -- {init}"
        )

    def _connect(self):
        deadline = time.monotonic() + BOOT_TIMEOUT
        while not (self.directory / "agent").exists():
            self._check_alive(deadline)
            time.sleep(0.01)
        qmp = QEMUMonitorProtocol(str(self.directory / "qmp"))
        try:
            qmp.connect()
        except QMPError:
            self.process.wait(timeout=10)
            self._check_alive(deadline)
            raise
        self.qmp = qmp
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(self.directory / "agent"))
        self._answers = self._socket.makefile("rb")
        # The answer comes once the guest has booted and its agent has opened the port.
        self._socket.settimeout(1)
        self._send("true", COMMAND_TIMEOUT)
        while True:
            try:
                self._receive("true")
            except TimeoutError:
                self._check_alive(deadline)
                # A reader that has timed out cannot be used again.
                self._answers = self._socket.makefile("rb")
            else:
                break

    def _check_alive(self, deadline):
        said = (self.directory / "qemu-stderr").read_text()
        if self.process.poll() is not None:
            raise RuntimeError(f"the guest ended: {said}\n{self.console_tail()}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"the guest did not boot: {said}\n{self.console_tail()}")

    def console_tail(self):
        text = self.console.read_text(errors="replace") if self.console.exists() else ""
        return "\n".join(text.splitlines()[-30:])

    def _send(self, command, timeout):
        request = json.dumps({"command": command, "timeout": timeout})
        self._socket.sendall(request.encode() + b"\n")

    def _receive(self, command):
        line = self._answers.readline()
        if not line:
            raise RuntimeError(f"the guest is gone: {self.console_tail()}")
        return Done(command, json.loads(line))

    def try_run(self, command, timeout=COMMAND_TIMEOUT):
        """Run a shell command in the guest, however it ends."""
        self._socket.settimeout(timeout + 30)
        self._send(command, timeout)
        try:
            return self._receive(command)
        except TimeoutError as error:
            raise RuntimeError(f"no answer to {command}: {self.console_tail()}") from error

    def run(self, command, timeout=COMMAND_TIMEOUT):
        """Run a shell command in the guest; it has to succeed."""
        done = self.try_run(command, timeout)
        assert done.status == 0, f"{done}\n{self.console_tail()}"
        return done

    def mount(self, where, *options, log):
        """Mount barfs in the foreground, for its log; where there is no directory, it is made."""
        self.mount_all({where: (options, log)})

    def mount_all(self, mounts):
        """Mount barfs at the same time in several places, each with its options and its log."""
        start = "".join(
            f"mkdir -p {where}; : >{log};"
            f" setsid {BIN}/barfs mount -f {shlex.join(map(str, options))} {where} >{log} 2>&1 & "
            for where, (options, log) in mounts.items()
        )
        # The shell reads the file itself: a program for that would take a tenth of a second.
        wait = "".join(
            f"for i in {{1..300}}; do [[ $(<{log}) = *'mounted on'* ]] && break; sleep 0.2; done;"
            f" [[ $(<{log}) = *'mounted on'* ]] || {{ cat {log}; exit 1; }}; "
            for _, log in mounts.values()
        )
        self.run(start + wait)

    def unmount_all(self, *mountpoints):
        """Unmount at the same time; each has to succeed."""
        start = "".join(f'{BIN}/barfs umount {where} & pids+=" $!"; ' for where in mountpoints)
        self.run(f"{start} for pid in $pids; do wait $pid || exit; done")

    def program(self, name, *arguments, timeout=COMMAND_TIMEOUT):
        """Run one of the programs in `guest/` in the guest; it has to succeed."""
        return self.run(program_line(name, *arguments), timeout)

    def peek(self, number, offset, length):
        """Bytes of an ivshmem device's memory, as the host has them."""
        with self.memory[number].open("rb") as memory:
            memory.seek(offset)
            return memory.read(length)

    def poke(self, number, offset, data):
        """Change an ivshmem device's memory from the host's side."""
        with self.memory[number].open("r+b") as memory:
            memory.seek(offset)
            memory.write(data)

    @contextlib.contextmanager
    def traced(self, *regions):
        """A list that is filled, at the end of the block, with the accesses to some regions."""
        events = {"name": "memory_region_ops_*", "enable": True}
        self.qmp.cmd("trace-event-set-state", **events)
        start = self.trace_log.stat().st_size
        seen = []
        try:
            yield seen
        finally:
            self.qmp.cmd("trace-event-set-state", **{**events, "enable": False})
        with self.trace_log.open("rb") as log:
            log.seek(start)
            for line in log.read().decode(errors="replace").splitlines():
                seen += [access for region in regions if (access := parse_trace(line, region))]

    def close(self):
        if hasattr(self, "qmp"):
            self.qmp.close()
            self._answers.close()
            self._socket.close()
        self.process.terminate()
        self.process.wait(timeout=30)


def shared_directory(tag, path):
    """QEMU's arguments for a file system that the guest can mount."""
    return [
        *("-fsdev", f"local,id={tag},path={path},security_model=none,readonly=on,multidevs=remap"),
        *("-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"),
    ]


def refused_accesses(architecture):
    """QEMU's name for logging accesses that a device refuses; a log item of its own since 8.1."""
    items = subprocess.run(
        [architecture.qemu, "-d", "help"], capture_output=True, text=True, check=False
    )
    return "invalid_mem" if "invalid_mem" in items.stdout + items.stderr else "guest_errors"


def expansion_rom(size=64 << 10):
    """An image that firmware does not run: for EFI, though it holds no program.

    PCI Local Bus Specification 3.0, 6.3.1: the header, at 0x1c the data structure.
    """
    blocks = size // 512
    header = struct.pack("<HH", 0xAA55, blocks).ljust(0x18, b"\0") + struct.pack("<HH", 0x1C, 0)
    for_efi, last = 3, 0x80
    data = struct.pack("<4sHHHHB3s", b"PCIR", 0x8086, 0x100E, 0, 24, 0, b"\0\0\2")
    data += struct.pack("<HHBBH", blocks, 0, for_efi, last, 0)
    start = header + data
    return start + bytes((n * n >> 3) & 0xFF for n in range(size - len(start)))


@dataclasses.dataclass(frozen=True)
class Region:
    """A region of QEMU's: its name there, and the address that it is mapped at in the guest."""

    name: str
    address: int
    device: str = ""  # the vendor and device whose BAR 0 it is


def parse_trace(line, region):
    """The access to the region that a line of QEMU's log tells of.

    Those that a device takes are traced with the absolute address, those that it refuses for
    their width are logged as guest errors, relative to the region.
    """
    taken = re.search(
        r"memory_region_ops_(read|write) .* addr (0x[0-9a-f]+) .* size (\d+) name '([^']*)'", line
    )
    if taken and taken[4] == region.name:
        return Access(taken[1], int(taken[2], 16) - region.address, int(taken[3]))
    refused = re.search(
        r"Invalid (read|write) at addr (0x[0-9A-Fa-f]+), size (\d+), region '([^']*)'", line
    )
    if refused and refused[4] == region.name:
        return Access(refused[1], int(refused[2], 16), int(refused[3]))
    return None
