"""`barfs regs` without a mount: the same facts as text and as JSON."""

import json

import pytest

from barfs.commands import cli
from barfs.commands.regs import SUBJECT
from barfs.machine import simulated


@pytest.fixture
def regs(tmp_path, capsys):
    machine = simulated.build(tmp_path)
    options = ["--sysfs", str(machine.sysfs), "--proc", str(machine.proc)]

    def regs(*words, status=0):
        with pytest.raises(SystemExit) as ended:
            cli.main(["regs", *options, *words])
        assert (ended.value.code or 0) == status
        done = capsys.readouterr()
        return done.err if status else done.out

    return regs


def test_a_refused_map_is_told_of(regs, tmp_path):
    maps = tmp_path / "maps"
    maps.mkdir(mode=0o755)
    (maps / "8086:100e.json").write_text("x")
    said = regs("--registers", str(maps), "list", "8086:100e", status=1)
    assert f"the map {maps}/8086:100e.json of 0000:00:03.0 is refused: " in said
    assert "no map has 'RCTL'; the map " in regs("--registers", str(maps), "show", "RCTL", status=1)
    # Those of other devices are shown all the same.
    assert "CSTS" in regs("--registers", str(maps), "show", "CSTS")


def test_a_directory_that_is_not_there(regs, tmp_path):
    said = regs("--registers", str(tmp_path / "no"), "list", "8086:100e", status=1)
    assert said == f"barfs: --registers {tmp_path}/no is not a directory\n"


@pytest.mark.parametrize(("name", "fields"), [("CTRL.SLU", ["SLU"]), ("STATUS", None)])
def test_a_datasheet_is_json_too(regs, name, fields):
    shown = json.loads(regs("--json", "show", name))
    text = regs("show", name)
    register = name.partition(".")[0]
    assert [one["name"] for one in shown] == [register] * len(shown) != []
    for one in shown:
        assert f"{one['owner']} {register}: " in text
        assert f"@{one['offset']:x}, {8 * one['width']} bits" in text
        names = [field["name"] for field in one["fields"]]
        assert names == fields or fields is None
        assert list(one["writes"]) == names


def test_what_is_shown_is_what_is_listed(regs):
    (listed,) = json.loads(regs("--json", "list", "8086-100e", "STATUS"))
    shown = json.loads(regs("--json", "show", "STATUS"))
    assert listed in shown


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("10ee-9038", "10ee:9038"),
        ("10ee-9038-1AF4-1100", "10ee:9038:1AF4:1100"),
        ("class-010802", "class-010802"),
        ("phys-HPET", "phys-HPET"),
    ],
)
def test_a_map_may_be_said_to_be_for_a_name_without_colons(given, meant):
    assert SUBJECT.parse(given) == meant
