"""What is measured through the daemons, in the order of the table."""

import contextlib
import dataclasses
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Final

from bench import machines
from bench.daemons import time_start
from bench.lab import APART, BARFS, COMPARED, ONE_CPU, REFERENCE, STOCK, UNCOPIED, UNPINNED, Lab
from bench.stats import Sample

# Units of samples.
NS: Final = "ns"
PERCENT: Final = "%"
BYTES: Final = "bytes"

MIB: Final = 1 << 20

OPEN_FILES: Final = 1000


@dataclasses.dataclass(frozen=True)
class Target:
    """What `contender` is to reach: a ratio to `base`, or if there is none, a value."""

    limit: float
    contender: str = BARFS
    base: str | None = REFERENCE


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing, done by several contenders in turn. Measuring raises BenchError.

    `base` is the contender that the others are compared with.
    """

    section: str
    name: str
    contenders: Mapping[str, Callable[[], Sample]]
    base: str = REFERENCE
    unit: str = NS
    target: Target | None = None
    most_rounds: int | None = None
    quick: bool = False  # whether it is in a quick run, too

    @property
    def id(self) -> str:
        """What --only looks at."""
        return f"{self.section}: {self.name}"

    def about(self) -> dict[str, Any]:
        """What is said of it in the JSON, whatever comes out."""
        target = self.target and dataclasses.asdict(self.target)
        names = ("section", "name", "unit", "base")
        return {**{name: getattr(self, name) for name in names}, "target": target}


@contextlib.contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """So many processes that do nothing but take time, during a block."""
    with contextlib.ExitStack() as stack:
        for _ in range(number):
            process = stack.enter_context(subprocess.Popen(["sh", "-c", "while :; do :; done"]))
            stack.callback(process.kill)
        yield


@dataclasses.dataclass(frozen=True)
class Request:
    """A request of `length` bytes to a BAR of the subject, over and over."""

    verb: str
    length: int
    bar: int
    at_random: bool = False
    placement: str = ONE_CPU
    clients: int = 1
    view: str = ""
    busy: bool = False  # whether another process keeps each CPU busy

    @property
    def name(self) -> str:
        """As shown."""
        length = f"{self.length // 1024} KiB" if self.length < MIB else f"{self.length // MIB} MiB"
        what = f"{self.length}-byte" if self.length < 1024 else length
        bar = {machines.REGISTERS: "registers", machines.MEMORY: "memory", machines.HUGE: "64 GiB"}
        words = [f"{what} {self.verb}", bar[self.bar]]
        if self.length < MIB:
            words.append("at random" if self.at_random else "in order")
        if self.clients > 1:
            words.append(f"{self.clients} clients")
        busy = ["beside a busy process on each CPU"] if self.busy else []
        return ", ".join([*words, self.placement, *busy])

    def contenders(
        self, lab: Lab, labels: Iterable[str] = COMPARED
    ) -> dict[str, Callable[[], Sample]]:
        """The daemons of those names."""
        return {label: partial(self.measure, lab, label) for label in labels}

    def measure(self, lab: Lab, label: str) -> Sample:
        """Measure one daemon."""
        sizes = {
            machines.REGISTERS: machines.REGISTERS_SIZE,
            machines.MEMORY: machines.MEMORY_SIZE,
            machines.HUGE: machines.HUGE_SIZE,
        }
        options = ["-l", self.length, "-s", sizes[self.bar], *(["-r"] if self.at_random else [])]
        daemon, path = lab.daemon(16, label), lab.bar(label, self.bar, self.view)
        with busy_processes(len(lab.cpus) if self.busy else 0):
            return lab.through(
                daemon,
                *options,
                self.verb,
                path,
                placement=self.placement,
                clients=self.clients,
            )


_SMALL_TARGETS: Final = {
    Request("read", 4, machines.REGISTERS, at_random=True): 2.0,
    Request("write", 4, machines.REGISTERS, at_random=True): 2.0,
    Request("read", 4, machines.REGISTERS, at_random=True, placement=UNPINNED): 0.5,
    Request("read", MIB, machines.MEMORY): 1.05,
    Request("read", MIB, machines.MEMORY, placement=UNPINNED): 1.05,
    Request("write", MIB, machines.MEMORY): 1.3,
    Request("write", MIB, machines.MEMORY, placement=UNPINNED): 1.3,
}


def _request_case(lab: Lab, section: str, request: Request) -> Case:
    limit = _SMALL_TARGETS.get(request)
    return Case(
        section,
        request.name,
        request.contenders(lab),
        target=Target(limit) if limit else None,
        quick=limit is not None,
    )


def small_requests(lab: Lab) -> Iterator[Case]:
    """Reads and writes of a few bytes and of a page."""
    for bar in (machines.REGISTERS, machines.MEMORY):
        for length in (4, 16, 4096):
            for verb in ("read", "write"):
                for at_random in (True, False):
                    request = Request(verb, length, bar, at_random=at_random)
                    yield _request_case(lab, "small requests", request)


def placed_requests(lab: Lab) -> Iterator[Case]:
    """The same 4 bytes with other CPUs and other clients."""
    wanted = ((APART, 1), (UNPINNED, 1), (ONE_CPU, 4), (UNPINNED, 4))
    for placement, clients in wanted:
        for verb in ("read", "write"):
            if placement in lab.placements():
                request = Request(
                    verb,
                    4,
                    machines.REGISTERS,
                    at_random=True,
                    placement=placement,
                    clients=clients,
                )
                yield _request_case(lab, "CPUs and clients", request)
    for clients in (1, 4):
        request = Request("read", 4, machines.REGISTERS, at_random=True, placement=UNPINNED)
        request = dataclasses.replace(request, clients=clients, busy=True)
        yield _request_case(lab, "CPUs and clients", request)


def large_requests(lab: Lab) -> Iterator[Case]:
    """1 MiB at a time."""
    section = "large requests"
    for placement in (ONE_CPU, UNPINNED):
        for verb in ("read", "write"):
            request = Request(verb, MIB, machines.MEMORY, placement=placement)
            yield _request_case(lab, section, request)
    for verb in ("read", "write"):
        yield _request_case(lab, section, Request(verb, MIB, machines.REGISTERS))
    for verb in ("read", "write"):
        request = Request(verb, MIB, machines.MEMORY, placement=UNPINNED, clients=4)
        yield _request_case(lab, section, request)
    yield _request_case(lab, section, Request("read", 4096, machines.HUGE, at_random=True))


def hexdump(lab: Lab) -> Iterator[Case]:
    """What one sees most of."""

    def measure(placement: str, label: str) -> Sample:
        path = lab.bar(label, machines.REGISTERS)
        daemon = lab.daemon(16, label)
        return lab.through(daemon, "run", "hd", path, placement=placement, warm=False)

    for placement in (ONE_CPU, UNPINNED):
        yield Case(
            "large requests",
            f"hd of 1 MiB of registers, {placement}",
            {label: partial(measure, placement, label) for label in COMPARED},
            target=Target(1e9, base=None),
            most_rounds=3,
        )


def compared_otherwise(lab: Lab) -> Iterator[Case]:
    """1 MiB reads beside something else than the reference."""
    raw = Request("read", MIB, machines.MEMORY)
    view = dataclasses.replace(raw, view="u32")
    yield Case(
        "1 MiB read of memory, raw and in u32/",
        "one CPU",
        {"raw": partial(raw.measure, lab, BARFS), "u32 view": partial(view.measure, lab, BARFS)},
        base="raw",
        target=Target(1.5, "u32 view", "raw"),
        quick=True,
    )
    labels = (UNCOPIED, REFERENCE, BARFS)
    yield Case(
        "1 MiB read, and a reference that can't read a device",
        "one CPU",
        raw.contenders(lab, labels),
        base=UNCOPIED,
    )


def names(lab: Lab) -> Iterator[Case]:
    """Opening, looking up and listing."""

    def measure(functions: int, kind: str, path: str, placement: str, label: str) -> Sample:
        daemon = lab.daemon(functions, label)
        return lab.through(daemon, kind, daemon.path / path, placement=placement)

    def case(functions: int, kind: str, path: str, words: str, placement: str = ONE_CPU) -> Case:
        contenders = {
            label: partial(measure, functions, kind, path, placement, label) for label in COMPARED
        }
        opens = kind == "open" and functions == 16
        return Case(
            "names",
            f"{words}, {functions} functions, {placement}",
            contenders,
            target=Target(2.5) if opens else None,
            most_rounds=3 if functions > 16 and kind.endswith("list") else None,
            quick=placement == ONE_CPU and functions < 10_000,
        )

    bar = f"pci/{machines.SUBJECT}/bar{machines.REGISTERS}"
    yield case(16, "open", bar, "open, read, close", UNPINNED)
    yield case(16, "stat", bar, "stat", UNPINNED)
    for functions in (16, 1000, 10_000):
        last = machines.address_of_last(functions)
        yield case(functions, "open", f"pci/{last}/bar0", "open, read, close")
        yield case(functions, "stat", f"pci/{last}/bar0", "stat")
        yield case(functions, "stat", machines.link_to_last(functions), "stat of a link")
        yield case(functions, "list", "", "ls")
        yield case(functions, "longlist", "", "ls -l")


def scale(lab: Lab) -> Iterator[Case]:
    """Many open files, and ranges that are larger than any memory."""
    request = Request("read", 4, machines.REGISTERS, at_random=True)

    def measure(label: str, *, memory: bool) -> Sample:
        path = lab.bar(label, machines.REGISTERS)
        with contextlib.ExitStack() as stack:
            for _ in range(OPEN_FILES):
                stack.callback(os.close, os.open(path, os.O_RDONLY))
            if memory:
                return Sample(lab.daemon(16, label).resident("RssAnon"))
            return request.measure(lab, label)

    def vast(name: str, label: str) -> Sample:
        daemon = lab.daemon(16, label)
        return lab.through(daemon, "open", daemon.path / "phys" / name, placement=ONE_CPU)

    section = "scale"
    yield Case(
        section,
        f"{request.name}, {OPEN_FILES} files open",
        {label: partial(measure, label, memory=False) for label in COMPARED},
        most_rounds=3,
    )
    for name in (machines.VAST, machines.IN_VAST):
        yield Case(
            section,
            f"open, read, close of phys/{name}, {ONE_CPU}",
            {label: partial(vast, name, label) for label in (BARFS, STOCK)},
            base=BARFS,
        )
    yield Case(
        section,
        f"own memory (RssAnon), {OPEN_FILES} files open",
        {label: partial(measure, label, memory=True) for label in COMPARED},
        unit=BYTES,
        most_rounds=1,
    )


def at_rest(lab: Lab) -> Iterator[Case]:
    """What a daemon takes when nobody asks for anything, and to start."""

    def idle(label: str) -> Sample:
        daemon = lab.daemon(16, label)
        started, before = time.monotonic_ns(), daemon.cpu_ns()
        time.sleep(lab.idle_s)
        used = daemon.cpu_ns() - before
        return Sample(100 * used / (time.monotonic_ns() - started))

    def resident(functions: int, kind: str, label: str) -> Sample:
        daemon = lab.daemon(functions, label)
        if functions > 16:  # once listed
            lab.run(lab.client_command("list", daemon.path, warm=False))
        return Sample(daemon.resident(kind))

    section = "at rest"
    yield Case(
        section,
        "idle CPU",
        {label: partial(idle, label) for label in COMPARED},
        unit=PERCENT,
        target=Target(0.05, base=None),
        most_rounds=2,
        quick=True,
    )
    for functions, kind, words in (
        (16, "VmRSS", "resident memory (VmRSS) after all of the above"),
        (16, "RssAnon", "own memory (RssAnon) after all of the above"),
        (10_000, "RssAnon", "own memory (RssAnon), 10000 functions listed"),
    ):
        yield Case(
            section,
            words,
            {label: partial(resident, functions, kind, label) for label in COMPARED},
            unit=BYTES,
            most_rounds=1,
            quick=functions == 16,
        )


def start(lab: Lab) -> Iterator[Case]:
    """From the command to a mount that answers."""

    def mount(functions: int, label: str) -> Sample:
        return Sample(time_start(lab.command(functions, label), lab.directory / "start"))

    for functions in (16, 10_000):
        yield Case(
            "at rest",
            f"mount, {functions} functions",
            {label: partial(mount, functions, label) for label in COMPARED},
            target=Target(0.5e9 if functions == 16 else 1e9, base=None),
            most_rounds=5,
            quick=functions == 16,
        )


def through_daemons(lab: Lab) -> Iterator[Case]:
    """All of them."""
    for group in (
        small_requests,
        placed_requests,
        large_requests,
        hexdump,
        compared_otherwise,
        names,
        scale,
        at_rest,
        start,
    ):
        yield from group(lab)
