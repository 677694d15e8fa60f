"""What one would do without barfs, beside what one does with it. Nothing here is pinned."""

import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from bench import machines
from bench.cases import MIB, Case, Target
from bench.lab import BARFS, REFERENCE, Lab
from bench.stats import Sample

LOOPS: Final = Path(__file__).parent / "loops.py"

_ONE_LINER: Final = (
    "import mmap; f = open({!r}, 'r+b'); m = memoryview(mmap.mmap(f.fileno(), 4096)).cast('I'); "
    "print(hex(m[2]))"
)

# How often a script reads a file, and the script.
_CATS: Final = 20
_SHELL_LOOP: Final = f'n=0; while [ $n -lt {_CATS} ]; do cat "$1" >/dev/null; n=$((n + 1)); done'

# devmem knows no file but /dev/mem. So it gets a /dev of its own, in which that is the file.
_OWN_DEV: Final = (
    'exec 9<>"$1"; mount -t tmpfs none /dev; : >/dev/null; ln -s /proc/self/fd/9 /dev/mem; '
    'shift; exec "$@"'
)


def missing() -> list[str]:
    """What is not installed and so can't be measured."""
    found = [tool for tool in ("busybox", "memtool", "unshare") if shutil.which(tool) is None]
    if importlib.util.find_spec("periphery") is None:
        found.append("python-periphery")
    return found


# Paths are functions here, as machines and mounts are made when they are first asked for.
Where = Callable[[], Path]


def _process(lab: Lab, *command: object) -> Callable[[], Sample]:
    """Measure a command. Functions among its words are called to get the words."""

    def measure() -> Sample:
        words = [word() if callable(word) else word for word in command]
        return lab.sample(lab.client_command("run", *words, warm=False))

    return measure


def _devmem(lab: Lab) -> Callable[[], Sample]:
    def measure() -> Sample:
        client = lab.client_command("run", "busybox", "devmem", "0x8", "32", warm=False)
        file = str(lab.resource(machines.REGISTERS))
        return lab.sample(["unshare", "-m", "sh", "-euc", _OWN_DEV, "sh", file, *client])

    return measure


def _loop(lab: Lab, way: str, path: Where, span: int) -> Callable[[], Sample]:
    def measure() -> Sample:
        command = [sys.executable, LOOPS, way, path(), span, lab.slice_ms]
        return lab.sample(list(map(str, command)))

    return measure


def _client(lab: Lab, *arguments: object, path: Where) -> Callable[[], Sample]:
    return lambda: lab.sample(lab.client_command(*arguments, path()))


def _through_barfs(lab: Lab, *arguments: object, bar: int) -> Callable[[], Sample]:
    return lambda: lab.through(lab.daemon(16, BARFS), *arguments, lab.bar(BARFS, bar))


def _per(number: int, measure: Callable[[], Sample]) -> Callable[[], Sample]:
    """The measure of one part of an operation that does so many."""
    return lambda: Sample(measure().value / number)


def processes(lab: Lab) -> Iterator[Case]:
    """One register, read by a process that is started for it."""
    file = partial(lab.resource, machines.REGISTERS)
    bar = partial(lab.bar, BARFS, machines.REGISTERS)

    def text() -> Path:
        return lab.bar(BARFS, machines.REGISTERS, "x32").with_name("bar0@8")

    dd = ("of=/dev/null", "bs=4", "skip=2", "count=1", "status=none")
    contenders = {
        "barfs: cat x32/bar0@8": _process(lab, "cat", text),
        "barfs: dd bs=4 skip=2 count=1 if=bar0": _process(lab, "dd", lambda: f"if={bar()}", *dd),
        "busybox devmem 0x8 32": _devmem(lab),
        "memtool md -l 0x8+4": _process(lab, "memtool", "md", "-l", "-s", file, "0x8+4"),
        "python3 -c 'import mmap ...'": _process(
            lab, sys.executable, "-c", lambda: _ONE_LINER.format(str(file()))
        ),
    }
    yield _otherwise("a process for each 32-bit read", contenders, "barfs: cat x32/bar0@8")


def shell_loop(lab: Lab) -> Iterator[Case]:
    """A script that reads a register again and again, and one that reads an ordinary file."""
    plain, barfs = "cat of a plain file", "barfs: cat x32/bar0@8"

    def text() -> Path:
        return lab.bar(BARFS, machines.REGISTERS, "x32").with_name("bar0@8")

    def file() -> Path:
        path = lab.directory / "value"
        path.write_text("0x00000000\n")
        return path

    def loop(path: Where) -> Callable[[], Sample]:
        return _per(_CATS, _process(lab, "sh", "-euc", _SHELL_LOOP, "sh", path))

    yield Case(
        "cat in a shell loop",
        "unpinned",
        {plain: loop(file), barfs: loop(text)},
        base=plain,
        target=Target(1.05, barfs, plain),
        quick=True,
    )


def loops(lab: Lab) -> Iterator[Case]:
    """One register after the other, in one program."""
    file = partial(lab.resource, machines.REGISTERS)
    bar = partial(lab.bar, BARFS, machines.REGISTERS)
    span = machines.REGISTERS_SIZE
    options = ("-r", "-l", 4, "-s", span)
    contenders = {
        "barfs: pread in C": _through_barfs(lab, *options, "read", bar=machines.REGISTERS),
        "barfs: os.pread in Python": _loop(lab, "pread", bar, span),
        "python-periphery: MMIO.read32": _loop(lab, "periphery", file, span),
        "Python: mmap and struct, two reads each": _loop(lab, "struct", file, span),
        "Python: mmap and memoryview": _loop(lab, "memoryview", file, span),
        "C: mmap, the limit": _client(lab, *options, "load", path=file),
    }
    yield _otherwise("a program that makes many 32-bit reads", contenders, "barfs: pread in C")


def dumps(lab: Lab) -> Iterator[Case]:
    """All of a BAR of registers, for people."""
    file = partial(lab.resource, machines.REGISTERS)
    bar = partial(lab.bar, BARFS, machines.REGISTERS)
    contenders = {
        "barfs: hd bar0": _process(lab, "hd", bar),
        "barfs: od -t x4 bar0": _process(lab, "od", "-A", "x", "-t", "x4", bar),
        "memtool md -l 0+1M": _process(lab, "memtool", "md", "-l", "-s", file, "0+1M"),
    }
    yield _otherwise("a dump of 1 MiB of registers", contenders, "barfs: hd bar0", slow=True)


def copies(lab: Lab) -> Iterator[Case]:
    """Memory in bulk: for each MiB."""
    count, file = machines.MEMORY_SIZE // MIB, partial(lab.resource, machines.MEMORY)

    def dd(label: str) -> Callable[[], Sample]:
        def bar() -> str:
            return f"if={lab.bar(label, machines.MEMORY)}"

        return _per(count, _process(lab, "dd", bar, "of=/dev/null", "bs=1M", "status=none"))

    options = ("-l", MIB, "-s", machines.MEMORY_SIZE)
    span = machines.MEMORY_SIZE
    contenders = {
        "barfs: dd bs=1M": dd(BARFS),
        "C reference: dd bs=1M": dd(REFERENCE),
        "barfs: pread in C": _through_barfs(lab, *options, "read", bar=machines.MEMORY),
        "Python: slices of a mapping": _loop(lab, "slices", file, span),
        "C: memcpy, the limit": _client(lab, *options, "copy", path=file),
    }
    yield _otherwise("1 MiB of memory, read", contenders, "barfs: dd bs=1M")
    contenders = {
        "barfs: pwrite in C": _through_barfs(lab, *options, "write", bar=machines.MEMORY),
        "C: memcpy, the limit": _client(lab, *options, "store", path=file),
    }
    yield _otherwise("1 MiB of memory, written", contenders, "barfs: pwrite in C")


def _otherwise(
    what: str,
    contenders: dict[str, Callable[[], Sample]],
    base: str,
    *,
    slow: bool = False,
) -> Case:
    """Without those that need what is missing."""
    gone = [name.partition(":")[0] for name in missing()]
    if "unshare" in gone:
        gone.append("busybox")
    there = {
        label: measure
        for label, measure in contenders.items()
        if not any(label.startswith(name) for name in gone)
    }
    return Case(what, "unpinned", there, base=base, most_rounds=3 if slow else None, quick=not slow)


def all_others(lab: Lab) -> Iterator[Case]:
    """All of them."""
    for group in (processes, shell_loop, loops, dumps, copies):
        yield from group(lab)
