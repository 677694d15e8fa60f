"""Archives of strangers: what is no recording is refused, and nothing but a BadRecording comes."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barfs.errors import BadRecording
from barfs.machine import archive, compressed
from barfs.machine.archive import DirectoryArchive, TarArchive
from barfs.machine.recorded import recorded_source

GOOD = {"recording.json": b"{}", "pci/0000:00:04.0/bar0": bytes(range(256)) * 3, "proc/iomem": b""}


def tar_of(*members, kind=tarfile.GNU_FORMAT):
    """A tar; a member is a name and data, or a TarInfo."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=kind) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return data.getvalue()


def member(name, kind, **more):
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in more.items():
        setattr(info, key, value)
    return info


@pytest.fixture
def opened(tmp_path):
    """Opens bytes as a tar."""
    made = []

    def open_bytes(data):
        path = tmp_path / "machine.tar"
        path.write_bytes(data)
        fd = os.open(path, os.O_RDONLY)
        try:
            made.append(TarArchive(path, fd))
        except BadRecording:
            os.close(fd)
            raise
        return made[-1]

    yield open_bytes
    for one in made:
        one.close()


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_what_is_in_a_tar(opened, kind):
    found = opened(tar_of(*GOOD.items(), kind=kind))
    assert set(found.names()) == set(GOOD)
    for name, data in GOOD.items():
        assert found.size(name) == len(data)
        assert found.read(name, 0, 1 << 20) == data
        assert found.read(name, 5, 7) == data[5:12]
        assert found.read(name, len(data) + 9, 7) == b""
    assert found.size("absent") is None
    with pytest.raises(FileNotFoundError):
        found.read("absent", 0, 1)


def test_what_tar_packs_of_a_directory(opened):
    names = [f"./{name}" for name in GOOD]
    found = opened(tar_of(member("./", tarfile.DIRTYPE), *zip(names, GOOD.values(), strict=True)))
    assert set(found.names()) == set(GOOD)


@pytest.mark.parametrize(
    "bad",
    [
        *(
            member("pci/link", kind, linkname=target)
            for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE)
            for target in ("/etc/shadow", "../../etc/shadow", "recording.json")
        ),
        *(member("pci/x", kind) for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)),
        member("pci/x", tarfile.CONTTYPE),
        member("pci/x", b"Z"),
        *(
            (name, b"x")
            for name in (
                *("/etc/passwd", "../escape", "pci/../../escape", "pci/./x", "pci//x", "..", "."),
                *("a\nb", "a\x1b[2J", "a b", "-o", "x" * 200, "a/b/c/d/e/f/g/h/i/j", "\xff", ""),
            )
        ),
        ("recording.json", b"again"),
        ("./recording.json", b"again"),
    ],
    ids=lambda bad: ascii(bad[0] if isinstance(bad, tuple) else (bad.name, bad.type)),
)
@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_no_recording_has(opened, bad, kind):
    with pytest.raises(BadRecording):
        opened(tar_of(*GOOD.items(), bad, kind=kind))


@pytest.mark.parametrize("facts", [{"path": "../x"}, {"size": "99999"}, {"GNU.sparse.size": "9"}])
def test_headers_that_change_a_member(opened, facts):
    info = tarfile.TarInfo("pci/x")
    info.pax_headers = facts
    with pytest.raises(BadRecording):
        opened(tar_of(info, kind=tarfile.PAX_FORMAT))


def test_a_tar_that_is_cut_short_anywhere(opened):
    data = tar_of(*GOOD.items())
    end = data.rindex(b"proc/iomem") + 512
    for length in [*range(0, end, 128), end - 1, end]:
        with pytest.raises(BadRecording):
            opened(data[:length])
    assert opened(data[: end + 512])


@pytest.mark.parametrize(
    "field",
    [
        *(b"77777777777\0", b"\x80" + b"\0" * 3 + b"\x7f" * 8, b"\xff" * 12, b"0x10\0"),
        *(
            b"-0000000001\0",
            b"-0000001000\0",
            b"-0000002000\0",
            b"+1\0",
            b"1_0\0",
            b"1 0\0",
            b"9\0",
        ),
    ],
)
def test_sizes_that_are_none(opened, field):
    """Beyond the file, or not numbers; one below 0 would lead back to what was read already."""
    data = bytearray(tar_of(("recording.json", b"x"), ("proc/iomem", b"y")))
    for at in (0, 1024):
        changed = bytearray(data)
        changed[at + 124 : at + 136] = field.ljust(12, b"\0")
        header = bytes(changed[at : at + 148]) + b" " * 8 + bytes(changed[at + 156 : at + 512])
        changed[at + 148 : at + 156] = b"%06o\0 " % sum(header)
        with pytest.raises(BadRecording, match=r"damaged|cut short"):
            opened(bytes(changed))


def test_a_huge_sparse_file_takes_no_memory(tmp_path):
    """A member of a tebibyte is there, and only what is asked of it is read."""
    path = tmp_path / "machine.tar"
    info = tarfile.TarInfo("pci/0000:00:04.0/bar0")
    info.size = 1 << 40
    with path.open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(512 + (1 << 40) + 1024)
    found = TarArchive(path, os.open(path, os.O_RDONLY))
    assert found.size(info.name) == 1 << 40
    assert found.read(info.name, (1 << 40) - 3, 1 << 20) == bytes(3)
    found.close()


def test_a_million_members_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MOST_FILES", 1000)
    path = tmp_path / "machine.tar"
    with path.open("wb") as file:
        for number in range(100_000):
            file.write(tarfile.TarInfo(f"pci/{number:x}").tobuf(tarfile.GNU_FORMAT))
        file.write(bytes(1024))
    fd = os.open(path, os.O_RDONLY)
    tracemalloc.start()
    with pytest.raises(BadRecording, match="more than 1000"):
        TarArchive(path, fd)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    os.close(fd)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_is_a_bad_recording_or_does_nothing(tmp_path_factory, data):
    """A byte or a block that is changed, or blocks that are left out or doubled."""
    raw = bytearray(tar_of(*GOOD.items()))
    match data.draw(st.sampled_from(["byte", "cut", "double", "swap"])):
        case "byte":
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        case "cut":
            at = 512 * data.draw(st.integers(0, len(raw) // 512 - 1))
            del raw[at : at + 512]
        case "double":
            at = 512 * data.draw(st.integers(0, len(raw) // 512 - 1))
            raw[at:at] = raw[at : at + 512]
        case "swap":
            start = data.draw(st.integers(0, len(raw) - 16))
            raw[start : start + 16] = data.draw(st.binary(min_size=16, max_size=16))
    path = tmp_path_factory.mktemp("fuzz") / "machine.tar"
    path.write_bytes(raw)
    fd = os.open(path, os.O_RDONLY)
    try:
        found = TarArchive(path, fd)
    except BadRecording:
        return
    finally:
        path.unlink()
    try:
        for name in found.names():
            assert not name.startswith("/")
            assert ".." not in name.split("/")
            assert len(found.read(name, 0, 1 << 20)) == found.size(name)
    finally:
        os.close(fd)


# Directories


def unpacked(directory):
    for name, data in GOOD.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return DirectoryArchive(directory, os.open(directory, os.O_RDONLY))


def test_what_is_in_a_directory(tmp_path):
    found = unpacked(tmp_path)
    assert set(found.names()) == set(GOOD)
    for name, data in GOOD.items():
        assert found.size(name) == len(data)
        assert found.read(name, 3, 1 << 20) == data[3:]
    with pytest.raises(FileNotFoundError):
        found.read("absent", 0, 1)
    found.close()


@pytest.mark.parametrize("kind", ["link", "directory link", "pipe", "name", "deep"])
def test_what_no_directory_of_a_recording_has(tmp_path, kind):
    (tmp_path / "recording").mkdir()
    path = tmp_path / "recording/x"
    match kind:
        case "link":
            path.symlink_to("/etc/passwd")
        case "directory link":
            path.symlink_to("/etc")
        case "pipe":
            os.mkfifo(path)
        case "name":
            (tmp_path / "recording/a\nb").touch()
        case "deep":
            path.joinpath(*"abcdefghij").mkdir(parents=True)
    with pytest.raises(BadRecording):
        unpacked(tmp_path / "recording")


@pytest.mark.parametrize("what", ["file", "directory"])
def test_links_that_come_later_are_not_followed(tmp_path, what):
    secret = tmp_path / "secret/bar0"
    secret.parent.mkdir()
    secret.write_bytes(b"secret")
    found = unpacked(tmp_path / "recording")
    part = tmp_path / "recording/pci/0000:00:04.0"
    if what == "file":
        (part / "bar0").unlink()
        (part / "bar0").symlink_to(secret)
    else:
        (part / "bar0").unlink()
        part.rmdir()
        part.symlink_to(secret.parent)
    with pytest.raises(OSError, match=r"Too many levels|Not a directory"):
        found.read("pci/0000:00:04.0/bar0", 0, 100)
    found.close()


# What is neither


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "neither a recording nor"),
        (b"hello\n", "neither a recording nor"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "not by gzip or xz; uncompress it first"),
        (bz2.compress(bytes(600)), "not by gzip or xz; uncompress it first"),
        (b"\x1f\x8b\x08" + bytes(600), "damaged"),
        (b"\x1f\x8b", "damaged"),
        (gzip.compress(b"hello\n"), "neither a recording nor"),
        (gzip.compress(b"hello\n")[:-1], "damaged"),
        (gzip.compress(b"hello\n") + b"x", "damaged"),
        (gzip.compress(gzip.compress(b"hello\n")), "neither a recording nor"),
        (lzma.compress(b"hello\n"), "neither a recording nor"),
        (lzma.compress(b"hello\n")[:-1], "damaged"),
        (lzma.compress(b"hello\n") * 2, "damaged"),
        (lzma.compress(b"x", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 28}]), "damaged"),
        (bytes(4096), "neither a recording nor"),
        (tar_of(("pci/0000:00:04.0/config", b"")), "it has no recording.json"),
    ],
)
def test_a_file_that_is_no_recording(tmp_path, data, words):
    path = tmp_path / "file"
    path.write_bytes(data)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BadRecording, match=words):
        recorded_source(path)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress])
def test_a_bomb(tmp_path, monkeypatch, compress):
    """What it would become is not kept, neither in memory nor in a file."""
    monkeypatch.setattr(compressed, "MOST", 2 << 20)
    path = tmp_path / "file"
    path.write_bytes(compress(bytes(32 << 20)))
    before = len(os.listdir("/proc/self/fd"))
    tracemalloc.start()
    with pytest.raises(BadRecording, match="larger than 2 MiB; uncompress it first"):
        recorded_source(path)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_path_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("absent", "pipe"):
        with pytest.raises(BadRecording):
            recorded_source(tmp_path / name)
