"""Fields against the compiler's own offsetof: clang writes BTF, gcc says where each field is."""

import contextlib
import random
import shutil
import struct
import subprocess

import pytest
from compilers import compile_btf

from barfs.errors import NoSuchNode
from barfs.machine.btf import BadTypes, Field, Types, read_types

SCALARS = ("char", "unsigned char", "short", "unsigned int", "long", "float", "double", "void *")

FIXED = """
typedef unsigned int u32;
typedef const u32 *pointer;
struct inner { char tag; union { long number; struct { short low, high; } half; }; };
struct whole {
    char name[65];
    struct inner part;
    struct inner parts[3];
    u32 grid[2][5];
    pointer at;
    volatile const long stamp;
    unsigned flag : 1, level : 3;
    int after;
};
struct whole whole;
"""


def measure(source, directory, expressions):
    """(offset, size) of each `type, field`, by gcc."""
    lines = "".join(
        f'printf("%zu %zu\\n", offsetof({kind}, {field}), sizeof((({kind} *)0)->{field}));\n'
        for kind, field in expressions
    )
    program = f"#include <stddef.h>\n#include <stdio.h>\n{source}\nint main(void) {{ {lines} }}\n"
    (directory / "measure.c").write_text(program)
    subprocess.run(["gcc", "-w", "measure.c", "-o", "measure"], cwd=directory, check=True)
    out = subprocess.run([directory / "measure"], capture_output=True, text=True, check=True).stdout
    return [tuple(map(int, line.split())) for line in out.splitlines()]


@pytest.fixture(scope="module", autouse=True)
def compilers(require):
    require(shutil.which("clang") and shutil.which("gcc"), "clang and gcc")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return compile_btf(FIXED, tmp_path_factory.mktemp("btf"))


@pytest.fixture(scope="module")
def types(data):
    return Types(data)


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("whole.name", "name"),
        ("whole.part.number", "part.number"),
        ("whole.part.half.high", "part.half.high"),
        ("whole.parts.2.half", "parts[2].half"),
        ("whole.parts.1", "parts[1]"),
        ("whole.grid", "grid"),
        ("whole.grid.1", "grid[1]"),
        ("whole.grid.1.4", "grid[1][4]"),
        ("whole.at", "at"),
        ("whole.stamp", "stamp"),
        ("whole.after", "after"),
    ],
)
def test_a_field_lies_where_the_compiler_put_it(types, tmp_path, path, field):
    found = types.field(path)
    assert [(found.offset, found.size)] == measure(FIXED, tmp_path, [("struct whole", field)])


def test_an_array_says_what_it_has(types):
    assert types.field("whole.name") == Field(0, 65, 65, 1)
    assert types.field("whole.parts")[2:] == (3, types.field("inner").size)
    assert types.field("whole.part")[2:] == (0, 0)


def random_source(seed):
    """Structures of structures, with unnamed unions, arrays and bit fields among their members."""
    choose = random.Random(seed)
    text, fields = [], []
    for number in range(8):
        own = []
        for member in range(choose.randrange(2, 9)):
            name = f"m{member}"
            kind = choose.choice((*SCALARS, *(f"struct s{n}" for n in range(number))))
            form = choose.randrange(4)
            if form == 0:
                own.append(f"{kind} {name}[{choose.randrange(1, 9)}];")
            elif form == 1:
                own.append(f"union {{ {kind} {name}; short x{member}; }};")
            else:
                own.append(f"{kind} {name};")
            fields.append((f"struct s{number}", name))
            if choose.randrange(4) == 0:
                own.append(f"unsigned b{member} : {choose.randrange(1, 8)};")
        text.append(f"struct s{number} {{ {' '.join(own)} }}; struct s{number} v{number};")
    return "\n".join(text), fields


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_fields_lie_where_the_compiler_put_them(tmp_path, seed):
    source, fields = random_source(seed)
    types = Types(compile_btf(source, tmp_path))
    assert len(fields) > 20
    found = [types.field(f"{kind.removeprefix('struct ')}.{field}")[:2] for kind, field in fields]
    assert found == measure(source, tmp_path, fields)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nothing", "no type 'nothing'"),
        ("", "no type ''"),
        ("hol", "no type 'hol'"),
        ("whole.nothing", "no field 'nothing'"),
        ("whole.", "no field ''"),
        ("whole.name.65", "elements 0 to 64, not 65"),
        ("whole.name.x", "elements 0 to 64, not x"),
        ("whole.after.x", "no structure"),
        ("whole.flag", "flag is a bit field"),
        ("whole.level", "level is a bit field"),
    ],
)
def test_what_is_not_there(types, path, words):
    with pytest.raises(NoSuchNode, match=words):
        types.field(path)


def test_two_types_of_a_name_that_differ_are_refused(tmp_path):
    # Two source files may each have a structure of that name: here the second one is renamed.
    source = """
        struct two { int a; int b; long same; } first;
        struct owt { int b; int a; long same; } second;
    """
    data = compile_btf(source, tmp_path)
    length, _, _, text_at, _ = struct.unpack_from("<IIIII", data, 4)
    places = [
        struct.pack("<I", data.index(b"\0" + name + b"\0", length + text_at) + 1 - length - text_at)
        for name in (b"owt", b"two")
    ]
    types = Types(
        data[:length] + data[length : length + text_at].replace(*places) + data[length + text_at :]
    )
    with pytest.raises(NoSuchNode, match="2 types two, which differ"):
        types.field("two.b")
    assert types.field("two.same").offset == 8


@pytest.mark.parametrize("length", [0, 10, 24, 60, -1])
def test_what_is_cut_is_no_btf(data, length):
    with pytest.raises(BadTypes):
        Types(data[:length]).field("whole.name")


def test_garbage_is_refused_and_nothing_else_happens(data):
    choose = random.Random(7)
    for _ in range(2000):
        broken = bytearray(data)
        for _ in range(choose.randrange(1, 6)):
            broken[choose.randrange(len(broken))] = choose.randrange(256)
        with contextlib.suppress(BadTypes, NoSuchNode):
            Types(bytes(broken)).field("whole.parts.2.half.high")


def test_a_kernel_without_types_says_what_it_lacks(tmp_path):
    with pytest.raises(NoSuchNode, match="CONFIG_DEBUG_INFO_BTF"):
        read_types(tmp_path)
    (tmp_path / "kernel/btf").mkdir(parents=True)
    (tmp_path / "kernel/btf/vmlinux").write_bytes(b"junk")
    with pytest.raises(NoSuchNode, match="is garbage: it ends before its header"):
        read_types(tmp_path)
