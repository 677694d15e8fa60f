"""A request is what was meant: numbers in pieces, sparse copies, whole texts, as the bus has it."""

import re
import shlex
from itertools import count

import pytest

from vm.architecture import BIN
from vm.machine import Access

EDU = "1234:11e8"
SCRATCH = 4  # edu's register at 4 gives back the inverse of what is written

# A guest may keep what a file of the host had. So none gets a name twice.
FRESH = count()

R, W = Access("read", SCRATCH, 4), Access("write", SCRATCH, 4)

# What is typed into x32/bar0@4, the accesses that it makes, and the value that was written last.
# {} is the file. The shell has written to a register before, and now writes 4 bytes at a time.
PIECES = [
    ("echo 0x12345678 > {}", [W], 0x12345678),
    ("printf 0x2a > {}", [W], 0x2A),
    ("printf 0x12345678 | dd of={} bs=1", [W], 0x12345678),
    ("echo 0x55:0xff > {}", [R, W], None),
    ("{ echo 1; echo 0x22222222; } > {}", [W, W], 0x22222222),
    ("echo 0x33333333 | tee {}", [W], 0x33333333),
    ("{ printf 0x444; printf 44444; echo; } > {}", [W], 0x44444444),
    ("! printf 12wrong34 > {}", [], None),
    ("! printf 0x123456789a > {}", [], None),
]


@pytest.mark.parametrize(("command", "accesses", "value"), PIECES)
def test_a_number_in_pieces_is_one_access(guest, bars, edu, command, accesses, value):
    register = f"{bars}/{EDU}/x32/bar0@4"
    script = f"printf abcd > {bars}/1af4:1110/bar0@c+4; {command.replace('{}', register)}"
    with guest.traced(edu) as seen:
        guest.run(f"bash -c {shlex.quote(script)}")
    assert seen == accesses
    if value is not None:
        assert int(guest.run(f"cat {register}").text, 0) == ~value & 0xFFFFFFFF


HOLES = {
    "in the middle": [(0, b"begin"), (0x20000, b"middle"), (0xFFFFC, b"end.")],
    "at the end": [(0, b"begin"), (0x20000, b"middle")],
    "everywhere": [],
}


@pytest.mark.parametrize("holes", HOLES)
def test_a_sparse_copy_is_the_image_or_fails_with_the_reason(guest, bars, refusals, holes):
    image, size = guest.directory / f"sparse{next(FRESH)}.img", 1 << 20
    with image.open("wb") as file:
        file.truncate(size)
        for offset, data in HOLES[holes]:
            file.seek(offset)
            file.write(data)
    bar = f"{bars}/1af4:1110/bar2"
    old = b"old!" * (size // 4)
    for command in ("cp {} {}", "cp --sparse=always {} {}", "dd if={} of={} bs=64k conv=sparse"):
        guest.poke(0, 0, old)
        done = guest.try_run(command.format(image, bar))
        if done.status == 0:
            assert guest.peek(0, 0, size) == image.read_bytes(), command
        else:
            assert "Invalid argument" in done.stderr.decode(), command
            assert "cp --sparse=never" in refusals(bars)
    guest.run(f"cp --sparse=never {image} {bar}")
    assert guest.peek(0, 0, size) == image.read_bytes()


TEXTS = [
    *("status", "log", "1af4:1110/info", "1af4:1110/regs/README", "1af4:1110/regs/INTRMASK"),
    *("1af4:1110/decode/INTRMASK", "1af4:1110/x32/bar0@8", f"{EDU}/decode/all"),
]
COPIES = {"cp --reflink=auto {} {}", "busybox cat {} > {}", "busybox cp {} {}"}
COPY_BY_PYTHON = """
import pathlib, shutil, sys
for name in sys.argv[1:]:
    whole = pathlib.Path(name).read_bytes()
    shutil.copyfile(name, '/run/copy')
    assert whole == pathlib.Path('/run/copy').read_bytes() != b'', name
"""


def test_texts_are_whole_whoever_copies_them(guest, bars):
    for name in TEXTS:
        for command in COPIES:
            done = guest.run(
                f"cat {bars}/{name} > /run/whole && {command.format(f'{bars}/{name}', '/run/copy')}"
                " && cmp /run/whole /run/copy && test -s /run/copy && echo same"
            )
            assert done.text == "same\n", (name, command)
    names = " ".join(f"{bars}/{name}" for name in TEXTS)
    guest.run(f'{BIN}/python -c "{COPY_BY_PYTHON}" {names}')


def test_sendfile_of_registers_reads_the_page_once(guest, bars, edu):
    """As docs/reference.md has it. dd of the same bytes is one access, before and after."""
    copy = "import os; f = os.open('{}', 0); o = os.open('/run/copy', 66);"
    copy += " assert [os.sendfile(o, f, 0x80, 4) for _ in '12'] == [4, 4]"
    with guest.traced(edu) as seen:
        guest.run(f'{BIN}/python -c "{copy.replace("{}", f"{bars}/{EDU}/bar0")}"')
    assert seen == [Access("read", offset, 4) for offset in range(0, 0x4000, 4)]


REMOUNT = r"""
mount --make-rprivate / && mount -t tmpfs sbin "$(readlink -f /sbin)" || exit 99
cat > /sbin/mount.barfs << END
#!/bin/sh
exec {bin}/python -c 'from barfs.commands.mount_helper import main; main()' "\$@"
END
chmod 755 /sbin/mount.barfs
{helper}
for options in remount,ro remount,rw remount; do
    mount {type} -o $options {spec} {bars}; echo "status $?"
    grep ' {bars} ' /proc/self/mountinfo | cut -d' ' -f4-
    printf 0x1 > {bars}/1234:11e8/x32/bar0@4 && echo written
done
"""


@pytest.mark.parametrize(
    ("form", "helper"), [("-t barfs", ""), ("", "ln -s mount.barfs /sbin/mount.fuse.barfs")]
)
def test_a_mount_that_is_remounted_is_as_it_was(guest, bars, form, helper):
    spec = "barfs" if form else ""
    script = REMOUNT.format(bin=BIN, helper=helper, type=form, spec=spec, bars=bars)
    done = guest.run(f"unshare -m bash -c {shlex.quote(script)}")
    lines = done.text.splitlines()
    assert lines[::3] == ["status 32"] * 3, done
    assert lines[2::3] == ["written"] * 3
    assert len(set(lines[1::3])) == 1
    (sentence,) = set(done.stderr.decode().splitlines())
    assert re.fullmatch(f"mount.barfs: {bars} can't be remounted.*", sentence)


def test_a_remount_without_a_helper_does_what_it_says(guest, bars):
    """Or it fails, and the mount is as it was: mount(8) 2.38 asks mount(2), later ones fsconfig."""
    version = guest.run("mount --version").text
    before = guest.run(f"grep ' {bars} ' /proc/self/mountinfo").text
    done = guest.try_run(f"mount -i -o remount,ro {bars}")
    after = guest.run(f"grep ' {bars} ' /proc/self/mountinfo").text
    write = guest.try_run(f"printf 0x1 > {bars}/{EDU}/x32/bar0@4")
    if done.status == 0:
        assert (write.status != 0, b"Read-only file system" in write.stderr) == (True, True)
        guest.run(f"mount -i -o remount,rw {bars}")
    else:
        assert (done.status, after) == (32, before), version
        assert write.status == 0
    guest.run(f"printf 0x1 > {bars}/{EDU}/x32/bar0@4")
