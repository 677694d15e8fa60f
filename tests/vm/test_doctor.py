"""`barfs doctor` and `status` against what the guest's own tools say of its devices."""

import re
from typing import NamedTuple

import pytest

from vm.architecture import BIN
from vm.conftest import MOUNTS, bar_address, new_lines

IVSHMEM = "0000:00:10.0"
ENABLE = f"/sys/bus/pci/devices/{IVSHMEM}/enable"


def rows(text):
    """Subject to state and sentence, and the lines below each trouble."""
    return {
        match[2]: (match[1], match[3])
        for match in re.finditer(r"^(trouble|note|ok) +(.*?)  +(.*)$", text, re.MULTILINE)
    }


def commands(guest):
    """The command register of each function, as setpci reads it."""
    text = guest.run("setpci -v -s '*:*:*.*' COMMAND").text
    return {line.split()[0]: int(line.split()[-1], 16) for line in text.splitlines()}


class Function(NamedTuple):
    """What the guest's own tools say of a function."""

    decoded: bool  # all its BARs, by the bits that setpci shows
    bars: list[int]
    power: str
    driver: str


def functions(guest):
    """All functions by their addresses."""
    texts = guest.run(
        "cd /sys/bus/pci/devices; find */driver -printf 'driver %h %l\\n'; for a in *; do"
        " read power < $a/power_state; mapfile -n 6 lines < $a/resource;"
        " echo function $a $power ${lines[@]##* }; done"
    ).text.splitlines()
    words = [line.split() for line in texts]
    drivers = {one[1]: one[2].rpartition("/")[2] for one in words if one[0] == "driver"}
    registers = commands(guest)
    result = {}
    for what, address, *rest in words:
        if what != "function":
            continue
        power, *flags = rest
        spaces = {
            index: 2 if flag & 0x200 else 1
            for index, flag in enumerate(int(text, 16) for text in flags)
            if flag & 0x300
        }
        decoded = all(registers[address] & bit for bit in spaces.values())
        result[address] = Function(decoded, sorted(spaces), power, drivers.get(address, "-"))
    return result


@pytest.mark.each_machine
def test_doctor_and_status(guest):
    done = guest.try_run(f"{BIN}/barfs doctor")
    for where in MOUNTS.values():
        assert guest.run(f"cat {where}/status").stdout == done.stdout
    assert (done.status, done.stderr) == (0, b"")
    found = rows(done.text)
    assert {subject: found[subject] for subject in ("root", "fuse", "devmem", "lockdown")} == {
        "root": ("ok", "this is root, with the capabilities that barfs needs"),
        "fuse": ("ok", "/dev/fuse is there"),
        "devmem": ("ok", "/dev/mem opens"),
        "lockdown": ("ok", "lockdown is not in force"),
    }
    assert found["System RAM"] == ("ok", "the kernel gives System RAM (no CONFIG_STRICT_DEVMEM)")
    assert found["drivers"][0] == "ok"
    ranges = guest.run("grep -c '^[^ ]' /proc/iomem").text.strip()
    assert found["iomem"] == ("ok", f"/proc/iomem shows {ranges} ranges")
    there = functions(guest)
    assert len(there) > 8
    assert {subject for subject in found if ":" in subject} == set(there)
    for address, function in there.items():
        state, sentence = found[address]
        names = ", ".join(f"bar{index}" for index in function.bars)
        assert (state == "ok") == function.decoded, (address, sentence)
        if function.decoded and names:
            beginning = "" if function.power == "unknown" else f"{function.power}; "
            assert sentence.startswith(f"{beginning}{names} decoded; ")
        if state == "ok":
            known = function.driver != "-"
            assert sentence.endswith(f"driver {function.driver}" if known else "no driver")


@pytest.mark.each_machine
def test_decoding_that_is_off_and_its_mend(guest, refusals):
    before = commands(guest)[IVSHMEM]
    guest.run(f"while echo 0 > {ENABLE}; do :; done")
    guest.run(f"setpci -s {IVSHMEM} COMMAND=0")
    try:
        words = "bar0, bar2: memory decoding is off in the command register"
        # It is one device with trouble among all, which does not keep barfs from working.
        done = guest.try_run(f"{BIN}/barfs doctor")
        assert done.status == 0
        assert rows(done.text)[IVSHMEM] == ("trouble", words)
        first, mend = done.text.splitlines()[:2]
        assert first == f"trouble  {IVSHMEM}  {words}"
        assert mend.strip() == f"echo 1 > {ENABLE}"
        done = guest.try_run(f"{BIN}/barfs doctor {IVSHMEM}")
        assert (done.status, done.text.splitlines()[:2]) == (1, [first, mend])
        for where in MOUNTS.values():
            assert guest.run(f"cat {where}/status").text.startswith(f"{first}\n{mend}\n")
            refused = guest.try_run(f"cat {where}/1af4:1110/u32/bar0")
            assert b"Input/output error" in refused.stderr
            assert f"register; {mend.strip()} (EIO)" in refusals(where)
        guest.run(mend)
        assert commands(guest)[IVSHMEM] & 2
        assert rows(guest.run(f"cat {where}/status").text)[IVSHMEM][0] == "ok"
    finally:
        guest.run(f"setpci -s {IVSHMEM} COMMAND={before:x}")


def test_as_somebody_else_it_says_what_it_cannot_see(guest):
    """Not as root, so neither /dev/mem nor addresses, but the decode bits all the same."""
    script = (
        "import os, sys; from barfs.commands.cli import main; os.setgroups([]); os.setgid(65534);"
        "os.setuid(65534); sys.argv = ['barfs', 'doctor']; main()"
    )
    done = guest.try_run(f'{BIN}/python -c "{script}"')
    assert (done.status, done.stderr) == (1, b"")
    found = rows(done.text)
    assert found["root"] == ("trouble", "device memory is for root only, and this is not root")
    assert found["devmem"][0] == "trouble"
    assert "does not open (Permission denied)" in found["devmem"][1]
    assert found["iomem"][0] == "trouble"
    assert "shows no addresses" in found["iomem"][1]
    assert found[IVSHMEM] == ("ok", "D0; bar0, bar2 decoded; no driver")


def test_a_device_that_sleeps_and_its_mend(guest, bars):
    power = f"/sys/bus/pci/devices/{IVSHMEM}/power"
    guest.run(
        f"echo auto > {power}/control; for i in {{1..100}}; do"
        f" grep -q suspended {power}/runtime_status && exit; sleep 0.1; done; exit 1"
    )
    try:
        status = guest.run(f"cat {bars}/status").text
        assert rows(status)[IVSHMEM] == (
            "trouble",
            "it sleeps (suspended): its BARs may not answer, and config space is not read here",
        )
        mend = status.splitlines()[1].strip()
        assert mend == f"echo on > {power}/control"
        assert guest.run(f"cat {power}/runtime_status").text == "suspended\n"
        guest.run(mend)
        assert rows(guest.run(f"cat {bars}/status").text)[IVSHMEM][0] == "ok"
    finally:
        guest.run(f"echo on > {power}/control")


RNG = "0000:00:17.0"  # its driver has claimed BAR 4
KEEPS = "the kernel keeps what drivers own from others (CONFIG_IO_STRICT_DEVMEM)"


def open_all(guest, where, names):
    """Try to open files, and give what the daemon has logged about it, a line each."""
    said = new_lines(guest)
    for name in names:
        assert guest.try_run(f"head -c 4 {where}/{name}").status != 0, name
    return said(where).splitlines()


@pytest.mark.parametrize("via", MOUNTS)
def test_on_a_strict_kernel(strict_guest, via):
    where = MOUNTS[via]
    done = strict_guest.try_run(f"{BIN}/barfs doctor")
    assert strict_guest.run(f"cat {where}/status").stdout == done.stdout
    assert done.status == 0
    found = rows(done.text)
    ram = "the kernel keeps System RAM from /dev/mem (CONFIG_STRICT_DEVMEM)"
    assert found["System RAM"] == ("note", ram)
    assert found["drivers"] == ("note", KEEPS)
    assert found["lockdown"][0] == "note"  # nobody has mounted securityfs
    assert found[IVSHMEM][0] == "ok"
    owned = f"driver virtio-pci owns it, and {KEEPS}"
    unbind = f"echo {RNG} > /sys/bus/pci/devices/{RNG}/driver/unbind"
    assert found[RNG] == ("trouble", owned)
    assert f"  {unbind}\n" in done.text
    assert strict_guest.try_run(f"{BIN}/barfs doctor {RNG}").status == 1
    start = bar_address(strict_guest, RNG, 4)
    lines = open_all(strict_guest, where, (f"pci/{RNG}/bar4", f"phys/{start:x}+8"))
    relax = "or reboot with iomem=relaxed on the kernel's command line"
    for line in lines:
        assert line.endswith(f": {KEEPS}; {unbind}; {relax} (EBUSY)")
    # It is read through /proc/kcore, and not written.
    said = new_lines(strict_guest)
    assert len(strict_guest.run(f"head -c 4 {where}/phys/1000000+8").stdout) == 4
    assert strict_guest.try_run(f"printf x | dd of={where}/phys/1000000+8 conv=notrunc").status
    (line,) = said(where).splitlines()
    assert f": {ram}; boot a kernel built without CONFIG_STRICT_DEVMEM" in line
    assert line.endswith("(EPERM)")


def test_the_mend_of_what_a_driver_owns(strict_guest):
    bar = f"{MOUNTS['resource']}/pci/{RNG}/bar4"
    (line,) = open_all(strict_guest, MOUNTS["resource"], [f"pci/{RNG}/bar4"])
    mend = re.search(r"; (echo \S+ > \S+);", line)[1]
    try:
        strict_guest.run(mend)
        strict_guest.run(f"head -c 4 {bar}")
        assert rows(strict_guest.run(f"{BIN}/barfs doctor {RNG}").text)[RNG][0] == "ok"
    finally:
        strict_guest.run(f"echo {RNG} > /sys/bus/pci/drivers/virtio-pci/bind")


@pytest.mark.parametrize("via", MOUNTS)
def test_under_lockdown(locked_guest, via):
    where = MOUNTS[via]
    text = locked_guest.try_run(f"{BIN}/barfs doctor").text
    security = "/sys/kernel/security"
    if locked_guest.try_run(f"test -e {security}/lockdown").status != 0:
        assert rows(text)["lockdown"][0] == "note"
        (mount,) = re.findall(r"^ +(mount .*)$", text, re.MULTILINE)[:1]
        locked_guest.run(mount)
    done = locked_guest.try_run(f"{BIN}/barfs doctor")
    assert done.status == 1
    assert locked_guest.run(f"cat {where}/status").stdout == done.stdout
    words = (
        "lockdown is in force (confidentiality): the kernel refuses memory BARs, /dev/mem, and "
        "writes to I/O ports and config space"
    )
    advice = "reboot without lockdown=confidentiality on the kernel's command line"
    found = rows(done.text)
    assert found["lockdown"] == ("trouble", words)
    opening = f"/dev/mem does not open (Operation not permitted): {words}"
    assert found["devmem"] == ("trouble", opening)
    assert f"# {advice}\n" in done.text
    assert rows(done.text)[IVSHMEM][0] == "ok"
    for line in open_all(locked_guest, where, (f"pci/{IVSHMEM}/bar0", "phys/1000000+8")):
        assert line.endswith(f": {words}; {advice} (EPERM)")
    said = new_lines(locked_guest)
    config = f"{where}/pci/{IVSHMEM}/config"
    assert locked_guest.try_run(f"printf '\\3' | dd of={config} bs=1 seek=4").status != 0
    assert said(where).splitlines()[-1].endswith(f": {words}; {advice} (EPERM)")
