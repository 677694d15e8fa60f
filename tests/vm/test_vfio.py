"""BARs through VFIO and UIO on a kernel that is locked down, where `resourceN` is refused."""

import contextlib
import json
import re
import time

import pytest

from vm.architecture import BIN, X86_IOMMU
from vm.conftest import bar_address
from vm.machine import Access, Guest, Region

EDU, NVME, E1000 = "0000:00:13.0", "0000:00:16.0", "0000:00:15.0"
DEVICES = "/sys/bus/pci/devices"
MOUNT, LOG = "/mnt/vfio", "/run/vfio.log"
OTHER = 65534

# NVM Express 1.4, 3.1: controller registers.
CAP, VS = 0x0, 0x8


@pytest.fixture(scope="module")
def guest(strict_kernel, tmp_path_factory):
    directory = tmp_path_factory.mktemp("vfio")
    guest = Guest(X86_IOMMU, strict_kernel, directory, "lockdown=integrity")
    try:
        yield guest
    finally:
        guest.close()


def bind(guest, address, driver):
    """As `barfs doctor` says it: driver_override, then probing anew."""
    path = f"{DEVICES}/{address}"
    guest.run(
        f"echo {driver} > {path}/driver_override;"
        f"test ! -e {path}/driver || echo {address} > {path}/driver/unbind;"
        f"echo {address} > /sys/bus/pci/drivers_probe;"
        f"test $(basename $(readlink {path}/driver)) = {driver}"
    )


def release(guest, address):
    path = f"{DEVICES}/{address}"
    guest.run(
        f"test ! -e {path}/driver || echo {address} > {path}/driver/unbind;"
        f"echo > {path}/driver_override"
    )


@pytest.fixture
def mounted(guest):
    """Mounts by options, and unmounts at the end."""
    where = []

    def mount(*options):
        guest.mount(MOUNT, *options, log=LOG)
        where.append(MOUNT)

    yield mount
    for path in where:
        guest.run(f"{BIN}/barfs umount {path}")


@pytest.fixture
def held(guest, mounted):
    """edu and NVMe through VFIO."""
    for address in (EDU, NVME):
        bind(guest, address, "vfio-pci")
    mounted("--bars-via", "vfio")
    return MOUNT


def events(guest, name):
    lines = guest.run(f"cat {MOUNT}/log").text.splitlines()
    return [one for one in map(json.loads, lines) if one["event"] == name]


@pytest.fixture
def edu(guest):
    return Region("edu-mmio", bar_address(guest, EDU, 0))


@pytest.fixture
def nvme(guest):
    return Region("nvme", bar_address(guest, NVME, 0))


def test_without_vfio_it_is_refused(guest, mounted, edu):
    mounted()
    done = guest.try_run(f"dd if={MOUNT}/1234:11e8/bar0 bs=4 count=1")
    assert b"Operation not permitted" in done.stderr


@pytest.mark.parametrize(
    ("command", "accesses"),
    [
        ("dd if={}/bar0 bs=4 count=1", [("read", 0, 4)]),
        ("dd if={}/bar0 bs=4 skip=2 count=2 iflag=fullblock", [("read", 8, 4), ("read", 0xC, 4)]),
        ("cat {}/x32/bar0@8", [("read", 8, 4)]),
        ("cat {}/x64/bar0@80", [("read", 0x80, 8)]),
        ("dd if={}/u32/bar0@0+10 bs=16 count=1", [("read", at, 4) for at in (0, 4, 8, 12)]),
        ("echo 0x12 > {}/x32/bar0@8", [("write", 8, 4)]),
        ("printf 'abcd' | dd of={}/bar0 bs=4 seek=1 conv=notrunc", [("write", 4, 4)]),
        ("ls -l {0}/ {0}/x32; stat {0}/bar0", []),
    ],
)
def test_edu_exactly(guest, held, edu, command, accesses):
    path = f"{held}/1234:11e8"
    guest.run(f"cat {path}/x32/bar0")  # opened by now, and so reset
    with guest.traced(edu) as seen:
        guest.run(command.format(path))
    assert seen == [Access(*one) for one in accesses]
    assert guest.run(f"cat {path}/x32/bar0").text == "0x010000ed\n"


def test_a_64_bit_bar_exactly(guest, held, nvme):
    path = f"{held}/pci/{NVME}"
    version = guest.run(f"cat {path}/x32/bar0@8").text
    with guest.traced(nvme) as seen:
        guest.run(f"cat {path}/x64/bar0 {path}/x32/bar0@8; hd {path}/u32/bar0@0+8")
    assert seen[:2] == [Access("read", CAP, 8), Access("read", VS, 4)]
    assert seen[2:4] == [Access("read", 0, 4), Access("read", 4, 4)]
    assert re.fullmatch("0x0001[0-9a-f]{4}\n", version)


def test_ports_by_their_width_and_the_rom(guest, mounted):
    """e1000: BAR 1 is I/O ports, which take 1, 2 and 4 bytes."""
    bind(guest, E1000, "vfio-pci")
    address = guest.run(f"sed -n 2p {DEVICES}/{E1000}/resource").text.split()[0]
    ports = Region("e1000-io", int(address, 16))
    path = f"{MOUNT}/pci/{E1000}"
    mounted("--bars-via", "vfio")
    assert guest.run(f"cat {path}/rom").stdout == guest.rom.read_bytes()
    assert "VFIO: it was reset when it was opened" in guest.run(f"cat {path}/info").text
    guest.run(f"cat {path}/x8/bar1@10")
    with guest.traced(ports) as seen:
        guest.run(f"cat {path}/x8/bar1@10 {path}/x16/bar1@10 {path}/x32/bar1@10")
        guest.run(f"echo 0x0 > {path}/x16/bar1@12")
    assert seen == [
        *(Access("read", 0x10, width) for width in (1, 2, 4)),
        Access("write", 0x12, 2),
    ]


@contextlib.contextmanager
def resets(guest):
    """A list that is filled, at the end of the block, with the resets of NVMe by FLR.

    PCI Express Base Specification 4.0, 7.5.3.4: bit 15 of Device Control, 8 bytes into the
    capability, which QEMU puts at 0x80.
    """
    event = {"name": "pci_cfg_write"}
    guest.qmp.cmd("trace-event-set-state", enable=True, **event)
    start = guest.trace_log.stat().st_size
    found = []
    try:
        yield found
    finally:
        guest.qmp.cmd("trace-event-set-state", enable=False, **event)
    text = guest.trace_log.read_bytes()[start:].decode(errors="replace")
    written = re.findall(r"pci_cfg_write nvme .*@0x88 <- 0x([0-9a-f]+)", text)
    found.extend(value for value in written if int(value, 16) & 1 << 15)


def test_it_is_reset_once_and_held(guest, mounted):
    bind(guest, NVME, "vfio-pci")
    mounted("--bars-via", "vfio")
    with resets(guest) as seen:
        for _ in range(3):
            guest.run(f"cat {MOUNT}/pci/{NVME}/x32/bar0@8")
    assert len(seen) == 1
    assert [one["device"] for one in events(guest, "reset")] == [NVME]
    opened = [one for one in events(guest, "open") if "bar0" in one["path"]]
    assert {one["via"] for one in opened} == {"vfio"}


def test_what_is_not_bound_is_refused_with_the_way_to_bind_it(guest, mounted):
    release(guest, EDU)
    mounted("--bars-via", "vfio")
    done = guest.try_run(f"cat {MOUNT}/1234:11e8/bar0")
    assert done.status == 1
    said = guest.run(f"cat {LOG}").text
    assert "no driver has it, and --bars-via vfio takes vfio-pci" in said
    command = re.search(r"echo vfio-pci > \S+ && echo \S+ > \S+/drivers_probe", said)
    assert command, said
    guest.run(command[0])
    assert guest.run(f"cat {MOUNT}/1234:11e8/x32/bar0").text == "0x010000ed\n"


def test_unbinding_while_it_is_open(guest, mounted):
    bind(guest, EDU, "vfio-pci")
    mounted("--bars-via", "vfio")
    program = (
        "import os, sys; fd = os.open(sys.argv[1], os.O_RDONLY); print(os.pread(fd, 4, 0).hex());"
        "open(sys.argv[2], 'w').write(sys.argv[3])\n"
        "try: os.pread(fd, 4, 0)\n"
        "except OSError as error: print(error.errno)"
    )
    path = f"{MOUNT}/pci/{EDU}/bar0"
    driver = f"{DEVICES}/{EDU}/driver/unbind"
    done = guest.run(f'{BIN}/python -c "{program}" {path} {driver} {EDU}', timeout=60)
    assert done.text == "ed000001\n19\n"
    assert guest.run(f"ls {MOUNT}/pci/{NVME}").text
    assert [one["device"] for one in events(guest, "wanted back")] == [EDU]


STAY = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_RDONLY)
print(os.pread(fd, 4, 0).hex(), flush=True)
try:
    while True:
        os.pread(fd, 4, 0)
        time.sleep(0.05)
except OSError as error:
    print(error.errno, flush=True)
"""


def test_unplugging_while_it_is_open(guest, mounted):
    """The kernel waits until whoever has opened it gives it back."""
    bind(guest, NVME, "vfio-pci")
    guest.qmp.cmd("device_add", driver="edu", id="late", bus="slot1")
    wait = "for i in {1..600}; do %s && exit; sleep 0.1; done; exit 1"
    listed = guest.run(wait % f"ls {DEVICES} | grep -m 1 ^0000:01:")
    address = listed.text.strip()
    bind(guest, address, "vfio-pci")
    mounted("--bars-via", "vfio")
    path = f"{MOUNT}/pci/{address}/bar0"
    other = f"cat {MOUNT}/pci/{NVME}/x32/bar0@8"
    before = guest.run(other).text
    guest.run(f"cat > /run/stay.py <<'END'\n{STAY}\nEND")
    guest.run(f"setsid {BIN}/python /run/stay.py {path} >/run/stayed 2>&1 &")
    guest.run(wait % "grep -q ed000001 /run/stayed")
    guest.qmp.cmd("device_del", id="late")
    guest.run(wait % f"! test -e {DEVICES}/{address}")
    assert guest.run(wait % "grep -v ed000001 /run/stayed").text == "19\n"
    assert [one["device"] for one in events(guest, "wanted back")] == [address]
    assert guest.run(other).text == before
    assert address not in guest.run(f"ls {MOUNT}/pci").text
    deadline = time.monotonic() + 60
    while "late" in str(guest.qmp.cmd("qom-list", path="/machine/peripheral")):
        assert time.monotonic() < deadline, "QEMU still has it"
        time.sleep(0.05)


def test_a_user_with_nothing_but_the_group(guest):
    bind(guest, EDU, "vfio-pci")
    group = guest.run(f"basename $(readlink {DEVICES}/{EDU}/iommu_group)").text.strip()
    where = "/run/user-mount"
    guest.run(
        f"mkdir -p {where}; chown {OTHER} {where} /dev/vfio/{group};"
        "chmod 666 /dev/vfio/vfio /dev/fuse"  # as udev has them
    )
    as_other = f"setpriv --reuid {OTHER} --regid {OTHER} --clear-groups"
    mount = f"{as_other} {BIN}/barfs mount --bars-via vfio --no-phys {where}"
    guest.run(mount)
    try:
        assert guest.run(f"{as_other} cat {where}/1234:11e8/x32/bar0").text == "0x010000ed\n"
        done = guest.try_run(f"{as_other} cat {where}/pci/{NVME}/x32/bar0")
        assert done.status == 1
    finally:
        guest.run(f"{as_other} {BIN}/barfs umount {where}; chown 0 /dev/vfio/{group}")


def test_uio_where_the_kernel_refuses_resource_files(guest, mounted, edu):
    release(guest, EDU)
    release(guest, NVME)
    for address in (EDU, NVME):
        bind(guest, address, "uio_pci_generic")
    mounted()
    path = f"{MOUNT}/1234:11e8"
    with guest.traced(edu) as seen:
        shown = guest.run(f"cat {path}/x32/bar0; dd if={path}/u32/bar0@8+8 bs=8 count=1 | xxd -p")
        guest.run(f"echo 0x21 > {path}/x32/bar0@4")
    assert shown.text.startswith("0x010000ed\n")
    assert seen == [
        Access("read", 0, 4),
        Access("read", 8, 4),
        Access("read", 0xC, 4),
        Access("write", 4, 4),
    ]
    assert events(guest, "open")[0]["via"] == "uio"
    # The kernel offers no 64-bit BAR through UIO.
    done = guest.try_run(f"cat {MOUNT}/pci/{NVME}/x32/bar0")
    assert b"Operation not permitted" in done.stderr
    words = "uio_pci_generic has 32-bit BARs only that are not prefetchable"
    assert f"{NVME} bar0@0+4: {words}, and not this one" in guest.run(f"cat {LOG}").text
    for address in (EDU, NVME):
        release(guest, address)
