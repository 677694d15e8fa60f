"""Cause and mend of refusals, in the words that the log gets."""

import errno
import logging
import shutil

import pytest
from machines import (
    ADMIN,
    ALL,
    E1000,
    FIRST,
    OPEN,
    RAWIO,
    SECOND,
    STRICT,
    Fixture,
    Witness,
    as_this_machine,
    machine_of,
)

from barfs.access.files import REFUSALS, refusal
from barfs.diagnosis import mends, obstacles
from barfs.diagnosis.causes import Machine, explain
from barfs.errors import (
    Access,
    AccessFault,
    BadRequest,
    CachingConflict,
    Cause,
    DeviceGone,
    DriverOwns,
    FunctionPart,
    KernelRefused,
    Mmap,
    NotAllowed,
    NotDecoded,
    NotMappable,
    Opening,
    PhysicalSpan,
)
from barfs.machine import power, simulated
from barfs.machine.source import BOOT, source_of
from barfs.names import BarName, PciAddress

RAM = PhysicalSpan(0x100000, 0x1000)
ALL_OF_RAM = Mmap(0, 0x1000)
CONFIDENTIALITY = "none integrity [confidentiality]"
INTEGRITY = "none [integrity] confidentiality"
LOCKED = (
    "lockdown is in force (confidentiality): the kernel refuses memory BARs, /dev/mem, and writes "
    "to I/O ports and config space"
)
RELAX = "reboot with iomem=relaxed on the kernel's command line"
KEEPS = "the kernel keeps what drivers own from others (CONFIG_IO_STRICT_DEVMEM)"
CONTAINER = "if it is in a container, start that with"
BOTH = "--cap-add=SYS_RAWIO --cap-add=SYS_ADMIN"
NAMESPACE = "this is root in a user namespace only, and the kernel asks for the machine's root"
KEEPS_RAM = (
    "the kernel keeps System RAM from /dev/mem (CONFIG_STRICT_DEVMEM); boot a kernel built without "
    "CONFIG_STRICT_DEVMEM; no parameter changes it"
)


@pytest.fixture
def fixture(tmp_path, monkeypatch):
    """Nothing that answers is asked: neither config space nor what is behind BARs."""
    fixture = Fixture(tmp_path, Witness)
    as_this_machine(fixture, monkeypatch)
    yield fixture
    assert [source.touched() for source in fixture.sources] == [[]] * len(fixture.sources)


def refused(what, during, number, kind=None):
    """An error as apertures raise it."""
    system = OSError(number, "words of the kernel")
    return refusal(what, during, system, {**REFUSALS, **({number: kind} if kind else {})})


def part(address, file=None):
    """What an error is about: a function, or a file of it."""
    return FunctionPart(PciAddress.parse(address), file and (BarName.parse(file) or file))


def devmem_refused(fixture, number):
    """/dev/mem did not open."""
    return refused(RAM, Opening(str(fixture.paths.devmem)), number)


def ending(error, machine):
    """What is added to an error's own words."""
    text = explain(error, machine)
    assert text.startswith(str(error))
    assert "\n" not in text
    return text.removeprefix(str(error)).removeprefix(": ")


def test_a_cause_as_words():
    assert str(Cause("it is off")) == "it is off"
    assert str(Cause("it is off", "echo 1 > on")) == "it is off; echo 1 > on"
    assert str(Cause("it is off", advice="reboot")) == "it is off; reboot"
    assert (
        str(Cause("it is off", "echo 1 > on", "or reboot")) == "it is off; echo 1 > on; or reboot"
    )


def test_what_says_all_by_itself_stays(fixture):
    for kind in (NotDecoded, AccessFault, BadRequest, KernelRefused):
        error = kind("words", what=part(FIRST, "bar0"))
        assert explain(error, fixture.machine) == "0000:00:04.0 bar0: words"


LOCKED_OUT = [
    refused(part("0000:00:04.0", "bar0"), Mmap(0, 0x100), errno.EPERM),
    refused(part("0000:00:03.0", "bar1"), Access("write", 0, width=4), errno.EPERM),
    refused(part("0000:00:04.0", "config"), Access("write", 4, 2), errno.EPERM),
    refused(RAM, ALL_OF_RAM, errno.EPERM),
]


@pytest.mark.parametrize("error", LOCKED_OUT, ids=str)
@pytest.mark.parametrize("options", [OPEN, STRICT, None])
def test_lockdown(fixture, error, options):
    fixture.set_lockdown(CONFIDENTIALITY)
    fixture.set_parameters("ro lockdown=confidentiality")
    if options is None:
        (fixture.proc / "config.gz").unlink()
    else:
        fixture.set_config(*options)
    advice = "reboot without lockdown=confidentiality on the kernel's command line"
    for machine in (fixture.machine, fixture.via_devmem()):
        assert ending(error, machine) == f"{LOCKED}; {advice}"
        assert ending(devmem_refused(fixture, errno.EPERM), machine) == f"{LOCKED}; {advice}"


def test_where_lockdown_comes_from(fixture):
    error = LOCKED_OUT[0]
    fixture.set_lockdown(INTEGRITY)
    assert ending(error, fixture.machine).endswith("; reboot: it lasts until then")
    fixture.set_parameters("lockdown=\x1b[31m")
    assert ending(error, fixture.machine).endswith("; reboot: it lasts until then")
    option = "LOCK_DOWN_KERNEL_FORCE_INTEGRITY"
    fixture.set_config(*OPEN, option)
    assert ending(error, fixture.machine).endswith(f"; boot a kernel built without CONFIG_{option}")
    directory = fixture.paths.sysfs / "firmware/efi/efivars"
    directory.mkdir(parents=True)
    name = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
    (directory / name).write_bytes(b"\6\0\0\0\1")
    advice = "turn Secure Boot off in the firmware's set-up, and reboot"
    assert ending(error, fixture.machine).endswith(f"; {advice}")


@pytest.mark.parametrize("error", LOCKED_OUT[:3], ids=str)
def test_lockdown_that_can_only_be_guessed(fixture, error):
    (fixture.security / "lockdown").unlink()
    unknown = f"whether lockdown is in force can't be told without {fixture.security}/lockdown"
    mount = f"mount -t securityfs securityfs {fixture.security}"
    assert ending(error, fixture.machine) == f"{unknown}; {mount}"
    fixture.security.rmdir()
    assert ending(error, fixture.machine) == unknown
    # If it is not in force, nothing is known that refuses these.
    fixture.set_config("DEVMEM")
    assert ending(error, fixture.machine) == ""


def test_system_ram(fixture):
    error = refused(RAM, ALL_OF_RAM, errno.EPERM)
    for options, words in (
        (STRICT, ""),
        (("DEVMEM", "STRICT_DEVMEM"), ""),
        (STRICT, "iomem=relaxed"),
    ):
        fixture.set_config(*options)
        fixture.set_parameters(words)
        assert ending(error, fixture.machine) == KEEPS_RAM


def test_system_ram_that_is_read_not_mapped(fixture):
    fixture.set_config(*STRICT)
    error = refused(RAM, Access("read", 0), errno.EPERM)
    assert ending(error, fixture.machine) == KEEPS_RAM


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.EINVAL, NotMappable), (errno.EAGAIN, CachingConflict)]
)
def test_caching_types(fixture, number, kind):
    error = refused(PhysicalSpan(0x7FE0000, 0x10), Mmap(0, 0x10), number, kind)
    words = "the kernel uses it in another caching type, and refuses a second one"
    assert ending(error, fixture.machine) == words


OWNED = [
    refused(part(E1000, "bar0"), Mmap(0, 0x20000), errno.EINVAL, DriverOwns),
    refused(part(E1000, "bar0@8+4"), Mmap(0, 4), errno.EINVAL, DriverOwns),
    refused(PhysicalSpan(0xFEB00008, 4), Mmap(0, 4), errno.EPERM),
    refused(PhysicalSpan(0xFEB00008, 4), Mmap(0, 4), errno.EPERM, DriverOwns),
]


@pytest.mark.parametrize("error", OWNED, ids=str)
def test_a_driver(fixture, error):
    fixture.set_config(*STRICT)
    fixture.claim()
    unbind = f"echo {E1000} > {fixture.devices}/{E1000}/driver/unbind"
    words = f"{KEEPS}; {unbind}; or {RELAX}"
    assert ending(error, fixture.machine) == words
    through_devmem = refused(part(E1000, "bar0"), Mmap(0, 0x20000), errno.EPERM)
    assert ending(through_devmem, fixture.via_devmem()) == words


def test_what_no_driver_of_a_function_owns(fixture):
    fixture.set_config(*STRICT)
    error = refused(PhysicalSpan(0xFEC00000, 0x10), Mmap(0, 0x10), errno.EPERM)
    assert ending(error, fixture.machine) == f"{KEEPS}; {RELAX}"
    (fixture.devices / E1000 / "driver").unlink()
    assert ending(OWNED[0], fixture.machine) == f"{KEEPS}; {RELAX}"


def test_a_driver_with_a_name_that_is_no_text(fixture):
    fixture.set_config(*STRICT)
    driver = fixture.devices / E1000 / "driver"
    driver.unlink()
    driver.symlink_to("drivers/a\x1b[31m\nname")
    words = "the driver a\x1b[31m\nname owns it"
    error = DriverOwns(words, what=part(E1000, "bar0"), during=Mmap(0, 4))
    text = explain(error, fixture.machine)
    assert "the driver a\ufffd[31m\ufffdname owns it: " in text
    assert text.isprintable()


def test_a_driver_that_owns_a_part_of_a_larger_range(fixture):
    fixture.set_config(*STRICT)
    fixture.claim()
    error = refused(PhysicalSpan(0xFEA00000, 0x600000), Mmap(0x100000, 0x1000), errno.EPERM)
    unbind = f"echo {E1000} > {fixture.devices}/{E1000}/driver/unbind"
    assert ending(error, fixture.machine) == f"{KEEPS}; {unbind}; or {RELAX}"


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES])
@pytest.mark.parametrize(
    ("process", "words"),
    [
        ({"uid": 1000}, "device memory is for root only, and this is not root; sudo -s"),
        (
            {"mask": ALL & ~RAWIO},
            f"this root is without CAP_SYS_RAWIO; {CONTAINER} --cap-add=SYS_RAWIO",
        ),
        (
            {"mask": ALL & ~RAWIO & ~ADMIN},
            f"this root is without CAP_SYS_RAWIO and CAP_SYS_ADMIN; {CONTAINER} {BOTH}",
        ),
        (
            {"users": "0 1000 65536"},
            f"{NAMESPACE}; run it outside of the container",
        ),
    ],
)
def test_rights(fixture, number, process, words):
    fixture.set_process(**process)
    assert ending(devmem_refused(fixture, number), fixture.machine) == words


def test_a_confined_root(fixture):
    text = ending(devmem_refused(fixture, errno.EPERM), fixture.machine)
    assert text.startswith("something confines this process; look at ")
    (fixture.security / "lockdown").unlink()
    text = ending(devmem_refused(fixture, errno.EPERM), fixture.machine)
    assert text.startswith("whether lockdown is in force can't be told")
    assert ending(devmem_refused(fixture, errno.EACCES), fixture.machine) == ""


def test_files_of_sysfs_that_are_not_for_this_user(fixture):
    path = f"{fixture.devices}/{FIRST}/resource0"
    error = refused(part(FIRST, "bar0"), Opening(path), errno.EACCES)
    assert isinstance(error, NotAllowed)
    assert ending(error, fixture.machine) == ""
    fixture.set_process(uid=1000)
    assert ending(error, fixture.machine).startswith("device memory is for root only")
    (fixture.proc / "self/status").unlink()
    assert ending(error, fixture.machine) == ""


def test_no_devmem(fixture):
    devmem = fixture.paths.devmem
    error = devmem_refused(fixture, errno.ENOENT)
    assert isinstance(error, DeviceGone)
    assert ending(error, fixture.machine) == f"{devmem} is missing; mknod -m 600 {devmem} c 1 1"
    fixture.set_config()
    words = f"{devmem} is missing; boot a kernel built with CONFIG_DEVMEM"
    assert ending(error, fixture.machine) == words
    assert ending(devmem_refused(fixture, errno.ENXIO), fixture.machine) == ""


def test_a_device_that_is_gone(fixture):
    error = DeviceGone("the device is gone (No such device)", what=part(FIRST))
    moved = DeviceGone("its resources have changed since it was opened", what=part(SECOND))
    assert ending(error, fixture.machine) == ""
    shutil.rmtree(fixture.devices / FIRST)
    rescan = fixture.paths.sysfs / "bus/pci/rescan"
    words = f"when it is back, open the file again; this looks for it; echo 1 > {rescan}"
    assert ending(error, fixture.machine) == words
    assert ending(moved, fixture.machine) == ""
    assert ending(DeviceGone("config space went"), fixture.machine) == ""


def test_a_diagnosis_that_fails_leaves_the_error_as_it_is(fixture, monkeypatch, caplog):
    def fail(*_):
        raise KeyError("unforeseen")

    monkeypatch.setattr(Machine, "kernel", fail)
    with caplog.at_level(logging.ERROR):
        assert explain(LOCKED_OUT[0], fixture.machine) == str(LOCKED_OUT[0])
    assert "KeyError" in caplog.text


@pytest.mark.parametrize("error", [*LOCKED_OUT, *OWNED], ids=str)
def test_a_machine_of_nothing(tmp_path, error, caplog):
    paths = simulated.Paths(tmp_path, tmp_path / "proc", tmp_path / "mem")
    assert explain(error, machine_of(paths, boot=tmp_path)).startswith(str(error))
    assert "Traceback" not in caplog.text


def test_the_boot_directory_is_the_machines(fixture):
    assert source_of(fixture.paths.sysfs, fixture.proc).boot == BOOT


def test_the_sleep_of_what_does_not_answer(fixture):
    pci, address = fixture.machine.pci, PciAddress.parse(FIRST)
    rescan = f"echo 1 > {fixture.paths.sysfs}/bus/pci/rescan"
    device = f"{fixture.devices}/{FIRST}"
    anew = f"echo 1 > {device}/remove && {rescan} && echo 1 > {device}/enable"
    for state, runtime, sleep in (
        *(("D0", "active", None), ("D0", "suspended", "suspended"), ("D3cold", "active", "D3cold")),
        *(("D0", "suspending", "suspending"), ("unknown", "unsupported", None)),
        *(("D3hot", "suspended", "D3hot"), ("", "", None), ("error", "error", None)),
    ):
        fixture.set_attribute(FIRST, "power_state", state)
        fixture.set_attribute(FIRST, "power/runtime_status", runtime)
        assert power.sleeping(pci, address) == sleep
        wake = f"echo on > {fixture.devices}/{FIRST}/power/control"
        assert obstacles.silence(pci, address).mend == (wake if sleep else anew)


def test_paths_are_quoted_for_a_shell(tmp_path):
    directory = tmp_path / "it's a copy"
    directory.mkdir()
    pci, address = Fixture(directory).machine.pci, PciAddress.parse(FIRST)
    for mend in (
        mends.wake(pci, address),
        mends.look_for_functions(pci),
        mends.take_from_driver(pci, address),
    ):
        assert f"> '{tmp_path}/it'\"'\"'s a copy/sys/bus/pci/" in mend
