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

    def regs(*words):
        with pytest.raises(SystemExit) as ended:
            cli.main(["regs", *options, *words])
        assert not ended.value.code
        return capsys.readouterr().out

    return regs


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
