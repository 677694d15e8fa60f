"""How the survey of tools judges, what it writes into its page, and how it drives a terminal."""

import os
import time

import pytest

from survey import page, verdicts
from survey.lab import Result
from survey.terminal import Terminal
from survey.tools import TOOLS
from survey.verdicts import Request, changed, described, shown

SIZE = 64
WANTED = range(8, 12)
BYTE = range(9, 10)
ALL = [Request(0, SIZE)]
PAIR = [Request(0, SIZE // 2), Request(SIZE // 2, SIZE // 2)]


@pytest.mark.parametrize(
    ("reads", "verdict"),
    [
        ([(8, 4)], verdicts.EXACT),
        ([(8, 2), (10, 2)], verdicts.PIECES),
        ([(8, 4), (8, 4)], verdicts.PIECES),
        ([(8, 5)], verdicts.READS_AROUND),
        ([(7, 1), (8, 4)], verdicts.READS_AROUND),
        ([(8, 3)], verdicts.READS_AROUND),
        (ALL, verdicts.READS_ALL),
        (PAIR, verdicts.READS_ALL),
        (ALL + [(8, 4)], verdicts.READS_ALL),
        ([(0, SIZE - 1)], verdicts.READS_AROUND),
        ([], verdicts.REFUSED),
    ],
)
def test_the_verdict_on_showing(reads, verdict):
    assert shown([Request(*one) for one in reads], WANTED, SIZE) == verdict


@pytest.mark.parametrize(
    ("reads", "writes", "verdict"),
    [
        ([], [(9, 1)], verdicts.EXACT),
        ([], [(9, 1), (9, 1)], verdicts.PIECES),
        ([(8, 1)], [(9, 1)], verdicts.READS_AROUND),
        ([(9, 1)], [(9, 1)], verdicts.READS_AROUND),
        (ALL, [(9, 1)], verdicts.READS_ALL),
        ([], [(8, 4)], verdicts.WRITES_AROUND),
        (ALL, [(8, 4)], verdicts.WRITES_AROUND),
        ([], ALL, verdicts.WRITES_ALL),
        (ALL, PAIR, verdicts.WRITES_ALL),
    ],
)
def test_the_verdict_on_changing(reads, writes, verdict):
    reads, writes = ([Request(*one) for one in some] for some in (reads, writes))
    assert changed(reads, writes, BYTE, SIZE, done=True) == verdict
    assert changed(reads, writes, BYTE, SIZE, done=False) == verdicts.REFUSED


@pytest.mark.parametrize(
    ("requests", "text"),
    [
        ([], "nothing"),
        ([(9, 1)], "1 byte at 9"),
        ([(8, 4)], "4 bytes at 8"),
        ([(0, 2048)], "2 KiB at 0"),
        ([(8, 1), (9, 1), (10, 1)], "3 bytes at 8, 1 byte at a time"),
        ([(0, 4), (4, 4), (8, 2)], "10 bytes at 0, 4 bytes at a time"),
        ([(0, 3), (3, 4)], "7 bytes at 0, in 2 requests"),
        ([(0, 4), (4, 1), (5, 4)], "9 bytes at 0, in 3 requests"),
        ([(8, 4), (8, 4), (0, 1)], "2 times 4 bytes at 8; 1 byte at 0"),
        ([(0, 1), (2, 1), (4, 1)], "1 byte at 0; 1 byte at 2; 1 byte at 4"),
        ([(0, 1), (2, 1), (4, 1), (6, 1)], "1 byte at 0; 1 byte at 2; 2 more"),
    ],
)
def test_requests_in_words(requests, text):
    assert described([Request(*one) for one in requests]) == text


def a_page(*lines):
    begin, end = page.marks("show")
    return "\n".join(["before", begin.strip(), *lines, end + "after\n"])


def test_fresh_rows_take_the_place_of_old_ones_in_the_tools_order():
    first, second, third = TOOLS["show"][:3]
    old = {tool.name: [tool.name, "old", "exact", "1"] for tool in (second, third)}
    old["gone"] = ["gone", "old", "exact", "1"]
    head = [page.line(page.HEADS["show"]), page.line(["---"] * 4)]
    text = a_page(*head, *map(page.line, old.values()))
    assert page.rows(text, "show") == old
    result = Result((Request(8, 4),), (), "exact", "")
    fresh = {tool.name: page.row("show", tool, result) for tool in (first, third)}
    new = page.renewed(text, "show", fresh)
    assert list(page.rows(new, "show")) == [first.name, second.name, third.name]
    assert page.rows(new, "show")[second.name] == old[second.name]
    assert page.rows(new, "show")[third.name][1] == "4 bytes at 8"
    assert page.renewed(new, "show", {}) == new
    assert new.startswith("before\n")
    assert new.endswith("after\n")


def test_a_cell_may_have_a_bar():
    row = ["`a | b`", "x", "exact", "1"]
    assert page.line(row) == r"| `a \| b` | x | exact | 1 |"
    assert page.rows(a_page("head", "---", page.line(row)), "show") == {"`a | b`": row}


@pytest.mark.parametrize("text", ["", a_page() * 2])
def test_a_page_without_one_place_for_a_table(text):
    with pytest.raises(ValueError, match="no one place between"):
        page.rows(text, "show")


def test_the_kernel_of_a_page():
    assert page.measured_on("a\n\nMeasured on Linux 6.12.\n") == "6.12"
    assert page.kernel()[0].isdigit()
    for text in ("", "Measured on Linux 6.12.\n" * 2):
        with pytest.raises(ValueError, match="on which kernel"):
            page.measured_on(text)


def test_versions():
    assert page.version("no-such-package") is None
    assert page.version("coreutils")[0].isdigit()


@pytest.mark.parametrize("part", TOOLS)
def test_each_tool_has_a_name_of_its_own(part):
    names = [tool.name for tool in TOOLS[part]]
    assert len(names) == len(set(names))


# Reads a key at a time, and says so only when it waits for it.
READER = """
stty -icanon -echo min 1
printf ready
key=$(dd bs=1 count=1 status=none); printf "first $key"
key=$(dd bs=1 count=1 status=none); printf "second $key" > keys
test "$key" = b
"""


def environment():
    return {"PATH": os.environ["PATH"]}


def test_keys_are_typed_when_the_program_waits(tmp_path):
    assert Terminal(READER, tmp_path, environment()).run([b"a", b"b"], 30) == 0
    assert (tmp_path / "keys").read_text() == "second b"
    assert Terminal(READER, tmp_path, environment()).run([b"a", b"c"], 30) == 1


def test_a_program_that_has_not_begun_is_ended_alone(tmp_path):
    for _ in range(20):
        with pytest.raises(TimeoutError):
            Terminal("sleep 60", tmp_path, environment()).run([], 0)


def test_a_program_that_goes_on_is_ended(tmp_path):
    (tmp_path / "pid").touch()
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match=r"its screen ends with .*here"):
        Terminal("printf here; echo $$ > pid; exec sleep 60", tmp_path, environment()).run([], 2)
    assert time.monotonic() - begin < 30
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
