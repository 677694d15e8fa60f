"""`log` and `--log`: who opened, wrote and was refused, as readers see it."""

import contextlib
import errno
import json
import os
import resource
import stat
import subprocess
import sys
import threading

import pytest

from barfs.machine import simulated
from mounted.conftest import BARFS, TIMEOUT, Mount, machine_options, mounted, sh, wait_until

BAR = "pci/0000:00:04.0/bar0"
NIC = {"device": "0000:00:03.0", "bar": 0}


class Log:
    """What is new in a mount's log since the last look."""

    def __init__(self, mount):
        self.path = mount.path / "log"
        self.offset = 0
        self.new()

    def new(self):
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            text = b"".join(iter(lambda: file.read(65536), b""))
        self.offset += len(text)
        return list(map(json.loads, text.splitlines()))

    def shown(self, *events):
        """The new records of some kinds, without their numbers and times."""
        records = [record for record in self.new() if record["event"] in events]
        for record in records:
            assert record.pop("time").endswith("Z")
            assert record.pop("n") > 0
        return records


@pytest.fixture(scope="module")
def logged(fuse, tmp_path_factory):
    """A mount for the tests of this module, with a log on disk too."""
    directory = tmp_path_factory.mktemp("logged")
    (directory / "machine").mkdir()
    mount = Mount(
        simulated.build(directory / "machine"), directory, "--log", directory / "file.log"
    )
    mount.file = directory / "file.log"
    yield mount
    assert mount.alive()
    assert mount.end() == 0


@pytest.fixture
def log(logged):
    return Log(logged)


def run(mount, command):
    """Run a command; its process id and standard error."""
    process = subprocess.Popen(
        command, cwd=mount.path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    _, errors = process.communicate(timeout=TIMEOUT)
    return process.pid, errors.decode()


def test_a_write_by_dd_bash_and_python(logged, log):
    pid, _ = run(logged, ["bash", "-c", "echo 0x2a > 1af4:1110/x32/bar0@8"])
    who = {"uid": 0, "pid": pid, "process": "bash"}
    register = {"path": "pci/0000:00:04.0/x32/bar0@8+4", "device": "0000:00:04.0", "bar": 0}
    assert log.shown("open", "write") == [
        {"event": "open", **who, **register, "mode": "w", "via": "resource"},
        {"event": "write", **who, **register, "offset": "0x8", "width": 4, "length": 5}
        | {"value": "0x2a"},
    ]
    (logged.path.parent / "in").write_bytes(bytes(range(1, 9)))
    pid, _ = run(
        logged, ["dd", f"if={logged.path.parent}/in", "of=8086:100e/bar0", "bs=4", "seek=1"]
    )
    who = {"uid": 0, "pid": pid, "process": "dd", "path": "pci/0000:00:03.0/bar0", **NIC}
    assert log.shown("open", "write") == [
        {"event": "open", **who, "mode": "rw", "via": "resource"},
        *(
            {"event": "write", **who, "offset": at, "width": 4, "length": 4, "value": value}
            for at, value in (("0x4", "0x04030201"), ("0x8", "0x08070605"))
        ),
    ]
    # By a thread: the process is what others know it by.
    program = (
        "import os, threading; fd = os.open('8086:100e/bar0@40+8', os.O_RDWR);"
        "os.close(fd);"
        "thread = threading.Thread(target=lambda: os.close(os.open('8086:100e/bar0@40+8', 2)));"
        "thread.start(); thread.join()"
    )
    pid, errors = run(logged, [sys.executable, "-c", program])
    assert errors == ""
    records = log.shown("open")
    assert [record["path"] for record in records] == ["pci/0000:00:03.0/bar0@40+8"] * 2
    assert {(record["pid"], record["mode"]) for record in records} == {(pid, "rw")}
    assert records[0]["process"] == records[1]["process"]
    assert records[0]["process"].startswith("python")


@pytest.mark.parametrize(
    ("path", "offset", "data", "fields"),
    [
        (
            "8086:100e/bar0",
            0x10,
            "2a",
            {**NIC, "offset": "0x10", "width": 1, "length": 1, "value": "0x2a"},
        ),
        (
            "8086:100e/bar0",
            0x10,
            "2a01",
            {**NIC, "offset": "0x10", "width": 2, "length": 2, "value": "0x012a"},
        ),
        (
            "8086:100e/bar0",
            0x10,
            "2a000080",
            {**NIC, "offset": "0x10", "width": 4, "length": 4, "value": "0x8000002a"},
        ),
        (
            "8086:100e/bar0",
            0x10,
            "2a00000000000080",
            {**NIC, "offset": "0x10", "width": 8, "length": 8, "value": "0x800000000000002a"},
        ),
        (
            "8086:100e/bar0",
            0x14,
            "0102030405060708",
            {**NIC, "offset": "0x14", "width": 4, "length": 8, "bytes": "01 02 03 04 05 06 07 08"},
        ),
        (
            "8086:100e/bar0",
            0x11,
            "0102030405060708",
            {**NIC, "offset": "0x11", "length": 8, "bytes": "01 02 03 04 05 06 07 08"},
        ),
        (
            "8086:100e/bar0",
            0x11,
            "010203",
            {**NIC, "offset": "0x11", "length": 3, "bytes": "01 02 03"},
        ),
        ("8086:100e/bar0", 0x10, "00" * 12, {**NIC, "offset": "0x10", "width": 4, "length": 12}),
        (
            "8086:100e/bar0@40+10",
            2,
            "2a01",
            {**NIC, "offset": "0x42", "width": 2, "length": 2, "value": "0x012a"},
        ),
        (
            "8086:100e/u8/bar0@40",
            1,
            "2a01",
            {**NIC, "offset": "0x41", "width": 1, "length": 2, "bytes": "2a 01"},
        ),
        (
            "8086:100e/bar1",
            8,
            "2a01",
            {**NIC, "bar": 1, "offset": "0x8", "width": 2, "length": 2, "value": "0x012a"},
        ),
        (
            "1af4:1110/bar2",
            3,
            "2a01",
            {"device": "0000:00:04.0", "bar": 2, "offset": "0x3", "length": 2, "bytes": "2a 01"},
        ),
        (
            "8086:100e/config",
            0x3C,
            "2a",
            {"device": "0000:00:03.0", "offset": "0x3c", "length": 1, "bytes": "2a"},
        ),
        (
            "phys/fec00010+10",
            4,
            "2a000000",
            {"address": "0xfec00014", "width": 4, "length": 4, "value": "0x0000002a"},
        ),
        (
            "phys/u16/fec00010+10",
            2,
            "2a00",
            {"address": "0xfec00012", "width": 2, "length": 2, "value": "0x002a"},
        ),
        ("phys/1000+10", 4, "2a", {"address": "0x1004", "length": 1, "bytes": "2a"}),
        # Cut short at the end.
        (
            "8086:100e/bar0@40+4",
            2,
            "2a010000",
            {**NIC, "offset": "0x42", "width": 2, "length": 2, "value": "0x012a"},
        ),
    ],
)
def test_where_and_what_a_write_is(logged, log, path, offset, data, fields):
    fd = os.open(logged.path / path, os.O_WRONLY)
    os.pwrite(fd, bytes.fromhex(data), offset)
    os.close(fd)
    (record,) = log.shown("write")
    assert record.pop("path") == path_of(path)
    for name, value in (("event", "write"), ("uid", 0), ("pid", os.getpid())):
        assert record.pop(name) == value
    del record["process"]
    assert record == fields


def path_of(path):
    """The path of a file as the log has it."""
    path = path.replace("8086:100e", "pci/0000:00:03.0").replace("1af4:1110", "pci/0000:00:04.0")
    return {
        "pci/0000:00:03.0/u8/bar0@40": "pci/0000:00:03.0/u8/bar0@40+1ffc0",
        "phys/fec00010+10": "phys/fec00010-fec0001f",
        "phys/u16/fec00010+10": "phys/u16/fec00010-fec0001f",
        "phys/1000+10": "phys/00001000-0000100f",
    }.get(path, path)


@pytest.mark.parametrize("text", ["7", "0x2:0xff", " 0b11 "])
def test_text_is_shown_as_it_was_written(logged, log, text):
    sh(f"echo '{text}' > {logged.path}/8086:100e/x16/bar0@12")
    (record,) = log.shown("write")
    assert (record["offset"], record["width"], record["value"]) == ("0x12", 2, text.strip())
    assert record["length"] == len(text) + 1


def test_refusals(logged, log):
    mount = logged.path
    for command, expected in [
        (
            f"echo x >> {mount}/1af4:1110/bar0",
            {"operation": "open", "errno": "EINVAL", "path": BAR, "bar": 0},
        ),
        (
            f"echo zz > {mount}/1af4:1110/x32/bar0@8",
            {"operation": "write", "errno": "EINVAL", "offset": "0x8", "length": 3},
        ),
        (
            f"dd if={mount}/8086:100e/u32/bar0 bs=3 count=1 skip=1",
            {"operation": "read", "errno": "EINVAL", "offset": "0x3", "length": 3},
        ),
        (
            f"printf abcd | dd of={mount}/phys/u64/fec00000+8 bs=4 seek=1",
            {"operation": "write", "errno": "EINVAL", "address": "0xfec00004", "length": 4},
        ),
        (
            f"printf abcd | dd of={mount}/1af4:1110/bar0 bs=1 seek=256",
            {"operation": "write", "errno": "ENOSPC", "offset": "0x100", "length": 1},
        ),
        (f"cat {mount}/nope", {"operation": "lookup", "errno": "ENOENT", "process": "cat"}),
        (f"cat {mount}/phys/900000000000", {"operation": "lookup", "errno": "ENXIO"}),
        (f"mkdir {mount}/8086:100e/x", {"operation": "mkdir", "errno": "EPERM"}),
        (f"echo > {mount}/log", {"operation": "open", "errno": "EACCES", "path": "log"}),
    ]:
        before = len(logged.log)
        assert sh(command).returncode != 0
        record = log.shown("refused")[-1]
        assert {name: record.get(name) for name in expected} == expected
        assert record["message"] in logged.log[before:], "the same words"
        assert record["uid"] == 0
    # One of a megabyte is short all the same.
    fd = os.open(mount / "1af4:1110/x32/bar0@8", os.O_WRONLY)
    with pytest.raises(OSError) as caught:
        os.write(fd, bytes(1 << 20))
    os.close(fd)
    assert caught.value.errno == errno.EINVAL
    record = log.shown("refused")[-1]
    assert record["length"] > (1 << 20) - 4096, "what the kernel made of it"
    assert len(json.dumps(record)) < 1000


class Tail:
    """`tail` at work."""

    def __init__(self, path, *options):
        self.process = subprocess.Popen(["tail", *options, path], stdout=subprocess.PIPE)
        self.text = b""
        self._thread = threading.Thread(target=self._collect)
        self._thread.start()

    def _collect(self):
        while data := os.read(self.process.stdout.fileno(), 65536):
            self.text += data

    def end(self):
        self.process.terminate()
        self.process.wait(TIMEOUT)
        self._thread.join(TIMEOUT)
        self.process.stdout.close()


def test_tail_f_sees_lines_as_they_come(logged):
    tail = Tail(logged.path / "log", "-n", "0", "-f", "-s", "0.05")
    try:
        for n in range(3):
            # Until it has looked for the first time nothing is new to it.
            wait_until(
                lambda n=n: (
                    sh(f"echo {n} > {logged.path}/8086:100e/x32/bar0@30"),
                    b'"value": "%d"' % n in tail.text,
                )[1],
                "tail -f shows nothing",
            )
        assert tail.process.poll() is None
        events = [json.loads(line)["event"] for line in tail.text.splitlines()]
        assert set(events) == {"open", "write"}
    finally:
        tail.end()


def test_ordinary_tools_agree(logged):
    for n in range(300):
        (logged.path / "8086:100e/x32/bar0@30").write_text(str(n))
    path = logged.path / "log"
    text = sh(f"cat {path}").stdout
    assert text.count(b"\n") > 600
    assert path.stat().st_size == len(text)
    assert path.stat().st_mode == 0o100400
    assert path.read_bytes() == text
    for command in (
        f"tail -c +1 {path}",
        f"grep '' {path}",
        f"dd if={path} bs=777",
        f"dd if={path} bs=4M",
        f"cp {path} {logged.path.parent}/copy && cat {logged.path.parent}/copy",
        f"tac {path} | tac",
        f"xxd -p {path} | xxd -r -p",
    ):
        assert sh(command).stdout == text, command
    lines = text.splitlines(keepends=True)
    for n in (1, 5, 100, 600):
        assert sh(f"tail -n {n} {path}").stdout == b"".join(lines[-n:])
    assert sh(f"tail -c 1000 {path}").stdout == text[-1000:]
    assert sh(f"wc -c < {path}").stdout == b"%d\n" % len(text)
    assert sh(f"wc -l < {path}").stdout == b"%d\n" % len(lines)
    assert int(sh(f'grep -c \'"value": "299"\' {path}').stdout) == 1
    # Back and forth, as less does.
    fd = os.open(path, os.O_RDONLY)
    for offset in (0, len(text) - 100, 5000, 1, len(text), 5000, 0):
        piece = os.pread(fd, 8192, offset)
        assert text[offset:].startswith(piece)
        assert piece or offset == len(text)
    os.close(fd)


def numbers(text):
    """The numbers of the lines. They ascend, and are missing where lines are."""
    found = [json.loads(line)["n"] for line in text.splitlines()]
    assert found == sorted(set(found))
    return found


def test_a_reader_that_is_too_slow_sees_what_it_missed(mount):
    """More writes than are kept, with nobody looking and with somebody who looks at times."""
    log = mount.path / "log"
    slow = os.open(log, os.O_RDONLY)
    bar = os.open(mount.path / "8086:100e/bar0", os.O_RDWR)
    text = os.read(slow, 4096)
    assert numbers(text) == [1]
    for burst in (9000, 3000, 6000, 100):
        for n in range(burst):
            os.pwrite(bar, n.to_bytes(4, "little"), 0x100)
        text += os.read(slow, 4096)
    text += b"".join(iter(lambda: os.read(slow, 4096), b""))
    told = numbers(text)
    assert told[-1] == 1 + 9000 + 3000 + 6000 + 100
    assert len(told) < told[-1] - 9000
    assert json.loads(text.splitlines()[-1])["value"] == "0x00000063"
    late = numbers(sh(f"cat {log}").stdout)
    assert late == list(range(late[0], told[-1] + 1))
    # While it is open its size goes on, so that what reads from the end finds it.
    assert sh(f"tail -n 3 {log}").stdout == b"\n".join(text.splitlines()[-3:]) + b"\n"
    everything = sh(f"tail -n 100000 {log}").stdout
    assert numbers(everything) == late
    tail = Tail(log, "-n", "1", "-f", "-s", "0.05")
    try:
        wait_until(lambda: tail.text, "nothing from tail")
        os.pwrite(bar, b"\xfe\xca\0\0", 0x100)
        wait_until(lambda: b"0x0000cafe" in tail.text, "tail -f shows nothing")
        assert numbers(tail.text)[-2:] == [told[-1], told[-1] + 1]
    finally:
        tail.end()
        os.close(bar)
        os.close(slow)
    assert mount.alive()


def test_reads_where_they_are_asked_for(machine, tmp_path):
    mount = Mount(machine, tmp_path, "--log-reads")
    log = Log(mount)
    sh(f"dd if={mount.path}/8086:100e/bar0 bs=4 skip=2 count=1")
    (record,) = log.shown("read")
    assert (record["process"], record["offset"], record["value"]) == ("dd", "0x8", "0x80080783")
    sh(f"cat {mount.path}/8086:100e/x32/bar0@8")
    records = log.shown("read")
    assert [record["value"] for record in records] == ["0x80080783"]
    sh(f"cat {mount.path}/8086:100e/config {mount.path}/8086:100e/info {mount.path}/log")
    assert [record["path"].split("/")[-1] for record in log.shown("read")] == ["config", "info"]
    sh(f"dd if={mount.path}/1af4:1110/bar2 bs=1M")
    assert [(record["offset"], record["length"]) for record in log.shown("read")] == [
        ("0x0", 1 << 20)
    ]
    assert mount.end() == 0


def test_a_line_that_is_read_in_pieces_is_one_access(machine, tmp_path):
    """As dash reads it: a byte at a time. Only the first of them is read from the device."""
    with mounted(machine, tmp_path, "--log-reads") as mount:
        log = Log(mount)
        run(mount, ["dash", "-c", "read value < 8086:100e/x32/bar0@8; echo $value"])
        reads = log.shown("read")
    assert "".join(read["value"] or "\n" for read in reads) == "0x80080783\n"
    assert [read.get("width") for read in reads] == [4, *[None] * 10]
    assert {read["offset"] for read in reads} == {"0x8"}


def test_a_line_that_is_read_from_its_middle_is_one_access(machine, tmp_path):
    with mounted(machine, tmp_path, "--log-reads") as mount:
        log = Log(mount)
        file = os.open(mount.path / "8086:100e/x32/bar0@8", os.O_RDONLY)
        assert os.pread(file, 100, 2) == b"80080783\n"
        assert os.pread(file, 100, 4) == b"080783\n"
        assert [read.get("width") for read in log.shown("read")] == [4, None]
        os.close(file)


def test_reads_are_not_in_it_otherwise(logged, log):
    sh(f"cat {logged.path}/8086:100e/config {logged.path}/8086:100e/x32/bar0@8")
    assert {record["event"] for record in log.new()} == {"open"}


def test_the_file_has_the_same_lines(logged):
    (logged.path / "8086:100e/x32/bar0@30").write_text("0xfeed")
    wait_until(lambda: b"0xfeed" in logged.file.read_bytes(), "nothing is written")
    assert logged.file.read_bytes() == sh(f"cat {logged.path}/log").stdout
    assert stat.S_IMODE(logged.file.stat().st_mode) == 0o600


def test_the_file_has_what_came_last(machine, tmp_path):
    """Also what was recorded just before the end, and logrotate may take the file meanwhile."""
    mount = Mount(machine, tmp_path, "--log", tmp_path / "file")
    (mount.path / "8086:100e/x32/bar0@30").write_text("1")
    wait_until(lambda: len(numbers((tmp_path / "file").read_bytes())) == 2, "nothing is written")
    (tmp_path / "file").rename(tmp_path / "file.1")
    held = os.open(mount.path / "8086:100e/bar0", os.O_RDWR)
    os.pwrite(held, b"last", 0)
    assert mount.end() == 0
    with contextlib.suppress(OSError):  # what flush says to it
        os.close(held)
    assert numbers((tmp_path / "file").read_bytes()) == [3, 4]
    assert b"0x7473616c" in (tmp_path / "file").read_bytes()
    assert numbers((tmp_path / "file.1").read_bytes()) == [1, 2]
    # The next mount appends, and counts anew.
    again = tmp_path / "again"
    again.mkdir()
    mount = Mount(machine, again, "--log", tmp_path / "file")
    assert sh(f"cat {mount.path}/nope").returncode == 1
    assert mount.end() == 0
    lines = (tmp_path / "file").read_bytes().splitlines()
    assert [json.loads(line)["n"] for line in lines] == [3, 4, 1]


def writes(mount, count):
    with (mount.path / "8086:100e/bar0").open("r+b", buffering=0) as bar:
        for _ in range(count):
            bar.write(b"1234")


def test_a_full_disk_never_stops_the_mount(require, machine, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=False)
    require(done.returncode == 0, "a tmpfs can be mounted")
    try:
        (disk / "ballast").write_bytes(bytes(56 << 10))
        mount = Mount(machine, tmp_path, "--log", disk / "file")
        writes(mount, 100)
        said = f"--log {disk}/file: No space left on device"
        wait_until(lambda: said in mount.log, "it is not full")
        writes(mount, 9000)
        assert mount.alive()
        assert mount.log.count(said) == 1
        subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
        (disk / "ballast").unlink()
        last = numbers(sh(f"cat {mount.path}/log").stdout)[-1]
        wait_until(
            lambda: (disk / "file").read_bytes().rfind(b'{"n": %d,' % last) > 0, "it does not go on"
        )
        wait_until(lambda: (disk / "file").read_bytes().endswith(b"\n"), "a line is not ended")
        there = numbers((disk / "file").read_bytes())
        assert len(there) < last, "the numbers tell what is lost"
        assert mount.end() == 0
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_limit_on_the_size_of_files_does_not_kill_it(machine, tmp_path):
    """SIGXFSZ does by default."""
    mount = Mount(machine, tmp_path, "--log", tmp_path / "file")
    resource.prlimit(mount.process.pid, resource.RLIMIT_FSIZE, (8192, 8192))
    writes(mount, 100)
    wait_until(lambda: "--log" in mount.log, "it is not full")
    assert "File too large" in mount.log
    writes(mount, 100)
    assert mount.alive()
    assert (tmp_path / "file").stat().st_size == 8192
    assert mount.end() == 0


def test_a_log_that_cannot_be_is_said_and_nothing_is_mounted(machine, tmp_path):
    where = tmp_path / "bars"
    where.mkdir()
    os.mkfifo(tmp_path / "pipe")
    for path, foreground, words in (
        (tmp_path / "no/log", [], "No such file or directory"),
        (where.parent, ["-f"], "Is a directory"),
        (tmp_path / "pipe", ["-f"], "No such device or address"),
        (where / "../bars/x", [], "would hide"),
    ):
        done = subprocess.run(
            [*BARFS, "mount", *foreground, *machine_options(machine), "--log", path, where],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        assert done.returncode == 1
        assert words in done.stderr
        assert done.stderr.startswith("barfs: ")
        assert done.stderr.count("\n") == 1
        assert not where.is_mount()
        assert not any(where.iterdir())


def test_in_the_background_it_logs_too(machine, tmp_path):
    where = tmp_path / "bars"
    where.mkdir()
    subprocess.run(
        [*BARFS, "mount", *machine_options(machine), "--log", "rel.log", where],
        check=True,
        cwd=tmp_path,
    )
    sh(f"echo 1 > {where}/8086:100e/x32/bar0@30")
    (pid,) = {json.loads(line)["pid"] for line in (where / "log").read_bytes().splitlines()}
    assert pid != os.getpid()
    subprocess.run([*BARFS, "umount", where], check=True)
    file = tmp_path / "rel.log"
    wait_until(lambda: numbers(file.read_bytes()) == [1, 2], "the last lines are missing")
