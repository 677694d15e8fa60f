"""Numbers and bytes that a program writes in pieces, as its stdio likes."""

import errno
import json
import os
import subprocess
import sys

import pytest

from mounted.conftest import TIMEOUT, sh, wait_until

DEVICE = "pci/0000:00:04.0"

# What a bash writes to first decides on the size of its pieces for all of its life.
FIRST = [
    "true",
    "printf abcd > bar0",
    "printf 4 > u8/bar0@40",
    "printf 44 > u16/bar0@40",
    "printf 4444 > u32/bar0@40",
    "printf 44444444 > u64/bar0@40",
    "echo 1 > x8/bar0@40",
    "echo 1 > x64/bar0@40",
    "printf abcd > bar2",
    "printf abcd > config",
    "printf abcd > ../../phys/fea00000+4",
    "printf abcd > ../../phys/100000+4",
    ": > bar0",
]


@pytest.fixture
def records(shared):
    """What the mount's log says of the requests since the test began, of one file."""
    log = shared.path / "log"
    start = len(log.read_bytes())

    def shown(path):
        lines = log.read_bytes()[start:].splitlines()
        found = [json.loads(line) for line in lines]
        return [
            one for one in found if one.get("path", "").endswith(path) and one["event"] != "open"
        ]

    return shown


def bash(mount, script):
    """One bash, in the directory of a device."""
    return sh(f"cd {mount.path}/{DEVICE} || exit\n{script}")


def written(records, path):
    """The lines that were carried out, and the errors."""
    return [
        one["value"] if one["event"] == "write" else one["errno"]
        for one in records(path)
        if one["event"] in {"write", "refused"}
    ]


@pytest.mark.parametrize("first", FIRST)
def test_in_one_bash_numbers_are_what_was_typed(shared, records, first):
    done = bash(
        shared,
        f"""{first}
        set -e
        echo 0x12345678 > x32/bar0@8
        printf 305419897 > x32/bar0@8
        printf '%s\\n' 0x2:0xff > x32/bar0@8
        echo 0b101010 > x8/bar0@c
        printf 43 > x8/bar0@c
        echo 0x1122334455667788 > x64/bar0@10
        printf 0x1122334455667799 > x64/bar0@10
        {{ echo 0x11223344; echo 0x55667788; printf 0x99aabbcc; }} > x32/bar0@18
        {{ printf 0x1234; echo; }} > x16/bar0@1c
        """,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert written(records, "x32/bar0@8+4") == ["0x12345678", "305419897", "0x2:0xff"]
    assert written(records, "x8/bar0@c+1") == ["0b101010", "43"]
    assert written(records, "x64/bar0@10+8") == ["0x1122334455667788", "0x1122334455667799"]
    assert written(records, "x32/bar0@18+4") == ["0x11223344", "0x55667788", "0x99aabbcc"]
    assert written(records, "x16/bar0@1c+2") == ["0x1234"]
    shown = sh(f"xxd -p -s 8 -l 24 {shared.path}/{DEVICE}/bar0").stdout.decode().split()
    assert shown == ["025634122b0000009977665544332211ccbbaa9934120000"]


@pytest.mark.parametrize("first", FIRST)
def test_in_one_bash_no_part_of_what_is_no_number_is_a_number(shared, records, first):
    done = bash(
        shared,
        f"""{first}
        echo 0x77777777 > x32/bar0@20
        for text in zz12 zz1234567 0x12zz 0x1:zzz8 '1 2' 99999999999 0x1234567890 123:4:5; do
            echo "$text" > x32/bar0@20 && echo accepted
            printf '%s' "$text" > x32/bar0@20 && echo accepted
            printf 'x%s\\n34\\n' "$text" > x32/bar0@24
        done
        printf 0x > x32/bar0@20  # the error is that of dup2(2), for which bash does not look
        """,
    )
    assert b"accepted" not in done.stdout
    values = written(records, "x32/bar0@20+4")
    assert values[0] == "0x77777777"
    assert len(values) > 17
    assert set(values[1:]) == {"EINVAL"}
    # Where the lines are pieces, the second one is a line of its own.
    assert set(written(records, "x32/bar0@24+4")) <= {"EINVAL", "34"}


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("text", ["0x2a", "42", "0x2a\n", "0x40:0xf0", "0x40:0xf0\n", "0b1"])
def test_dd(shared, records, size, text):
    bash(shared, "echo 0xff > x32/bar0@28")
    done = bash(shared, f"printf '{text}' | dd of=x32/bar0@28 bs={size}")
    assert done.returncode == 0, done
    assert written(records, "x32/bar0@28+4") == ["0xff", text.strip()]


def test_an_error_is_that_of_close(shared, records):
    done = bash(shared, "printf 0x | dd of=x32/bar0@2c bs=1")
    assert done.returncode == 1
    assert b"Invalid argument" in done.stderr
    (record,) = records("x32/bar0@2c+4")
    assert (record["operation"], record["errno"]) == ("flush", "EINVAL")
    assert record["offset"] == "0x2c"
    assert "0x is no number" in record["message"]
    assert record["process"] == "dd"


def test_fsync_carries_out(shared, records):
    fd = os.open(shared.path / DEVICE / "x32/bar0@30", os.O_WRONLY)
    os.write(fd, b"0x1")
    os.write(fd, b"2")
    assert written(records, "x32/bar0@30+4") == []
    os.fsync(fd)
    assert written(records, "x32/bar0@30+4") == ["0x12"]
    os.write(fd, b"\n")
    os.close(fd)
    assert written(records, "x32/bar0@30+4") == ["0x12"]


def test_a_read_or_a_piece_elsewhere_carries_out_what_is_before_it(shared, records):
    fd = os.open(shared.path / DEVICE / "x32/bar0@34", os.O_RDWR)
    os.write(fd, b"0x34")
    assert os.pread(fd, 100, 0) == b"0x00000034\n"
    os.pwrite(fd, b"0x35", 0)
    os.pwrite(fd, b"0x36", 0)
    assert written(records, "x32/bar0@34+4") == ["0x34", "0x35"]
    os.close(fd)
    assert written(records, "x32/bar0@34+4") == ["0x34", "0x35", "0x36"]
    assert {one["width"] for one in records("x32/bar0@34+4")} == {4}


def test_each_line_is_carried_out_when_it_is_there(shared, records):
    """tee and a program that holds the file open: what they have written is done."""
    register = shared.path / DEVICE / "x32/bar0@38"
    tee = subprocess.Popen(["tee", register], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    for value in ("0x1", "0x22", "0x333:0xfff"):
        tee.stdin.write(f"{value}\n".encode())
        tee.stdin.flush()
        wait_until(lambda value=value: written(records, "x32/bar0@38+4")[-1:] == [value], value)
    tee.stdin.write(b"0x4444")
    tee.stdin.close()
    assert tee.wait(TIMEOUT) == 0
    assert written(records, "x32/bar0@38+4") == ["0x1", "0x22", "0x333:0xfff", "0x4444"]


@pytest.mark.parametrize("buffering", [0, 1, 2, 7, -1])
def test_python(shared, records, buffering):
    script = (
        f"f = open('x16/bar0@3c', 'wb', buffering={buffering})\n"
        "for part in (b'0x', b'1', b'234', b' ', b'\\n'): f.write(part)\n"
        "f.close()\n"
    )
    assert bash(shared, f'{sys.executable} -c "{script}"').returncode == 0
    assert written(records, "x16/bar0@3c+2") == ["0x1234"]


def test_what_goes_on_after_a_line_was_carried_out_is_refused(shared, records):
    """A process that has inherited the file and ends closes its descriptor."""
    done = bash(shared, "{ printf 4; $(type -P true); printf 2; } > x8/bar0@50")
    assert b"Invalid argument" in done.stderr
    assert written(records, "x8/bar0@50+1") == ["4", "EINVAL"]
    done = bash(shared, "{ $(type -P printf) 43; $(type -P echo); } > x8/bar0@50")
    assert (done.returncode, done.stderr) == (0, b"")
    assert written(records, "x8/bar0@50+1")[2:] == ["43"]


FITTING = {"a0": r"\x0a\0\0\0", "b0": r"\x0a\0\0\0abcd", "c0": r"abcdefg\n", "d0": r"ab\n\0"}
MISFITS = {"e0": "abc", "e4": r"1\n", "e8": r"ab\ncd", "ec": r"a\nbcd"}


@pytest.mark.parametrize("first", FIRST)
def test_in_one_bash_bytes_are_where_they_belong_or_nowhere(shared, first):
    """bash writes 4 bytes at a time at the most, or all at once, or up to each newline."""
    bash(shared, "head -c 96 /dev/zero | dd of=bar0@a0+60 bs=4 conv=notrunc")
    writes = [f"printf '{text}' > u32/bar0@{at}" for at, text in FITTING.items()]
    writes += [f"printf '{text}' > u32/bar0@{at}+4" for at, text in MISFITS.items()]
    done = bash(shared, "\n".join([first, *writes]))
    assert done.stderr.count(b"Invalid argument") >= len(MISFITS)
    with (shared.path / DEVICE / "bar0").open("rb", buffering=0) as file:
        file.seek(0xA0)
        got = file.read(0x60)
    for at, text in FITTING.items():
        start, whole = int(at, 16) - 0xA0, text.encode().decode("unicode_escape").encode()
        assert got[start : start + 16] in {whole.ljust(16, b"\0"), bytes(16)}, (at, got)
    assert got[0x40:] == bytes(0x20)


def test_after_a_refused_write_nothing_of_the_same_output_is_written(shared):
    path = shared.path / DEVICE / "u32/bar0@80+10"
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC)
    for data in (b"abc", b"abcd"):
        with pytest.raises(OSError) as caught:
            os.write(fd, data)
        assert caught.value.errno == errno.EINVAL
    os.close(fd)
    assert "may be its rest" in shared.log
    # Who has not truncated it writes here and there, and may try again.
    fd = os.open(path, os.O_WRONLY)
    with pytest.raises(OSError):
        os.write(fd, b"abc")
    assert os.write(fd, b"abcd") == 4
    os.close(fd)
