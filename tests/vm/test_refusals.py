"""What kernels as distributions have them refuse, and what locked down ones do."""

import json

import pytest

from vm.conftest import MOUNTS, bar_address, new_lines
from vm.machine import Region

EDU = "pci/0000:00:13.0"
# The root over 9p, which a driver has: BAR 4 is claimed, BAR 1 holds its interrupts and is not.
NINE_P = "pci/0000:00:01.0"
TESTDEV = "pci/0000:00:14.0"
E1000 = "pci/0000:00:15.0"
LOW_RAM = 0x8000  # not used by anybody once Linux runs: it keeps to itself above 1 MiB
RAM = 0x1000000

HOLDER = """
import errno, json, os

files = {}

def attempt(call, *arguments):
    try:
        return call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]

def open_file(path):
    files[path] = os.open(path, os.O_RDWR)
    return "opened"

def use(path, flags):
    fd = attempt(os.open, path, flags)
    if isinstance(fd, str):
        return {"open": fd}
    data = attempt(os.pread, fd, 4, 0)
    found = {"read": data if isinstance(data, str) else len(data)}
    if flags == os.O_RDWR:
        # What it has, so that nothing changes.
        found["write"] = attempt(os.pwrite, fd, data if isinstance(data, bytes) else b"0000", 0)
    os.close(fd)
    return found

CALLS = {
    "open": open_file,
    "read": lambda path: os.pread(files[path], 4, 0).hex(),
    "write": lambda path: os.pwrite(files[path], bytes(4), 0),
    "close": lambda path: os.close(files.pop(path)),
    "use": lambda path: use(path, os.O_RDWR),
    "use without writing": lambda path: use(path, os.O_RDONLY),
}
while True:
    with open("/run/ask") as ask:
        call, paths = json.load(ask)
    found = [attempt(CALLS[call], path) for path in paths]
    with open("/run/answer", "w") as answer:
        json.dump(found, answer)
"""


class Holder:
    """A program in the guest that does to files what it is told, and may keep them open."""

    def __init__(self, guest):
        self.guest = guest
        guest.run(f"mkfifo /run/ask /run/answer; cat >/run/holder.py <<'END'\n{HOLDER}\nEND")
        guest.run("setsid python3 /run/holder.py >/run/holder.log 2>&1 &")

    def __call__(self, call, paths):
        ask = json.dumps([call, list(paths)])
        return json.loads(self.guest.run(f"echo '{ask}' >/run/ask; cat /run/answer").text)

    def use(self, path, *, writable=True):
        """What becomes of an open, a read of 4 bytes and a write of them at the file's start."""
        (found,) = self("use" if writable else "use without writing", [path])
        return found


READ = {"read": 4}
BOTH = {"read": 4, "write": 4}
READ_NOT_WRITTEN = {"read": 4, "write": "EPERM"}
NOT_PERMITTED = "Operation not permitted"


@pytest.fixture(scope="module")
def strict(strict_guest):
    return Holder(strict_guest)


@pytest.fixture(scope="module")
def locked(locked_guest):
    return Holder(locked_guest)


@pytest.fixture(params=MOUNTS)
def via(request):
    return request.param


@pytest.fixture(scope="module")
def claimed(strict_guest):
    """Where the BAR is that a driver has claimed."""
    return bar_address(strict_guest, "0000:00:01.0", 4)


def test_what_nobody_has_claimed_works_on_a_strict_kernel(strict, via):
    edu = bar_address(strict.guest, "0000:00:13.0", 0)
    free = [
        *(f"{EDU}/bar0", f"{EDU}/u32/bar0@80+4", f"{EDU}/config", f"{TESTDEV}/bar0"),
        *(f"{TESTDEV}/bar1", f"phys/{edu:x}+8", "pci/0000:00:10.0/bar2", "pci/0000:00:12.0/bar2"),
        *("phys/000c0000-000c05ff", "phys/f0000+8"),
    ]
    assert strict("use", [f"{MOUNTS[via]}/{name}" for name in free]) == [BOTH] * len(free)
    for name in (f"{E1000}/rom", f"{NINE_P}/config", f"{NINE_P}/bar1"):
        assert strict.use(f"{MOUNTS[via]}/{name}", writable=False) == READ, name


@pytest.mark.parametrize("writable", [False, True])
def test_a_bar_that_a_driver_has_claimed_is_busy(strict, via, claimed, writable):
    said = new_lines(strict.guest)
    for name in ("bar4", "bar4@1000+4", "u32/bar4"):
        path = f"{MOUNTS[via]}/{NINE_P}/{name}"
        assert strict.use(path, writable=writable) == {"open": "EBUSY"}
    owner = {
        "resource": "the driver virtio-pci owns the range",
        "devmem": f"virtio-pci-modern owns {claimed:08x}-{claimed + 0x3FFF:08x}",
    }[via]
    whole, window, view = said(MOUNTS[via]).splitlines()
    for line in (whole, view):
        assert f"0000:00:01.0 bar4: mapping 0x1000 bytes at 0x0: {owner}" in line
    assert f"0000:00:01.0 bar4@1000+4: mapping 0x4 bytes at 0x0: {owner}" in window


@pytest.mark.parametrize("writable", [False, True])
def test_physical_memory_that_a_driver_has_claimed_is_busy(strict, via, claimed, writable):
    said = new_lines(strict.guest)
    for start in (claimed, 0xFEC00000):
        path = f"{MOUNTS[via]}/phys/{start:x}+8"
        assert strict.use(path, writable=writable) == {"open": "EBUSY"}
    first, second = said(MOUNTS[via]).splitlines()
    where = (
        f"phys {claimed:#x}+0x8: mapping 0x8 bytes at 0x0: virtio-pci-modern owns {claimed:08x}-"
    )
    assert where in first
    assert "IOAPIC 0 owns fec00000-fec003ff" in second


def test_of_a_range_that_is_claimed_in_part_the_rest_is_there(strict, via, claimed):
    start = bar_address(strict.guest, "0000:00:10.0", 2)
    assert start < claimed
    path = f"{MOUNTS[via]}/phys/{start:x}-{claimed + 0x3FFF:x}"
    assert strict.use(path) == BOTH
    done = strict.guest.try_run(
        f"dd if={path} bs=4 count=1 skip={claimed - start} iflag=skip_bytes"
    )
    assert b"Device or resource busy" in done.stderr
    assert done.stdout == b""
    assert strict.use(path) == BOTH


@pytest.mark.parametrize("length", [4, 0x100000])
def test_the_kernels_own_memory_is_read_through_kcore_and_not_written(strict, via, length):
    said = new_lines(strict.guest)
    path = f"{MOUNTS[via]}/phys/{RAM:x}+{length:x}"
    assert strict.use(path, writable=False) == READ
    assert said(MOUNTS[via]) == ""
    assert strict.use(path) == {"open": "EPERM"}
    mapped = min(length, 0x1000)
    where = f"phys {RAM:#x}+{length:#x}: mapping {mapped:#x} bytes at 0x0: {NOT_PERMITTED}"
    assert where in said(MOUNTS[via])


def low_memory(guest):
    """8 bytes of it as the machine has them, whatever its kernel says."""
    command = {"command-line": f"xp /8xb {LOW_RAM:#x}"}
    text = guest.qmp.cmd("human-monitor-command", **command)
    return bytes(int(word, 16) for word in text.partition(":")[2].split())


def test_memory_below_1_mib_is_the_memory_and_not_zeros(strict, via):
    """Reading /dev/mem gives zeros there and writing it is dropped, without an error."""
    path = f"{MOUNTS[via]}/phys/{LOW_RAM:x}+8"
    for value in (b"barfsram", bytes(range(8, 16))):
        devmem = f"dd if=/dev/mem bs=8 count=1 skip={LOW_RAM} iflag=skip_bytes"
        strict.guest.run(f"printf '{value.decode()}' | dd of={path} conv=notrunc")
        assert low_memory(strict.guest) == value
        assert strict.guest.run(f"cat {path}").stdout == value
        assert strict.guest.run(devmem).stdout == bytes(8)


# By name: what becomes of it, and the words for what was refused.
LOCKED = {
    f"{EDU}/bar0": ({"open": "EPERM"}, "0000:00:13.0 bar0: {mapping}"),
    f"{EDU}/x32/bar0@80": ({"open": "EPERM"}, "0000:00:13.0 bar0@80+4: {mapping}"),
    f"{NINE_P}/bar4": ({"open": "EPERM"}, "0000:00:01.0 bar4: {mapping}"),
    "pci/0000:00:10.0/bar2": ({"open": "EPERM"}, "0000:00:10.0 bar2: {mapping}"),
    f"{EDU}/config": (READ_NOT_WRITTEN, "0000:00:13.0 config: write of 0x4 bytes at 0x0"),
    f"{TESTDEV}/bar1": (READ_NOT_WRITTEN, "0000:00:14.0 bar1: write of 4 bytes at 0x0"),
    f"{TESTDEV}/u16/bar1@10+4": (READ_NOT_WRITTEN, "0000:00:14.0 bar1@10+4: write of 2 bytes"),
    f"phys/{LOW_RAM:x}+8": ({"open": "EPERM"}, f"phys {LOW_RAM:#x}+0x8: /dev/mem"),
    f"phys/{RAM:x}+8": ({"open": "EPERM"}, f"phys {RAM:#x}+0x8: /dev/mem"),
    "phys/f0000+8": ({"open": "EPERM"}, "phys 0xf0000+0x8: /dev/mem"),
    "phys/fec00000+8": ({"open": "EPERM"}, "phys 0xfec00000+0x8: /dev/mem"),
}
MAPPING = {"resource": "mapping 0x", "devmem": "/dev/mem"}


def test_under_lockdown(locked, via):
    edu = Region("edu-mmio", bar_address(locked.guest, "0000:00:13.0", 0))
    said = new_lines(locked.guest)
    with locked.guest.traced(edu) as seen:
        found = locked("use", [f"{MOUNTS[via]}/{name}" for name in LOCKED])
    assert dict(zip(LOCKED, found, strict=True)) == {name: LOCKED[name][0] for name in LOCKED}
    assert seen == []
    lines = said(MOUNTS[via]).splitlines()
    for line, (_, words) in zip(lines, LOCKED.values(), strict=True):
        assert words.format(mapping=MAPPING[via]) in line
        assert NOT_PERMITTED in line


def test_under_lockdown_without_writing(locked, via):
    edu = bar_address(locked.guest, "0000:00:13.0", 0)
    for name in (f"{EDU}/bar0", f"{NINE_P}/bar4", f"phys/{LOW_RAM:x}+8", f"phys/{edu:x}+8"):
        found = locked.use(f"{MOUNTS[via]}/{name}", writable=False)
        assert found == {"open": "EPERM"}
    for name in (f"{EDU}/config", f"{TESTDEV}/bar1", f"{E1000}/rom"):
        assert locked.use(f"{MOUNTS[via]}/{name}", writable=False) == READ
    rom = locked.guest.run(f"cat {MOUNTS[via]}/{E1000}/rom").stdout
    assert rom == locked.guest.rom.read_bytes()
    locked.guest.run(f"ls -l {MOUNTS[via]}/{EDU} && cat {MOUNTS[via]}/{EDU}/info")


# A driver claims a range that is open

RNG = "0000:00:17.0"
DRIVER = "/sys/bus/pci/drivers/virtio-pci"


@pytest.fixture
def driver(strict_guest):
    """Takes the driver from its device and gives it back."""

    def turn(what):
        strict_guest.run(f"echo {RNG} >{DRIVER}/{what}")
        # The driver may switch decoding off when it goes.
        strict_guest.run(f"setpci -s {RNG} COMMAND=2:2")

    yield turn
    strict_guest.run(f"test -e {DRIVER}/{RNG} || echo {RNG} >{DRIVER}/bind")


def test_a_driver_that_claims_a_range_ends_what_was_open_of_it(strict, driver):
    guest = strict.guest
    start = bar_address(guest, RNG, 4)
    registers = Region("virtio-pci-common-virtio-rng", start)
    names = (f"pci/{RNG}/bar4", f"pci/{RNG}/u32/bar4", f"phys/{start:x}+1000")
    held = [f"{where}/{name}" for where in MOUNTS.values() for name in names]
    # The same once more, not to be touched while the driver is there.
    idle = [path.replace("bars", "./bars") for path in held]
    later = [path.replace("bars", ".//bars") for path in held]
    others = [f"{where}/{EDU}/bar0" for where in MOUNTS.values()]
    mapped = f"cat /proc/[0-9]*/maps | grep -c {RNG}/resource4; true"
    said = new_lines(guest)

    def all_of(answer):
        return [answer] * len(held)

    assert strict("open", held) == all_of("EBUSY")
    driver("unbind")
    assert strict("open", held + idle + others) == ["opened"] * (2 * len(held) + 2)
    before = strict("read", held + idle)
    assert {len(word) for word in before} == {8}
    identity = strict("read", others)
    assert guest.run(mapped).text == "4\n"

    driver("bind")
    with guest.traced(registers) as seen:
        assert strict("read", held) == all_of("ENODEV")
        assert strict("write", held) == all_of("ENODEV")
        assert strict("open", later) == all_of("EBUSY")
    assert seen == []
    assert strict("read", others) == identity
    # Given up at once, though the files are open still.
    assert guest.run(mapped).text == "2\n"

    driver("unbind")
    with guest.traced(registers) as seen:
        for call in ("read", "write", "read"):
            assert strict(call, held + idle) == all_of("ENODEV") * 2
    assert seen == []
    assert guest.run(mapped).text == "0\n"
    with guest.traced(registers) as seen:
        assert strict("open", later) == all_of("opened")
        assert {len(word) for word in strict("read", later)} == {8}
    assert {access.kind for access in seen} == {"read"}
    assert strict("read", others) == identity
    strict("close", held + idle + later + others)

    for where in MOUNTS.values():
        text = said(where)
        assert f"{RNG} bar4: read of 4 bytes at 0x0: its mapping was revoked" in text
        assert f"phys {start:#x}+0x1000: read of 4 bytes at 0x0: its mapping was revoked" in text
        assert "Traceback" not in text
        assert "1af4:1044" in guest.run(f"ls {where}").text
