"""Width and text views, windows, I/O ports and the ROM with ordinary tools."""

import errno
import mmap
import os
import sys

import pytest

from mounted.conftest import sh

NIC = "8086:100e"
PATTERN = bytes((n * 37 + n // 256) & 0xFF for n in range(1 << 20))


def set_bytes(shared, address, index, offset, data):
    """Change a BAR behind the mount's back, in both files that may back it."""
    directory = shared.machine.sysfs / "bus/pci/devices" / address
    start = int((directory / "resource").read_text().splitlines()[index].split()[0], 16)
    for path, at in ((directory / f"resource{index}", 0), (shared.machine.devmem, start)):
        with path.open("r+b") as file:
            file.seek(at + offset)
            file.write(data)


def errno_of(call, *arguments):
    with pytest.raises(OSError) as caught:
        call(*arguments)
    return caught.value.errno


@pytest.mark.parametrize("view", ["u8", "u16", "u32", "u64"])
@pytest.mark.parametrize(
    "command",
    [
        "dd if={bar} bs=4M",
        "dd if={bar} bs=64",
        "cat {bar}",
        "cp {bar} {tmp} && cat {tmp}",
        "dd if={bar} bs=1M iflag=direct",
        sys.executable + " -c 'import os;os.write(1,os.pread(os.open(\"{bar}\",0),4<<20,0))'",
        sys.executable + ' -c \'import sys;sys.stdout.buffer.write(open("{bar}","rb").read())\'',
        "xxd -p {bar} | xxd -r -p",
        "tail -c +1 {bar}",
        "hexdump -v -e '1/1 \"%02x\"' {bar} | xxd -r -p",
    ],
)
def test_whole_bars_through_tools(shared, tmp_path, view, command):
    set_bytes(shared, "0000:00:04.0", 2, 0, PATTERN)
    set_bytes(shared, "0000:00:04.0", 0, 0, PATTERN[:256])
    bulk = "hexdump" not in command and "xxd" not in command
    name, size = ("bar2", 1 << 20) if bulk else ("bar0", 256)
    words = command.replace("{bar}", f"{shared.path}/1af4:1110/{view}/{name}")
    done = sh(words.replace("{tmp}", str(tmp_path / "copy")))
    assert done.returncode == 0, done.stderr
    assert done.stdout == PATTERN[:size]


@pytest.mark.parametrize("view", ["u8", "u16", "u32", "u64"])
@pytest.mark.parametrize("writer", ["dd of={bar} bs=4M", "cp /dev/stdin {bar}", "cat > {bar}"])
def test_whole_bars_are_written(shared, view, writer):
    bar = f"{shared.path}/1af4:1110.1/{view}/bar2"
    done = sh(writer.replace("{bar}", bar), input=PATTERN)
    assert done.returncode == 0, done.stderr
    assert sh(f"cat {shared.path}/1af4:1110.1/bar2").stdout == PATTERN


@pytest.mark.parametrize(("view", "width"), [("u8", 1), ("u16", 2), ("u32", 4), ("u64", 8)])
@pytest.mark.parametrize("skew", [1, 2, 3, 4, 8])
def test_large_requests_from_odd_buffers_work_or_fail_before_any_access(shared, view, width, skew):
    """The kernel cuts them where the buffer's pages end: the first piece is as odd as that."""
    path = shared.path / "phys" / view / "00100000-07fdffff"
    length = 3 << 20
    memory = mmap.mmap(-1, length + 4096)
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, bytes(length), 0)
    try:
        with memoryview(memory) as view_of_memory, view_of_memory[skew : skew + length] as buffer:
            buffer[:] = bytes([0xA5]) * length
            if skew % width:
                assert errno_of(os.pwritev, fd, [buffer], 0) == errno.EINVAL
                assert os.pread(fd, length, 0) == bytes(length)
                assert errno_of(os.preadv, fd, [buffer], 0) == errno.EINVAL
            else:
                assert os.pwritev(fd, [buffer], 0) == length
                buffer[:] = bytes(length)
                assert os.preadv(fd, [buffer], 0) == length
                assert bytes(buffer) == bytes([0xA5]) * length
    finally:
        os.close(fd)
    memory.close()


@pytest.mark.parametrize(("view", "width"), [("u16", 2), ("u32", 4), ("u64", 8)])
def test_what_does_not_fit_the_width_is_refused(shared, view, width):
    for name in (f"{NIC}/{view}/bar0", f"phys/{view}/1000-9fbff"):
        fd = os.open(shared.path / name, os.O_RDWR)
        before = os.pread(fd, 64, 0)
        for offset, length in [(0, width - 1), (0, width + 1), (1, width), (width // 2, width)]:
            assert errno_of(os.pread, fd, length, offset) == errno.EINVAL
            assert errno_of(os.pwrite, fd, b"x" * length, offset) == errno.EINVAL
        assert os.pread(fd, 64, 0) == before
        os.close(fd)
        shown = f"pci/0000:00:03.0/{view}/bar0" if NIC in name else f"phys/{view}/00001000-0009fbff"
        assert f"read: {shown}: 0x{width - 1:x} bytes at 0x0 are not made of whole" in shared.log
        assert f"write: {shown}: 0x{width:x} bytes at 0x1 are not made of whole" in shared.log


def test_one_register_as_text(shared):
    set_bytes(shared, "0000:00:03.0", 0, 0x10, bytes.fromhex("2a000000efcdab89"))
    nic = f"{shared.path}/{NIC}"
    for name, text in [
        ("x8/bar0@10", "0x2a\n"),
        ("x16/bar0@14", "0xcdef\n"),
        ("x32/bar0@10", "0x0000002a\n"),
        ("x32/bar0@0x14", "0x89abcdef\n"),
        ("x64/bar0@10", "0x89abcdef0000002a\n"),
        ("x32/bar0@10+4", "0x0000002a\n"),
        ("x32/bar0@10-13", "0x0000002a\n"),
        ("x32/bar1@4", "0x80080783\n"),
        ("x8/bar1@7", "0x80\n"),
    ]:
        assert sh(f"cat {nic}/{name}").stdout.decode() == text
        assert os.stat(f"{nic}/{name}").st_size == len(text)
    assert sh(f"read line < {nic}/x32/bar0@10; echo $line").stdout == b"0x0000002a\n"
    assert sh(f"echo $(( $(<{nic}/x32/bar0@10) + 1 ))").stdout == b"43\n"
    assert sh(f"cat {shared.path}/phys/x8/1e102c5").stdout == b"0x6c\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42),
        ("0x2a", 42),
        ("0b101010", 42),
        ("0", 0),
        ("0xffffffff", 0xFFFFFFFF),
        (" 7 ", 7),
        ("0x2:0xff", 0x11223302),
        ("0xff000000:0xff000000", 0xFF223344),
        ("0:0x0", 0x11223344),
    ],
)
def test_writing_a_register_as_text(shared, text, value):
    register = f"{shared.path}/{NIC}/x32/bar0@20"
    sh(f"echo 0x11223344 > {register}")
    done = sh(f"echo '{text}' > {register}")
    assert done.stderr == b""
    assert sh(f"cat {register}").stdout.decode() == f"{value:#010x}\n"
    sh(f"printf '{text}' | dd of={register}")
    assert int(sh(f"cat {register}").stdout, 16) == value


@pytest.mark.parametrize(
    "text",
    ["", " ", "0x100000000", "4294967296", "1:0x100000000", "1 2", "1\n2", "-1", "+1", "ten",
     "0x", "010", "1:", ":1", "1:1", "1:2:3", "1_000", "0x1g", "1.0", "\u0661", "1\n\n",
     "0x100:0xff", "1:0x0"],
)  # fmt: skip
def test_text_that_is_no_value_is_refused(shared, text):
    register = shared.path / NIC / "x32/bar0@24"
    register.write_text("0x11223344\n")
    before = len(shared.log)
    fd = os.open(register, os.O_WRONLY | os.O_TRUNC)
    try:
        assert errno_of(os.write, fd, (text + "\n").encode()) == errno.EINVAL
    finally:
        os.close(fd)
    assert "(EINVAL)" in shared.log[before:]
    assert register.read_text() == "0x11223344\n"


def test_an_open_text_file_samples_again_from_0(shared):
    fd = os.open(shared.path / NIC / "x32/bar0@28", os.O_RDWR)
    try:
        for value in (1, 2, 3):
            set_bytes(shared, "0000:00:03.0", 0, 0x28, value.to_bytes(4, "little"))
            assert os.pread(fd, 6, 0) == b"0x0000"
            set_bytes(shared, "0000:00:03.0", 0, 0x28, b"\xff" * 4)
            # The rest of the line is the one that was begun.
            assert os.pread(fd, 100, 6) == b"%04d\n" % value
            assert os.pread(fd, 100, 11) == b""
        for value in (b"7\n", b"8\n"):
            os.write(fd, value)
        assert os.pread(fd, 100, 0) == b"0x00000008\n"
    finally:
        os.close(fd)


def test_windows(shared):
    set_bytes(shared, "0000:00:03.0", 0, 0, PATTERN[: 1 << 17])
    nic = f"{shared.path}/{NIC}"
    for name, start, length in [
        ("bar0@40", 0x40, 0x20000 - 0x40),
        ("bar0@40+4", 0x40, 4),
        ("bar0@40-5f", 0x40, 0x20),
        ("bar0@0x1F00+0Xa", 0x1F00, 10),
        ("bar0@1ffff", 0x1FFFF, 1),
        ("u32/bar0@40+4", 0x40, 4),
        ("u8/bar0@41-43", 0x41, 3),
        ("u16/bar0@42+6", 0x42, 6),
        ("u64/bar0@48", 0x48, 0x20000 - 0x48),
    ]:
        assert os.stat(f"{nic}/{name}").st_size == length
        assert sh(f"cat {nic}/{name}").stdout == PATTERN[start : start + length]
        assert sh(f"ls -lL {nic}/{name}").stdout.split()[4] == b"%d" % length
    sh(f"printf ABCDEFGH > {nic}/bar0@100+4")
    assert (
        sh(f"dd if={nic}/bar0@fc+c bs=12").stdout
        == PATTERN[0xFC:0x100] + b"ABCD" + (PATTERN[0x104:0x108])
    )
    assert b"No space left" in sh(f"printf x | dd of={nic}/bar0@100+4 bs=1 seek=4").stderr


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("bar0@", errno.ENOENT),
        ("bar0@40+0", errno.ENOENT),
        ("bar0@5f-40", errno.ENOENT),
        ("bar0@-5f", errno.ENOENT),
        ("bar0@g", errno.ENOENT),
        ("bar0@40+4+4", errno.ENOENT),
        ("bar7@40", errno.ENOENT),
        ("bar2@40", errno.ENOENT),
        ("config@40", errno.ENOENT),
        ("bar0@20000", errno.ENXIO),
        ("bar0@1ffff+2", errno.ENXIO),
        ("bar0@0-20000", errno.ENXIO),
        ("x32/bar0@20000", errno.ENXIO),
        ("x32/bar0@2", errno.EINVAL),
        ("x64/bar0@1fffc", errno.EINVAL),
        ("x32/bar0@40+2", errno.EINVAL),
        ("u32/bar0@41", errno.EINVAL),
        ("u64/bar0@44+8", errno.EINVAL),
        ("u64/bar1", errno.EINVAL),
        ("x64/bar1", errno.EINVAL),
        ("u32/config", errno.ENOENT),
        ("u32/rom", errno.ENOENT),
        ("u32/u32", errno.ENOENT),
        ("u24/bar0", errno.ENOENT),
        ("U32/bar0", errno.ENOENT),
        ("u32/info", errno.ENOENT),
    ],
)
def test_windows_and_views_that_are_not_there(shared, name, number):
    before = len(shared.log)
    assert errno_of(os.open, shared.path / NIC / name, os.O_RDONLY) == number
    line = shared.log[before:]
    assert errno.errorcode[number] in line
    assert shared.alive()


@pytest.mark.parametrize("name", ["phys/u32/1e102c5", "phys/x16/1e102c5"])
def test_physical_ranges_that_are_not_aligned(shared, name):
    assert errno_of(os.open, shared.path / name, os.O_RDONLY) == errno.EINVAL
    assert "0x1e102c5 is no multiple of" in shared.log


def test_ports(shared):
    bar = f"{shared.path}/{NIC}/bar1"
    directory = shared.machine.sysfs / "bus/pci/devices/0000:00:03.0"
    (directory / "resource1").write_bytes(PATTERN[:64])
    assert os.stat(bar).st_size == 64
    for size in (1, 2, 4, 3, 8, 64):
        assert sh(f"dd if={bar} bs={size}").stdout == PATTERN[:64]
    for width in (1, 2, 4):
        sh(f"printf 'abcd' | dd of={bar} bs={width} seek={8 // width} conv=notrunc")
        assert sh(f"cat {shared.path}/{NIC}/u{8 * width}/bar1@8+4").stdout == b"abcd"
        sh(f"printf 'efgh' > {shared.path}/{NIC}/u{8 * width}/bar1@8")
        assert (directory / "resource1").read_bytes()[8:12] == b"efgh"
    assert sh(f"echo 0x12:0xff > {shared.path}/{NIC}/x16/bar1@8").returncode == 0
    assert (directory / "resource1").read_bytes()[8:12] == b"\x12fgh"


def test_rom(shared):
    rom = shared.path / NIC / "rom"
    image = (shared.machine.sysfs / "bus/pci/devices/0000:00:03.0/rom").read_bytes()
    assert rom.stat().st_size == len(image) == 0x10000
    assert rom.read_bytes() == image
    assert image[:2] == b"\x55\xaa"
    assert errno_of(os.open, rom, os.O_RDWR) == errno.EACCES
    assert errno_of(os.open, rom, os.O_WRONLY) == errno.EACCES
    assert rom.stat().st_mode == 0o100400
    assert not (shared.path / "1af4:1110/rom").exists()


def test_listings_of_views(shared):
    views = ["mem", "u16", "u32", "u64", "u8", "x16", "x32", "x64", "x8"]
    files = ["bar0", "bar1", "config", "decode", "info", "regs", "rom", "sysfs"]
    assert sorted(os.listdir(shared.path / NIC)) == sorted([*files, *views])
    phys = sorted(set(os.listdir(shared.path / "phys")) - {*views, "regs"})
    for view in views:
        bars = ["bar0"] if view == "mem" else ["bar0", "bar1"]  # bar1 is in I/O ports
        assert os.listdir(shared.path / NIC / view) == bars
        assert sorted(os.listdir(shared.path / "phys" / view)) == phys
    assert os.stat(shared.path / NIC / "u16/bar0").st_blksize == 2
    assert os.stat(shared.path / "1af4:1110/u64/bar2").st_blksize == 8
