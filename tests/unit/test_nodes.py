"""Kinds, nodes, branches and inode numbers, whatever is in the tree."""

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barfs import nodes
from barfs.errors import BadRequest, BarfsError, DeviceGone, NoSuchNode, OnlyRead, ReadOnly
from barfs.names import PciAddress, ViewKind
from barfs.nodes import (
    DIRECTORY,
    Attributes,
    Branch,
    Found,
    InodeNumbers,
    Kind,
    Node,
    Share,
    Tree,
    Type,
    View,
)

FIRST = PciAddress(0, 0, 4, 0)

TOP = Kind("top", Type.DIRECTORY)
SHELF = Kind("shelf", Type.DIRECTORY)
BOOK = Kind("book", writable=True)
NOTE = Kind("note")


class Text(View):
    """A view of which nothing is said but how it is read."""

    def read(self, offset, length, allocate=bytearray, /):
        return b"text"[offset : offset + length]


class Top(Branch):
    kinds = (TOP,)

    def path(self, node):
        return "/"

    def attributes(self, node):
        return DIRECTORY


class Shelves(Branch):
    """Two shelves, of which the second is gone."""

    kinds = (SHELF,)
    under = (TOP,)

    def entries(self, directory):
        for name in ("a", "b"):
            yield name, Node(SHELF, name=name)

    def path(self, node):
        return f"shelf {node.name}"

    def attributes(self, node):
        if node.name == "b":
            raise DeviceGone("gone")
        return DIRECTORY


class Books(Branch):
    """A book on each shelf, under any name that is a number, and locked if it is 13."""

    kinds = (BOOK,)
    under = (SHELF,)

    def entries(self, directory):
        yield "1", Node(BOOK, size=1, name=directory.name)

    def find(self, directory, name):
        if name == "dust":
            raise DeviceGone("it has crumbled")
        return Found(Node(BOOK, size=int(name)), Attributes(7)) if name.isdecimal() else None

    def path(self, node):
        return f"book {node.size}"

    def attributes(self, node):
        return Attributes(node.size)

    def why_read_only(self, node):
        return ReadOnly("it is locked", what=self.path(node)) if node.size == 13 else None

    def open(self, node, *, writable):
        return Text()


class Notes(Branch):
    """On a shelf after the books."""

    kinds = (NOTE,)
    under = (SHELF,)

    def entries(self, directory):
        yield "note", Node(NOTE)

    def path(self, node):
        return "note"


@pytest.fixture
def tree():
    return Tree([Top(), Shelves(), Books(), Notes()])


def test_the_order_of_branches_is_that_of_a_listing(tree):
    assert tree.kinds == (TOP, SHELF, BOOK, NOTE)
    assert tree.root == Node(TOP)
    assert [name for name, _ in tree.entries(tree.root)] == ["a", "b"]
    assert [name for name, _ in tree.entries(Node(SHELF))] == ["1", "note"]


def test_a_name_is_that_of_the_first_branch_that_knows_it_and_a_listed_one_by_default(tree):
    shelf = tree.lookup(tree.root, "a")
    assert tree.find(shelf, "42") == (Node(BOOK, size=42), Attributes(7))
    assert tree.lookup(shelf, "note") == Node(NOTE)
    with pytest.raises(NoSuchNode, match=r"^shelf a: there is no 'x\\n'$"):
        tree.lookup(shelf, "x\n")
    with pytest.raises(NoSuchNode, match=r"^book 42 is not a directory$"):
        tree.lookup(Node(BOOK, size=42), "x")
    with pytest.raises(NoSuchNode, match=r"^book 42 is not a directory$"):
        list(tree.entries(Node(BOOK, size=42)))


def test_what_is_gone_is_no_name_in_a_look_up_and_gone_where_it_is_known(tree):
    with pytest.raises(NoSuchNode, match="it has crumbled"):
        tree.lookup(Node(SHELF), "dust")
    assert tree.lookup(tree.root, "b") == Node(SHELF, name="b")
    with pytest.raises(DeviceGone):
        tree.find(tree.root, "b")


def test_whether_it_may_be_written_is_asked_before_it_is_opened(tree, monkeypatch):
    assert tree.is_writable(Node(BOOK, size=1))
    tree.open(Node(BOOK, size=1), writable=True)
    monkeypatch.setattr(Books, "open", None)
    for node, refusal, number, words in (
        (Node(BOOK, size=13), ReadOnly, errno.EROFS, "book 13: it is locked"),
        (Node(NOTE), OnlyRead, errno.EACCES, "note is read-only"),
    ):
        assert not tree.is_writable(node)
        with pytest.raises(refusal, match=words) as caught:
            tree.open(node, writable=True)
        assert caught.value.errno == number


def test_what_is_not_said_of_a_kind_or_a_branch_refuses_or_is_not_there(tree):
    kind = Kind("new")
    assert (kind.type, kind.share) == (Type.FILE, Share.NOBODY)
    assert (kind.writable, kind.steady, kind.grows, kind.recorded) == (False, False, False, True)
    branch = Branch()
    assert (branch.kinds, branch.under, list(branch.entries(Node(TOP)))) == ((), (), [])
    assert branch.find(Node(TOP), "a") is None
    assert list(tree.names_of(FIRST)) == []
    for node in (tree.root, Node(SHELF), Node(NOTE)):
        with pytest.raises(BadRequest, match="is not a file"):
            tree.open(node, writable=False)
        with pytest.raises(BarfsError, match="is not a link"):
            tree.target(node)
    subject = tree.subject(Node(NOTE, FIRST, view=ViewKind.X8))
    assert (subject.path, subject.device, subject.bar) == ("note", "0000:00:04.0", None)
    assert subject.is_text


def test_a_view_is_not_written_and_makes_no_accesses_unless_it_says_so():
    view = Text()
    assert view.read(1, 100) == b"ext"
    with pytest.raises(OnlyRead, match="write of 0x3 bytes at 0x10"):
        view.write(16, b"abc")
    assert (view.width_at(0, 4), view.reach(0, 4, writing=False)) == (None, range(0))
    assert (view.way, view.raw) == ("", None)
    view.close()


def test_a_kind_that_nobody_answers_for_is_no_node(tree):
    for ask in (tree.attributes, tree.path, tree.target, tree.subject, tree.is_writable):
        with pytest.raises(NoSuchNode, match=r"^there is no secret in this mount$"):
            ask(Node(Kind("secret", writable=True)))


def test_a_kind_has_one_branch():
    with pytest.raises(ValueError, match="two branches answer for book"):
        Tree([Top(), Books(), Books()])


# As many as there may ever be; the first is the root's.
KINDS = (TOP, SHELF, BOOK, NOTE, *(Kind(f"kind {number}") for number in range(5, 64)))
NUMBERED = 1 << 31

DOMAINS = st.one_of(st.sampled_from([0, 1, 0xFFFF, 0x10000]), st.integers(0, (1 << 32) - 1))
FUNCTIONS = st.builds(
    PciAddress, DOMAINS, st.integers(0, 255), st.integers(0, 31), st.integers(0, 7)
)
COMPUTED = st.builds(
    Node,
    st.sampled_from(KINDS),
    st.none() | FUNCTIONS,
    st.integers(0, 7),
    st.sampled_from(ViewKind),
)
PARTS = st.builds(
    lambda node, start, size, name: node._replace(start=start, size=size, name=name),
    COMPUTED,
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 1 << 64),
    st.text(max_size=3),
)


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(nodes=st.sets(COMPUTED | PARTS, max_size=20).map(list))
def test_no_two_nodes_share_a_number_and_each_is_found_by_its_own(nodes):
    inodes = InodeNumbers(KINDS)
    numbers = list(map(inodes.number, nodes))
    assert list(map(inodes.number, nodes)) == numbers
    assert list(map(inodes.node, numbers)) == nodes
    assert len(set(numbers)) == len(nodes)
    assert all(0 < number < 1 << 64 for number in numbers)
    for number, node in zip(numbers, nodes, strict=True):
        counted = bool(node.start or node.size or node.name)
        assert (number & NUMBERED != 0) is counted
        if counted or node.address is None or node.address.domain == 0:
            assert number < 1 << 32


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(places=st.sets(st.integers(0, 1 << 62), max_size=20))
def test_numbers_that_are_counted_never_run_out_nor_meet_those_that_are_computed(places):
    numbers = {place: InodeNumbers._nth(place) for place in places}
    assert len(set(numbers.values())) == len(places)
    for place, number in numbers.items():
        assert number & NUMBERED
        assert number < (1 << 32 if place < 1 << 31 else 1 << 64)


def test_more_kinds_than_there_are_numbers_for_are_refused():
    with pytest.raises(ValueError, match="64 kinds"):
        InodeNumbers([*KINDS, Kind("one too many")])


@pytest.mark.parametrize(
    "number",
    [
        *(0, len(KINDS) + 1, 3 << 1),  # no such kind
        1 | len(ViewKind) << 6,  # no such view
        *(1 | 1 << 15, 1 | 1 << 32),  # a function, and not said to have one
        *(NUMBERED, NUMBERED + 5, NUMBERED | 1 << 32),
    ],
)
def test_a_number_that_was_never_given_out_is_no_node(number):
    with pytest.raises(NoSuchNode):
        InodeNumbers(KINDS[:5]).node(number)


def part(start, size, view=ViewKind.RAW):
    return Node(NOTE, view=view, start=start, size=size)


def window(start, size, *, view=ViewKind.RAW):
    return Node(BOOK, FIRST, 0, view, start, size)


@pytest.mark.parametrize("times", [0, 1, 3])
def test_a_range_is_kept_while_the_kernel_knows_it_and_its_number_never_reused(times):
    inodes = InodeNumbers(KINDS)
    number = inodes.number(part(0, 4))
    for _ in range(times):
        inodes.remember(number)
    if times:
        inodes.forget(number, times - 1)
        inodes.settle(number)
        assert inodes.node(number) == part(0, 4)
        inodes.forget(number, 1)
    else:
        inodes.settle(number)
    assert len(inodes) == 0
    with pytest.raises(NoSuchNode):
        inodes.node(number)
    assert number not in {inodes.number(part(0, 4)), inodes.number(part(8, 4))}


def test_a_window_is_kept_while_the_kernel_knows_it_and_is_not_its_bar():
    inodes = InodeNumbers(KINDS)
    bar, whole = Node(BOOK, FIRST), window(0, 0x100)
    numbers = {inodes.number(node) for node in (bar, whole, window(0, 0x100, view=ViewKind.U32))}
    assert len(numbers) == 3
    assert len(inodes) == 2
    number = inodes.number(whole)
    inodes.remember(number)
    inodes.forget(number, 1)
    assert len(inodes) == 1
    with pytest.raises(NoSuchNode):
        inodes.node(number)
    assert inodes.number(whole) not in numbers


def test_names_beyond_some_thousands_are_to_be_forgotten_the_oldest_first(monkeypatch):
    monkeypatch.setattr(nodes, "MOST_NAMED", 3)
    inodes = InodeNumbers(KINDS)
    numbers = [inodes.number(part(0, 4 + n)) for n in range(5)]

    def name(n):
        return 1, b"0+%d" % n

    told = [inodes.remember(numbers[n], name(n)) for n in range(3)]
    assert told == [None] * 3
    assert inodes.remember(numbers[1], name(1)) is None  # once more
    assert inodes.remember(inodes.number(Node(BOOK, FIRST)), (1, b"book")) is None
    assert inodes.remember(numbers[3], name(3)) == name(0)
    assert inodes.remember(numbers[4], name(4)) == name(1)
    # The kernel does so, but for those that are in use.
    inodes.forget(numbers[0], 1)
    assert len(inodes) == 4
    # One that it has forgotten by itself leaves room.
    inodes.forget(numbers[2], 1)
    assert inodes.remember(numbers[0], name(0)) is None
