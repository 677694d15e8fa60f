"""Ways around the permissions: links, descriptors, handles, and calls that nobody asked for."""

import array
import ctypes
import fcntl
import mmap
import os
import random
import socket
import struct

import pytest

from mounted.others import (
    DEVICE,
    GROUP,
    LIBC,
    NOBODY,
    PROTECTED,
    as_other,
    attempt,
    contents,
    opened,
)

AT_FDCWD = -100


def test_links_and_dots_lead_no_further(lab, unchanged, public):
    """From outside, from inside, from a working directory that was reached with more rights."""
    for name, target in (
        ("phys", "phys"),
        ("file", "phys/1000+4"),
        ("config", f"{DEVICE}/config"),
        ("protected", f"{PROTECTED}/bar0"),
    ):
        (public / name).symlink_to(lab.path / target)

    def tricks():
        root = str(lab.path)
        found = [
            opened(public / "file"),
            opened(public / "phys/1000+4"),
            attempt(lambda: os.listdir(public / "phys")),
            opened(public / "config", os.O_RDWR),
            opened(public / "protected", os.O_WRONLY),
            opened(f"{root}/1af4:1110/../../phys/1000"),
            opened(f"{root}/{DEVICE}/u32/../../../phys/u32/1000+4"),
            opened(f"{root}/{DEVICE}/x32/../config", os.O_RDWR),
            opened(f"{root}/phys/../{DEVICE}/bar0"),
        ]
        os.chdir(f"{root}/{DEVICE}/u32")
        found += [
            opened("../../../phys/1000"),
            opened("../config", os.O_RDWR),
            opened("../../0000:00:05.0/bar0", os.O_RDWR),
        ]
        return found

    assert as_other(tricks, GROUP) == ["EACCES"] * 12
    before = os.getcwd()
    os.chdir(lab.path / "phys")
    try:
        assert opened("1000+4") == "ok"
        assert (
            as_other(
                lambda: [
                    opened("1000+4"),
                    opened("u32/1000+4"),
                    attempt(lambda: os.listdir(".")),
                    opened(f"/proc/{os.getppid()}/cwd/1000+4"),
                    opened(f"/proc/{os.getppid()}/cwd"),
                    opened("../1af4:1110/bar0"),
                ],
                GROUP,
            )
            == ["EACCES"] * 6
        )
    finally:
        os.chdir(before)


def test_a_descriptor_is_not_opened_again_with_more_rights(lab, unchanged):
    def tricks():
        read = os.open(f"{lab.path}/{PROTECTED}/bar0", os.O_RDONLY)
        path = os.open(f"{lab.path}/{DEVICE}/config", os.O_PATH)
        return [
            opened(f"/proc/self/fd/{read}", os.O_RDWR),
            opened(f"/dev/fd/{read}", os.O_WRONLY),
            attempt(lambda: os.write(read, b"x")),
            attempt(lambda: os.truncate(f"/proc/self/fd/{read}", 0)),
            attempt(lambda: os.fchmod(read, 0o666)),
            attempt(lambda: os.fchown(read, NOBODY, -1)),
            attempt(lambda: os.read(path, 1)),
            attempt(lambda: os.chmod(f"/proc/self/fd/{path}", 0o666)),
            opened(f"/proc/self/fd/{path}", os.O_RDWR),
            opened(f"/proc/self/fd/{path}", os.O_RDONLY),
        ]

    assert as_other(tricks, GROUP) == [
        *("EACCES", "EACCES", "EBADF", "EACCES", "EPERM", "EPERM"),
        *("EBADF", "EPERM", "EACCES", "ok"),
    ]

    def as_nobody():
        path = os.open(f"{lab.path}/{DEVICE}/bar0", os.O_PATH)
        return [
            opened(f"/proc/self/fd/{path}", os.O_RDONLY),
            attempt(lambda: os.pread(path, 4, 0)),
            opened(f"{lab.path}/phys/1000", os.O_PATH),
        ]

    assert as_other(as_nobody) == ["EACCES", "EBADF", "EACCES"]


class Handle(ctypes.Structure):
    """struct file_handle, include/uapi/linux/fcntl.h."""

    _fields_ = [("length", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_ubyte * 128)]


def handle_of(path):
    handle, mount_id = Handle(128), ctypes.c_int()
    name = os.fsencode(path)
    if LIBC.name_to_handle_at(AT_FDCWD, name, ctypes.byref(handle), ctypes.byref(mount_id), 0):
        raise OSError(ctypes.get_errno(), "name_to_handle_at")
    return handle


def open_by_handle(mount, handle):
    fd = LIBC.open_by_handle_at(mount, ctypes.byref(handle), os.O_RDWR)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "open_by_handle_at")
    os.close(fd)
    return "ok"


def test_files_are_not_opened_by_handle(lab, unchanged):
    """That takes CAP_DAC_READ_SEARCH; and a number that was made up is none."""
    root = os.open(lab.path, os.O_RDONLY)
    bar = lab.path / DEVICE / "bar0"
    handle = handle_of(bar)
    inode = os.stat(bar).st_ino
    # fuse_encode_fh: the node's number in two halves, and its generation.
    assert struct.unpack("II", bytes(handle.data[:8])) == (inode >> 32, inode & 0xFFFFFFFF)
    assert as_other(lambda: open_by_handle(root, handle), GROUP) == "EPERM"
    for made_up in (inode + (7 << 15), 3 << 8 | 7, 0xFFFF, (1 << 62) + (1 << 40), 0):
        halves = struct.pack("II", made_up >> 32, made_up & 0xFFFFFFFF)
        handle.data[:8] = list(halves)
        assert attempt(lambda: open_by_handle(root, handle)) == "ESTALE"
        assert as_other(lambda: open_by_handle(root, handle), GROUP) == "EPERM"
    os.close(root)


@pytest.mark.parametrize("member", [True, False])
def test_nothing_is_put_into_the_tree(lab, unchanged, public, member):
    bar, root = f"{lab.path}/{DEVICE}/bar0", f"{lab.path}"
    public.chmod(0o777)

    def tricks():
        mine = f"{public}/mine"
        os.close(os.open(mine, os.O_CREAT | os.O_WRONLY))
        calls = {
            "link out": lambda: os.link(bar, f"{public}/out"),
            "link in": lambda: os.link(mine, f"{root}/in"),
            "link over": lambda: os.link(bar, f"{root}/{DEVICE}/bar5"),
            "rename out": lambda: os.rename(bar, f"{public}/out"),
            "rename in": lambda: os.rename(mine, bar),
            "rename over": lambda: os.rename(bar, f"{root}/{DEVICE}/bar2"),
            "mkdir": lambda: os.mkdir(f"{root}/new"),
            "mknod": lambda: os.mknod(f"{root}/new"),
            "symlink": lambda: os.symlink("/", f"{root}/{DEVICE}/bar5"),
            "unlink": lambda: os.unlink(bar),
            "rmdir": lambda: os.rmdir(f"{root}/pci"),
            "chmod": lambda: os.chmod(bar, 0o666),
            "chown": lambda: os.chown(bar, NOBODY, -1),
            "chgrp": lambda: os.chown(bar, -1, NOBODY),
            "touch": lambda: os.utime(bar, (0, 0)),
            "tmpfile": lambda: opened(f"{root}/{DEVICE}", os.O_TMPFILE | os.O_RDWR),
            "setxattr": lambda: os.setxattr(bar, "user.x", b"1"),
            "acl": lambda: os.setxattr(bar, "system.posix_acl_access", b"\2\0\0\0"),
        }
        results = {name: attempt(call) for name, call in calls.items()}
        os.unlink(mine)
        return results

    results = as_other(tricks, *([GROUP] if member else []))
    across = {"link out", "link in", "rename out", "rename in"}
    assert {name for name, result in results.items() if result == "EXDEV"} == across
    own = {"chmod", "chown", "chgrp", "touch"}
    assert {results[name] for name in own} == {"EPERM"}
    assert all(results.pop(name) in {"ENOTSUP", "EACCES", "EPERM"} for name in ("setxattr", "acl"))
    rest = {name: result for name, result in results.items() if name not in across | own}
    assert set(rest.values()) <= {"EACCES", "EPERM"}, rest
    # What the owner may not do either.
    assert opened(lab.path / DEVICE, os.O_TMPFILE | os.O_RDWR) == "ENOTSUP"
    assert attempt(lambda: os.chmod(bar, 0o666)) == "EPERM"
    assert attempt(lambda: os.chown(bar, 0, 0)) == "EPERM"
    assert attempt(lambda: os.setxattr(bar, "user.x", b"1")) == "ENOTSUP"


# What the kernel answers itself, from what stat shows (fs/ioctl.c).
ANSWERED = {"FIONREAD": 0x541B, "FIOQSIZE": 0x5460, "FIBMAP": 1, "FIGETBSZ": 2}
REFUSED = {
    "none": 0,
    "TCGETS": 0x5401,
    "TIOCSTI": 0x5412,
    "SG_IO": 0x2285,
    "BLKGETSIZE": 0x1260,
    "VFIO_GET_API_VERSION": 0x3B64,
    "PCIIOC_CONTROLLER": 0x50434900,
    "FS_IOC_GETFLAGS": 0x80086601,
    "FS_IOC_SETFLAGS": 0x40086602,
    "FS_IOC_FSSETXATTR": 0x401C5820,
    "FS_IOC_ENABLE_VERITY": 0x40806685,
    "FS_IOC_RESVSP": 0x40305828,
    "FS_IOC_FIEMAP": 0xC020660B,
    "FICLONE": 0x40049409,
    "FIFREEZE": 0xC0045877,
    "FITRIM": 0xC0185879,
    "FUSE_DEV_IOC_CLONE": 0x8004E500,
    "FUSE_DEV_IOC_BACKING_OPEN": 0x4010E501,
}
# The requests that every open file takes, whatever it is (fs/ioctl.c, do_vfs_ioctl).
OF_DESCRIPTORS = {0x5421, 0x5450, 0x5451, 0x5452}


def ioctls(path):
    """The results of many on one open file."""
    fd = os.open(path, os.O_RDWR)

    def call(request):
        signed = request - (1 << 32) if request >> 31 else request
        fcntl.ioctl(fd, signed, bytearray(1 << 14))
        return "ok"

    choose = random.Random(1)
    made_up = {choose.getrandbits(32) for _ in range(300)} | set(range(0x5400, 0x5480))
    made_up -= {*ANSWERED.values(), *OF_DESCRIPTORS}
    results = {name: attempt(lambda r=r: call(r)) for name, r in {**REFUSED, **ANSWERED}.items()}
    return results, {attempt(lambda r=r: call(r)) for r in made_up}


def test_ioctls_do_nothing(lab, unchanged):
    for name in (f"{DEVICE}/bar0", f"{DEVICE}/bar2", f"{DEVICE}/x32/bar0@8"):
        path = lab.path / name
        mine, theirs = ioctls(path), as_other(lambda path=path: ioctls(path), GROUP)
        assert not isinstance(theirs, str), theirs
        for results, made_up in (mine, theirs):
            assert {name for name, result in results.items() if result == "ok"} <= set(ANSWERED)
            assert {results[name] for name in ("TCGETS", "SG_IO", "PCIIOC_CONTROLLER", "none")} == {
                "ENOTTY"
            }
            assert made_up == {"ENOTTY"}
    for name in (f"{DEVICE}/config", "phys/1000+4"):
        assert ioctls(lab.path / name)[1] == {"ENOTTY"}
    assert "ioctl" not in lab.log


def test_other_calls_on_an_open_file(lab, unchanged):
    def calls():
        fd = os.open(f"{lab.path}/{DEVICE}/bar0", os.O_RDWR)

        def fallocate(mode):
            if LIBC.fallocate(fd, mode, ctypes.c_long(0), ctypes.c_long(64)):
                raise OSError(ctypes.get_errno(), "fallocate")

        results = {
            f"fallocate {1 << bit}": attempt(lambda b=bit: fallocate(1 << b)) for bit in range(8)
        }
        shared = mmap.MAP_SHARED
        both = mmap.PROT_READ | mmap.PROT_WRITE
        results |= {
            "fallocate 0": attempt(lambda: fallocate(0)),
            "mmap": attempt(lambda: mmap.mmap(fd, 256, shared, both)),
            "mmap to read": attempt(lambda: mmap.mmap(fd, 256, shared, mmap.PROT_READ)),
            "append": attempt(lambda: fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)),
            "appended": attempt(lambda: os.write(fd, b"abcd")),
        }
        return results

    results = as_other(calls, GROUP)
    assert {results.pop(name) for name in list(results) if "fallocate" in name} == {"ENOTSUP"}
    assert results == {
        "mmap": "ENODEV",
        "mmap to read": "ENODEV",
        "append": 0,
        "appended": "ENOSPC",
    }


def test_o_direct_is_the_same_file(lab):
    path = f"{lab.path}/{DEVICE}/bar0"

    def direct():
        fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        return os.pwrite(fd, b"abcd", 0x44), os.pread(fd, 4, 0x44), os.pread(fd, 3, 0x45)

    assert as_other(direct, GROUP) == (4, b"abcd", b"bcd")
    assert as_other(lambda: opened(path, os.O_RDWR | os.O_DIRECT)) == "EACCES"


def received(end):
    """The descriptor that comes over a socket."""
    _, ancillary, _, _ = socket.socket.recvmsg(end, 1, socket.CMSG_SPACE(4))
    ((_, _, data),) = ancillary
    return array.array("i", data)[0]


@pytest.fixture
def hand_over():
    """Open a file, hand it to somebody else over a socket, and give what a call makes of it."""

    def hand(path, flags, call, *groups):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            fd = os.open(path, flags)
            rights = array.array("i", [fd])
            ours.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            os.close(fd)
            return as_other(lambda: call(received(theirs)), *groups)

    return hand


def test_a_descriptor_that_is_handed_over_can_do_what_it_could(lab, hand_over):
    def read_only(fd):
        return [
            attempt(lambda: len(os.pread(fd, 4, 0))),
            attempt(lambda: os.pwrite(fd, b"abcd", 0)),
            opened(f"/proc/self/fd/{fd}", os.O_RDWR),
            opened(f"/proc/self/fd/{fd}", os.O_RDONLY),
            attempt(lambda: mmap.mmap(fd, 256, mmap.MAP_SHARED, mmap.PROT_WRITE)),
            attempt(lambda: os.ftruncate(fd, 0)),
            attempt(lambda: os.fchmod(fd, 0o666)),
            attempt(lambda: fcntl.fcntl(fd, fcntl.F_SETFL, os.O_RDWR)),
            attempt(lambda: os.pwrite(fd, b"abcd", 0)),
        ]

    refused = [4, "EBADF", "EACCES", "EACCES", "EACCES", "EINVAL", "EPERM", 0, "EBADF"]
    before = contents(lab.machine)
    for name in (f"{DEVICE}/bar0", f"{PROTECTED}/bar2", "phys/1000+100", f"{DEVICE}/config"):
        assert hand_over(lab.path / name, os.O_RDONLY, read_only) == refused
    refused[3] = "ok"  # a member may
    assert (
        hand_over(lab.path / DEVICE / "bar0", os.O_RDONLY, read_only, GROUP + 1, 7)[3] == "EACCES"
    )
    assert hand_over(lab.path / PROTECTED / "bar0", os.O_RDONLY, read_only, GROUP) == refused
    assert contents(lab.machine) == before

    def write_only(fd):
        return [
            attempt(lambda: os.pread(fd, 4, 0)),
            attempt(lambda: os.pwrite(fd, b"wxyz", 0x60)),
            opened(f"/proc/self/fd/{fd}", os.O_RDONLY),
        ]

    path = lab.path / DEVICE / "bar0"
    assert hand_over(path, os.O_WRONLY, write_only) == ["EBADF", 4, "EACCES"]
    with path.open("rb") as file:
        assert os.pread(file.fileno(), 4, 0x60) == b"wxyz"


def test_a_directory_that_is_handed_over_opens_nothing_inside(lab, unchanged, hand_over):
    def inside(fd):
        return [
            opened("1000+4", dir_fd=fd),
            opened("u32", dir_fd=fd),
            attempt(lambda: os.stat("1000+4", dir_fd=fd)),
            opened(f"/proc/self/fd/{fd}"),
            attempt(lambda: os.fchdir(fd)),
        ]

    assert hand_over(lab.path / "phys", os.O_RDONLY, inside, GROUP) == ["EACCES"] * 5
    assert hand_over(lab.path / "phys/x32", os.O_PATH, inside, GROUP) == ["EACCES"] * 5
