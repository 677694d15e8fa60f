"""What is said about the command line, and made from it: man page, docs, completion, wheel."""

import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from barfs.commands import cli

ROOT = Path(__file__).parents[2]
REFERENCE = (ROOT / "docs/reference.md").read_text()
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MAN = ROOT / "docs/barfs.8"
COMPLETION = ROOT / "contrib/completion"


def run(*command, **more):
    return subprocess.run(command, capture_output=True, text=True, check=False, **more)


COMMANDS = {command.name: command for command in cli.COMMANDS}


def options():
    """Each option of each command: the command's name and the option."""
    return [(name, one) for name, command in COMMANDS.items() for one in command.all_options]


def reference_part(heading):
    return re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", REFERENCE, re.DOTALL | re.MULTILINE)[1]


def man_part(heading):
    """The section's lines, in the words that it shows: without fonts, quotes, escapes."""
    source = MAN.read_text().replace(r"\-", "-").replace(r"\(aq", "'")
    text = re.search(rf"^\.SH {heading}\n(.*?)(?=^\.SH |\Z)", source, re.DOTALL | re.MULTILINE)[1]
    lines = []
    for line in text.splitlines():
        macro = re.fullmatch(r"\.(?:([BI])|[BIR]{2}) (.*)", line)
        if macro is None:
            lines.append(line)
        else:
            words = re.findall(r'"([^"]*)"|(\S+)', macro[2])
            lines.append((" " if macro[1] else "").join(quoted or word for quoted, word in words))
    return "\n".join(lines) + "\n"


def man_tags(heading):
    """What stands out to the left in a section: the lines after .TP and .TQ."""
    return re.findall(r"^\.T[PQ]\n(.*)$", man_part(heading), re.MULTILINE)


def synopsis():
    """The one of docs/reference.md."""
    return reference_part("Options").split("```")[1]


def stands_in(word, text):
    return re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text) is not None


def anchors(path):
    """The anchors that GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", document.read_text())
    for name, anchor in links:
        target = document.parent / name if name else document
        assert target.exists(), name
        assert not anchor or anchor in anchors(target), (name, anchor)


def test_the_readme_is_short_and_leads_to_every_document():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 200
    for document in (ROOT / "docs").glob("*.md"):
        assert f"](docs/{document.name})" in text, document


def test_no_sentence_begins_with_of():
    """It would need a second reading. Code blocks are not looked at."""
    sources = [
        path
        for folder in ("barfs", "bench", "survey", "tests")
        for path in (ROOT / folder).rglob("*.*")
        if path.suffix in {".py", ".c"}
    ]
    code = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
    pattern = re.compile(r'(?:"""|(?:^|\s)#|[.!?]|^-|^)\s*Of [a-z]', re.MULTILINE)
    for path in [*DOCUMENTS, MAN, *sources]:
        found = pattern.search(code.sub("", path.read_text()))
        assert found is None, (path, found[0])


def test_every_command_is_in_the_man_page_and_in_the_reference():
    for name in COMMANDS:
        assert f"barfs {name}\n" in man_part("SYNOPSIS"), name
        assert re.search(rf"^barfs {name}\b", synopsis(), re.MULTILINE), name
    assert man_tags("COMMANDS") == list(COMMANDS)


def test_every_option_is_in_the_man_page_and_in_the_reference():
    """In the man page with all its spellings; a synopsis has one of them."""
    assert len(options()) > 8
    tags = "\n".join(man_tags("OPTIONS"))
    for _, option in options():
        for spelling in option.spellings:
            assert stands_in(spelling, tags), spelling
        for text in (synopsis(), man_part("SYNOPSIS")):
            assert any(stands_in(one, text) for one in option.spellings), option
        for choice in option.choices:
            assert stands_in(choice, synopsis())
            assert stands_in(choice, tags)


def test_neither_has_an_option_that_is_none():
    known = {spelling for _, option in options() for spelling in option.spellings}
    known |= {"-h", "--help", "--version"}
    for text in ("\n".join(man_tags("OPTIONS")), synopsis(), man_part("SYNOPSIS")):
        assert set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", text)) <= known


def test_the_version_is_that_of_the_packages_and_of_the_man_page():
    for program in ("barfs", "mount.barfs"):
        done = run(Path(sys.executable).with_name(program), "--version")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"barfs {version('barfs')}\n"
    assert (ROOT / "debian/changelog").read_text().startswith(f"barfs ({version('barfs')}) ")
    assert f'"barfs {version("barfs")}"' in MAN.read_text().splitlines()[0]
    assert "--version" in "\n".join(man_tags("OPTIONS"))
    assert "barfs --version\n" in man_part("SYNOPSIS")
    assert "barfs --version\n" in synopsis()


def test_the_errors_of_the_man_page_are_those_of_the_reference():
    rows = re.findall(r"^\| (E[A-Z]+(?:, E[A-Z]+)*) \|", REFERENCE, re.MULTILINE)
    said = [name for row in rows for name in row.split(", ")]
    assert len(said) > 7
    assert sorted(man_tags("ERRORS")) == sorted(said)


@pytest.mark.parametrize(
    "command", [["mandoc", "-Tlint", "-Wwarning"], ["groff", "-man", "-Tutf8", "-ww", "-z"]]
)
def test_the_man_page_is_clean(command):
    done = run(*command, MAN)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("command", [["mandoc", "-Tascii"], ["groff", "-man", "-Tascii", "-P-c"]])
def test_the_man_page_as_shown(command):
    done = run(*command, MAN)
    assert done.returncode == 0, done
    shown = re.sub(".\b", "", done.stdout)
    for words in ("BARFS(8)", "--bars-via", "printf 'Dunia,vipi?\\r' | dd", "bar0@0-3f"):
        assert words in shown


ROOMS = runpy.run_path(str(ROOT / "tools/rooms"))


def test_the_picture_of_the_rooms_is_made_from_the_imports(tmp_path):
    """If not: make generated."""
    now = tmp_path / "rooms.svg"
    done = run(sys.executable, ROOT / "tools/rooms", now)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (ROOT / "docs/rooms.svg").read_text() == now.read_text()


def test_the_picture_has_every_module_and_leads_downward():
    found = ROOMS["rooms"](ROOT / "barfs")
    modules = {f"{name}/{module}" for name, room in found.items() for module in room.modules}
    sources = {str(path.relative_to(ROOT / "barfs"))[:-3] for path in ROOT.glob("barfs/*/*.py")}
    assert modules - {"access/_mmio.c"} == {one for one in sources if "__init__" not in one}
    order = ROOMS["column"]({name: room.imports for name, room in found.items()})
    for name, room in found.items():
        assert all(order.index(other) > order.index(name) for other in room.imports)
    texts = ET.parse(ROOT / "docs/rooms.svg").iter("{http://www.w3.org/2000/svg}text")
    shown = [text.text.rstrip("/") for text in texts if text.get("class") == "name"]
    assert shown == [name if found[name].modules else f"{name}.py" for name in order]


@pytest.mark.parametrize(
    ("imports", "order"),
    [
        ({"a": set(), "b": {"a"}, "c": {"a", "b"}}, ["c", "b", "a"]),
        ({"a": {"b"}, "b": set(), "c": set()}, ["a", "b", "c"]),
        ({"a": {"b", "c"}, "b": {"c"}, "c": set(), "d": {"a"}}, ["d", "a", "b", "c"]),
    ],
)
def test_the_column(imports, order):
    assert ROOMS["column"](imports) == order


def test_a_circle_of_rooms_has_no_picture():
    with pytest.raises(ValueError, match="a circle: b imports c imports b"):
        ROOMS["column"]({"a": {"b"}, "b": {"c"}, "c": {"b"}})


def test_the_imports_of_a_source():
    source = (
        "import barfs.names, os\n"
        "from barfs.tree import bars\n"
        "def f():\n    from barfs import errors\n"
    )
    assert set(ROOMS["imported"](source)) == {"barfs.names", "barfs.tree.bars", "barfs.errors"}


def test_the_architecture_names_files_that_are_there():
    text = (ROOT / "docs/architecture.md").read_text()
    named = set(re.findall(r"`((?:barfs|tests|tools|bench|survey)/[\w/.]*)`", text))
    assert len(named) > 25
    for name in named:
        assert (ROOT / name).exists(), name


def test_completion_is_made_from_the_command_line_as_it_is(tmp_path):
    """If not: make generated."""
    done = run(sys.executable, ROOT / "tools/completion", tmp_path)
    assert done.returncode == 0, done
    for file in COMPLETION.iterdir():
        assert file.read_text() == (tmp_path / file.name).read_text(), file
    assert sorted(path.name for path in tmp_path.iterdir()) == ["_barfs", "barfs.bash"]


def completed(line, where):
    """What bash offers for the last word of a command line, in a directory."""
    words = line.split(" ")
    # Not those of this machine.
    functions = "barfs() { echo 0000:00:03.0  8086:100e  NIC; echo 0000:00:04.0  1af4:1110  -; }; "
    script = functions + (
        f'source "{COMPLETION}/barfs.bash"; complete -p barfs >&2; COMP_WORDS=("$@");'
        'COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE};'
        "_shtab_barfs; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = run("bash", "--norc", "-c", script, "bash", *words, cwd=where)
    assert done.returncode == 0, done
    assert "-F _shtab_barfs barfs" in done.stderr
    return set(done.stdout.split())


def test_bash_completes(tmp_path):
    (tmp_path / "bars").mkdir()
    (tmp_path / "bars.txt").touch()
    assert completed("barfs ", tmp_path) == set(COMMANDS)
    assert completed("barfs um", tmp_path) == {"umount"}
    for name, option in options():
        for spelling in option.spellings:
            assert spelling in completed(f"barfs {name} -", tmp_path)
    assert completed("barfs mount --sy", tmp_path) == {"--sysfs"}
    assert completed("barfs mount --bars-via ", tmp_path) == {"resource", "devmem", "vfio"}
    assert completed("barfs mount --devmem b", tmp_path) == {"bars", "bars.txt"}
    for name in ("mount", "umount", "demo"):
        assert completed(f"barfs {name} b", tmp_path) == {"bars"}
    assert completed("barfs mount -f --sysfs b", tmp_path) == {"bars"}
    assert completed("barfs mount -f -o ro b", tmp_path) == {"bars"}
    assert completed("barfs mount --log b", tmp_path) == {"bars", "bars.txt"}
    assert "root" in completed("barfs mount --group ro", tmp_path)
    assert completed("barfs mount -o al", tmp_path) == {"allow_other", "allow_root"}
    for line in ("ls", "doctor", "mount --allow-device", "mount --read-only-device"):
        assert completed(f"barfs {line} 1a", tmp_path) == {"1af4-1110"}
        assert completed(f"barfs {line} 0", tmp_path) == {"0000-00-03.0", "0000-00-04.0"}


def test_zsh_can_read_its_script():
    assert run("zsh", "-n", COMPLETION / "_barfs").returncode == 0


def test_sdist_and_wheel_are_whole(tmp_path):
    """The sdist is the repository, and the wheel, built from it, has more than the modules.

    And what only tests need is not asked for by the wheel. All of it without the network.
    """
    sources = tmp_path / "sources"
    made = ("build", "dist", "__pycache__", "*.so", "*.egg-info", ".pybuild", ".debhelper")
    hidden = (".git", ".venv", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, sources, ignore=shutil.ignore_patterns(*made, *hidden))
    files = {str(path.relative_to(sources)) for path in sources.rglob("*") if path.is_file()}
    assert {"contrib/systemd/barfs.service", "docs/barfs.8", "debian/rules", ".ci/run"} <= files

    out = tmp_path / "dist"
    done = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, sources)
    assert done.returncode == 0, done.stdout + done.stderr
    done = run(sys.executable, "-m", "twine", "check", "--strict", *out.iterdir())
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2

    (sdist,) = out.glob("*.tar.gz")
    with tarfile.open(sdist) as content:
        names = {one.name.partition("/")[2] for one in content.getmembers() if one.isfile()}
    assert files <= names
    assert {name.split("/")[0] for name in names - files} == {
        "PKG-INFO",
        "barfs.egg-info",
        "setup.cfg",
    }
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        data = {name.partition(".data/data/")[2] for name in content.namelist()}
        modules = {name for name in content.namelist() if name.startswith("barfs/")}
        (metadata,) = (name for name in content.namelist() if name.endswith("/METADATA"))
        wants = re.findall(r"^Requires-Dist: (\S+)$", content.read(metadata).decode(), re.MULTILINE)
    assert data - {""} == {
        "share/man/man8/barfs.8",
        "share/bash-completion/completions/barfs.bash",
        "share/zsh/site-functions/_barfs",
        *(f"share/doc/barfs/systemd/barfs.{kind}" for kind in ("conf", "default", "service")),
    }
    assert {name for name in files if name.startswith("barfs/")} <= modules
    assert {re.match(r"[\w.-]+?(?=[><=~])", want)[0] for want in wants} == {
        "pyfuse3",
        "pyudev",
        "trio",
    }
