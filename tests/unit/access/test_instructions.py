"""Which instructions touch a mapping, in all that compilers make of the access engine.

A hypervisor has to emulate them where the mapping is of a device that it emulates, and one that
can't ends the virtual machine. The engine touches a mapping in functions of their own: in
`load_run32` each load is of the mapping, or of the stack; each store in `store_run32` likewise.
"""

import re
import subprocess
import sysconfig
from itertools import product
from pathlib import Path

import pytest

from unit.access.engine_sources import SOURCE, with_mistake

INCLUDE = Path(sysconfig.get_path("include"))

COMPILERS = {
    "x86": {"gcc": ["gcc"], "clang": ["clang", "--target=x86_64-linux-gnu"]},
    "arm64": {
        "gcc": ["aarch64-linux-gnu-gcc"],
        "clang": [
            *("clang", "--target=aarch64-linux-gnu"),
            *("-isystem", "/usr/aarch64-linux-gnu/include"),
        ],
    },
}
DISASSEMBLERS = {
    "x86": ["objdump", "-M", "intel"],
    "arm64": ["aarch64-linux-gnu-objdump"],
}
LEVELS = ["-O0", "-O1", "-O2", "-O3", "-Os"]
# Machines that have more instructions, which compilers like to use where they are told so.
LATER = {"x86": ["-march=x86-64-v3", "-march=x86-64-v4"], "arm64": ["-march=armv8.4-a+sve"]}
BUILDS = [
    (machine, compiler, options)
    for machine, compiler in product(COMPILERS, ("gcc", "clang"))
    for options in ([[level] for level in LEVELS] + [["-O3", later] for later in LATER[machine]])
]
WIDTHS = {"x86": [1, 2, 4, 8, 16], "arm64": [1, 2, 4, 8]}

RUN = re.compile(r"^[0-9a-f]+ <(load|store)_run(\d+)(?:\.[\w.]+)?>:\n((?:.+\n)+)", re.MULTILINE)
INSTRUCTION = re.compile(r"^ +[0-9a-f]+:\t(.*?)(?:\s+(?://|#) .*)?$")

# What may touch a mapping, by width: one move between memory and a general register, and on x86
# those of SSE. On arm64 the address is in one register and nothing else, without write-back.
ARM64 = {
    1: r"(?:ldrb|strb)\tw\w+, \[x\d+\]",
    2: r"(?:ldrh|strh)\tw\w+, \[x\d+\]",
    4: r"(?:ldr|str)\tw\w+, \[x\d+\]",
    8: r"(?:ldr|str)\tx\w+, \[x\d+\]",
}
# A load, a store.
X86 = {
    1: (r"mov(?:zx)? +\w+,BYTE PTR \[[^]]+\]", r"mov +BYTE PTR \[[^]]+\],\w+"),
    2: (r"mov(?:zx)? +\w+,WORD PTR \[[^]]+\]", r"mov +WORD PTR \[[^]]+\],\w+"),
    4: (r"mov +\w+,DWORD PTR \[[^]]+\]", r"mov +DWORD PTR \[[^]]+\],\w+"),
    8: (r"mov +\w+,QWORD PTR \[[^]]+\]", r"mov +QWORD PTR \[[^]]+\],\w+"),
    16: (
        r"mov(?:dqa|ap[sd]) +xmm\d+,XMMWORD PTR \[[^]]+\]",
        r"mov(?:dqa|ap[sd]) +XMMWORD PTR \[[^]]+\],xmm\d+",
    ),
}


def disassembly(machine, compiler, options, source, directory):
    """What objdump says of the engine, with relocations."""
    # Debian's pyconfig.h looks for one of the machine. They are alike, and nothing here is run.
    headers = directory / "aarch64-linux-gnu"
    if not headers.exists():
        headers.symlink_to("/usr/include/x86_64-linux-gnu")
    built = directory / "_mmio.o"
    subprocess.run(
        [*COMPILERS[machine][compiler], *options, "-fPIC", "-c"]
        + [f"-I{INCLUDE}", f"-I{directory}", source, "-o", built],
        check=True,
    )
    return subprocess.run(
        [*DISASSEMBLERS[machine], "-dr", "--no-show-raw-insn", built],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def is_arm64_touch(verb, instruction):
    """Whether it is a load (or a store) of something else than the stack."""
    mnemonic, _, operands = instruction.partition("\t")
    kind = "ld" if verb == "load" else "st"
    other = re.match(r"(cas|swp|dc|prf|cpy|set[pme])", mnemonic)
    return bool(other) or (mnemonic.startswith(kind) and not re.search(r"\[(sp|x29)\b", operands))


def is_x86_touch(verb, instruction):
    mnemonic, operands = re.match(r"(\S+)\s*(.*)", instruction).groups()
    if mnemonic in {"rep", "repz", "repnz", "lock"}:
        return True
    if mnemonic in {"nop", "lea", "cs", "data16", "endbr64"}:
        return False
    places = [
        at
        for at, operand in enumerate(re.split(r",(?![^\[]*\])", operands))
        if "[" in operand and not re.search(r"\[r(sp|bp|ip)\b", operand)
    ]
    # A move between memory and a register stores its first operand. Everything else that has an
    # operand in memory loads.
    if mnemonic.startswith(("mov", "vmov")) and len(places) == 1:
        return places == ([1] if verb == "load" else [0])
    return bool(places)


def is_known(machine, verb, width, instruction):
    if machine == "arm64":
        return re.fullmatch(ARM64[width], instruction)
    return re.fullmatch(X86[width][verb == "store"], instruction)


def mistakes(machine, text):
    """What is wrong in the functions that touch a mapping, as lines of text."""
    found = []
    seen = set()
    is_touch = is_arm64_touch if machine == "arm64" else is_x86_touch
    for verb, bits, body in RUN.findall(text):
        name, width = f"{verb}_run{bits}", int(bits) // 8
        touches = 0
        for line in body.splitlines():
            if "R_AARCH64" in line or "R_X86_64" in line:
                found.append(f"{name}: leaves for {line.split()[-1]}")
                continue
            instruction = INSTRUCTION.match(line)[1]
            if is_touch(verb, instruction):
                touches += 1
                if not is_known(machine, verb, width, instruction):
                    found.append(f"{name}: {instruction}")
        if touches:
            seen.add((verb, width))
    expected = set(product(("load", "store"), WIDTHS[machine]))
    return found + [f"no function has it: {missing}" for missing in expected - seen]


@pytest.mark.parametrize(("machine", "compiler", "options"), BUILDS, ids=lambda part: "".join(part))
def test_mappings_are_touched_only_as_hypervisors_know(machine, compiler, options, tmp_path):
    options = [*options, "-Wall", "-Wextra", "-Werror"]
    assert mistakes(machine, disassembly(machine, compiler, options, SOURCE, tmp_path)) == []


LOAD = "LOAD(at, suffix, view, value);"
STORE = "STORE(at, suffix, view, value);"
MEMCPY = "memcpy(data, (void *)from, length); break;"
PLANTED = [
    ("arm64", "gcc", ["-O2"], LOAD, "value = *at;", r"ldr w\d+, \[x\d+\], #4"),
    ("arm64", "clang", ["-O2"], STORE, "*at = value;", r"str x\d+, \[x\d+\], #8"),
    ("arm64", "gcc", ["-O2"], '"ldr" suffix', '"ldp x9, x10, %1 //"', r"ldp x9, x10, "),
    ("arm64", "clang", ["-O1"], '"str" suffix', '"str q0, %0 //"', "str q0, "),
    ("arm64", "clang", ["-O3"], '"ldr"', '"ldxr"', "ldxr w"),
    ("arm64", "gcc", ["-O1"], '(64, "", "x")', '(64, "", "w")', r"load_run64: ldr w\d+, \[x\d+\]"),
    ("arm64", "gcc", ["-O2"], LOAD, MEMCPY, "load_run8: leaves for memcpy"),
    ("x86", "clang", ["-O2"], LOAD, MEMCPY, "load_run64: leaves for memcpy"),
    ("x86", "gcc", ["-O2", "-mstringop-strategy=rep_8byte"], LOAD, MEMCPY, "rep movs"),
    ("x86", "gcc", ["-O2", "-mavx"], ', target("no-avx")', "", "vmovdqa xmm0,"),
    ("x86", "clang", ["-O2", "-mavx"], ', target("no-avx")', "", "store_run128: vmov"),
    ("x86", "gcc", ["-O2"], "= (value))", "+= (value))", "store_run32: add "),
    ("x86", "gcc", ["-O1"], "vector_size(16)", "vector_size(32)", "load_run128: "),
    (
        "x86",
        "gcc",
        ["-O1"],
        "DEFINE_RUNS(16,",
        "#define uint16_t uint8_t\nDEFINE_RUNS(16,",
        "run16: ",
    ),
]


@pytest.mark.parametrize(("machine", "compiler", "options", "right", "wrong", "seen"), PLANTED)
def test_a_mistake_would_be_seen(machine, compiler, options, right, wrong, seen, tmp_path):
    source = with_mistake(tmp_path, right, wrong)
    found = mistakes(machine, disassembly(machine, compiler, [*options, "-w"], source, tmp_path))
    assert any(re.search(seen, re.sub(r"\s+", " ", mistake)) for mistake in found), found
