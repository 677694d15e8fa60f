"""A simulated machine whose every byte is known, and what the names of its files mean."""

import errno
import os
import shutil
import time

from barfs.machine import simulated
from barfs.names import DeviceId, PciAddress
from walks.contract import PAGE, Bytes, Stretch
from walks.files import File, width_of

# Demo's devices, and one with BARs of unusual sizes: larger than what is mapped at once, tiny, and
# of ports.
DEVICES = (
    *simulated.DEVICES,
    simulated.Device(
        PciAddress(0, 0, 9, 0),
        DeviceId(0x1234, 0x11E8),
        DeviceId(0x1AF4, 0x1101),
        0x038000,  # a display controller: its largest prefetchable BAR is memory
        {
            0: simulated.Resource(0x810000000, 0x81BFFFFFF, simulated.MEM_64),
            2: simulated.Resource(0xFEB40010, 0xFEB4001F, simulated.MEM),
            3: simulated.Resource(0x820000000, 0x828FFFFFF, simulated.PREFETCH_64),
            5: simulated.Resource(0xC0C4, 0xC0C7, simulated.PORTS),
        },
    ),
)
# Where functions may be plugged in; the first ones are where they are at the start.
SLOTS = [*(str(device.address) for device in DEVICES), "0000:00:02.0", "0000:01:00.1"]
VIEWS = ("", "u8", "u16", "u32", "u64", "x8", "x16", "x32", "x64", "mem")
ADDRESS_END = 1 << 64


def sort_key(address):
    return tuple(int(word, 16) for word in address.replace(".", ":").split(":"))


class Function:
    """A function of the machine: what its files hold, wherever it is plugged in."""

    def __init__(self, device):
        self.id, self.subsystem = str(device.id), str(device.subsystem)
        self.device_class = device.class_code
        self.resources = {n: tuple(resource) for n, resource in device.resources.items()}
        self.memory = {n: Bytes(device.contents.get(n, b"")) for n in self.resources}
        self.config = None  # read when its file is there
        self.plugged = 0  # how often: open files belong to one time
        self.address = self.first_address = str(device.address)

    @property
    def bars(self):
        return {n: resource for n, resource in self.resources.items() if n < 6}

    def is_memory(self, bar):
        """Whether it is known that a BAR is memory."""
        sizes = {n: end - start for n, (start, end, flags) in self.bars.items() if flags & 0x2000}
        if bar not in sizes:
            return False
        if self.device_class >> 8 == 0x0500:
            return True
        return self.device_class >> 16 == 3 and sizes[bar] == max(sizes.values())

    @property
    def text(self):
        """As in sysfs's `resource`."""
        rows = [self.resources.get(n, (0, 0, 0)) for n in range(7)]
        return "".join("".join(f"{n:#018x} " for n in row).strip() + "\n" for row in rows)

    def decoded(self, bar):
        command = int.from_bytes(self.config[4:6], "little")
        memory = self.resources[bar][2] & 0x200
        return command != 0xFFFF and bool(command & (2 if memory else 1))


class Machine:
    """The files of a machine below a directory, and the model of them."""

    size = 0x900000000  # of the memory, in bytes

    def __init__(self, directory, via, believed=0):
        self.via = via
        self.believed = believed
        self.directory = directory
        self.files = simulated.Paths(*(directory / name for name in ("sys", "proc", "mem")))
        self.devices = self.files.sysfs / "bus/pci/devices"
        self.shelf = directory / "shelf"

    def build(self):
        """Make all files anew, in the same directories."""
        for path in (self.devices, self.shelf, self.devices.parent / "drivers", self.files.proc):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
        (self.files.proc / "iomem").write_text(simulated.IOMEM)
        with self.files.devmem.open("wb") as memory:
            memory.truncate(self.size)
        self.memory = Bytes()
        self.plugged, self.unplugged = {}, []
        for device in DEVICES:
            simulated._write_device(self.devices, device)
            function = self.plugged[str(device.address)] = Function(device)
            function.config = bytearray((self.path(function) / "config").read_bytes())
            for bar, (start, end, flags) in function.bars.items():
                if flags & 0x200:
                    # So that what is read there through /dev/mem is not zeros alone.
                    self.poke(self.memory, start, f"{device.address} {bar} {end:x}".encode()[:16])
        rows = [row for row in simulated.IOMEM.splitlines() if row[0] != " "]
        ends = [[int(n, 16) for n in row.split()[0].split("-")] for row in rows]
        # What belongs to functions, by the name that it has there.
        self.owned = [
            (*(int(n, 16) for n in row.split()[0].split("-")), row.split()[2])
            for row in simulated.IOMEM.splitlines()
            if row.endswith(".0")
        ]
        self.ranges = [
            (start, end, "System RAM" in row) for row, (start, end) in zip(rows, ends, strict=True)
        ]

    def path(self, function):
        """The directory of a function, plugged in or not."""
        if function in self.unplugged:
            return self.shelf / function.first_address
        return self.devices / function.address

    def backing(self, function, bar):
        """Which bytes are behind a BAR, and where in them it begins."""
        start, _, flags = function.resources[bar]
        if self.via == "devmem" and flags & 0x200:
            return self.memory, start
        return function.memory[bar], 0

    @property
    def functions(self):
        """All, plugged in or not."""
        return (*self.plugged.values(), *self.unplugged)

    def backings(self):
        """Bytes, and the paths of the files that have them."""
        yield self.memory, self.files.devmem
        for function in self.functions:
            for number, memory in function.memory.items():
                name = "rom" if number == 6 else f"resource{number}"
                yield memory, self.path(function) / name

    # What happens to a machine

    def unplug(self, address):
        function = self.plugged.pop(address)
        self.unplugged.append(function)
        (self.devices / address).rename(self.path(function))
        # As in sysfs: who has the file open knows that it is gone, whatever comes later.
        resource = self.path(function) / "resource"
        resource.unlink()
        resource.write_text(function.text)

    def plug(self, index, address):
        function = self.unplugged[index]
        path = self.path(function)
        self.unplugged.remove(function)
        function.address = address
        function.plugged += 1
        self.plugged[address] = function
        path.rename(self.path(function))

    def move(self, address, bar, to):
        """Give a BAR another address, of the same alignment that its size asks for."""
        function = self.plugged[address]
        start, end, flags = function.resources[bar]
        function.resources[bar] = (to, to + end - start, flags)
        (self.devices / address / "resource").write_text(function.text)
        at, width = 0x10 + 4 * bar, 8 if flags & 0x100000 else 4
        low = function.config[at] & 0xF
        self.configure(function, at, (to | low).to_bytes(width, "little"))

    def command(self, address, value):
        self.configure(self.plugged[address], 4, value.to_bytes(2, "little"))
        # Whoever has a BAR open believes for so long that it answers.
        time.sleep(self.believed)

    def configure(self, function, at, data):
        """Set registers in config space."""
        function.config[at : at + len(data)] = data
        with (self.path(function) / "config").open("r+b", buffering=0) as file:
            file.seek(at)
            file.write(data)

    def poke(self, backing, offset, data):
        """What the device does with its own bytes, or another program with memory."""
        backing.write(offset, data)
        (path,) = (path for known, path in self.backings() if known is backing)
        with path.open("r+b", buffering=0) as file:
            file.seek(offset)
            file.write(data)

    def check(self):
        """Every byte of the machine is what the model says, and nothing else was written."""
        for function in self.functions:
            assert (self.path(function) / "config").read_bytes() == function.config
        for backing, path in self.backings():
            with path.open("rb", buffering=0) as file:
                written = set(written_pages(file.fileno()))
                for page in sorted(written | set(backing.pages)):
                    assert os.pread(file.fileno(), PAGE, page * PAGE) == (
                        backing.read(page * PAGE, min(PAGE, path.stat().st_size - page * PAGE))
                    ), f"{path} at {page * PAGE:#x}"

    # What names mean. An errno, or several that are as good, where they mean nothing.

    def links(self):
        found = {}
        for address in sorted(self.plugged, key=sort_key):
            function = self.plugged[address]
            for name in (function.id, f"{function.id}:{function.subsystem}"):
                n = sum(1 for known in found if known.split(".")[0] == name)
                found[f"{name}.{n}" if n else name] = address
        return found

    def bar_file(self, address, view, bar, window):
        """A BAR, or a window given as form, first and second number."""
        function = self.plugged.get(address)
        form, first, second = window or ("", 0, 0)
        end = {"": None, "@": None, "+": first + second - 1, "-": second}[form]
        if function is None or bar not in function.bars:
            return {errno.ENOENT}
        start, last, flags = function.resources[bar]
        if view == "mem" and not flags & 0x200:
            return {errno.ENOENT}
        whole = last + 1 - start
        if first >= ADDRESS_END or (end is not None and not first <= end < ADDRESS_END):
            return {errno.ENOENT}
        if first >= whole or (end is not None and end >= whole):
            return {errno.ENXIO}
        if end is None:
            end = whole - 1
            if form and view[:1] == "x":
                end = min(end, first + width_of(view) - 1)
        backing, at = self.backing(function, bar)
        stretch = Stretch(
            backing,
            at + first,
            start + first,
            end + 1 - first,
            memory_like=view == "mem" or function.is_memory(bar),
            widest=8 if flags & 0x200 else 4,
        )
        return File(view, [stretch], [(0, ADDRESS_END, function)], bar)

    def phys_file(self, view, form, first, second):
        end = {"": None, "+": first + second - 1, "-": second}[form]
        if first >= ADDRESS_END or (end is not None and not first <= end < ADDRESS_END):
            return {errno.ENOENT}
        inside = [row for row in self.ranges if row[0] <= first <= row[1]]
        if not inside:
            return {errno.ENXIO}
        if end is None:
            end = inside[0][1]
        stretches, kinds, at = [], [], first
        for start, last, is_ram in self.ranges:
            if start <= at <= last and at <= end:
                size = min(last, end) + 1 - at
                if stretches and kinds[-1] == is_ram:
                    kinds.pop()
                    size += stretches.pop().size
                    at = min(last, end) + 1 - size
                stretches.append(Stretch(self.memory, at, at, size, is_ram or view == "mem", 8))
                kinds.append(is_ram)
                at += size
        if at <= end:
            return {errno.ENXIO}
        size = width_of(view) if view[:1] == "x" else end + 1 - first
        owners = [
            (start - first, last + 1 - first, self.plugged[address])
            for start, last, address in self.owned
            if start < first + size and first <= last and address in self.plugged
        ]
        return File(view, stretches, owners, None)

    def listing(self, address, view):
        """The names in a function's directory."""
        function = self.plugged.get(address)
        if function is None:
            return None
        bars = {f"bar{bar}" for bar in function.bars}
        if view == "mem":
            return {f"bar{bar}" for bar, (*_, flags) in function.bars.items() if flags & 0x200}
        if view:
            return bars
        rom = {"rom"} if 6 in function.resources else set()
        parts = {"config", "info", "regs", "decode", "sysfs"}
        return bars | rom | parts | set(VIEWS[1:])


def written_pages(fd):
    """The pages of a sparse file that may be other than zeros."""
    at = 0
    while True:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # there are none any more
                return
            raise
        end = os.lseek(fd, at, os.SEEK_HOLE)
        yield from range(at // PAGE, -(-end // PAGE))
        at = end
