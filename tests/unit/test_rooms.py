"""Imports go downward from room to room, and each hard dependency has its one place."""

import ast
import functools
import graphlib
from pathlib import Path

import pytest

import barfs

# What is at the top of barfs/. A room may import those below it, and no others.
COLUMN = (
    "__main__",
    "commands",
    "saving",
    "daemon",
    "fs",
    "requests",
    "tree",
    "spans",
    "report",
    "diagnosis",
    "registers",
    "devmem",
    "machine",
    "nodes",
    "access",
    "journal",
    "errors",
    "names",
)

# Who may import these, in the package or out of it: rooms, or single modules of one.
RESERVED = {
    "pyfuse3": {"fs", "requests.unneeded", "daemon.loop", "daemon.serve"},
    "trio": {
        "daemon",
        "requests",
        "spans.vfio",
        "machine.changes",
        "machine.uevents",
        "journal.logfile",
    },
    "argparse": {"commands"},
    "pyudev": {"machine.uevents"},
    "barfs.access._mmio": {"access.apertures"},
    "mmap": {"requests.bounce"},
    "systemrdl.compiler": {"registers.systemrdl"},
    "lxml": {"registers.svd"},
    # What compiles maps never comes near the daemon.
    "barfs.registers.systemrdl": {"commands.regs"},
    "barfs.registers.svd": {"commands.regs"},
}

BARFS = Path(barfs.__file__).parent
SOURCES = {
    ".".join(path.relative_to(BARFS).with_suffix("").parts): path.read_text()
    for path in BARFS.rglob("*.py")
    if path != BARFS / "__init__.py"
}
ROOMS = {module.partition(".")[0] for module in SOURCES}


def imports(source, package="barfs"):
    """Dotted names of all that a source in a package imports, in functions too, and of parents."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level]
            origin = ".".join(filter(None, [*(above if node.level else []), node.module]))
            found.update(f"{origin}.{alias.name}" for alias in node.names)
    for name in list(found):
        while name := name.rpartition(".")[0]:
            found.add(name)
    return found


@functools.cache
def imported(module):
    """The same of a module of barfs, by its name; those of barfs without the `barfs.`."""
    package = ".".join(["barfs", *module.split(".")[:-1]])
    return {name.removeprefix("barfs.") for name in imports(SOURCES[module], package)}


@pytest.mark.parametrize(
    ("source", "package", "name"),
    [
        ("import os, mmap as m", "barfs", "mmap"),
        *(("import pyfuse3.asyncio", "barfs", "pyfuse3"), ("import a.b.c", "barfs", "a")),
        *(("from pyfuse3 import FUSEError", "barfs", "pyfuse3"), ("from a.b import c", "x", "a")),
        *(("from . import fs", "barfs", "barfs.fs"), ("from .fs import x", "barfs", "barfs.fs")),
        *(("from barfs.fs import x", "barfs.tree", "barfs.fs"),),
        *(("from . import log", "barfs.tree", "barfs.tree.log"),),
        *(("from ..nodes import Kind", "barfs.tree", "barfs.nodes"),),
        ("def f():\n    from barfs.access import _mmio", "barfs", "barfs.access._mmio"),
    ],
)
def test_every_form_of_import_is_seen(source, package, name):
    assert name in imports(source, package)


def test_no_file_is_long():
    files = [path for path in BARFS.rglob("*") if path.suffix in {".py", ".c", ".h"}]
    assert len(files) > len(SOURCES)
    assert [path for path in files if len(path.read_text().splitlines()) > 450] == []


def test_every_room_has_its_place():
    assert sorted(ROOMS) == sorted(COLUMN)


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_imports_go_downward(module):
    room = module.partition(".")[0]
    others = {name.partition(".")[0] for name in imported(module)} & ROOMS - {room}
    assert others <= set(COLUMN[COLUMN.index(room) + 1 :])


@pytest.mark.parametrize("room", COLUMN)
def test_no_circle_is_in_a_room(room):
    within = {module for module in SOURCES if module.partition(".")[0] == room}
    circle = graphlib.TopologicalSorter({module: imported(module) & within for module in within})
    circle.prepare()


def test_a_circle_is_seen():
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()


@pytest.mark.parametrize("name", RESERVED)
def test_nobody_else_imports(name):
    importing = {module for module in SOURCES if name.removeprefix("barfs.") in imported(module)}
    holders = {
        holder: {
            module for module in importing if module == holder or module.startswith(f"{holder}.")
        }
        for holder in RESERVED[name]
    }
    assert all(holders.values()), "one that is allowed does not need it"
    assert importing == set().union(*holders.values())
