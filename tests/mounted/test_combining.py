"""`--write-combining` on the simulated machine, where the other mapping is of the same file."""

import contextlib
import json
import os

from mounted.conftest import barfs, machine_options, mounted, sh, wait_until
from mounted.others import DEVICE, opened


def mappings(mount):
    """The files of BAR 2 that the daemon has open."""
    found = set()
    directory = f"/proc/{mount.process.pid}/fd"
    for fd in os.listdir(directory):
        with contextlib.suppress(OSError):
            found.add(os.path.basename(os.readlink(f"{directory}/{fd}")))
    return {name for name in found if name.startswith("resource2")}


def test_what_is_written_is_there_and_exact_files_wait(machine, tmp_path):
    with mounted(machine, tmp_path, "--write-combining") as mount:
        bar = mount.path / DEVICE / "bar2"
        sh(f"printf 'Dunia,vipi?' | dd of={bar} bs=1 seek=5 conv=notrunc")
        assert sh(f"dd if={bar} bs=1 skip=5 count=11 status=none").stdout == b"Dunia,vipi?"
        wait_until(lambda: mappings(mount) == set(), "it is still mapped")
        held = os.open(bar, os.O_RDWR)
        assert mappings(mount) == {"resource2_wc"}
        for name in (f"{DEVICE}/u32/bar2", f"{DEVICE}/x8/bar2@5", "phys/x32/800000000"):
            assert opened(mount.path / name) == "EBUSY"
        last = json.loads((mount.path / "log").read_bytes().splitlines()[-1])
        assert (last["event"], last["errno"]) == ("refused", "EBUSY")
        assert last["message"].endswith("close it there, or mount without --write-combining")
        assert opened(mount.path / DEVICE / "u32/bar0") == "ok"
        assert opened(bar) == "ok"
        os.close(held)
        exact = mount.path / DEVICE / "x8/bar2@5"
        wait_until(lambda: opened(exact) == "ok", "it is busy for ever")
        assert exact.read_text() == "0x44\n"


def test_it_does_not_go_with_devmem(machine, tmp_path):
    (tmp_path / "bars").mkdir()
    options = [*machine_options(machine), "--write-combining", "--bars-via", "devmem"]
    done = barfs("mount", *options, tmp_path / "bars")
    assert done.returncode == 1
    assert "leave --bars-via devmem out" in done.stderr
