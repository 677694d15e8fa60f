"""What compilers make of a source, for tests."""

import struct
import subprocess


def section_of(elf, name):
    """The bytes of a section of a 64-bit little-endian ELF file."""
    first, size, count, names = (
        *struct.unpack_from("<Q", elf, 0x28),
        *struct.unpack_from("<HHH", elf, 0x3A),
    )
    headers = [struct.unpack_from("<IIQQQQ", elf, first + n * size) for n in range(count)]
    text = headers[names][4]
    for at, _, _, _, offset, length in headers:
        if elf[text + at :].startswith(name + b"\0"):
            return elf[offset : offset + length]
    raise AssertionError(f"no section {name}")


def compile_btf(source, directory):
    (directory / "types.c").write_text(source)
    command = ["clang", "-target", "bpf", "-g", "-O1", "-c", "types.c", "-o", "types.o"]
    subprocess.run(command, cwd=directory, check=True)
    return section_of((directory / "types.o").read_bytes(), b".BTF")
