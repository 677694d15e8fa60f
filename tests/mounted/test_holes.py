"""What a program that has truncated a file believes to be zero."""

import errno
import os
import sys

import pytest

from mounted.conftest import sh, wait_until

OLD = bytes(range(1, 252))


@pytest.fixture
def bar(shared):
    """BAR 2 of a device, full of what was there before."""
    path = shared.path / "1af4:1110/bar2"
    with path.open("r+b") as file:
        file.write((OLD * 4200)[: 1 << 20])
    return path


IMAGES = {
    "hole in front": "truncate -s 64K {} && printf data >> {}",
    "hole inside": "printf head > {} && truncate -s 128K {} && printf tail >> {}",
    "hole at the end": "printf head > {} && truncate -s 256K {}",
    "all a hole": "truncate -s 1M {}",
    "none": "head -c 100000 /dev/urandom > {}",
    "zeros": "head -c 100000 /dev/zero > {}",
    "nothing": ": > {}",
}
COPIES = [
    "cp {} {bar}",
    "cp --sparse=always {} {bar}",
    "cp --reflink=never --sparse=never {} {bar}",
    "dd if={} of={bar} bs=4k conv=sparse",
    "dd if={} of={bar} bs=64k",
    "cat {} > {bar}",
    "busybox cp {} {bar}",
    "busybox dd if={} of={bar} bs=4k",
    sys.executable + ' -c \'import shutil; shutil.copyfile("{}", "{bar}")\'',
]


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_is_whole_or_says_that_it_is_not(shared, bar, tmp_path, image, copy):
    path = tmp_path / "image"
    sh(IMAGES[image].replace("{}", str(path)))
    before = len(shared.log)
    done = sh(copy.format(path, bar=bar) if "{bar}" in copy else copy)
    wanted = path.read_bytes()
    with bar.open("rb") as file:
        got = file.read(len(wanted))
    if done.returncode == 0:
        assert got == wanted
    else:
        assert image in {"hole in front", "hole inside", "hole at the end", "all a hole", "zeros"}
        assert b"Invalid argument" in done.stderr or b"Errno 22" in done.stderr
        assert "cp --sparse=never" in shared.log[before:]
    if image == "none" or "sparse=never" in copy or copy.startswith("cat"):
        assert done.returncode == 0


PATCHES = [
    "printf 'new!' | dd of={} bs=4 seek=2",
    "printf 'new!' | dd of={} bs=4 seek=2 conv=notrunc",
    "printf 'new!' | dd of={} bs=1 seek=8 oflag=seek_bytes",
    "printf 'new!' | busybox dd of={} bs=4 seek=2",
    "printf 'new!' | busybox dd of={} bs=4 seek=2 conv=notrunc",
    "printf '00000008: 6e65 7721' | xxd -r - {}",
    "printf 'new!' 1<>{} >&0",
    sys.executable + ' -c \'f = open("{}", "r+b"); f.seek(8); f.write(b"new!"); f.close()\'',
    sys.executable + ' -c \'import os; os.pwrite(os.open("{}", os.O_WRONLY), b"new!", 8)\'',
]


@pytest.mark.parametrize("patch", PATCHES)
def test_patching_goes_on_working(bar, patch):
    if ">&0" in patch:
        patch = "exec 3<>{}; dd bs=8 count=1 status=none <&3 >/dev/null; printf 'new!' >&3"
    done = sh(patch.replace("{}", str(bar)))
    assert done.returncode == 0, done
    with bar.open("rb") as file:
        assert file.read(16) == OLD[:8] + b"new!" + OLD[12:16]


def test_writes_in_front_of_what_was_written(bar):
    fd = os.open(bar, os.O_WRONLY | os.O_TRUNC)
    os.write(fd, b"0123456789")
    os.pwrite(fd, b"ab", 4)
    os.pwrite(fd, b"cd", 10)
    os.ftruncate(fd, 12)
    os.ftruncate(fd, 6)
    for call in (lambda: os.pwrite(fd, b"x", 7), lambda: os.ftruncate(fd, 7)):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EINVAL
    os.pwrite(fd, b"xy", 6)
    os.close(fd)
    with bar.open("rb") as file:
        assert file.read(14) == b"0123abxy89cd" + OLD[12:14]


def test_who_has_truncated_a_file_sees_how_long_it_has_made_it(bar):
    """As in any file. dd conv=sparse asks for it to see whether its last zeros are there."""
    fd = os.open(bar, os.O_WRONLY | os.O_TRUNC)
    assert os.fstat(fd).st_size == 0
    os.write(fd, b"0123")
    assert os.fstat(fd).st_size == os.stat(bar).st_size == 4
    assert os.lseek(fd, 0, os.SEEK_END) == 4
    assert sh(f"stat -Lc %s {bar}; tail -c 2 {bar} | wc -c").stdout == b"1048576\n2\n"
    os.close(fd)
    wait_until(lambda: os.stat(bar).st_size == 1 << 20, "it is not closed")
    fd = os.open(bar, os.O_WRONLY)
    assert os.fstat(fd).st_size == 1 << 20
    os.close(fd)


def test_the_refusal_of_a_truncation_is_in_the_log(shared, bar):
    fd = os.open(bar, os.O_WRONLY | os.O_TRUNC)
    with pytest.raises(OSError):
        os.ftruncate(fd, 0x1000)
    os.close(fd)
    line = shared.log.splitlines()[-1]
    assert line.startswith(
        "barfs: setattr: pci/0000:00:04.0/bar2: the file was truncated, so 0x1000"
    )
    assert "(EINVAL)" in line
