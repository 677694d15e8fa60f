"""Names that the kernel may keep: for how long, and what becomes of them when something changes."""

import types

import pytest

from barfs.machine.changes import Changes
from barfs.names import PciAddress
from barfs.nodes import Kind, Lasting, Node, Type
from barfs.requests import kept
from barfs.requests.kept import ATTRIBUTES, LIFETIME, Kept, attributes_lifetime

ADDRESS = PciAddress(0, 0, 4, 0)
ROOT = Node(Kind("root", Type.DIRECTORY, steady=True))
FUNCTION = Node(Kind("function", Type.DIRECTORY, lasting=Lasting.WITH_FUNCTION), ADDRESS)
FILE = Node(Kind("bar", lasting=Lasting.WITH_FUNCTION), ADDRESS)
REGISTER = Node(Kind("register", lasting=Lasting.WITH_MAP), ADDRESS, name="CTRL")
LINK = Node(Kind("link", Type.LINK, lasting=Lasting.WITH_FUNCTION), ADDRESS)
OTHER = Node(Kind("range"), start=0x1000, size=0x1000)


class Source:
    """Tells of functions, and watches directories, as the test wants it."""

    def __init__(self):
        self.told = True
        self.watched = True
        self.changes = types.SimpleNamespace(watches=lambda _: self.watched)

    def tells_of(self, address):
        assert address == ADDRESS
        return self.told


@pytest.fixture
def source():
    return Source()


@pytest.fixture
def clock(monkeypatch):
    now = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(kept, "monotonic", lambda: now.now)
    return now


@pytest.fixture
def dropped():
    return []


@pytest.fixture
def names(source, clock, dropped, tmp_path):
    return Kept(source, [tmp_path], lambda directory, name: dropped.append((directory, name)))


def test_only_what_is_told_of_is_kept(names, source):
    assert names.lifetime(ROOT, "function", FUNCTION) == LIFETIME
    assert names.lifetime(FUNCTION, "bar0", FILE) == LIFETIME
    assert names.lifetime(FUNCTION, "CTRL", REGISTER) == LIFETIME
    assert names.lifetime(ROOT, "1000+1000", OTHER) == 0
    assert names.lifetime(ROOT, "root", ROOT) == LIFETIME
    source.watched = False
    assert names.lifetime(FUNCTION, "CTRL", REGISTER) == 0
    assert names.lifetime(FUNCTION, "bar0", FILE) == LIFETIME
    source.told = False
    assert names.lifetime(FUNCTION, "bar0", FILE) == 0


def test_a_change_drops_what_may_be_kept_still(names, clock, dropped):
    names.lifetime(ROOT, "early", FUNCTION)
    clock.now += 5 * LIFETIME
    names.lifetime(ROOT, "before", FUNCTION)
    clock.now += 1.3 * LIFETIME
    names.lifetime(ROOT, "now", FUNCTION)
    names.lifetime(FUNCTION, "bar0", FILE)
    names.changed()
    assert sorted(dropped) == [(ROOT, "before"), (ROOT, "now")], "names below go with them"
    names.changed()
    assert len(dropped) == 2


def test_a_thread_that_met_a_name_that_leads_nowhere_is_sent_back(names):
    assert not names.is_doubtful(FILE, 1), "the kernel was not told of it"
    names.lifetime(FUNCTION, "bar0", FILE)
    assert names.is_doubtful(FILE, 1)
    assert names.is_doubtful(FILE, 2), "another one has met it, too"
    assert not names.is_doubtful(FILE, 1), "it has not come by a name"


def test_nobody_is_sent_back_to_names_that_were_looked_up_since(names):
    """The kernel looks all names of a path up once, and gives its program the second ESTALE."""
    names.lifetime(ROOT, "link", LINK)
    names.lifetime(FUNCTION, "bar0", FILE)
    names.changed()
    assert names.is_stale(LINK, 1)
    names.lifetime(ROOT, "link", LINK)
    names.changed()
    assert not names.is_stale(LINK, 1)
    names.lifetime(FUNCTION, "bar0", FILE)
    assert not names.is_doubtful(FILE, 1), "it has gone meanwhile"
    assert names.is_stale(LINK, 1), "this is another way"
    names.lifetime(ROOT, "link", LINK)
    names.lifetime(FUNCTION, "bar0", FILE)
    names.has_come(1)
    assert names.is_doubtful(FILE, 1), "so is this"


def test_only_who_comes_through_may_be_sent_back_again(names):
    names.lifetime(FUNCTION, "bar0", FILE)
    assert names.is_doubtful(FILE, 1)
    names.lifetime(FUNCTION, "bar0", FILE)
    names.has_come(2)
    assert not names.is_doubtful(FILE, 1)
    names.has_come(1)
    assert names.is_doubtful(FILE, 1)


def test_threads_that_never_come_through_take_no_memory(names, monkeypatch):
    monkeypatch.setattr(kept, "MOST", 3)
    names.lifetime(FUNCTION, "bar0", FILE)
    assert all(names.is_doubtful(FILE, thread) for thread in range(100))


def test_what_was_told_before_a_change_is_stale_until_it_is_looked_up(names):
    names.lifetime(ROOT, "link", FUNCTION)
    assert not names.is_stale(FUNCTION, 1)
    names.changed()
    assert names.is_stale(FUNCTION, 1)
    assert names.is_stale(FUNCTION, 2)
    names.lifetime(ROOT, "link", FUNCTION)
    assert not names.is_stale(FUNCTION, 3)


def test_what_the_kernel_has_not_kept_so_long_is_forgotten(names, clock):
    names.lifetime(FUNCTION, "bar0", FILE)
    clock.now += 10 * LIFETIME
    names.lifetime(ROOT, "function", FUNCTION)
    assert not names.is_doubtful(FILE, 1)


def test_so_many_are_kept_at_a_time(names, monkeypatch):
    monkeypatch.setattr(kept, "MOST", 3)
    nodes = [FILE._replace(start=start, size=4) for start in range(0, 20, 4)]
    assert [names.lifetime(FUNCTION, "a", node) for node in nodes] == [*[LIFETIME] * 3, 0, 0]


def test_attributes_of_files_alone_are_kept_for_a_tick():
    assert attributes_lifetime(ROOT.kind) == 1
    assert attributes_lifetime(FILE.kind) == attributes_lifetime(OTHER.kind) == ATTRIBUTES
    assert attributes_lifetime(FUNCTION.kind) == 0
    assert attributes_lifetime(Kind("log", grows=True)) == 0
    assert attributes_lifetime(Kind("link", Type.LINK)) == 0


def test_nothing_is_watched_before_anybody_listens(tmp_path):
    assert not Changes().watches(tmp_path)
    assert not Changes().watches(tmp_path)
