"""Imports go downward only, and each hard dependency has its one place."""

import ast
from pathlib import Path

import pytest

import barfs

# A module may import those before it.
ROOMS = [
    *("__init__", "errors", "names", "_mmio", "access", "aperture", "devmem", "index", "patterns"),
    *("resources", "plain", "presence", "combining"),
    *(
        "pci",
        "obstacles",
        "bars",
        "decoding",
        "kernel",
        "diagnose",
        "checkup",
        "pciids",
        "info",
        "journal",
        "nodes",
    ),
    *(
        "policy",
        "views",
        "opening",
        "bounce",
        "workers",
        "files",
        "fs",
        "loop",
        "logfile",
        "uevents",
    ),
    *(
        "mountpoint",
        "settings",
        "outlets",
        "confine",
        "daemon",
        "demo",
        "listing",
        "doctor",
        "cli",
        "mount_helper",
    ),
    "__main__",
]

# Who may import these, in the package or out of it.
RESERVED = {
    "pyfuse3": {"fs", "loop", "daemon"},
    "pyudev": {"uevents"},
    "barfs._mmio": {"aperture"},
    "mmap": {"bounce"},
}

SOURCES = {path.stem: path.read_text() for path in Path(barfs.__file__).parent.glob("*.py")}


def imports(source):
    """Dotted names of all that a source imports, in functions too, and of their parents."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = ".".join(filter(None, ["barfs" if node.level else "", node.module]))
            found.update(f"{origin}.{alias.name}" for alias in node.names)
    return found | {name.rpartition(".")[0] for name in found}


@pytest.mark.parametrize(
    ("source", "name"),
    [
        *(("import os, mmap as m", "mmap"), ("import pyfuse3.asyncio", "pyfuse3")),
        *(("from pyfuse3 import FUSEError", "pyfuse3"), ("from . import fs", "barfs.fs")),
        *(("from .fs import x", "barfs.fs"), ("from barfs.fs import x", "barfs.fs")),
        ("def f():\n    from barfs import _mmio", "barfs._mmio"),
    ],
)
def test_every_form_of_import_is_seen(source, name):
    assert name in imports(source)


def test_every_module_has_its_room():
    assert sorted(ROOMS) == sorted([*SOURCES, "_mmio"])


@pytest.mark.parametrize("module", SOURCES)
def test_imports_go_downward(module):
    above = {f"barfs.{room}" for room in ROOMS[ROOMS.index(module) :]}
    assert not imports(SOURCES[module]) & above


@pytest.mark.parametrize("name", RESERVED)
def test_nobody_else_imports(name):
    assert {module for module in SOURCES if name in imports(SOURCES[module])} == RESERVED[name]
