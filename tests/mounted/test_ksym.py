"""`ksym/` of the simulated machine, with ordinary tools, and who gets in."""

import errno
import os
import re

import pytest

from barfs.machine.simulated import NODENAME_ADDRESS
from mounted.conftest import barfs, machine_options, mounted, sh
from mounted.others import GROUP, as_other, opened

NODENAME = "ksym/init_uts_ns@41"


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_the_nodename_is_one_line(shared, shell):
    line = rf"printf '{shell}-lab\0' | dd of={shared.path}/{NODENAME} conv=notrunc"
    assert sh(f'{shell} -c "{line}"').returncode == 0
    assert sh(f"head -c 8 {shared.path}/phys/{NODENAME_ADDRESS:x}").stdout.startswith(
        shell.encode()
    )
    assert (
        sh(f"tail -c +66 {shared.path}/ksym/init_uts_ns | head -c 4").stdout == shell.encode()[:4]
    )


def test_a_copy_is_the_whole_symbol(shared, tmp_path):
    copied = tmp_path / "copy"
    assert sh(f"cp {shared.path}/ksym/init_uts_ns {copied}").returncode == 0
    assert copied.stat().st_size == 390
    assert copied.read_bytes()[:6] == b"Linux\0"


def test_only_views_are_listed(shared):
    views = [f"{form}{bits}" for form in "ux" for bits in (8, 16, 32, 64)]
    assert sorted(os.listdir(shared.path / "ksym")) == sorted([*views, "mem"])
    assert os.listdir(shared.path / "ksym/x32") == []
    assert (shared.path / "ksym/x32/init_uts_ns").read_text() == "0x756e694c\n"


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("nothing", errno.ENOENT),
        ("init_uts_ns@186", errno.ENXIO),
        ("init_uts_ns:uts_namespace", errno.ENOENT),
        ("init_uts_ns@41+", errno.ENOENT),
        ("init_uts_ns/0", errno.ENOTDIR),
    ],
)
def test_what_is_not_there(shared, name, error):
    with pytest.raises(OSError) as caught:
        (shared.path / "ksym" / name).stat()
    assert caught.value.errno == error


def test_it_is_for_its_owner_alone(machine, public):
    options = ("-o", "allow_other", "--group", str(GROUP), "--mode", "660")
    with mounted(machine, public, *options) as mount:
        assert (mount.path / "ksym").stat().st_mode & 0o777 == 0o500
        for groups in ((), (GROUP,)):
            assert as_other(lambda: os.listdir(mount.path / "ksym"), *groups) == "EACCES"
            for name in (NODENAME, "ksym/x8/init_uts_ns"):
                path = mount.path / name
                assert as_other(lambda path=path: opened(path), *groups) == "EACCES"


def test_it_goes_with_phys(machine, tmp_path):
    with mounted(machine, tmp_path, "--no-phys") as mount:
        assert "ksym" not in os.listdir(mount.path)
        assert not (mount.path / NODENAME).exists()


def test_a_read_only_mount_refuses_writes(machine, tmp_path):
    with mounted(machine, tmp_path, "-o", "ro") as mount:
        assert (mount.path / NODENAME).read_bytes()[:4] == b"lab\0"
        with pytest.raises(OSError, match="Read-only"):
            (mount.path / NODENAME).open("r+b")


def test_the_command_lists_where_symbols_lie(machine):
    done = barfs("ksym", *machine_options(machine), "init_*")
    assert done.returncode == 0
    rows = [re.split(r" +", line.strip()) for line in done.stdout.splitlines()]
    assert rows[0] == ["1e10284", "186", "D", "init_uts_ns"]
    assert [row[3] for row in rows] == ["init_uts_ns", "init_task"]
    assert barfs("ksym", *machine_options(machine), "x*").returncode == 1
