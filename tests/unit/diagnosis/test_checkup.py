"""What works on a machine, what does not, and what mends it."""

import os
import random
import shlex
import shutil
import subprocess

import pytest
from machines import (
    ADMIN,
    ALL,
    E1000,
    FIRST,
    NVME,
    OPEN,
    RAWIO,
    SECOND,
    STRICT,
    Fixture,
    Witness,
    as_this_machine,
)

from barfs.diagnosis import checkup, obstacles
from barfs.diagnosis.checkup import Finding, State, examine, status, text
from barfs.diagnosis.obstacles import Look
from barfs.errors import Cause, DeviceGone
from barfs.machine.configspace import command_of
from barfs.machine.functions import Functions
from barfs.names import PciAddress

OK, NOTE, TROUBLE = State.OK, State.NOTE, State.TROUBLE
KEEPS = "the kernel keeps what drivers own from others (CONFIG_IO_STRICT_DEVMEM)"


@pytest.fixture
def fixture(tmp_path, monkeypatch):
    fixture = Fixture(tmp_path)
    as_this_machine(fixture, monkeypatch)
    return fixture


def test_a_user_without_rights_to_dev_fuse_is_told(tmp_path, monkeypatch):
    device = tmp_path / "fuse"
    assert checkup.check_fuse(device).cause == Cause(f"{device} is missing", "modprobe fuse")
    device.touch()
    assert checkup.check_fuse(device).state is State.OK
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (device, 6))
    cause = checkup.check_fuse(device).cause
    assert cause == Cause(f"this user may not open {device}", f"sudo chmod 666 {device}")


def test_what_is_wrong_with_other_files_is_not_mended_on_this_machine(fixture, monkeypatch):
    """A device in the place of a saved machine's memory would be this machine's memory."""
    fixture.paths.devmem.unlink()
    (fixture.security / "lockdown").unlink()
    (fixture.proc / "config.gz").unlink()
    fixture.set_process(uid=1)
    here = {found.cause.mend for found in findings(fixture)}
    monkeypatch.undo()
    there = {found.cause.mend for found in findings(fixture)}
    devmem, security = fixture.paths.devmem, fixture.security
    assert here - there == {
        f"mknod -m 600 {devmem} c 1 1",
        f"mount -t securityfs securityfs {security}",
        *("sudo -s", "modprobe configs"),
    }
    assert there == {None}


def findings(fixture):
    machine = fixture.machine
    return examine(machine, machine.pci.addresses(), fixture.fuse)


def about(fixture, subject):
    """The state, sentence, mend and advice of the one finding about a subject."""
    (found,) = [finding for finding in findings(fixture) if finding.subject == subject]
    assert (found.device is None) == (PciAddress.parse(subject) is None)
    return found.state, *found.cause


def test_a_machine_with_nothing_amiss(fixture):
    assert [(found.subject, found.state) for found in findings(fixture)] == [
        (subject, OK)
        for subject in (
            *("root", "fuse", "devmem", "iomem", "lockdown", "System RAM", "drivers"),
            *(E1000, FIRST, SECOND, NVME),
        )
    ]
    assert all(found.cause.mend is found.cause.advice is None for found in findings(fixture))


def test_of_a_simulated_machine_only_what_it_has(fixture):
    for path in (fixture.proc / "self", fixture.proc / "sys", fixture.paths.sysfs / "kernel"):
        shutil.rmtree(path)
    (fixture.proc / "config.gz").unlink()
    subjects = [found.subject for found in findings(fixture)]
    assert subjects == ["fuse", "devmem", "iomem", E1000, FIRST, SECOND, NVME]


@pytest.mark.parametrize(
    ("process", "sentence"),
    [
        ({"uid": 1000}, "device memory is for root only, and this is not root"),
        ({"mask": ALL & ~RAWIO}, "this root is without CAP_SYS_RAWIO"),
        ({"mask": ALL & ~ADMIN}, "this root is without CAP_SYS_ADMIN"),
        (
            {"users": "0 100000 65536"},
            "this is root in a user namespace only, and the kernel asks for the machine's root",
        ),
    ],
)
def test_rights(fixture, process, sentence):
    fixture.set_process(**process)
    state, said, mend, advice = about(fixture, "root")
    assert (state, said) == (TROUBLE, sentence)
    assert mend or advice


def test_rights_that_cannot_be_told(fixture):
    (fixture.proc / "self/status").write_text("garbage")
    assert about(fixture, "root")[0] is NOTE


def test_no_fuse(fixture):
    fixture.fuse.unlink()
    assert about(fixture, "fuse") == (
        *(TROUBLE, f"{fixture.fuse} is missing"),
        *("modprobe fuse", None),
    )


@pytest.mark.parametrize(("uid", "found"), [(0, 1), (1000, 2)])
def test_fusermount3_is_for_those_who_are_not_root(fixture, monkeypatch, uid, found):
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "fusermount3" else name)
    fuse = [finding for finding in findings(fixture) if finding.subject == "fuse"]
    assert len(fuse) == found
    assert uid == 0 or fuse[0].cause == Cause("fusermount3 is missing", "sudo apt install fuse3")


@pytest.mark.parametrize(
    ("phys", "via_devmem", "subjects"),
    [
        (True, False, {"devmem", "iomem"}),
        (True, True, {"devmem", "iomem"}),
        (False, True, {"devmem"}),
        (False, False, set()),
    ],
)
def test_memory_only_where_it_is_of_interest(fixture, phys, via_devmem, subjects):
    machine = (fixture.via_devmem() if via_devmem else fixture.machine)._replace(phys=phys)
    found = {one.subject for one in examine(machine, machine.pci.addresses(), fixture.fuse)}
    assert found & {"devmem", "iomem"} == subjects
    assert "lockdown" in found


def test_devmem(fixture):
    devmem = fixture.paths.devmem
    assert about(fixture, "devmem") == (OK, f"{devmem} opens", None, None)
    devmem.unlink()
    words = f"{devmem} is missing"
    assert about(fixture, "devmem") == (TROUBLE, words, f"mknod -m 600 {devmem} c 1 1", None)
    fixture.set_config("SECURITY_LOCKDOWN_LSM")
    advice = "boot a kernel built with CONFIG_DEVMEM"
    assert about(fixture, "devmem") == (TROUBLE, words, None, advice)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (1, "does not open (Operation not permitted): something confines this process"),
        (13, "does not open (Permission denied)"),
        (5, "does not open (Input/output error)"),
    ],
)
def test_devmem_that_does_not_open(fixture, monkeypatch, number, words):
    opening = os.open

    def refuse(path, flags, *more):
        if path == fixture.paths.devmem:
            raise OSError(number, os.strerror(number), str(path))
        return opening(path, flags, *more)

    monkeypatch.setattr(checkup.os, "open", refuse)
    assert about(fixture, "devmem")[:2] == (TROUBLE, f"{fixture.paths.devmem} {words}")
    fixture.set_process(uid=1000)
    denied = about(fixture, "devmem")[1]
    assert denied.endswith("for root only, and this is not root") == (number != 5)


def test_a_devmem_that_is_a_pipe_is_not_waited_for(fixture):
    fixture.paths.devmem.unlink()
    os.mkfifo(fixture.paths.devmem)
    assert about(fixture, "devmem")[0] is OK


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "phys/ is empty: {}: No such file or directory"),
        ("", "phys/ is empty: {} is empty (tar saves nothing of /proc, cat does)"),
        (
            "00000000-00000000 : Reserved\n" * 3,
            "phys/ is empty: {} shows no addresses, which takes",
        ),
    ],
)
def test_iomem(fixture, content, sentence):
    iomem = fixture.proc / "iomem"
    assert about(fixture, "iomem") == (OK, f"{iomem} shows 11 ranges", None, None)
    iomem.unlink()
    if content is not None:
        iomem.write_text(content)
    state, said, *_ = about(fixture, "iomem")
    assert state is TROUBLE
    assert said.startswith(sentence.format(iomem))


def bound_to(fixture, address, driver):
    link = fixture.devices / address / "driver"
    link.unlink(missing_ok=True)
    if driver is not None:
        link.symlink_to(fixture.directory / "drivers" / driver)


def in_group(fixture, *addresses):
    """Put functions in one IOMMU group."""
    group = fixture.directory / "groups/7"
    (group / "devices").mkdir(parents=True)
    for address in addresses:
        (group / "devices" / address).touch()
        (fixture.devices / address / "iommu_group").symlink_to(group)


def bind(fixture, address, driver):
    bus = fixture.paths.sysfs / "bus/pci"
    path = f"{bus}/devices/{address}"
    return f"echo {driver} > {path}/driver_override", f"echo {address} > {bus}/drivers_probe"


TO_VFIO = "lockdown leaves VFIO open: bind it to vfio-pci, which resets it"
BY_UIO = "uio_pci_generic has 32-bit BARs only that are not prefetchable"
VIA_VFIO = "then mount with --bars-via vfio"


@pytest.mark.parametrize(
    ("driver", "group", "words", "mend", "advice"),
    [
        (
            None,
            (),
            "lockdown leaves UIO open, without an IOMMU: bind it to uio_pci_generic",
            "uio_pci_generic",
            None,
        ),
        (None, (FIRST,), TO_VFIO, "vfio-pci", VIA_VFIO),
        (
            None,
            (FIRST, SECOND),
            f"{TO_VFIO}; its IOMMU group takes along {SECOND} (no driver)",
            "vfio-pci",
            VIA_VFIO,
        ),
        (
            None,
            (FIRST, E1000),
            f"{TO_VFIO}; its IOMMU group takes along {E1000} (e1000)",
            "vfio-pci",
            VIA_VFIO,
        ),
        (
            "vfio-pci",
            (FIRST,),
            "lockdown leaves VFIO open, and it is bound to vfio-pci",
            None,
            VIA_VFIO.removeprefix("then "),
        ),
        (
            "vfio-pci",
            (FIRST, SECOND, E1000),
            f"its IOMMU group has functions that other drivers use: {E1000} (e1000)",
            None,
            None,
        ),
        ("uio_pci_generic", (), f"bar2: {BY_UIO}", None, None),
        ("uio_pci_generic", (FIRST,), f"bar2: {BY_UIO}", "vfio-pci", VIA_VFIO),
    ],
)
def test_the_ways_that_lockdown_leaves_open(fixture, driver, group, words, mend, advice):
    """BAR 0 of the function has 32 bits, and BAR 2 has 64 and is prefetchable."""
    bound_to(fixture, E1000, "e1000")
    bound_to(fixture, FIRST, driver)
    in_group(fixture, *group)
    said = {found.cause.sentence for found in findings(fixture)}
    assert words not in said, "lockdown is not in force"
    fixture.set_lockdown("none [integrity] confidentiality")
    (found,) = [one for one in findings(fixture) if one.subject == FIRST and one.state is NOTE]
    assert (found.cause.sentence, found.cause.advice) == (words, advice)
    if driver == "vfio-pci" and len(group) == 1:
        (fixture.directory / "groups/7/name").write_text("vfio-noiommu\n")
        (found,) = [one for one in findings(fixture) if one.subject == FIRST and one.state is NOTE]
        unconfined = f"{words}; there is no IOMMU, so its DMA can reach all memory"
        assert (found.cause.sentence, found.cause.advice) == (unconfined, f"{advice} --noiommu")
    if mend is None:
        assert found.cause.mend is None
    else:
        first, last = bind(fixture, FIRST, mend)
        taken = f" && echo {FIRST} > {fixture.devices}/{FIRST}/driver/unbind" if driver else ""
        assert found.cause.mend == f"{first}{taken} && {last}"


@pytest.mark.parametrize("driver", ["e1000", "uio_pci_generic"])
def test_nothing_is_said_of_what_lockdown_does_not_keep_or_a_driver_needs(fixture, driver):
    fixture.set_attribute(FIRST, "resource", "0xfeb20000 0xfeb200ff 0x40200")
    bound_to(fixture, FIRST, driver)
    in_group(fixture, FIRST)
    fixture.set_lockdown("none [integrity] confidentiality")
    assert about(fixture, FIRST)[:1] == (OK,)


@pytest.mark.parametrize(
    ("driver", "words", "mend"),
    [
        (None, "no driver has it, and --bars-via vfio takes vfio-pci", True),
        ("e1000", "the driver e1000 has it, and --bars-via vfio takes vfio-pci", True),
        (
            "vfio-pci",
            f"its IOMMU group has functions that other drivers use: {E1000} (e1000)",
            False,
        ),
    ],
)
def test_a_mount_through_vfio_says_what_it_will_not_open(fixture, driver, words, mend):
    bound_to(fixture, E1000, "e1000")
    bound_to(fixture, FIRST, driver)
    in_group(fixture, FIRST, E1000)
    machine = fixture.machine._replace(bars_via_vfio=True)
    found = examine(machine, machine.pci.addresses(), fixture.fuse)
    (one,) = [one for one in found if one.subject == FIRST]
    assert (one.state, one.cause.sentence) == (NOTE, words)
    assert (one.cause.mend is not None) == mend
    bound_to(fixture, FIRST, "vfio-pci")
    bound_to(fixture, E1000, "pcieport")  # does no DMA of its own
    found = examine(machine, machine.pci.addresses(), fixture.fuse)
    assert {one.state for one in found if one.subject == FIRST} == {OK}


def test_lockdown(fixture):
    fixture.set_lockdown("none [integrity] confidentiality")
    state, sentence, mend, advice = about(fixture, "lockdown")
    assert (state, mend, advice) == (TROUBLE, None, "reboot: it lasts until then")
    assert sentence.startswith("lockdown is in force (integrity): ")
    (fixture.security / "lockdown").unlink()
    state, sentence, mend, advice = about(fixture, "lockdown")
    assert (state, advice) == (NOTE, None)
    assert mend == f"mount -t securityfs securityfs {fixture.security}"


@pytest.mark.parametrize(
    ("options", "words", "ram", "drivers"),
    [
        (OPEN, "", OK, OK),
        ((*OPEN, "STRICT_DEVMEM"), "", NOTE, OK),
        (STRICT, "", NOTE, NOTE),
        (STRICT, "iomem=relaxed", NOTE, OK),
    ],
)
def test_what_the_kernel_keeps_back(fixture, options, words, ram, drivers):
    fixture.set_config(*options)
    fixture.set_parameters(words)
    state, sentence, _, advice = about(fixture, "System RAM")
    assert (state, advice is None) == (ram, ram is OK)
    assert "CONFIG_STRICT_DEVMEM" in sentence
    state, sentence, _, advice = about(fixture, "drivers")
    assert (state, advice is None) == (drivers, drivers is OK)
    assert ("iomem=relaxed" if words else "CONFIG_IO_STRICT_DEVMEM") in sentence
    assert drivers is OK or advice == "reboot with iomem=relaxed on the kernel's command line"


def test_a_kernel_of_which_no_one_knows_how_it_was_built(fixture):
    (fixture.proc / "config.gz").unlink()
    files = (f"{fixture.proc}/config.gz", f"{fixture.boot}/config-6.12.0-sim")
    assert about(fixture, "kernel") == (
        NOTE,
        f"how the kernel was built is in none of {', '.join(files)}",
        *("modprobe configs", None),
    )
    assert not {"System RAM", "drivers"} & {found.subject for found in findings(fixture)}
    fixture.set_parameters("iomem=relaxed")
    assert about(fixture, "drivers")[0] is OK


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (E1000, "D0; bar0, bar1 decoded; driver e1000"),
        (FIRST, "D0; bar0, bar2 decoded; no driver"),
        (NVME, "D0; bar0 decoded; no driver"),
    ],
)
def test_a_function_that_works(fixture, address, words):
    assert about(fixture, address) == (OK, words, None, None)


def test_a_function_without_bars_or_power_state(fixture):
    fixture.set_attribute(FIRST, "device", "0x9999")  # which has no map of registers
    fixture.set_attribute(FIRST, "resource", "0x0 0x0 0x0\n" * 7)
    fixture.set_command(FIRST, 0)
    fixture.set_attribute(FIRST, "power_state", "unknown")
    assert about(fixture, FIRST) == (OK, "no driver", None, None)
    (fixture.devices / FIRST / "power_state").unlink()
    assert about(fixture, FIRST) == (OK, "no driver", None, None)


@pytest.mark.parametrize(
    ("command", "off"),
    [
        (3, {}),
        (2, {"I/O": "bar1"}),
        (1, {"memory": "bar0"}),
        (4, {"memory": "bar0", "I/O": "bar1"}),
    ],
)
def test_decoding(fixture, command, off):
    fixture.set_command(E1000, command)
    fixture.set_command(FIRST, command)
    found = [entry for entry in findings(fixture) if entry.subject == E1000]
    copy = f"-A linux-sysfs -O sysfs.path={fixture.paths.sysfs}/bus/pci"
    setpci = f"setpci {copy} -s {E1000} COMMAND="
    bits = {"memory": "2:2", "I/O": "1:1"}
    expected = [
        Cause(f"{bar}: {space} decoding is off in the command register", setpci + bits[space])
        for space, bar in off.items()
    ]
    if expected:
        assert [entry.cause for entry in found] == expected
        assert {entry.state for entry in found} == {TROUBLE}
    if "memory" in off:
        enable = f"echo 1 > {fixture.devices}/{FIRST}/enable"
        words = "bar0, bar2: memory decoding is off in the command register"
        assert about(fixture, FIRST) == (TROUBLE, words, enable, None)


def test_a_virtual_function_has_no_decode_bits_of_its_own(fixture):
    fixture.set_command(FIRST, 0)
    (fixture.devices / FIRST / "physfn").symlink_to(fixture.devices / SECOND)
    assert about(fixture, FIRST)[0] is OK


def test_a_function_that_does_not_answer(fixture):
    fixture.set_command(FIRST, 0xFFFF)
    rescan = f"echo 1 > {fixture.paths.sysfs}/bus/pci/rescan"
    device = f"{fixture.devices}/{FIRST}"
    anew = f"echo 1 > {device}/remove && {rescan} && echo 1 > {device}/enable"
    state, sentence, mend, _ = about(fixture, FIRST)
    assert (state, mend) == (TROUBLE, anew)
    assert sentence.startswith("the device does not answer, its config space reads all ones")


def test_a_bar_without_an_address(fixture):
    fixture.set_attribute(
        FIRST, "resource", "0x0 0xfff 0x20000200\n0x0 0x0 0x0\n0x800000000 0x8000fffff 0x14220c"
    )
    advice = "reboot with pci=realloc on the kernel's command line"
    words = "bar0: the kernel has given it no address"
    assert about(fixture, FIRST) == (TROUBLE, words, None, advice)


@pytest.mark.parametrize(
    ("state", "runtime"),
    [("D3hot", "suspended"), ("D3cold", "suspended"), ("D3hot", "active"), ("D0", "suspended")],
)
def test_config_space_of_what_sleeps_is_not_read(fixture, state, runtime):
    fixture.set_attribute(FIRST, "power_state", state)
    fixture.set_attribute(FIRST, "power/runtime_status", runtime)
    fixture.set_attribute(FIRST, "class", "0x060400")
    how = state if state != "D0" else runtime
    assert about(fixture, FIRST) == (
        TROUBLE,
        f"it sleeps ({how}): its BARs may not answer, and config space is not read here",
        f"echo on > {fixture.devices}/{FIRST}/power/control",
        None,
    )
    fixture.source = Witness
    machine = fixture.machine
    examine(machine, machine.pci.addresses(), fixture.fuse)
    assert machine.source.touched() == [f"{address}/config" for address in (E1000, SECOND, NVME)]
    # The kernel reads config space for this one.
    assert ("read", f"{FIRST}/current_link_width") not in machine.source.seen


def test_a_bridge_that_sleeps_is_no_trouble(fixture):
    fixture.set_attribute(FIRST, "device", "0x9999")  # which has no map of registers
    fixture.set_attribute(FIRST, "resource", "0x0 0x0 0x0\n" * 7)
    fixture.set_attribute(FIRST, "power_state", "D3cold")
    wake = f"echo on > {fixture.devices}/{FIRST}/power/control"
    assert about(fixture, FIRST) == (NOTE, "it sleeps (D3cold)", wake, None)


@pytest.mark.parametrize(
    ("kind", "width", "down"),
    [("0x060400", "0", True), ("0x060400", "16", False), ("0x020000", "0", False)],
)
def test_the_link_below_a_bridge(fixture, kind, width, down):
    fixture.set_attribute(NVME, "class", kind)
    fixture.set_attribute(NVME, "current_link_width", width)
    state, sentence, mend, _ = about(fixture, NVME)
    if down:
        assert (state, sentence) == (NOTE, "its link is down: nothing answers behind it")
        assert mend == f"echo 1 > {fixture.paths.sysfs}/bus/pci/rescan"
    else:
        assert state is OK


@pytest.mark.parametrize(
    ("options", "words", "claimed", "kept"),
    [
        (STRICT, "", True, True),
        (STRICT, "", False, False),
        (STRICT, "iomem=relaxed", True, False),
        ((*OPEN, "STRICT_DEVMEM"), "", True, False),
        (OPEN, "", True, False),
    ],
)
def test_a_driver_matters_where_the_kernel_keeps_its_bars(fixture, options, words, claimed, kept):
    fixture.set_config(*options)
    fixture.set_parameters(words)
    if claimed:
        fixture.claim()
    if not kept:
        assert about(fixture, E1000)[0] is OK
        return
    assert about(fixture, E1000) == (
        TROUBLE,
        f"driver e1000 owns it, and {KEEPS}",
        f"echo {E1000} > {fixture.devices}/{E1000}/driver/unbind",
        "or reboot with iomem=relaxed on the kernel's command line",
    )


@pytest.mark.parametrize("content", [None, "00000000-00000000 : PCI\n"])
def test_a_driver_of_which_iomem_does_not_tell(fixture, content):
    fixture.set_config(*STRICT)
    (fixture.proc / "iomem").unlink()
    if content is not None:
        (fixture.proc / "iomem").write_text(content)
    state, sentence, *_ = about(fixture, E1000)
    assert state is NOTE
    assert sentence.startswith("whether driver e1000 owns its BARs")


def test_a_copy_without_config_space_or_resources(fixture):
    (fixture.devices / FIRST / "config").unlink()
    words = "its command register can't be read"
    assert about(fixture, FIRST) == (NOTE, words, None, None)
    (fixture.devices / SECOND / "resource").unlink()
    assert about(fixture, SECOND) == (OK, "D0; no driver", None, None)


@pytest.mark.parametrize(
    ("place", "moment"),
    [
        *((checkup, "sleeping"), (obstacles, "header_of"), (Look, "obstacle")),
        *((Functions, "bars"), (Functions, "read_config"), (Functions, "driver")),
    ],
)
def test_what_vanishes_meanwhile_is_left_out(fixture, monkeypatch, place, moment):
    asked = getattr(place, moment)

    def vanish_and_ask(bus, address, *more):
        if place is Look or str(address) == FIRST:
            shutil.rmtree(fixture.devices / FIRST, ignore_errors=True)
        return asked(bus, address, *more)

    fixture.set_command(FIRST, 0)
    fixture.set_config(*STRICT)
    monkeypatch.setattr(place, moment, vanish_and_ask)
    subjects = [found.subject for found in findings(fixture)]
    assert FIRST not in subjects
    assert {E1000, SECOND, NVME} <= set(subjects)


def test_the_worst_comes_first_and_otherwise_the_order_stays(fixture):
    fixture.set_config(*STRICT)
    fixture.set_command(SECOND, 0)
    fixture.set_command(FIRST, 0)
    fixture.fuse.unlink()
    states = [found.state for found in findings(fixture)]
    assert states == sorted(states, key=[TROUBLE, NOTE, OK].index)
    assert [found.subject for found in findings(fixture)][:5] == [
        *("fuse", FIRST, SECOND, "System RAM", "drivers")
    ]


def test_text():
    found = [
        Finding("a long subject", TROUBLE, Cause("it is off", "echo 1 > on", "or reboot")),
        Finding("b", NOTE, Cause("it is kept", advice="reboot")),
        Finding("c", OK, Cause("a\x1b[31m\nok       d  \udcff \xe9")),
    ]
    assert text(found) == (
        "trouble  a long subject  it is off\n"
        "                         echo 1 > on\n"
        "                         # or reboot\n"
        "note     b               it is kept\n"
        "                         # reboot\n"
        "ok       c               a\ufffd[31m\ufffdok       d  \ufffd \xe9\n"
    )
    assert text([]) == ""


def test_every_mend_is_a_command_that_a_shell_can_read(fixture):
    fixture.set_config(*STRICT)
    fixture.claim()
    fixture.set_command(FIRST, 0)
    fixture.set_command(SECOND, 0xFFFF)
    fixture.set_attribute(NVME, "power_state", "D3hot")
    fixture.fuse.unlink()
    fixture.paths.devmem.unlink()
    (fixture.security / "lockdown").unlink()
    fixture.set_process(uid=1)
    mends = [found.cause.mend for found in findings(fixture) if found.cause.mend]
    assert len(mends) == 8
    for mend in mends:
        assert subprocess.run(["bash", "-nc", mend], check=False).returncode == 0
        assert shlex.split(mend)[0] in {
            *("echo", "sudo", "modprobe", "mknod", "mount"),
        }
    # All of the text can be pasted: what is no command of it is a comment, from its line on.
    below = [line.strip() for line in text(findings(fixture)).splitlines() if line[0] == " "]
    assert {line for line in below if not line.startswith("# ")} == set(mends)


def test_the_mends_mend(fixture):
    """As far as plain files can tell: each writes what its finding is about."""
    fixture.set_command(FIRST, 0)
    fixture.set_attribute(SECOND, "power_state", "D3hot")
    fixture.set_attribute(SECOND, "power/control", "auto")
    fixture.set_command(E1000, 0)  # it has a driver, so setpci does it
    for found in findings(fixture):
        if found.state is TROUBLE:
            # Not at any price this machine's own.
            assert str(fixture.paths.sysfs) in found.cause.mend
            done = subprocess.run(["bash", "-ec", found.cause.mend], check=False)
            assert done.returncode == 0, found
    assert (fixture.devices / FIRST / "enable").read_text() == "1\n"
    assert (fixture.devices / SECOND / "power/control").read_text() == "on\n"
    assert command_of(fixture.machine.pci, PciAddress.parse(E1000)) == 3


def test_status_is_the_text_about_all_functions(fixture):
    machine = fixture.machine
    expected = text(examine(machine, machine.pci.addresses()))
    assert status(machine) == expected
    assert expected.count("\n") == 11


def test_random_bytes_in_every_file(fixture):
    """No crash, and never a line that does not begin with a state or a mend."""
    chance = random.Random(4)
    files = [
        path
        for path in [*fixture.devices.rglob("*"), *fixture.proc.rglob("*")]
        if path.is_file() and path.stat().st_size < 10_000
    ]
    originals = {path: path.read_bytes() for path in files}
    assert len(files) > 40
    fixture.set_config(*STRICT)
    for _ in range(150):
        for path in chance.sample(files, 8):
            content = bytearray(originals[path])
            for _ in range(chance.randrange(4)):
                content[chance.randrange(len(content))] = chance.randrange(256)
            path.write_bytes(content)
        lines = status(fixture.machine).splitlines()
        assert len(lines) >= 7
        assert all(
            line.startswith(("trouble  ", "note     ", "ok       ", " " * 9)) for line in lines
        )


def test_a_function_that_is_not_there(fixture):
    machine = fixture.machine
    with pytest.raises(DeviceGone):
        checkup._about_function(machine, machine.kernel(), PciAddress(9, 9, 9, 0))


def test_a_map_that_barfs_brings_is_no_trouble_where_bars_have_no_addresses(fixture):
    (fixture.devices / str(FIRST) / "resource").write_text("0x0 0x0 0x0\n" * 7)
    concerned = [one for one in findings(fixture) if "is refused" in one.cause.sentence]
    assert [(str(one.device), one.state) for one in concerned] == [(FIRST, NOTE)]
