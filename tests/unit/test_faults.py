"""Faults in whatever an operation calls: the caller gets an errno, the log says what happened."""

import errno
import inspect
import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pyfuse3
import pytest
import trio

import barfs
from barfs import errors
from barfs.daemon.serve import machine_of, tree_of
from barfs.daemon.settings import Settings
from barfs.fs import Operations
from barfs.journal.records import Journal
from barfs.machine import simulated
from barfs.requests import refusals
from barfs.requests.policy import Policy
from barfs.requests.workers import FIRST_TRY, Workers

SOURCES = str(Path(barfs.__file__).parent)


class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("it has no name")

    __repr__ = __str__


class UnspeakableRefusal(errors.BarfsError):
    def __str__(self):
        raise RuntimeError("it has no name")


def with_errno(number):
    error = errors.BarfsError("one without a kind")
    error.errno = number
    return error


KINDS = [
    error
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, errors.BarfsError)
]
# Makers of exceptions, as each can be raised but once.
FAULTS = [
    *(lambda kind=kind: kind("injected") for kind in KINDS),
    *(lambda kind=kind: kind("injected") for kind in (ValueError, KeyError, MemoryError)),
    *(lambda kind=kind: kind("injected") for kind in (RecursionError, AssertionError)),
    *(lambda n=n: OSError(n, "injected") for n in (errno.ENOSPC, errno.ENOSYS)),
    *(lambda n=n: with_errno(n) for n in (errno.ENOSYS, 0, 512)),
    *(Unspeakable, UnspeakableRefusal),
]

# The boundary itself, and what closes the library's own files.
SPARED = {"_answer", "_errno_of", "setprofile", "FileIO.__exit__", "TextIOWrapper.__exit__"}
# A lock that is held can be given back.
SPARED |= {"lock.__exit__"}
# The interpreter calls it when something goes that a WeakValueDictionary has.
SPARED |= {"remove"}
# These close a descriptor, or see to it that it will be; or stand between that and its opening,
# and don't fail but here.
CLOSING = {
    *("close", "give_up", "__exit__", "__enter__", "callback", "pop_all"),
    *("fstat", "__init__", "perf_counter", "list.append", "Held.append", "has_come"),
}
# The kernel is not to ask these again. pyfuse3 has a method for poll from 3.5 on.
SWITCHED_OFF = {"fsyncdir", "poll"} & set(dir(pyfuse3.Operations))
# These call nothing of barfs's.
NOTHING_TO_FAIL = {"getxattr", "setxattr", "listxattr", "removexattr", *SWITCHED_OFF}
OPERATIONS = sorted(
    name
    for name, base in inspect.getmembers(pyfuse3.Operations, inspect.iscoroutinefunction)
    if getattr(Operations, name) is not base
)


def test_no_operation_is_left_to_pyfuse3():
    """Its own say ENOSYS, which switches the operation off for good."""
    bases = inspect.getmembers(pyfuse3.Operations, inspect.iscoroutinefunction)
    assert sorted(name for name, _ in bases) == OPERATIONS


@pytest.mark.parametrize("operation", sorted(SWITCHED_OFF))
def test_what_the_kernel_need_not_ask_is_switched_off(machine, operation):
    mounted = Mounted(machine, FILES[0][0])
    with pytest.raises(pyfuse3.FUSEError) as caught:
        mounted.do(operation, *mounted.arguments(operation, 4))
    assert caught.value.errno == errno.ENOSYS
    mounted.operations.close()


class Mounted:
    """The operations of a mount without the mount, with a file and a directory open."""

    def __init__(self, machine, file):
        settings = Settings(Path("/nowhere"), **vars(machine))
        made, journal = machine_of(settings), Journal(reads=True)
        tree = tree_of(settings, made, journal)
        policy = Policy(os.getuid(), 0, 0)
        self.operations = Operations(tree, made, journal, policy, Workers())
        self.context = pyfuse3.RequestContext()
        self.inode, self.parent, self.name = pyfuse3.ROOT_INODE, pyfuse3.ROOT_INODE, b""
        for name in file.split("/"):
            self.parent, self.name = self.inode, name.encode()
            self.inode = self.do("lookup", self.inode, self.name, self.context).st_ino
        self.link = self.do("lookup", pyfuse3.ROOT_INODE, b"1af4:1110", self.context).st_ino
        self.file = self.directory = None
        self.open_again()

    def open_again(self):
        """Open what is not open (any more)."""
        if self.file not in self.operations._files._files:
            self.file = self.do("open", self.inode, os.O_RDWR, self.context).fh
        if self.directory not in self.operations._listings:
            self.directory = self.do("opendir", self.parent, self.context)

    def do(self, operation, *arguments):
        return trio.run(getattr(self.operations, operation), *arguments)

    def arguments(self, operation, length):
        """A valid request, from the names that pyfuse3 gives to its parts."""
        of_directory = operation in {"opendir", "readdir", "releasedir", "fsyncdir"}
        values = {
            "inode": self.parent if of_directory else self.inode,
            "parent_inode": self.parent,
            "name": self.name,
            "fh": self.directory if of_directory else self.file,
            "inode_list": [(self.inode, 1)],
            "flags": os.O_RDWR,
            "mode": 0o600,
            "rdev": 0,
            "off": 0,
            "size": length,
            "buf": bytes(length),
            "datasync": False,
            "start_id": 0,
            "token": None,
            "attr": pyfuse3.EntryAttributes(),
            "fields": SimpleNamespace(
                **dict.fromkeys(("update_mode", "update_uid", "update_gid"), False),
                **dict.fromkeys(("update_atime", "update_mtime", "update_size"), True),
            ),
            "poll_handle": None,
            "target": b"x",
            "value": b"x",
            "new_parent_inode": self.parent,
            "new_name": b"x",
            "parent_inode_old": self.parent,
            "parent_inode_new": self.parent,
            "name_old": self.name,
            "name_new": b"x",
            "ctx": self.context,
        }
        if operation == "readlink":
            values["inode"] = self.link
        parameters = inspect.signature(getattr(pyfuse3.Operations, operation)).parameters
        return [values[name] for name in parameters if name != "self"]


class Injector:
    """Counts the calls that barfs's own code makes, and has one of them fail."""

    def __init__(self, make=None, at=None):
        self.make, self.at = make, at
        self.calls = []  # who calls whom: file, line and name of the callee
        self.fired = False

    def __call__(self, frame, event, argument):
        if event == "call":
            caller, callee = frame.f_back, frame.f_code.co_name
        elif event == "c_call":
            caller, callee = frame, argument.__qualname__
        else:
            return
        code = caller.f_code
        # Exceptions of its own, and what the boundary does when it has caught one already.
        if not code.co_filename.startswith(SOURCES) or SPARED & {code.co_name, callee}:
            return
        call = (os.path.relpath(code.co_filename, SOURCES), code.co_name, caller.f_lineno, callee)
        if self.at is None:
            self.calls.append(call)
        elif call == self.at and not self.fired:
            self.fired = True
            raise self.make()

    async def around(self, operation, *arguments):
        sys.setprofile(self)
        try:
            return await operation(*arguments)
        finally:
            sys.setprofile(None)


@pytest.fixture
def machine(tmp_path):
    return simulated.build(tmp_path)


@pytest.fixture(autouse=True)
def replies(monkeypatch):
    """The kernel's buffer for a listing takes all."""
    monkeypatch.setattr(pyfuse3, "readdir_reply", lambda *_: True)


@pytest.fixture(autouse=True)
def each_refusal_is_told(monkeypatch):
    """However many there are."""
    monkeypatch.setattr(refusals, "AT_ONCE", 10**9)
    monkeypatch.setattr(refusals, "OF_ALL_AT_ONCE", 10**9)


# What is open, and how much is asked of it: at once, and in a worker thread.
FILES = [
    *(("pci/0000:00:04.0/bar2", 8), ("pci/0000:00:04.0/bar0", 4)),
    *(("pci/0000:00:03.0/bar1", 3), ("pci/0000:00:03.0/bar0", FIRST_TRY + 1)),
    *(("pci/0000:00:04.0/u32/bar0", 8), ("pci/0000:00:04.0/x32/bar0@4", 3)),
    *(("phys/9f000-9ffff", 4096), ("phys/fea00000-febfffff", 8), ("pci/0000:00:04.0/config", 4)),
]


class Trial:
    """An operation that is carried out again and again, each time with another fault in it."""

    def __init__(self, machine, file, operation, length):
        self.mounted = Mounted(machine, file)
        self.operations = self.mounted.operations
        self.operation, self.length = operation, length

    def places(self):
        """Each place from which it calls something, once."""
        injector = Injector()
        self.run(injector)
        self.descriptors = self.before[2] - self.held()[2]  # that a release closes
        return list(dict.fromkeys(injector.calls))

    def run(self, injector):
        """The error that the kernel is told of, if any."""
        self.mounted.open_again()
        self.before = self.held()
        arguments = self.mounted.arguments(self.operation, self.length)
        try:
            trio.run(injector.around, getattr(self.operations, self.operation), *arguments)
        except pyfuse3.FUSEError as error:
            return error
        return None

    def held(self):
        """Handles of files and directories, and descriptors."""
        handles = len(self.operations._files._files), len(self.operations._listings)
        return *handles, len(os.listdir("/proc/self/fd"))

    def check(self, refused, fault, place, records):
        """What the kernel is told, what the log has, and that nothing is left behind."""
        if refused is None:
            return  # it could do without what failed
        assert refused.errno in errno.errorcode
        assert refused.errno != errno.ENOSYS
        assert self.operation != "forget", "there is nobody to tell"
        if self.operation.endswith("xattr"):
            return
        assert records
        unforeseen = [record for record in records if record.exc_info]
        if not isinstance(fault, (errors.BarfsError, OSError)) and refused.errno == errno.EIO:
            assert any(record.exc_info[1] is fault for record in unforeseen)
        if place[3] in CLOSING or place[0] == "requests/workers.py":
            return
        if self.operation in {"open", "create", "opendir"}:
            assert self.held() == self.before
        if self.operation == "release" and place[0] not in {"fs.py", "requests/files.py"}:
            # All but the one descriptor, at most, that could not be closed.
            files, listings, descriptors = self.before
            assert self.held()[:2] == (files - 1, listings)
            assert self.held()[2] <= descriptors - self.descriptors + 1


def faults_at(number, many):
    """Some of the faults for a place, others for the next."""
    return [FAULTS[(number * many + n) % len(FAULTS)] for n in range(many)]


def try_all(machine, caplog, file, operation, length, many):
    caplog.set_level(logging.INFO, "barfs")
    trial = Trial(machine, file, operation, length)
    fired = 0
    for number, place in enumerate(trial.places()):
        for make in faults_at(number, many):
            caplog.clear()
            fault = make()
            injector = Injector(lambda fault=fault: fault, place)
            try:
                refused = trial.run(injector)
                fired += injector.fired
                trial.check(refused, fault, place, caplog.records)
            except BaseException as error:
                error.add_note(f"{type(fault).__name__} in {place}")
                raise
    trial.operations.close()
    return fired


@pytest.mark.parametrize("operation", OPERATIONS)
def test_whatever_an_operation_calls_may_fail(machine, caplog, operation):
    fired = try_all(machine, caplog, *FILES[0][:1], operation, FILES[0][1], 6)
    assert fired or operation in NOTHING_TO_FAIL


@pytest.mark.parametrize("operation", ["open", "read", "write", "release"])
@pytest.mark.parametrize(("file", "length"), FILES[1:])
def test_whatever_is_behind_a_file_may_fail(machine, caplog, file, operation, length):
    assert try_all(machine, caplog, file, operation, length, 3)
