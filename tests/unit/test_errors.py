"""Errors: facts as fields, and the sentence that is made of them."""

import errno
import inspect
import os
import pickle

import pytest

from barfs import errors
from barfs.errors import (
    Access,
    BarfsError,
    DeviceGone,
    FunctionPart,
    KernelRefused,
    Mmap,
    NoSuchNode,
    Opening,
    PhysicalSpan,
    Request,
    Setting,
)
from barfs.names import AddressRange, BarName, PciAddress

ADDRESS = PciAddress(0, 0, 4, 0)
KINDS = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, BarfsError)
]


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({}, "it is off"),
        ({"what": FunctionPart(ADDRESS)}, "0000:00:04.0: it is off"),
        ({"what": FunctionPart(ADDRESS, "config")}, "0000:00:04.0 config: it is off"),
        ({"what": FunctionPart(ADDRESS, BarName(2))}, "0000:00:04.0 bar2: it is off"),
        (
            {"what": FunctionPart(ADDRESS, BarName(2, AddressRange.of(0x40, 0x10)))},
            "0000:00:04.0 bar2@40+10: it is off",
        ),
        ({"what": PhysicalSpan(0xFEA00000, 0x100)}, "phys 0xfea00000+0x100: it is off"),
        ({"what": "pci/0000:00:04.0/bar0"}, "pci/0000:00:04.0/bar0: it is off"),
        ({"what": "it", "during": Opening("/dev/mem")}, "it: /dev/mem: it is off"),
        (
            {"what": "it", "during": Mmap(0x1000, 0x20)},
            "it: mapping 0x20 bytes at 0x1000: it is off",
        ),
        ({"during": Access("read", 0x10)}, "read at 0x10: it is off"),
        ({"during": Access("read", 0x10, 0x20)}, "read of 0x20 bytes at 0x10: it is off"),
        ({"during": Access("write", 0x10, width=8)}, "write of 8 bytes at 0x10: it is off"),
        ({"what": "it", "during": Request("read", 8, 0x20)}, "it: read of 0x20 at 0x8: it is off"),
        (
            {"what": "it", "during": Setting("/s/enable", "1")},
            "it: writing 1 to /s/enable: it is off",
        ),
    ],
)
def test_the_sentence_is_made_of_the_facts(facts, text):
    for kind in KINDS:
        assert str(kind("it is off", **facts)) == text


def test_a_sentence_may_go_on_from_what_was_done():
    during = Access("write", 4, 2)
    assert str(BarfsError(" faulted", during=during)) == "write of 0x2 bytes at 0x4 faulted"
    assert (
        str(BarfsError(", but", what="it", during=during)) == "it: write of 0x2 bytes at 0x4, but"
    )


def test_the_systems_words_do_where_there_is_no_sentence():
    system = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    error = BarfsError(what="it", system=system)
    assert (str(error), error.errno) == ("it: Cannot allocate memory", errno.ENOMEM)
    error = KernelRefused("it may not", what="it", system=system)
    assert (str(error), error.errno) == ("it: it may not", errno.EPERM)
    assert BarfsError(system=OSError()).errno == errno.EIO


def test_facts_can_be_added_later():
    error = BarfsError("no", during=Access("read", 0))
    error.what = "log"
    assert str(error) == "log: read at 0x0: no"


def test_the_same_facts_as_another_kind_of_error():
    error = DeviceGone("gone", what=FunctionPart(ADDRESS), during=Mmap(0, 4), system=OSError(19))
    other = error.restated(NoSuchNode)
    assert type(other) is NoSuchNode
    assert other.errno == errno.ENOENT
    assert vars(other) == vars(error)


def test_an_error_survives_a_pipe_with_its_facts():
    error = BarfsError("no", what=PhysicalSpan(1, 2), system=OSError(errno.ENOMEM, "full"))
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.what, again.errno) == (str(error), error.what, errno.ENOMEM)
