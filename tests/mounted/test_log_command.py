"""`barfs log`: what happened through a mount, as a person reads it."""

import json
import os
import re
import signal
import subprocess

import pytest

from barfs.machine import simulated
from mounted.conftest import (
    BARFS,
    TIMEOUT,
    Mount,
    barfs,
    machine_options,
    mounted,
    one_line,
    sh,
    wait_until,
)
from mounted.others import RUN_AS_NOBODY

FIRST, SECOND, E1000 = "0000:00:04.0", "0000:00:05.0", "0000:00:03.0"
WHEN = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}"


@pytest.fixture(scope="module")
def seen(fuse, tmp_path_factory):
    """A mount, and what was done through it."""
    directory = tmp_path_factory.mktemp("log")
    (directory / "machine").mkdir()
    machine = simulated.build(directory / "machine")
    with mounted(machine, directory, "--log-reads", "--log", directory / "file") as mount:
        for command in (
            f"echo 0x2a > {mount.path}/1af4:1110/x32/bar0@8",
            f"echo hello > {mount.path}/1af4:1110/x32/bar0@8",
            f"printf abc | dd of={mount.path}/1af4:1110.1/bar0 bs=3 status=none",
            f"printf abcd | dd of={mount.path}/1af4:1110.1/bar0 bs=4 seek=2 status=none",
            f"dd if=/dev/zero of={mount.path}/1af4:1110/bar2 bs=4096 count=1 status=none",
            f"cat {mount.path}/8086:100e/x32/bar0@8",
            f"dd if={mount.path}/phys/1e102c5+4 bs=4 status=none",
            f"cat {mount.path}/nothing",
        ):
            sh(command)
        yield mount


def said(mount, *arguments):
    done = barfs("log", mount.path, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_when_who_what_and_why(seen):
    lines = said(seen)
    assert all(re.match(rf"{WHEN}  (root \S+\[\d+\]  )?\S", line) for line in lines)
    text = "\n".join(lines)
    for words in (
        rf"root bash\[\d+\]  wrote 0x2a \(32 bits\) to {FIRST} bar0 at 0x8",
        rf"root bash\[\d+\]  write refused: pci/{FIRST}/x32/bar0@8\+4: hello is no number",
        r"\(EINVAL\)",
        rf"root dd\[\d+\]  wrote 3 bytes \(61 62 63\) to {SECOND} bar0 at 0x0",
        rf"root dd\[\d+\]  wrote 0x64636261 \(32 bits\) to {SECOND} bar0 at 0x8",
        rf"root dd\[\d+\]  wrote 4096 bytes to {FIRST} bar2 at 0x0",
        rf"root cat\[\d+\]  read 0x80080783 \(32 bits\) from {E1000} bar0 at 0x8",
        r"root dd\[\d+\]  read 4 bytes \(6c 61 62 00\) from phys at 0x1e102c5",
        rf"root dd\[\d+\]  opened {FIRST}/bar2 to write",
        r"root cat\[\d+\]  lookup refused: there is no 'nothing'",
    ):
        assert re.search(words, text), words
    records = [json.loads(line) for line in (seen.path / "log").read_text().splitlines()]
    assert len(lines) == len(records)


@pytest.mark.parametrize(
    ("pattern", "only"),
    [
        (FIRST, FIRST),
        ("00:05.0", SECOND),
        ("8086:100e", E1000),
        ("8086", E1000),
        ("8086:100e:1af4:1100", E1000),
        ("8086-*", E1000),
        ("REFUSED", "refused"),
        ("cat[", "cat["),
    ],
)
def test_patterns(seen, pattern, only):
    lines = said(seen, pattern)
    assert lines
    assert all(only in line for line in lines)
    assert lines == barfs("log", pattern, seen.path).stdout.splitlines()
    assert set(lines) < set(said(seen))


def test_a_file_that_was_written(seen, tmp_path):
    path = seen.path.parent / "file"
    wait_until(lambda: len(path.read_text().splitlines()) == len(said(seen)), "it is not written")
    assert barfs("log", path).stdout.splitlines() == said(seen)
    lines = barfs("log", path, "00:05.0").stdout.splitlines()
    assert lines == said(seen, "00:05.0")
    assert "knows PCI addresses only" in one_line(barfs("log", path, "1af4:1110"))
    torn = tmp_path / "torn"
    torn.write_bytes(b'{"n": 1, "ti\n\xff\n[]\n{}\n\n' + path.read_bytes())
    assert barfs("log", torn).stdout.splitlines() == said(seen)


def test_an_address_that_nobody_has_claimed_is_told_to_be_dangerous(seen, tmp_path):
    where = tmp_path / "file"
    lines = (seen.path / "log").read_text().splitlines()
    opened = next(text for text in lines if '"event": "open"' in text and '"phys/' in text)
    warning = "on some machines such an access hangs the machine"
    record = {**json.loads(opened), "unclaimed": warning}
    where.write_text(f"{opened}\n{json.dumps(record)}\n")
    plain, marked = barfs("log", where).stdout.splitlines()
    assert marked == f"{plain}, which nobody has claimed: {warning}"


def test_a_gap_is_said(seen, tmp_path):
    lines = (seen.path / "log").read_text().splitlines(keepends=True)
    gap = tmp_path / "gap"
    gap.write_text("".join([*lines[:2], *lines[5:]]))
    assert barfs("log", gap).stdout.splitlines()[2] == "... 3 lines are no longer kept ..."


def test_it_goes_on(machine, tmp_path):
    mount = Mount(machine, tmp_path)
    command = [*BARFS, "log", "-f", mount.path, "1af4:1110"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for value in (5, 6):
            (mount.path / "1af4:1110/x32/bar0@8").write_text(f"{value}")
            while f"wrote {value} (32 bits)" not in process.stdout.readline():
                assert process.poll() is None
        # The mount ends, and so does it.
        assert mount.end() == 0
        assert process.wait(TIMEOUT) == 0


def test_ctrl_c_ends_it(mount):
    command = [*BARFS, "log", "-f", mount.path]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        (mount.path / "1af4:1110/x32/bar0@8").write_text("7")
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT) == -signal.SIGINT
        assert process.stderr.read() == b""


def test_which_mount(machine, tmp_path):
    """Without a word it is the only one; with several it has to be said."""
    for name in "ab":
        (tmp_path / name).mkdir()
    options = " ".join(map(str, machine_options(machine)))
    script = f"""
        cd {tmp_path}
        cut -d' ' -f2,3 /proc/mounts | sed -n 's/ fuse.barfs$//p' | xargs -r -n 1 umount -l
        barfs() {{ {" ".join(BARFS)} "$@"; }}
        barfs log
        barfs mount {options} a
        cat a/nothing
        barfs log
        barfs mount {options} b
        barfs log
        barfs log a
        barfs umount a
        barfs umount b
    """
    mounts_of_its_own = ["unshare", "--mount", "--propagation", "private"]
    done = subprocess.run(
        [*mounts_of_its_own, "bash", "-c", script],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    none, cat, several = done.stderr.splitlines()
    assert none == "barfs: there is no barfs mount; make one with: barfs mount, or barfs demo"
    assert "No such file" in cat
    assert several.startswith("barfs: there are 2 barfs mounts; say which: barfs log ")
    assert f"barfs log {tmp_path}/a, or barfs log {tmp_path}/b" in several
    assert len([line for line in done.stdout.splitlines() if "there is no 'nothing'" in line]) == 2


def test_words_are_not_looked_up_in_a_mount(seen):
    """A pattern may be typed where the mount is the working directory."""
    before = said(seen)
    done = subprocess.run(
        [*BARFS, "log", "nowhere-in-it", seen.path],
        cwd=seen.path / "pci",
        env={**os.environ, "PYTHONSAFEPATH": "1"},
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0
    # The interpreter itself looks for its modules in the working directory.
    more = [line for line in said(seen)[len(before) :] if "nowhere-in-it" in line]
    assert more == []
    one = one_line(barfs("log", seen.path / "info"))
    assert one == f"barfs: {seen.path}/info is a file of a barfs mount; give the mount itself\n"


@pytest.mark.parametrize("content", ["root:x:0:0\n", "no newline", '{"n": 1}\n', "[]\n" * 9])
def test_files_of_something_else(tmp_path, content):
    path = tmp_path / "file"
    path.write_text(content)
    assert one_line(barfs("log", path)) == f"barfs: {path} is no log of barfs\n"
    path.write_text("")
    assert barfs("log", path).stdout == ""


def test_a_dead_mount_is_called_dead(machine, tmp_path):
    mount = Mount(machine, tmp_path)
    mount.process.kill()
    mount.process.wait(TIMEOUT)
    try:
        said = one_line(barfs("log", mount.path))
        assert "holds a dead mount" in said
        clear = said.partition("clear it with: ")[2].split()
        assert clear == ["barfs", "umount", str(mount.path)]
    finally:
        assert barfs("umount", mount.path).returncode == 0


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["/nowhere"], "/nowhere is not a barfs mount, nor a file that --log has written"),
        (["/proc"], "/proc is not a barfs mount, nor a file that --log has written"),
    ],
)
def test_what_it_cannot_read(words, why):
    assert one_line(barfs("log", *words)) == f"barfs: {why}\n"


def test_words_that_are_too_many():
    for words in (["a", "b"], ["/a", "/b"]):
        done = barfs("log", *words)
        assert done.returncode == 2
        assert done.stderr.startswith("barfs log: it takes at most one MOUNTPOINT")


def test_somebody_else_is_told_how(seen):
    done = subprocess.run(
        [*BARFS[:1], "-c", RUN_AS_NOBODY, "log", seen.path],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("barfs: ")
    assert "sudo barfs log" in done.stderr
    assert os.path.ismount(seen.path)
