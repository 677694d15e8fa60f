"""A BAR that does not answer is an error with its cause, and the mend that is named works.

The devices under test are behind one bridge, and behind four. Each is broken while a file of it is
open. Then it is asked for by all ways that speak of it, and the bus sees no access. Then the mend
is taken from the log, word for word.
"""

import json
import re
import shlex
from typing import NamedTuple

import pytest

from vm.architecture import BIN, X86
from vm.conftest import MOUNTS, bar_address, running
from vm.machine import MIB, Access, Region

BARS = MOUNTS["resource"]
DEVICES = "/sys/bus/pci/devices"

NEAR, FAR = "0000:00:1c.0", "0000:00:1d.0"  # root ports
NVME, E1000E = "0000:03:00.0", "0000:00:0c.0"
BRIDGES = (FAR, "0000:04:00.0", "0000:05:00.0", "0000:06:00.0")
EDU, TESTDEV, IVSHMEM = "0000:07:01.0", "0000:07:02.0", "0000:07:03.0"
ONES, TEXT = "0000:00:08.0", "0000:00:09.0"
IDE, AHCI = "0000:00:0b.0", "0000:00:1f.2"

ROMS = {ONES: b"\xff" * (64 << 10), TEXT: b"This is no ROM.\n" * (4 << 10)}


def devices(directory):
    """QEMU's arguments for what other guests do not have."""
    disk = directory / "behind"
    disk.write_bytes(bytes(MIB))
    found = [
        *("-device", "pcie-root-port,id=near,chassis=3,slot=3,addr=0x1c"),
        *("-drive", f"if=none,id=behind,format=raw,file={disk}"),
        *("-device", "nvme,drive=behind,serial=behind,bus=near"),
        *("-device", "pcie-root-port,id=far,chassis=4,slot=4,addr=0x1d"),
        *("-device", "x3130-upstream,id=up,bus=far"),
        *("-device", "xio3130-downstream,id=down,bus=up,chassis=5,slot=5"),
        *("-device", "pcie-pci-bridge,id=pci,bus=down"),
        *("-device", "edu,bus=pci,addr=1"),
        *("-device", "pci-testdev,bus=pci,addr=2"),
        *("-object", f"memory-backend-ram,id=behind-memory,size={MIB}"),
        *("-device", "ivshmem-plain,memdev=behind-memory,bus=pci,addr=3"),
        *("-device", "VGA,addr=0xa"),
        *("-device", "piix3-ide,addr=0xb"),
        *("-device", "e1000e,addr=0xc"),
    ]
    for address, image in ROMS.items():
        slot = address[8:10]
        path = directory / f"rom{slot}"
        path.write_bytes(image)
        found += ["-device", f"e1000,addr=0x{slot},romfile={path}"]
    return found


@pytest.fixture(scope="module")
def guest(strict_kernel, tmp_path_factory):
    """Its kernel has VFIO and UIO, and gives what drivers own to others, too."""
    directory = tmp_path_factory.mktemp("answers")
    arguments = "iomem=relaxed debugpat loglevel=5"
    more = {"devices": devices(directory)}
    with running(X86, strict_kernel, directory, arguments, ["resource"], **more) as guest:
        yield guest


def last_record(guest):
    """The last line of the log, which is a refusal."""
    return json.loads(guest.run(f"tail -n 1 {BARS}/log").text)


def last_refusal(guest):
    """What the log says last: the cause, and the mend as a user would copy it."""
    record = last_record(guest)
    assert record["event"] == "refused", record
    _, _, said = record["message"].partition(": ")
    cause, _, mend = said.partition("; ")
    return cause, mend


def test_every_device_opens_without_a_complaint(guest):
    doctor = guest.run(f"{BIN}/barfs doctor").text
    found = re.findall(r"^(trouble|note|ok) +(....:..:..\..) ", doctor, re.MULTILINE)
    there = guest.run(f"ls {DEVICES}").text.split()
    assert {IDE, AHCI, NEAR, NVME, E1000E, TESTDEV, *BRIDGES} <= set(there)
    assert sorted(found) == [("ok", address) for address in sorted(there)]
    files = guest.run(f"ls {BARS}/pci/*/bar?").text.split()
    assert len(files) > 50
    guest.run(f"for file in {BARS}/pci/*/bar?; do exec 3<$file || exit 1; done")
    refused = guest.run(f"grep -c refused {BARS}/log || true").text
    assert refused == "0\n"
    shown = guest.run(f"cat {BARS}/pci/*/info; {BIN}/barfs ls -v").text
    assert "does not answer" not in shown


class Register(NamedTuple):
    """A register of a device, and the name of the region that QEMU traces its accesses by."""

    device: str
    bar: int
    offset: int
    width: int
    region: str

    @property
    def path(self):
        return f"{BARS}/pci/{self.device}/bar{self.bar}"

    @property
    def value(self):
        """The command that prints it in hex."""
        skip = self.offset // self.width
        return f"dd if={self.path} bs={self.width} count=1 skip={skip} status=none | xxd -p"


VERSION = Register(NVME, 0, 0x8, 4, "nvme")
# They are 0, which some machines give in the place of an answer. So config space is looked at.
MASK = Register(NVME, 0, 0xC, 4, "nvme")
THROTTLE = Register(E1000E, 0, 0xC4, 4, "e1000e-mmio")
IDENTITY = Register(EDU, 0, 0, 4, "edu-mmio")
PORT = Register(TESTDEV, 1, 0x10, 1, "pci-testdev-portio")
SHARED = Register(IVSHMEM, 2, 0x100, 4, "")

LOST = "its BARs are not where the kernel put them (has it been reset, or loaded again?)"
ASLEEP = "the device sleeps (D3hot), which the kernel does not know"


def reset(port):
    """What resets the bus behind a port."""
    register = f"setpci -s {port} BRIDGE_CONTROL"
    return f"{register}=40:40; sleep 0.1; {register}=0:40; sleep 0.2"


def off(bridge, register):
    bit, space = (1, "I/O") if register is PORT else (2, "memory")
    words = f"{space} decoding is off in the bridge {bridge} above it"
    return register, f"setpci -s {bridge} COMMAND=0:{bit}", words


def shut(bridge, register, settings):
    space = "I/O" if register is PORT else "memory"
    words = f"no {space} window of the bridge {bridge} above it holds its addresses"
    return register, f"setpci -s {bridge} {settings}", words


BROKEN = {
    "BAR zeroed": (VERSION, f"setpci -s {NVME} BASE_ADDRESS_0=0", LOST),
    "BAR elsewhere": (VERSION, f"setpci -s {NVME} BASE_ADDRESS_0=fe7f0000", LOST),
    "BAR far above": (VERSION, f"setpci -s {NVME} BASE_ADDRESS_1=7", LOST),
    "BAR and command gone": (VERSION, f"setpci -s {NVME} BASE_ADDRESS_0=0 COMMAND=0", LOST),
    "bus reset": (VERSION, reset(NEAR), LOST),
    "bus reset by the nearest of four": (IDENTITY, reset(BRIDGES[3]), LOST),
    "bus reset, ports": (PORT, reset(BRIDGES[3]), LOST),
    "bus reset by the farthest of four": (
        IDENTITY,
        reset(FAR),
        f"the bridge {BRIDGES[1]} above it has lost its settings (has it been reset?)",
    ),
    "off in the port": off(NEAR, VERSION),
    **{f"off in {bridge}": off(bridge, IDENTITY) for bridge in BRIDGES},
    "ports off in the farthest": off(BRIDGES[0], PORT),
    "ports off in the nearest": off(BRIDGES[3], PORT),
    "no window": shut(NEAR, VERSION, "MEMORY_BASE=fff0 MEMORY_LIMIT=0"),
    "window that begins later": shut(BRIDGES[0], IDENTITY, "MEMORY_BASE=fe50"),
    "window that ends before": shut(BRIDGES[2], IDENTITY, "MEMORY_LIMIT=fe10"),
    "no window for ports": shut(BRIDGES[3], PORT, "IO_BASE.b=f0 IO_LIMIT.b=0"),
    "no prefetchable window": shut(BRIDGES[0], SHARED, "PREF_MEMORY_BASE=fff0 PREF_MEMORY_LIMIT=0"),
    "prefetchable window elsewhere": shut(
        BRIDGES[3], SHARED, "PREF_BASE_UPPER32=4 PREF_LIMIT_UPPER32=4"
    ),
    "D3hot": (MASK, f"setpci -s {NVME} CAP_PM+4.w=3:3", ASLEEP),
    "D3hot without its settings": (THROTTLE, f"setpci -s {E1000E} CAP_PM+4.w=3:3", ASLEEP),
}

# One of each kind is asked for by the commands as well, which take their time.
BY_COMMANDS = {"bus reset", "off in the port", "D3hot"}


@pytest.mark.parametrize("name", BROKEN)
def test_what_does_not_answer_says_why_and_its_mend_works(guest, name):
    register, command, words = BROKEN[name]
    device = register.device
    start = bar_address(guest, device, register.bar)
    before = guest.run(register.value).text
    assert len(before) == 2 * register.width + 1

    # While it is open.
    arguments = (register.path, f"{register.offset:#x}", register.width, command)
    with guest.traced(Region(register.region, start)) as seen:
        found = json.loads(guest.program("silence.py", *arguments).text)
    assert found["before"] == before.strip()
    assert {found[what] for what in ("read", "write", "open")} == {"EIO"}, found
    assert not [access for access in seen if access.kind == "write"]

    # While it is closed. What no device takes QEMU logs with the whole address.
    nowhere = Region("(null)", 0), Region("io", 0)
    with guest.traced(Region(register.region, start)) as seen, guest.traced(*nowhere) as lost:
        for path in (register.path, f"{BARS}/pci/{device}/x8/bar{register.bar}"):
            done = guest.try_run(f"head -c 1 {path}")
            assert b"Input/output error" in done.stderr
            cause, mend = last_refusal(guest)
            assert cause == words
        shown = [guest.run(f"cat {BARS}/{path}").text for path in ("status", f"pci/{device}/info")]
        if name in BY_COMMANDS:
            done = guest.try_run(f"{BIN}/barfs doctor {device}")
            assert done.status == 1
            shown += [done.text, guest.run(f"{BIN}/barfs ls -v {device}").text]
    assert seen == []
    assert not [one for one in lost if start <= one.offset < start + 0x1000]
    for text in shown:
        assert words in text
        assert mend in text

    guest.run(mend)
    assert guest.run(register.value).text == before
    # What was reset along with it has mends of its own.
    for other in (EDU, TESTDEV, IVSHMEM):
        for _ in range(2):
            if guest.try_run(f"head -c 1 {BARS}/pci/{other}/bar0").status:
                guest.run(last_refusal(guest)[1])
    doctor = guest.run(f"cat {BARS}/status").text
    assert not re.findall(r"^trouble .*", doctor, re.MULTILINE)


@pytest.fixture
def written(guest):
    """Makes a function that gives what was written to the decoding bits of a device of QEMU's."""
    event = {"name": "pci_cfg_write"}
    guest.qmp.cmd("trace-event-set-state", enable=True, **event)
    start = guest.trace_log.stat().st_size

    def values(device):
        text = guest.trace_log.read_bytes()[start:].decode(errors="replace")
        found = re.findall(rf"pci_cfg_write {device} .*@0x4 <- 0x([0-9a-f]+)", text)
        return [int(value, 16) & 3 for value in found]

    yield values
    guest.qmp.cmd("trace-event-set-state", enable=False, **event)


ENABLING = "/run/enabling"


def test_enabling_never_decodes_at_an_address_that_is_not_the_kernels(guest, written):
    guest.mount(ENABLING, "--enable", log=f"{ENABLING}.log")
    registers = {EDU: ("edu", "BASE_ADDRESS_0"), TESTDEV: ("pci-testdev", "BASE_ADDRESS_1")}
    try:
        for device, (name, register) in registers.items():
            bars = f"{ENABLING}/pci/{device}/bar?"
            there = guest.run(f"setpci -s {device} {register}").text.strip()
            guest.run(f"while echo 0 > {DEVICES}/{device}/enable; do :; done; true")
            for moved in ("0", "fe7f0000", "ffffffff"):
                guest.run(f"setpci -s {device} COMMAND=0 {register}={moved}")
                before = len(written(name))
                done = guest.try_run(f"for bar in {bars}; do head -c 4 $bar && exit 1; done; true")
                assert done.status == 0, done
                assert b"Input/output error" in done.stderr
                assert written(name)[before:] == []
                assert guest.run(f"setpci -s {device} COMMAND").text == "0000\n"
                assert guest.run(f"cat {DEVICES}/{device}/enable").text == "0\n"
                assert LOST in guest.run(f"tail -n 1 {ENABLING}/log").text
            # Where it is in place it is turned on, and the last close turns it off.
            guest.run(
                f"setpci -s {device} {register}={there}; head -c 4 {ENABLING}/pci/{device}/bar0"
            )
            guest.run(f"until setpci -s {device} COMMAND | grep -q 000[04]; do sleep 0.1; done")
            assert any(written(name)[-2:])
            guest.run(f"echo 1 > {DEVICES}/{device}/enable")
    finally:
        guest.run(f"{BIN}/barfs umount {ENABLING}")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (ONES, "nothing answers behind its BAR: it reads all ones"),
        (TEXT, "it has no valid image: it begins with 54 68 (Th) instead of 55 aa"),
    ],
)
def test_a_rom_without_a_valid_image_says_which_it_is(guest, address, words):
    rom = f"{BARS}/pci/{address}/rom"
    done = guest.try_run(f"cat {rom}")
    assert b"Input/output error" in done.stderr
    assert done.stdout == b""
    assert last_refusal(guest)[0].partition(": ")[2] == words
    # Decoding that is off says more than what the kernel thinks of the bytes.
    guest.run(f"setpci -s {address} COMMAND=0:2")
    guest.try_run(f"cat {rom}")
    cause, mend = last_refusal(guest)
    assert cause.partition(": ")[2] == "memory decoding is off in the command register"
    guest.run(mend)
    guest.try_run(f"cat {rom}")
    assert last_refusal(guest)[0].partition(": ")[2] == words
    whole = guest.run(f"cat {BARS}/pci/0000:00:15.0/rom").stdout
    assert whole == guest.rom.read_bytes()


HOLD = """
import mmap, os, sys, time
path, offset, flags = sys.argv[1], int(sys.argv[2], 16), int(sys.argv[3])
held = mmap.mmap(os.open(path, os.O_RDWR | flags), 0x1000, offset=offset)
print("mapped", flush=True)
time.sleep(600)
"""


@pytest.fixture
def hold(guest):
    """Has another process map a page: of a file of sysfs's, or of /dev/mem."""
    guest.run(f"cat > /run/hold.py <<'END'\n{HOLD}\nEND")

    def hold(path, offset, flags=0):
        guest.run(
            f"setsid python3 /run/hold.py {path} {offset:x} {flags} > /run/held 2>&1 &"
            " echo $! >> /run/holders; until grep -q mapped /run/held; do sleep 0.1; done"
        )

    yield hold
    guest.run("kill $(cat /run/holders); rm /run/holders")


def got_types(guest, start):
    """The caching types in which pages were mapped since last asked, by their number from start."""
    text = guest.run("dmesg -c").text
    found = re.findall(r"added \[mem 0x([0-9a-f]+)-0x([0-9a-f]+)\],.* ret ([a-z-]+)", text)
    spans = [(int(first, 16) - start, int(last, 16) - start, kind) for first, last, kind in found]
    return [
        (first >> 12, (last >> 12) + 1 - (first >> 12), kind)
        for first, last, kind in spans
        if 0 <= first < MIB
    ]


def test_pages_in_two_caching_types_are_read_each_in_its_own(guest, hold):
    device = "0000:00:10.0"
    start = bar_address(guest, device, 2)
    bar, files = f"{BARS}/pci/{device}/bar2", f"{DEVICES}/{device}"
    data = bytes(at * 7 + (at >> 12) & 0xFF for at in range(MIB))
    guest.poke(0, 0, data)
    hold(f"{files}/resource2_wc", 0x2000)
    hold(f"{files}/resource2", 0x4000)
    # A mapping of all of it is refused: one mapping has one type.
    assert guest.run(f"dd if={bar} bs=1M count=1 status=none").stdout == data
    # The kernel's log has room for some pages only.
    got_types(guest, start)
    assert guest.run(f"dd if={bar} bs={0x6000} count=1 status=none").stdout == data[:0x6000]
    assert (2, 1, "write-combining") in got_types(guest, start)
    guest.run(f"head -c {0x5000} /dev/zero | tr '\\0' x | dd of={bar} bs=1M conv=notrunc")
    assert guest.peek(0, 0, MIB) == b"x" * 0x5000 + data[0x5000:]
    shown = guest.run(f"cat {BARS}/pci/{device}/x32/bar2@2000").text
    assert shown == "0x78787878\n"


def test_a_page_that_is_mapped_cached_says_what_it_is(guest, hold):
    device = "0000:00:10.0"
    start = bar_address(guest, device, 2)
    bar = f"{BARS}/pci/{device}/bar2"
    hold("/dev/mem", start + 0x2000)  # without O_SYNC
    for command in (f"dd if={bar} bs=1M", f"cat {BARS}/pci/{device}/x32/bar2@2010"):
        done = guest.try_run(command)
        assert b"Operation not permitted" in done.stderr
        _, _, said = last_record(guest)["message"].partition("Invalid argument: ")
        assert said == (
            "a driver or another program has it mapped in another caching type, most likely "
            "cached, and the kernel refuses a second one; close it there, or keep to its other "
            "pages"
        )
        assert "iomem=relaxed" not in said
    assert len(guest.run(f"dd if={bar} bs=4K count=2 status=none").stdout) == 0x2000
    guest.run("kill $(cat /run/holders)")
    assert len(guest.run(f"dd if={bar} bs=1M status=none").stdout) == MIB


@pytest.mark.parametrize("driver", ["vfio-pci", "uio_pci_generic"])
def test_the_mend_works_where_a_driver_only_holds_the_device(guest, driver):
    """`echo 1 > enable` is refused while there is a driver."""
    path = f"{DEVICES}/{EDU}"
    # There is no IOMMU in this guest.
    guest.run("echo Y > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode")
    guest.run(f"echo {driver} > {path}/driver_override; echo {EDU} > /sys/bus/pci/drivers_probe")
    try:
        bound = guest.run(f"basename $(readlink {path}/driver)").text
        assert bound == f"{driver}\n"
        guest.run(f"echo on > {path}/power/control; setpci -s {EDU} COMMAND=0:3")
        busy = guest.try_run(f"echo 1 > {path}/enable")
        assert b"Device or resource busy" in busy.stderr
        done = guest.try_run(f"cat {BARS}/pci/{EDU}/x32/bar0")
        assert b"Input/output error" in done.stderr
        cause, mend = last_refusal(guest)
        assert cause == "memory decoding is off in the command register"
        guest.run(mend)
        assert guest.run(f"cat {BARS}/pci/{EDU}/x32/bar0").text == "0x010000ed\n"
    finally:
        guest.run(
            f"echo {EDU} > {path}/driver/unbind; echo > {path}/driver_override;"
            f"setpci -s {EDU} COMMAND=2:2"
        )


@pytest.fixture
def asleep(guest):
    """NVMe, bound to vfio-pci, which lets it sleep in D3hot while nobody uses it."""
    path = f"{DEVICES}/{NVME}"
    guest.run("echo Y > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode")
    guest.run(f"echo vfio-pci > {path}/driver_override; echo {NVME} > /sys/bus/pci/drivers_probe")
    guest.run(
        f"echo auto > {path}/power/control;"
        f" for i in {{1..100}}; do grep -q D3hot {path}/power_state && exit; sleep 0.1; done;"
        f" cat {path}/power_state; exit 1"
    )
    yield path
    guest.run(f"echo {NVME} > {path}/driver/unbind; echo > {path}/driver_override")
    guest.run(f"echo 1 > {path}/enable; setpci -s {NVME} COMMAND=2:2")


SAVED = "/run/saved"


def test_a_machine_that_tar_has_saved(guest, asleep):
    """tar takes the size of an attribute to be 4096 bytes, and fills the rest with NULs."""
    left_out = "--exclude=resource[0-9]*"  # BARs; the rest is attributes
    guest.run(
        f"mkdir -p {SAVED}/proc; tar -C / -c {left_out} sys/bus/pci sys/devices/pci0000:00"
        f" 2>{SAVED}/said | tar -C {SAVED} -x; grep -q 'padding with zeros' {SAVED}/said;"
        f" cp /proc/iomem {SAVED}/proc/"
    )
    saved = f"{SAVED}/sys/bus/pci/devices"
    sizes = guest.run(f"stat -c %s {saved}/{NVME}/power_state {saved}/{NVME}/vendor").text
    assert sizes == "4096\n4096\n"
    where = f"{SAVED}/bars"
    paths = ("--sysfs", f"{SAVED}/sys", "--proc", f"{SAVED}/proc", "--devmem", f"{SAVED}/mem")
    guest.mount(where, *paths, log=f"{SAVED}/log")
    try:
        listed, own = (
            guest.run(f"cd {top}; ls; ls -l pci | cut -c 1-10").text for top in (where, BARS)
        )
        shared = [name for name in own.split() if re.match("[0-9a-f]{4}:", name)]
        assert shared == [name for name in listed.split() if re.match("[0-9a-f]{4}:", name)]
        for address in (EDU, E1000E, IDE, NEAR, BRIDGES[3]):
            texts = [guest.run(f"cat {top}/pci/{address}/info").text for top in (where, BARS)]
            assert texts[0] == texts[1]
        done = guest.try_run(f"head -c 4 {where}/pci/{NVME}/bar0")
        assert b"Input/output error" in done.stderr
        said = guest.run(f"cat {SAVED}/log; cat {where}/log {where}/status").stdout
        assert b"the device sleeps (D3hot)" in said
        assert b"unknown" not in guest.run(f"{BIN}/barfs ls {shlex.join(paths[:2])}").stdout
        assert b"\\x00" not in said
        assert b"\0" not in said
        assert b"Traceback" not in said
        assert max(map(len, said.splitlines())) < 1000
    finally:
        guest.run(f"{BIN}/barfs umount {where}")


def test_the_mend_of_sleep_that_the_kernel_knows_of(guest, asleep):
    done = guest.try_run(f"cat {BARS}/pci/{NVME}/x32/bar0@8")
    assert b"Input/output error" in done.stderr
    cause, mend = last_refusal(guest)
    assert cause == "the device sleeps (D3hot)"
    guest.run(mend)
    for _ in range(2):  # it is awake, and may not be decoded
        done = guest.try_run(f"cat {BARS}/pci/{NVME}/x32/bar0@8")
        if done.status == 0:
            break
        guest.run(last_refusal(guest)[1])
    assert done.text == "0x00010400\n"


def test_what_no_iommu_confines_opens_only_on_request(guest):
    where, path = "/run/by-vfio", f"{DEVICES}/{EDU}"
    guest.run("echo Y > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode")
    guest.run(f"echo vfio-pci > {path}/driver_override; echo {EDU} > /sys/bus/pci/drivers_probe")
    start = bar_address(guest, EDU, 0)
    try:
        for options, works in (((), False), (("--noiommu",), True)):
            guest.mount(where, "--bars-via", "vfio", *options, log=f"{where}.log")
            try:
                with guest.traced(Region("edu-mmio", start)) as seen:
                    done = guest.try_run(f"cat {where}/pci/{EDU}/x32/bar0@0")
                assert (done.status == 0) == works
                said = guest.run(f"cat {where}.log").text
                refusal = (
                    f"{EDU}: there is no IOMMU, so its DMA can reach all memory; mount with "
                    "--noiommu to open it all the same (EPERM)"
                )
                assert (refusal in said) != works
                if works:
                    assert done.text == "0x010000ed\n"
                assert seen == [Access("read", 0, 4)] * works
            finally:
                guest.run(f"{BIN}/barfs umount {where}")
    finally:
        guest.run(
            f"echo {EDU} > {path}/driver/unbind; echo > {path}/driver_override;"
            f"setpci -s {EDU} COMMAND=2:2"
        )
