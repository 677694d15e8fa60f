"""Ordinary tools on the simulated machine. Its plain files hide widths; the VM tier shows them."""

import ctypes
import errno
import mmap
import os
import sys

import pytest

from barfs.machine.simulated import NODENAME_ADDRESS, UTSNAME_ADDRESS
from mounted.conftest import sh

IVSHMEM = "1af4:1110"


def test_the_articles_session(shared):
    bar = shared.path / IVSHMEM / "bar2"
    assert sh(rf"printf 'Dunia,vipi?\r' | dd of={bar} bs=1").returncode == 0
    shown = sh(f"hd -n 16 {bar}").stdout.decode()
    assert "44 75 6e 69 61 2c 76 69  70 69 3f 0d 00 00 00 00  |Dunia,vipi?.....|" in shown
    assert sh(f"dd if={bar} bs=1 count=12").stdout == b"Dunia,vipi?\r"
    assert sh(f"dd if={shared.path}/{IVSHMEM}.1/bar2 bs=12 count=1").stdout == bytes(12)


def test_nodename(shared):
    phys = shared.path / "phys"
    assert sh(f"dd if={phys}/{NODENAME_ADDRESS:x}+3").stdout == b"lab"
    sh(rf"printf 'NinjaNinja\0' | dd of={phys}/{NODENAME_ADDRESS:x} conv=notrunc")
    ram = f"{phys}/00100000-07fdffff"
    skip = NODENAME_ADDRESS - 0x100000
    assert sh(f"dd if={ram} bs=1 skip={skip} count=11").stdout == b"NinjaNinja\0"
    sh(rf"printf 'Second\0' | dd of={ram} bs=1 seek={skip} conv=notrunc")
    assert sh(f"dd if={phys}/{UTSNAME_ADDRESS:#X}+0x46 bs=70").stdout[65:] == b"Secon"


def test_what_the_machine_changes_is_in_the_next_read(shared):
    bar = shared.path / IVSHMEM / "bar0"
    devices = shared.machine.sysfs / "bus/pci/devices"
    for value in (b"\x11\x22\x33\x44", b"\x55\x66\x77\x88"):
        with (devices / "0000:00:04.0/resource0").open("r+b") as file:
            file.seek(4)
            file.write(value)
        with shared.machine.devmem.open("r+b") as file:
            file.seek(0xFEB20004)
            file.write(value)
        assert sh(f"xxd -p -s 4 -l 4 {bar}").stdout.decode().strip() == value.hex()


@pytest.mark.parametrize(
    ("command", "output"),
    [
        ("xxd -s 8 -l 4 {}", "00000008: 8307 0880"),
        ("od -A x -t x4 -j 8 -N 4 {}", "000008 80080783"),
        ("hexdump -s 8 -n 4 -e '1/4 \"%08x\"' {}", "80080783"),
        ("dd if={} bs=4 skip=2 count=1 | xxd -p", "83070880"),
        ("head -c 12 {} | tail -c 4 | xxd -p", "83070880"),
        (sys.executable + ' -c \'f=open("{}","rb");f.seek(8);print(f.read(4).hex())\'', "83070880"),
    ],
)
def test_a_register(shared, command, output):
    with shared.machine.devmem.open("r+b") as file:
        file.seek(0xFEB00008)
        file.write(bytes.fromhex("83070880"))
    done = sh(command.replace("{}", f"{shared.path}/8086:100e/bar0"))
    assert done.stdout.decode().startswith(output)


@pytest.mark.parametrize(
    ("name", "size", "blksize"),
    [
        ("8086:100e/bar0", 0x20000, 4),
        ("1af4:1110/bar0", 0x100, 4),
        ("1af4:1110/bar2", 0x100000, 1 << 20),
        ("1af4:1110/config", 0x100, 4),
        ("1b36:0010/bar0", 0x4000, 4),
        ("1b36:0010/config", 0x1000, 4),
        ("phys/00100000-07fdffff", 0x7EE0000, 1 << 20),
        ("phys/07fe0000-07ffffff", 0x20000, 4),
        ("phys/9fbff+2", 2, 4),
        ("phys/9fbfe+2", 2, 1 << 20),
        ("phys/1e102c5", 0x7FE0000 - 0x1E102C5, 1 << 20),
    ],
)
def test_stat(shared, name, size, blksize):
    stat = os.stat(shared.path / name)
    assert (stat.st_size, stat.st_blksize) == (size, blksize)
    assert stat.st_mode == 0o100600
    with (shared.path / name).open("rb", buffering=0) as file:
        assert file.seek(0, os.SEEK_END) == size
        assert os.fstat(file.fileno()).st_ino == stat.st_ino


def test_links_and_listings(shared):
    assert sorted(os.listdir(shared.path)) == [
        *("1af4:1110", "1af4:1110.1", "1b36:0010", "8086:100e"),
        *("ksym", "log", "pci", "phys", "status"),
    ]
    assert os.readlink(shared.path / "1af4:1110.1") == "pci/0000:00:05.0"
    assert os.readlink(shared.path / "1af4:1110:1af4:1100.1") == "pci/0000:00:05.0"
    for name in ("1af4-1110.1", "1af4-1110-1af4-1100.1", "pci/0000-00-05.0"):
        assert (shared.path / name).resolve() == shared.path / "pci/0000:00:05.0"
    inodes = sh(f"find {shared.path} -printf '%i\n'").stdout.split()
    assert len(inodes) == len(set(inodes)) > 200


@pytest.mark.parametrize("name", ["8086:100e/bar0", "1af4:1110/bar2", "phys/9f000-9ffff"])
def test_the_end(shared, name):
    path = shared.path / name
    size = path.stat().st_size
    fd = os.open(path, os.O_RDWR)
    try:
        assert os.pread(fd, 16, size) == b""
        assert os.pread(fd, 16, size + 4096) == b""
        assert len(os.pread(fd, 16, size - 6)) == 6
        assert os.pwrite(fd, b"0123456789", size - 4) == 4
        assert os.pread(fd, 4, size - 4) == b"0123"
        for offset in (size, size + 1, size + 4096):
            with pytest.raises(OSError) as caught:
                os.pwrite(fd, b"x", offset)
            assert caught.value.errno == errno.ENOSPC
        assert os.pwrite(fd, b"", size) == 0
    finally:
        os.close(fd)
    assert path.stat().st_size == size
    assert f"bytes at {size + 4096:#x}, but the file ends at {size:#x} (ENOSPC)" in shared.log
    assert "write: p" in shared.log.splitlines()[-1]


def test_truncation_is_accepted_and_does_nothing(shared):
    path = shared.path / "1af4:1110/bar2"
    sh(f"printf keep | dd of={path} bs=4 seek=2")
    sh(f"printf 'new!' > {path}")
    os.truncate(path, 0)
    with path.open("r+b", buffering=0) as file:
        file.truncate(5)
    assert sh(f"head -c 12 {path}").stdout[8:] == b"keep"
    assert path.stat().st_size == 1 << 20


def test_nothing_is_made_longer(shared):
    for name, size in (("1af4:1110/bar2", 1 << 20), ("8086:100e/x32/bar0@8", 11)):
        path = shared.path / name
        os.truncate(path, size)
        for longer in (size + 1, 1 << 62):
            with pytest.raises(OSError, match="Invalid argument"):
                os.truncate(path, longer)
        done = sh(f"dd if=/dev/null of={path} bs=1 seek={size + 1}")
        assert b"Invalid argument" in done.stderr
        assert path.stat().st_size == size
    assert "bar2: has 1048576 bytes and cannot be made longer" in shared.log


def test_appending_is_refused(shared):
    done = sh(f"echo x >> {shared.path}/1af4:1110/bar0")
    assert b"Invalid argument" in done.stderr
    assert "pci/0000:00:04.0/bar0: cannot be appended to" in shared.log


@pytest.mark.parametrize(
    "command",
    [
        "touch {bar} {root} {root}/status",
        "touch -h {root}/1af4:1110",
        "touch -d 1999-12-31 {bar}",
        "cp -p {image} {bar} && cmp {image} {bar}",
        "cp --preserve=timestamps {image} {bar} && cmp {image} {bar}",
        "install -p -m 600 {bar} {image}",
        "chmod 600 {bar} && chmod 500 {root}/phys && chown 0:0 {bar} && chmod 400 {root}/status",
    ],
)
def test_times_and_what_it_is_already_are_accepted_and_change_nothing(shared, tmp_path, command):
    bar, image = shared.path / IVSHMEM / "bar2", tmp_path / "image"
    before = [os.stat(bar), os.stat(shared.path)]
    image.write_bytes(os.urandom(1 << 20))
    image.chmod(0o600)
    done = sh(command.format(bar=bar, image=image, root=shared.path))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert [os.stat(bar), os.stat(shared.path)] == before


def test_appending_set_later_touches_nothing(shared):
    """F_SETFL after open: the kernel writes at the end then, where there is no room."""
    script = (
        "import fcntl,os,sys\n"
        f"fd=os.open('{shared.path}/1af4:1110/bar0',os.O_RDWR)\n"
        "fcntl.fcntl(fd,fcntl.F_SETFL,os.O_APPEND)\n"
        "try: os.write(fd,b'x')\n"
        "except OSError as error: print(error.errno)\n"
    )
    done = sh(f'{sys.executable} -c "{script}"')
    assert done.stdout.decode().strip() == str(errno.ENOSPC)


def test_shared_mappings_are_refused(shared):
    with (shared.path / "1af4:1110/bar2").open("r+b") as file:
        with pytest.raises(OSError) as caught:
            mmap.mmap(file.fileno(), 4096, mmap.MAP_SHARED)
        assert caught.value.errno == errno.ENODEV


@pytest.mark.parametrize("name", ["1af4:1110/bar2", "8086:100e/bar0", "phys/1000-9fbff"])
@pytest.mark.parametrize("skew", [0, 1, 6])
def test_large_requests_from_odd_buffers(shared, name, skew):
    """The kernel cuts them where the buffer's pages end."""
    size = (shared.path / name).stat().st_size
    length = min(size, 3 << 20) - 5
    expected = bytes((n * 7 + n // 251) & 0xFF for n in range(length))
    memory = mmap.mmap(-1, length + 8192)
    fd = os.open(shared.path / name, os.O_RDWR)
    try:
        memory[skew : skew + length] = expected
        with memoryview(memory) as view:
            assert os.pwritev(fd, [view[skew : skew + length]], 3) == length
            memory[:] = bytes(len(memory))
            assert os.preadv(fd, [view[skew : skew + length]], 3) == length
        assert memory[skew : skew + length] == expected
    finally:
        os.close(fd)
    memory.close()


@pytest.mark.parametrize("size", [1, 3, 512, 4096, 65537, 1 << 22])
def test_copying_tools(shared, tmp_path, size):
    image = tmp_path / "image"
    image.write_bytes(os.urandom(1 << 20))
    bar = shared.path / "1af4:1110.1/bar2"
    if size < 512:
        assert sh(f"dd if={image} of={bar} bs={size} count=999 conv=notrunc").returncode == 0
        assert sh(f"cmp -n {999 * size} {image} {bar}").returncode == 0
        return
    assert sh(f"dd if={image} of={bar} bs={size}").returncode == 0
    assert sh(f"cmp {image} {bar} && cat {bar} | cmp - {image}").returncode == 0
    assert sh(f"cp {bar} {tmp_path}/copy && cmp {tmp_path}/copy {image}").returncode == 0
    assert sh(f"tar -cShf - {bar} | tar -xOf - | cmp - {image}").returncode == 0
    assert sh(f"cp {image} {bar} && cmp {image} {bar}").returncode == 0


def test_config_space(shared):
    config = shared.path / "1b36:0010/config"
    assert sh(f"xxd -p -l 4 {config}").stdout == b"361b1000\n"
    assert len(config.read_bytes()) == 4096
    assert sh(rf"printf '\x0b' | dd of={config} bs=1 seek=60 conv=notrunc").returncode == 0
    assert sh(f"xxd -p -s 60 -l 1 {config}").stdout == b"0b\n"
    assert b"No space left" in sh(f"printf x | dd of={config} seek=4096 bs=1 conv=notrunc").stderr


def test_other_calls_on_files(shared):
    libc = ctypes.CDLL(None, use_errno=True)
    with (shared.path / "1af4:1110/bar0").open("r+b", buffering=0) as file:
        os.fsync(file.fileno())
        os.fdatasync(file.fileno())
        assert sh(f"timeout 5 {sys.executable} -c 'import select,sys;"
                  f"print(select.select([open(\"{file.name}\",\"rb\")],[],[],4)[0]!=[])'"
                  ).stdout == b"True\n"  # fmt: skip
        with pytest.raises(OSError):
            os.setxattr(file.name, "user.x", b"y")
        with pytest.raises(OSError):
            os.getxattr(file.name, "user.x")
        assert libc.fallocate(file.fileno(), 0, 0, 16) == -1
    assert os.statvfs(shared.path).f_namemax == 255
    assert os.access(shared.path / "phys", os.R_OK | os.X_OK)
