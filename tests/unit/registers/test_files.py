"""Which file is a device's map, who may have written it, and when it is read anew."""

import json
import os

import pytest

from barfs.registers import files
from barfs.registers.files import Found, MapFiles

SUBJECTS = ["8086:100e:8086:001e", "8086:100e", "class-020000"]


def write(directory, name, *, subject=None, register="CTRL", **more):
    part = {"in": "bar0", "registers": [{"name": register, "offset": 0, "width": 32}]}
    subjects = [subject or name]
    content = {"format": "barfs registers 1", "for": subjects, "parts": [part], **more}
    directory.mkdir(exist_ok=True)
    file = directory / f"{name}.json"
    file.write_text(json.dumps(content))
    file.chmod(0o644)
    return file


def names(found):
    return [name for name, _ in found.map.outline().children()]


def test_the_most_particular_wins_and_then_the_first_directory(tmp_path):
    first, last = tmp_path / "first", tmp_path / "last"
    first.mkdir()
    maps = MapFiles([first, last, tmp_path / "missing"])
    assert maps.find(SUBJECTS) is None
    write(last, "class-020000", register="BY_CLASS")
    assert names(maps.find(SUBJECTS)) == ["BY_CLASS"]
    write(last, "8086:100e", register="LAST")
    write(first, "class-020000", register="FIRST_CLASS")
    assert names(maps.find(SUBJECTS)) == ["LAST"]
    write(first, "8086:100e", register="FIRST")
    assert names(maps.find(SUBJECTS)) == ["FIRST"]
    write(last, "8086:100e:8086:001e", register="SUBSYSTEM")
    assert names(maps.find(SUBJECTS)) == ["SUBSYSTEM"]
    assert names(maps.find(["class-020000"])) == ["FIRST_CLASS"]


def test_changed_files_are_read_anew(tmp_path):
    maps = MapFiles([tmp_path])
    file = write(tmp_path, "8086:100e", register="OLD")
    before = maps.find(SUBJECTS)
    assert maps.find(SUBJECTS).map is before.map
    write(tmp_path, "8086:100e", register="NEW_NAME")
    assert names(maps.find(SUBJECTS)) == ["NEW_NAME"]
    file.write_text("{")
    assert maps.find(SUBJECTS).map is None
    file.unlink()
    assert maps.find(SUBJECTS) is None


def test_revisions(tmp_path):
    maps = MapFiles([tmp_path])
    write(tmp_path, "8086:100e", register="R3", revision=[3, 4])
    write(tmp_path, "class-020000", register="ANY")
    assert names(maps.find(SUBJECTS, 3)) == ["R3"]
    assert names(maps.find(SUBJECTS, 5)) == ["ANY"]
    assert names(maps.find(SUBJECTS)) == ["R3"]


def test_aliases(tmp_path):
    maps = MapFiles([tmp_path])
    file = write(tmp_path, "8086:100e")
    content = json.loads(file.read_text())
    content["for"] = ["8086:100e", "8086:1004"]
    file.write_text(json.dumps(content))
    assert maps.find(["8086:1004"]) is None
    (tmp_path / "aliases.json").write_text(json.dumps({"8086:1004": "8086:100e", "1:2": 3}))
    assert maps.find(["8086:1004"]).file == file
    (tmp_path / "aliases.json").write_text("[]")
    assert maps.find(["8086:1004"]) is None


def refusal(maps):
    found = maps.find(SUBJECTS)
    assert found.map is None
    return found.refusal


@pytest.mark.parametrize("text", ["", "{", "[]", "1.5", "NaN", "[" * 100_000, "\xff", '{"a": 1}'])
def test_what_is_no_map_is_refused_and_nothing_else_is_taken_for_it(tmp_path, text):
    file = write(tmp_path, "8086:100e")
    write(tmp_path, "class-020000")
    file.write_text(text, encoding="latin-1")
    assert refusal(MapFiles([tmp_path]))


def test_a_map_for_something_else_is_refused(tmp_path):
    write(tmp_path, "8086:100e", subject="8086:100f")
    assert refusal(MapFiles([tmp_path])) == "it is not for 8086:100e: 8086:100f"


def test_files_that_others_can_write_are_refused(tmp_path, monkeypatch):
    tmp_path.chmod(0o755)
    file = write(tmp_path, "8086:100e")
    maps = MapFiles([tmp_path])
    for mode in (0o664, 0o646):
        file.chmod(mode)
        assert refusal(maps) == f"others may write it; chmod go-w {file}"
    file.chmod(0o644)
    assert maps.find(SUBJECTS).map
    tmp_path.chmod(0o777)
    assert refusal(MapFiles([tmp_path])) == f"others may write it; chmod go-w {tmp_path}"
    tmp_path.chmod(0o755)
    owner = file.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if owner == 0:
        os.chown(file, 12345, -1)
        owner = 12345
    assert refusal(MapFiles([tmp_path])) == f"it belongs to user {owner}; chown root {file}"


def test_what_is_no_plain_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "8086:100e.json")
    assert "no file" in refusal(MapFiles([tmp_path]))


def test_nothing_is_read_before_somebody_looks(tmp_path, monkeypatch):
    write(tmp_path, "8086:100e")
    monkeypatch.setattr(files.os, "open", None)
    maps = MapFiles([tmp_path])
    assert maps.find(["1234:5678"]) is None


def test_not_more_are_kept_than_some(tmp_path):
    maps = MapFiles([tmp_path])
    for number in range(40):
        write(tmp_path, f"8086:{number:04x}")
        assert isinstance(maps.find([f"8086:{number:04x}"]), Found)
    assert len(maps._kept) == 32
