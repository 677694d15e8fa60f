"""The kernel's memory by name, and System RAM that /dev/mem keeps back, on kernels that differ."""

import json
import random
import re
import shutil
import subprocess
import sys

import pytest

from vm.architecture import BIN, HERE, X86
from vm.conftest import MOUNTS, running

BARS = MOUNTS["resource"]
README = (HERE.parents[1] / "README.md").read_text()

# What the README says: a block of two lines.
(ONE_LINER,) = re.findall(r"```sh\n(printf 'NinjaNinja.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def fixed_guest(kernel, tmp_path_factory):
    """The kernel that refuses nothing, where it was linked to be."""
    directory = tmp_path_factory.mktemp("nokaslr")
    with running(X86, kernel, directory, "nokaslr", ["resource"]) as guest:
        yield guest


@pytest.fixture(scope="module")
def integrity_guest(strict_kernel, tmp_path_factory):
    directory = tmp_path_factory.mktemp("integrity")
    with running(X86, strict_kernel, directory, "lockdown=integrity", ["resource"]) as guest:
        yield guest


def text_address(guest):
    return int(guest.run("awk '$3 == \"_text\" { print $1 }' /proc/kallsyms").text, 16)


@pytest.mark.each_machine
@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_the_nodename_is_one_line(guest, shell):
    assert text_address(guest) != 0xFFFFFFFF81000000, "KASLR is off"
    guest.run("hostname lab")
    path = guest.directory / f"one-liner-{shell}"
    path.write_text(ONE_LINER.replace("sudo ", ""))
    assert guest.run(f"{shell} {path}").text.endswith("NinjaNinja\n")
    assert guest.run("hostname").text == "NinjaNinja\n"


def test_the_nodename_without_kaslr(fixed_guest):
    assert text_address(fixed_guest) == 0xFFFFFFFF81000000
    fixed_guest.run("hostname lab")
    assert fixed_guest.run(ONE_LINER.replace("sudo ", "")).text.endswith("NinjaNinja\n")


def test_without_kcore_the_distance_from_text_says_the_same(guest):
    """Once by the core file's headers, once by /proc/iomem, in a mount without the core file."""
    where = "/mnt/no-kcore"
    guest.mount(where, "--no-kcore", log="/run/no-kcore.log")
    try:
        guest.run("hostname by-text")
        for mount in (BARS, where):
            shown = guest.run(f"head -c 7 {mount}/ksym/init_uts_ns@41").text
            assert shown == "by-text"
    finally:
        guest.run(f"{BIN}/barfs umount {where}")


def test_symbols_are_where_the_kernel_says(guest):
    constant = json.loads(guest.run(f"{BIN}/barfs ksym --json '*_banner'").text)
    assert {"linux_banner", "linux_proc_banner"} <= {one["name"] for one in constant}
    for one in constant:
        size = guest.run(f"stat -c %s {BARS}/ksym/{one['name']}").text
        assert int(size) == one["size"]
        first = guest.run(f"head -c 64 {BARS}/ksym/{one['name']} | xxd -p").text
        assert first == guest.run(f"xxd -p -l 64 {BARS}/phys/{one['physical']:x}+40").text


def test_the_command_line_by_its_pointer(guest):
    """saved_command_line is a pointer, to what /proc/cmdline shows."""
    pointer = int(guest.run(f"cat {BARS}/ksym/x64/saved_command_line").text, 16)
    assert pointer >> 47 == 0x1FFFF
    assert guest.run(f"stat -c %s {BARS}/ksym/saved_command_line").text.strip().isdigit()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("runqueues", "per-CPU or absolute"),
        ("no_such_symbol", "no symbol"),
        ("init_uts_ns@10000000", "it ends at"),
        ("init_uts_ns:uts_namespace.name", "CONFIG_DEBUG_INFO_BTF"),
    ],
)
def test_names_that_lead_nowhere_say_why(guest, refusals, name, words):
    done = guest.try_run(f"cat {BARS}/ksym/{name}")
    assert done.status == 1
    assert words in refusals(BARS)


def test_ram_through_kcore_is_that_of_devmem(guest):
    compared = guest.run(f"{BIN}/python {HERE}/guest/core_pages.py 7").text
    assert int(compared) > 100_000


def test_a_strict_kernel_lets_ram_be_read_but_not_written(strict_guest):
    guest = strict_guest
    guest.run("hostname strict-lab")
    assert guest.run(f"head -c 10 {BARS}/ksym/init_uts_ns@41").text == "strict-lab"
    line = guest.run("awk '/Kernel rodata/ { print $1 }' /proc/iomem").text.strip()
    banner = json.loads(guest.run(f"{BIN}/barfs ksym --json linux_banner").text)[0]["physical"]
    assert int(line.split("-")[0], 16) <= banner
    shown = guest.run(f"head -c 13 {BARS}/phys/{banner:x}").text
    assert shown == guest.run("head -c 13 /proc/version").text
    for path in ("ksym/init_uts_ns@41", f"phys/{banner:x}"):
        done = guest.try_run(rf"printf 'x' | dd of={BARS}/{path} conv=notrunc")
        assert b"Operation not permitted" in done.stderr
    assert guest.run("hostname").text == "strict-lab\n"
    opens = [json.loads(text) for text in guest.run(f"cat {BARS}/log").text.splitlines()]
    ways = {one["path"]: one.get("via") for one in opens if one["event"] == "open"}
    assert ways["ksym/init_uts_ns@41"] == "kcore"


def test_a_strict_kernel_without_kcore_refuses_ram(strict_guest):
    where = "/mnt/no-kcore"
    strict_guest.mount(where, "--no-kcore", log="/run/no-kcore.log")
    try:
        done = strict_guest.try_run(f"cat {where}/ksym/init_uts_ns")
        assert b"Operation not permitted" in done.stderr
    finally:
        strict_guest.run(f"{BIN}/barfs umount {where}")


def test_lockdown_integrity_lets_ram_be_read(integrity_guest):
    guest = integrity_guest
    guest.run("hostname locked-lab")
    assert guest.run(f"head -c 10 {BARS}/ksym/init_uts_ns@41").text == "locked-lab"
    done = guest.try_run(f"cat {BARS}/1234:11e8/bar0")
    assert b"Operation not permitted" in done.stderr
    assert re.search(
        r"^ok +kcore +/proc/kcore opens", guest.run(f"cat {BARS}/status").text, re.MULTILINE
    )


def test_lockdown_confidentiality_does_not(locked_guest):
    guest = locked_guest
    done = guest.try_run(f"cat {BARS}/ksym/init_uts_ns@41")
    assert b"Operation not permitted" in done.stderr
    status = guest.run(f"cat {BARS}/status").text
    assert re.search(
        r"^note +kcore .*does not open \(Operation not permitted\)", status, re.MULTILINE
    )
    assert "lockdown=confidentiality refuses it" in status


def test_fields_are_where_another_reader_of_the_types_says(strict_guest, tmp_path, require):
    """pahole reads the same BTF. It prints the offset and size of each member as a comment."""
    require(shutil.which("pahole"), "pahole")
    types = tmp_path / "vmlinux"
    types.write_bytes(strict_guest.run("cat /sys/kernel/btf/vmlinux").stdout)
    names = ("task_struct", "mm_struct", "pci_dev", "file", "inode", "super_block", "rq")
    printed = subprocess.run(
        ["pahole", "-C", ",".join(names), types], capture_output=True, text=True, check=True
    ).stdout
    fields, current = [], None
    for line in printed.splitlines():
        if begin := re.match(r"struct (\w+) \{", line):
            current = begin[1]
        # Members of the structure itself, which have one tab; not bit fields, whose offset has a :.
        elif member := re.match(r"\t[^\t].*?(\w+)(?:\[\d+\])?; +/\* +(\d+) +(\d+) \*/", line):
            fields.append((f"{current}.{member[1]}", int(member[2]), int(member[3])))
    assert len(fields) > 200
    chosen = random.Random(3).sample(fields, 60)
    program = (
        "import sys; from pathlib import Path; from barfs.machine.btf import Types;"
        "types = Types(Path(sys.argv[1]).read_bytes());"
        "[print(*types.field(name)[:2]) for name in sys.argv[2:]]"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, types, *(name for name, *_ in chosen)],
        capture_output=True,
        text=True,
        check=True,
    )
    found = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert found == [(offset, size) for _, offset, size in chosen]


def test_a_field_by_its_type(strict_guest):
    guest = strict_guest
    guest.run("hostname by-type")
    path = f"{BARS}/ksym/init_uts_ns:uts_namespace.name.nodename"
    assert guest.run(f"stat -c %s {path}").text == "65\n"
    assert guest.run(f"head -c 7 {path}").text == "by-type"
    assert guest.run(f"head -c 7 {BARS}/ksym/init_task:task_struct.comm").text == "swapper"
    counters = guest.run(f"ls {BARS}/ksym/init_mm:mm_struct.rss_stat").text.split()
    assert counters[:2] == ["0", "1"]
