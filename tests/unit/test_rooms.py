"""Imports go downward only, and each hard dependency has its one place."""

import ast
from pathlib import Path

import pytest

import barfs

# A module may import those before it.
ROOMS = [
    *("__init__", "names", "errors", "access.__init__", "access._mmio", "access.contract"),
    *(
        "access.files",
        "access.apertures",
        "access.core",
        "access.vfio",
        "machine.__init__",
        "machine.index",
        "machine.patterns",
    ),
    *("machine.resources", "machine.presence", "machine.uevents", "machine.source"),
    *("machine.btf", "machine.kcore", "machine.symbols"),
    *("machine.functions", "machine.configspace", "machine.kernel", "devmem", "spans.__init__"),
    *("spans.combining", "diagnosis.__init__", "diagnosis.text", "diagnosis.obstacles"),
    "spans.ways",
    *("registers.__init__", "registers.checks", "registers.maps", "registers.plans"),
    *("registers.files", "registers.capabilities", "registers.compiled", "registers.systemrdl"),
    *("registers.svd",),
    *("spans.bars", "spans.enabling", "diagnosis.causes", "diagnosis.checkup"),
    *("machine.pciids", "report.__init__", "report.info", "journal.__init__", "journal.records"),
    *(
        "nodes",
        "spans.views",
        "spans.opening",
        "spans.kernel",
        "tree.__init__",
        "tree.root",
        "tree.single",
    ),
    *("tree.functions", "tree.views", "tree.bars", "tree.config", "tree.rom", "tree.info"),
    *("tree.physical", "tree.ksym", "tree.log", "tree.status", "tree.links", "tree.branches"),
    *("requests.__init__", "requests.policy"),
    *("requests.bounce", "requests.workers", "requests.files", "fs", "daemon.__init__"),
    *("daemon.options", "daemon.interruption", "daemon.users", "journal.logfile"),
    *("daemon.mountpoint", "daemon.settings", "daemon.loop", "daemon.outlets", "daemon.confine"),
    *("daemon.serve", "daemon.background"),
    *("machine.simulated", "report.listing", "report.doctor", "commands.__init__"),
    *("commands.drawing", "commands.output", "commands.command", "commands.ending"),
    *("commands.mount", "commands.umount", "commands.demo", "commands.ls", "commands.doctor"),
    *("commands.ksym", "commands.mount_helper", "commands.cli", "commands.start", "__main__"),
]

# Who may import these, in the package or out of it.
RESERVED = {
    "pyfuse3": {"fs", "daemon.loop", "daemon.serve"},
    "pyudev": {"machine.uevents"},
    "barfs.access._mmio": {"access.apertures"},
    "mmap": {"requests.bounce"},
    "systemrdl.compiler": {"registers.systemrdl"},
    "lxml": {"registers.svd"},
}

BARFS = Path(barfs.__file__).parent
SOURCES = {
    ".".join(path.relative_to(BARFS).with_suffix("").parts): path.read_text()
    for path in BARFS.rglob("*.py")
}


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
        ("def f():\n    from barfs.access import _mmio", "barfs.access._mmio"),
    ],
)
def test_every_form_of_import_is_seen(source, name):
    assert name in imports(source)


def test_every_module_has_its_room():
    assert sorted(ROOMS) == sorted([*SOURCES, "access._mmio"])


@pytest.mark.parametrize("module", SOURCES)
def test_imports_go_downward(module):
    above = {f"barfs.{room}" for room in ROOMS[ROOMS.index(module) :]}
    assert not imports(SOURCES[module]) & above


@pytest.mark.parametrize("name", RESERVED)
def test_nobody_else_imports(name):
    assert {module for module in SOURCES if name in imports(SOURCES[module])} == RESERVED[name]
