"""What the documents show is what happens: the tour's commands, the picture's session."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from barfs.machine import simulated
from barfs.registers.files import BUILT_IN
from mounted.conftest import BARFS, TIMEOUT, mounted, public_directory, wait_until
from mounted.others import RUN_AS_NOBODY

ROOT = Path(__file__).parents[2]
TOUR = (ROOT / "docs/tour.md").read_text()
BLOCKS = re.findall(r"^```console\n(.*?)^```$", TOUR, re.DOTALL | re.MULTILINE)

END = "-- end of output --"
LEFT_OUT = "..."


def steps(block):
    """The commands of a block, each with the lines that it is said to print."""
    found = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def run(commands, where, under=()):
    """What each command prints on either stream when one bash runs them all, under a command."""
    script = f"cd {where}\n" + "".join(f"{command}\necho '{END}'\n" for command in commands)
    done = subprocess.run(
        [*under, "bash", "--norc", "-c", script],
        env={"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    # Only a shell that reads a script names the line.
    output = re.sub(r"^bash: line \d+: ", "bash: ", done.stdout, flags=re.MULTILINE)
    printed = output.split(f"{END}\n")
    assert printed.pop() == ""
    assert len(printed) == len(commands), done.stdout
    return [text.splitlines() for text in printed]


def fits(said, printed):
    """Whether lines are as said, where a line `...` stands for one or more."""
    pattern = "".join("(?:.*\n)+?" if line == LEFT_OUT else re.escape(f"{line}\n") for line in said)
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in printed)) is not None


# The maps of registers may lie where only root can look, too.
WITH_MAPS = """
from barfs.registers import files
files.BUILT_IN = files.Path({!r})
files.DIRECTORIES = (files.LOCAL, files.BUILT_IN)
"""


# In mounts of its own, with a /dev/fuse that is open to all, as distributions have it.
OPEN_FUSE = 'mknod -m 666 fuse c 10 229 && mount --bind fuse /dev/fuse && cd / && exec "$@"'


@pytest.fixture(params=["root", "user"])
def toured(fuse, request):
    """A mount for the whole tour, what its commands run under, and its log."""
    with public_directory() as directory:
        where = directory / "bars"
        where.mkdir()
        command = [*BARFS, "demo", "-f", where]
        if request.param == "user":
            os.chown(where, 65534, 65534)
            mounts_of_its_own = ["unshare", "--mount", "--propagation=private"]
            maps = shutil.copytree(BUILT_IN, directory / "maps")
            program = WITH_MAPS.format(str(maps)) + RUN_AS_NOBODY
            program = [sys.executable, "-c", program, "demo", "-f", where]
            command = [*mounts_of_its_own, "bash", "-c", OPEN_FUSE, "bash", *program]
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=log, cwd=directory
            )
        enter = ["nsenter", f"--target={process.pid}", "--mount", "setpriv", "--clear-groups"]
        enter += ["--reuid=65534", "--regid=65534"]
        table = Path(f"/proc/{process.pid}/mounts")
        try:
            wait_until(lambda: f" {where} fuse.barfs " in table.read_text(), "no mount")
            yield where, enter if request.param == "user" else []
        finally:
            process.terminate()
            assert process.wait(TIMEOUT) == 0
        assert "Traceback" not in (directory / "log").read_text()


def test_the_tour(toured):
    """All of it in order, and every command that does otherwise, not only the first."""
    where, under = toured
    wrong = []
    for block in BLOCKS:
        said = steps(block)
        commands = [command for command, _ in said]
        if under and any(command.startswith("barfs ") for command in commands):
            continue  # root has run it; nobody else may be let in to where the interpreter lies
        for (command, expected), printed in zip(said, run(commands, where, under), strict=True):
            if not fits(expected, printed):
                wrong += [f"$ {command}", *printed, "-- but docs/tour.md says", *expected, ""]
    assert not wrong, "\n".join(wrong)


def test_the_tour_is_read_as_meant():
    assert len(BLOCKS) > 10
    assert len(re.findall(r"^```\w", TOUR, re.MULTILINE)) == len(BLOCKS) + 2  # two sh blocks
    assert steps("$ a\n1\n2\n$ b\n$ c\n3\n") == [("a", ["1", "2"]), ("b", []), ("c", ["3"])]


@pytest.mark.parametrize(
    ("said", "printed", "result"),
    [
        ("1 2 3", "1 2 3", True),
        ("1 ... 3", "1 2 2 3", True),
        ("1 ... 3", "1 3", False),
        ("1 2", "1 2 3", False),
        ("1 2 3", "1 2", False),
        ("", "1", False),
        ("1.3", "123", False),
    ],
)
def test_the_comparison(said, printed, result):
    assert fits(said.split(), printed.split()) == result


COMING_FROM = (ROOT / "docs/coming-from.md").read_text()
ROWS = [
    [re.sub(r"^`(.*)`$", r"\1", cell.strip()) for cell in row]
    for row in re.findall(r"^\| (.*?) \| (.*?) \|(.*?)\|$", COMING_FROM, re.MULTILINE)
    if row[0] != "today"
]


def test_what_people_type_today_and_the_same_here(fuse):
    """Every row in order, on one mount."""
    assert len(ROWS) >= 30
    today = " ".join(row[0] for row in ROWS)
    for tool in ("devmem2", "busybox devmem", "pcimem", "setpci", "lspci", "memtool", "rwmem"):
        assert tool in today
    assert "chipsec" in today
    assert "Python: `mmap" in today
    with public_directory() as directory:
        (directory / "machine").mkdir()
        machine = simulated.build(directory / "machine")
        # What is listed is the simulated machine, and not this one.
        command = f'{shlex.join(BARFS)} ls --sysfs {machine.sysfs} "${{@:2}}"'
        begin = f"barfs() {{ {command}; }}"
        with mounted(machine, directory) as mount:
            printed = run([begin, *(here for _, here, _ in ROWS)], mount.path)[1:]
    wrong = [
        (here, *lines, expected)
        for (_, here, expected), lines in zip(ROWS, printed, strict=True)
        if " ".join(lines).split() != expected.split()
    ]
    assert not wrong


def lines_of(picture):
    """The text of an SVG, line by line as its rows are."""
    rows = {}
    for element in ET.parse(picture).iter("{http://www.w3.org/2000/svg}text"):
        rows.setdefault(float(element.get("y", 0)), []).append(element)
    return [
        "".join(
            "".join(element.itertext())
            for element in sorted(rows[y], key=lambda element: float(element.get("x", 0)))
        )
        .replace("\N{NO-BREAK SPACE}", " ")
        .rstrip()
        for y in sorted(rows)
    ]


def test_the_picture_shows_the_session_as_it_is(fuse, tmp_path):
    """If not: make generated."""
    now = tmp_path / "session.svg"
    done = subprocess.run(
        [sys.executable, ROOT / "tools/screenshot", now],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    shown = lines_of(ROOT / "docs/session.svg")
    assert shown == lines_of(now)
    assert any(line.endswith("|Dunia,vipi?.....|") for line in shown)
    assert shown[-1] == "0x80080783"


def test_the_picture_loads_nothing_and_tells_no_paths():
    picture = (ROOT / "docs/session.svg").read_text()
    assert re.findall(r"https?://[^\s\"']+", picture) == ["http://www.w3.org/2000/svg"]
    assert "@import" not in picture
    assert set(re.findall(r"url\((.)", picture)) == {"#"}
    assert "/tmp" not in picture
