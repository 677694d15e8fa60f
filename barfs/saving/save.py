"""Saving: which functions, in which order, and what is told of it."""

import os
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Protocol

import barfs
from barfs.diagnosis.causes import Machine, explain
from barfs.diagnosis.checkup import examine, text
from barfs.errors import BarfsError, DeviceGone
from barfs.machine.pciids import PATHS, PciIds
from barfs.machine.power import sleeping
from barfs.machine.recording import ABOUT, FACTS, FINDINGS, FORMAT, REGISTERS
from barfs.names import PciAddress
from barfs.report.listing import inspect_all
from barfs.report.selecting import select
from barfs.saving.facts import facts_of, machine_files
from barfs.saving.reads import Bytes, Reader
from barfs.saving.wishes import Reading, Wish, check_apart, of_map, readings_of
from barfs.saving.writer import Writer

# Data of BARs beyond this wait in a file beside the tar, and not in memory.
_IN_MEMORY: Final = 1 << 22


@dataclass(frozen=True)
class Asked:
    """What somebody wants to have saved."""

    patterns: Sequence[str] = ()
    wishes: Sequence[Wish] = ()
    registers: bool = False
    redact: bool = False


class Told(Protocol):
    """Who is told what."""

    def line(self, text: str) -> None:
        """A line, before anything is touched."""

    def at(self, index: int, count: int) -> None:
        """Which function it is, of how many."""

    def read(self, size: int) -> None:
        """How many bytes of BARs and ROMs have been read."""


@dataclass
class Saved:
    """What became of it. `refused` are the parts that were asked for and not read, and why."""

    size: int = 0  # of the tar in bytes
    functions: int = 0
    read: int = 0  # bytes of BARs and ROMs
    refused: list[str] = field(default_factory=list)


@dataclass
class _Plan:
    """The functions to be saved, and what is read of each."""

    own: list[PciAddress]  # without bridges that are only above them
    addresses: list[PciAddress]
    readings: dict[PciAddress, list[Reading]] = field(default_factory=dict)
    asleep: dict[PciAddress, str] = field(default_factory=dict)  # with registers that are not read


def _plan(machine: Machine, asked: Asked) -> _Plan:
    """What is to be saved. Reads no config space and no BAR.

    Raises NoSuchNode, NoSuchAddress, BadRequest and DeviceGone.
    """
    pci = machine.pci
    chosen = pci.addresses()
    wanted: list[Reading] = []
    if asked.patterns or asked.wishes:
        functions = list(inspect_all(pci, PciIds(PATHS)))
        if asked.patterns:
            chosen = [one.address for word in asked.patterns for one in select(functions, word)]
        for wish in asked.wishes:
            named = [one.address for one in select(functions, wish.device)]
            wanted += readings_of(pci, wish, named)
    check_apart(wanted)
    own = sorted({*chosen, *(one.address for one in wanted)})
    # What a BAR answers depends on the bridges above it.
    above = [bridge for one in own for bridge in pci.lineage(one).bridges if pci.exists(bridge)]
    plan = _Plan(own, sorted({*own, *above}))
    for one in wanted:
        plan.readings.setdefault(one.address, []).append(one)
    return plan


def _plan_registers(machine: Machine, plan: _Plan) -> None:
    """Add the registers of maps. Reads config space of virtio devices, and no BAR."""
    for address in plan.own:
        taken: dict[str, list[range]] = {}
        for one in plan.readings.get(address, []):
            taken.setdefault(one.part, []).append(one.span)
        try:
            if machine.maps.found(address) is None:
                continue
            asleep = sleeping(machine.pci, address)
            more = [] if asleep else list(of_map(address, machine.maps.top(address), taken))
        except DeviceGone:
            continue  # that is noted when it is saved
        if asleep is not None:
            plan.asleep[address] = asleep
        if more:
            plan.readings.setdefault(address, []).extend(more)


def save(machine: Machine, path: Path, asked: Asked, told: Told) -> Saved:
    """Save a machine as a tar. Raises OSError, and an error of barfs for what can't be meant.

    What is refused is left out, and the tar says why.
    """
    plan = _plan(machine, asked)
    many = len(plan.addresses)
    told.line(f"reads sysfs, /proc, and the config space of {_unless_asleep(many)}")
    if asked.registers:
        _plan_registers(machine, plan)
    readings = [one for several in plan.readings.values() for one in several]
    for one in readings:
        told.line(f"reads {one}")
    if not readings:
        told.line("reads no BAR")
    with Writer(path) as writer:
        saving = _Saving(machine, writer, told, redact=asked.redact)
        for name, data in machine_files(machine.source, redact=asked.redact):
            writer.add(name, data)
        writer.add(FINDINGS, text(examine(machine, plan.addresses)).encode())
        for index, address in enumerate(plan.addresses):
            told.at(index, many)
            saving.function(address, plan.readings.get(address, ()), plan.asleep.get(address))
        told.at(many, many)
        done = saving.done
        writer.add_json(ABOUT, _about(machine, asked, done))
        done.size = writer.finish()
    return done


def _unless_asleep(count: int) -> str:
    return "1 function unless it sleeps" if count == 1 else f"{count} functions unless they sleep"


class _Saving:
    """Saves functions, one after the other."""

    def __init__(self, machine: Machine, writer: Writer, told: Told, *, redact: bool) -> None:
        self.done = Saved()
        self._machine = machine
        self._writer = writer
        self._told = told
        self._redact = redact
        self._reader = Reader(machine, self._count)

    def function(
        self, address: PciAddress, readings: Iterable[Reading], asleep: str | None
    ) -> None:
        """Add the facts of a function, and what is read of it. One that has gone is noted.

        `asleep` says how one sleeps whose registers are wanted.
        """
        try:
            facts = facts_of(self._machine.pci, address, redact=self._redact)
        except DeviceGone as error:
            self.done.refused.append(str(error))
            return
        self.done.functions += 1
        content = facts.content
        if asleep is not None:
            content["refused"][REGISTERS] = f"the device sleeps ({asleep})"
        directory = f"pci/{address}"
        if facts.config_ranges:
            self._writer.add(f"{directory}/config", facts.config)
            content["read"]["config"] = _listed(facts.config_ranges)
        by_part: dict[str, list[Reading]] = {}
        for reading in readings:
            by_part.setdefault(reading.part, []).append(reading)
        for part, several in by_part.items():
            self._part(f"{directory}/{part}", part, several, content)
        self._writer.add_json(f"{directory}/{FACTS}", content)

    def _part(
        self, name: str, part: str, readings: Iterable[Reading], content: dict[str, Any]
    ) -> None:
        """Read a BAR or the ROM into a file, and add it with what it has in ascending order."""
        with tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=str(self._writer.path.parent)) as data:
            found: list[tuple[Bytes, int]] = []
            for reading in readings:
                at = data.tell()
                try:
                    for one in self._reader.read(reading, data):
                        found.append((one, at))
                        at += one.length
                except BarfsError as error:
                    why = explain(error, self._machine)
                    content["refused"][part] = why
                    self.done.refused.append(why)
            if not found:
                return
            found.sort()
            content["read"][part] = _listed([one for one, _ in found])
            size = sum(one.length for one, _ in found)
            self._writer.add_from(name, _InOrder(data, found), size)

    def _count(self, read: int) -> None:
        self.done.read += read
        self._told.read(self.done.read)


class _InOrder:
    """Reads pieces of a file in another order than they have in it."""

    def __init__(self, file: IO[bytes], pieces: Sequence[tuple[Bytes, int]]) -> None:
        self._file = file
        self._left = [(at, one.length) for one, at in pieces][::-1]

    def read(self, length: int = -1, /) -> bytes:
        """Up to `length` bytes, none at the end."""
        found = bytearray()
        while self._left and (length < 0 or len(found) < length):
            at, size = self._left.pop()
            wanted = size if length < 0 else min(size, length - len(found))
            self._file.seek(at)
            found += self._file.read(wanted)
            if wanted < size:
                self._left.append((at + wanted, size - wanted))
        return bytes(found)


def _listed(ranges: Sequence[Bytes]) -> list[list[int | None]]:
    return [list(one) for one in ranges]


def _about(machine: Machine, asked: Asked, done: Saved) -> dict[str, Any]:
    source = machine.source

    def said(name: str) -> str:
        return (source.text(source.proc / name) or "").strip() or "unknown"

    return {
        "format": FORMAT,
        "barfs": barfs.__version__,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": said("sys/kernel/hostname"),
        "kernel": said("sys/kernel/osrelease"),
        "root": os.geteuid() == 0,
        "redacted": asked.redact,
        "patterns": list(asked.patterns),
        "read": [one.text for one in asked.wishes],
        "registers": asked.registers,
        "functions": done.functions,
        "refused": done.refused,
    }
