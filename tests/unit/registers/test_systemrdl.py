"""SystemRDL becomes maps, and what is wrong is said with file and line."""

import json
import shutil

import pytest

from barfs.registers.compiled import CompileError, Target, text
from barfs.registers.maps import Map, find
from barfs.registers.systemrdl import compile_files

FPGA = """\
addrmap fpga {
  name = "A board";
  barfs_for = "10ee:9038 10ee:9039"; barfs_in = "bar0"; barfs_revision = "0a 0b";
  enum speed { SLOW = 2'h0; FAST = 2'h3 { desc = "very fast"; }; };
  reg {
    desc = "control";
    field { desc = "starts it"; singlepulse; } GO[0:0] = 0;
    field { encode = speed; } SPEED[2:1] = 2'h3;
    field { sw = r; onread = rclr; } ERRORS[15:8];
    field { sw = w; onwrite = woset; } RAISE[16:16];
  } CTRL @0x0;
  reg { field { onwrite = woclr; } DONE[1]; barfs_reserved_zero; } STATUS[4] @0x10 += 8;
  reg { regwidth = 64; accesswidth = 32; field {} T[64]; } TIME @0x40;
  regfile {
    reg { regwidth = 8; field {} X[8]; } A[2][4];
    reg { field {} Y[32]; } B;
  } BLK[2] @0x100;
};
"""


def compiled(tmp_path, source, target=None, name="fpga.rdl", **more):
    file = tmp_path / name
    file.write_text(source)
    return compile_files([file], target or Target(), **more)


def test_all_of_it(tmp_path):
    content = compiled(tmp_path, FPGA)
    assert json.loads(text(content)) == content
    assert content["for"] == ["10ee:9038", "10ee:9039"]
    assert content["revision"] == [10, 11]
    assert content["name"] == "A board"
    assert [source["file"] for source in content["source"]] == ["fpga.rdl"]
    top = Map.parse(text(content).encode()).outline()
    control = find(top, "CTRL")
    assert control.description == "control"
    go, speed, errors, up = control.fields
    assert (go.self_clearing, go.reset, go.description) == (True, 0, "starts it")
    assert (speed.lsb, speed.msb, speed.reset, speed.access) == (1, 2, 3, "rw")
    assert (speed.values, speed.meanings) == ({"SLOW": 0, "FAST": 3}, {"FAST": "very fast"})
    assert (errors.access, errors.on_read) == ("r", "rclr")
    assert (up.access, up.on_write) == ("w", "woset")
    assert find(top, "STATUS/3").offset == 0x10 + 3 * 8
    assert find(top, "STATUS/3").zero_reserved
    assert find(top, "STATUS/3").fields[0].on_write == "woclr"
    assert (find(top, "TIME").size, find(top, "TIME").step) == (8, 4)
    assert find(top, "BLK/1/A/1/3").offset == 0x100 + 12 + 7
    assert find(top, "BLK/1/B").offset == 0x100 + 12 + 8


def test_parts_in_several_places(tmp_path):
    source = """
      addrmap two {
        barfs_for = "10ee:9038"; barfs_in = "bar2";
        reg { field {} X[32]; } A @0x10;
        addrmap {
          barfs_in = "bar4"; barfs_offset = 0x100; reg { field {} X[32]; } B @4;
        } dma @0x1000;
        regfile {
          barfs_in = "config cap 05"; barfs_directory = ""; barfs_when = "2/16 & 0x80 = 0x80 0";
          reg { field {} X[32]; } C @8;
        } msi @0x2000;
      };"""
    content = compiled(tmp_path, source)
    parts = {part["in"]: part for part in content["parts"]}
    assert parts["bar4"]["directory"] == "dma"
    assert parts["bar4"]["offset"] == 0x100
    assert parts["bar4"]["registers"][0]["offset"] == 4
    assert parts["config cap 05"]["when"] == {
        "offset": 2,
        "width": 16,
        "mask": 0x80,
        "values": [0x80, 0],
    }
    assert parts["bar2"]["registers"][0]["name"] == "A"
    assert "directory" not in parts["bar2"]


def test_what_the_source_does_not_say_is_told(tmp_path):
    source = "addrmap a { reg { field {} X[32]; } A; };"
    for target in (Target(), Target(["10ee:9038"]), Target([], "bar0")):
        with pytest.raises(CompileError, match="nothing says"):
            compiled(tmp_path, source, target)
    content = compiled(tmp_path, source, Target(["10ee:9038"], "bar2", 0x4000))
    assert content["for"] == ["10ee:9038"]
    assert (content["parts"][0]["in"], content["parts"][0]["offset"]) == ("bar2", 0x4000)


@pytest.mark.parametrize(
    ("source", "line", "why"),
    [
        ("addrmap a {\n  reg { field {} X[40]; } R;\n};", 2, "does not fit|exceeds"),
        ("addrmap a {\n  reg { field {} X[8] } R;\n};", 2, ""),
        ("addrmap a {\n\n  reg { regwidth=128; field {} X[8]; } R;\n};", 3, "can't be 128 bits"),
        ("addrmap a {\n  regfile { reg { field {} X[8]; } R; } config;\n};", 2, "config is the"),
        ("addrmap a {\n bigendian;\n reg { field {} X[8]; } R; };", 1, "big-endian"),
        ("addrmap a {\n regfile {reg { field {} X[8]; } R;} B[2] @0 += 6; };", 2, "stride 0x6"),
        ("addrmap a {\n barfs_nonsense = 1; reg { field {} X[8]; } R; };", 2, "barfs_nonsense"),
        (
            "addrmap a {\n reg { field {sw=r;} X[0:0]; field {sw=w; hw=r;} Y[0:0]; } R; };",
            *(2, "its bits overlap"),
        ),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(tmp_path, source, line, why):
    with pytest.raises(CompileError, match=rf"fpga\.rdl:{line}: .*({why})"):
        compiled(tmp_path, source, Target(["10ee:9038"], "bar0"))


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(CompileError, match=r"missing\.rdl"):
        compile_files([tmp_path / "missing.rdl"], Target())


PERL = """\
addrmap a {
  <% for (my $i = 0; $i < 2; $i++) { %> reg { field {} X[32]; } R<%=$i%>;<% } %>
};
"""


def test_perl_is_refused_unless_asked_for_in_included_files_too(tmp_path):
    target = Target(["10ee:9038"], "bar0")
    with pytest.raises(CompileError, match=r"fpga\.rdl:2: <% %> runs Perl"):
        compiled(tmp_path, PERL, target)
    (tmp_path / "inner.rdl").write_text(PERL)
    with pytest.raises(CompileError, match=r"inner\.rdl:2: <% %> runs Perl"):
        compiled(tmp_path, '`include "inner.rdl"\n', target)
    assert shutil.which("perl")
    content = compiled(tmp_path, PERL, target, perl=True)
    assert [item["name"] for item in content["parts"][0]["registers"]] == ["R0", "R1"]
    with pytest.raises(CompileError, match="runs Perl"):
        compiled(tmp_path, PERL, target)
