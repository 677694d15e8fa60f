"""CMSIS-SVD becomes maps: against the model of another library, and what that one leaves out."""

import pytest
from cmsis_svd.model import SVDRegister, SVDRegisterCluster
from cmsis_svd.parser import SVDParser
from lxml import etree

from barfs.registers.compiled import CompileError, Target, text
from barfs.registers.maps import Map, find, registers
from barfs.registers.plans import effects_of_reading
from barfs.registers.svd import compile_file

SVD = """<?xml version="1.0" encoding="utf-8"?>
<device schemaVersion="1.3">
  <vendor>Nobody</vendor><name>BOARD</name><version>1</version><description>A board</description>
  <addressUnitBits>8</addressUnitBits><width>32</width><size>32</size><access>read-write</access>
  <resetValue>0</resetValue><resetMask>0xffffffff</resetMask>
  <peripherals>
    <peripheral>
      <name>UART0</name><description>serial
         port</description><baseAddress>0x800</baseAddress>
      <registers>
        <register>
          <name>CTRL</name><description>control</description><addressOffset>0</addressOffset>
          <resetValue>0x30</resetValue>
          <fields>
            <field><name>EN</name><bitOffset>0</bitOffset><bitWidth>1</bitWidth></field>
            <field><name>MODE</name><bitRange>[5:4]</bitRange>
              <enumeratedValues>
                <enumeratedValue><name>OFF</name><value>0</value></enumeratedValue>
                <enumeratedValue><name>BOTH</name><description>both ways</description>
                  <value>0x3</value></enumeratedValue>
                <enumeratedValue><name>ANY</name><value>#1x</value></enumeratedValue>
              </enumeratedValues></field>
            <field><name>ERR</name><lsb>8</lsb><msb>9</msb><access>read-only</access>
              <readAction>clear</readAction></field>
            <field><name>DONE</name><bitOffset>10</bitOffset><bitWidth>1</bitWidth>
              <modifiedWriteValues>oneToClear</modifiedWriteValues></field>
            <field><dim>2</dim><dimIncrement>4</dimIncrement><dimIndex>A,B</dimIndex>
              <name>CH%s</name><bitOffset>16</bitOffset><bitWidth>3</bitWidth></field>
          </fields>
        </register>
        <register derivedFrom="CTRL">
          <name>CTRL2</name><description>again</description><addressOffset>4</addressOffset>
        </register>
        <register>
          <name>DATA</name><description>a queue</description><addressOffset>8</addressOffset>
          <size>8</size><access>read-only</access><readAction>modify</readAction>
        </register>
        <register>
          <dim>3</dim><dimIncrement>8</dimIncrement><name>BUF[%s]</name><description>x</description>
          <addressOffset>0x10</addressOffset>
        </register>
        <register>
          <dim>2</dim><dimIncrement>4</dimIncrement><dimIndex>LO,HI</dimIndex><name>T_%s</name>
          <description>x</description><addressOffset>0x30</addressOffset>
          <access>write-only</access>
        </register>
        <cluster>
          <dim>2</dim><dimIncrement>0x20</dimIncrement><name>DMA[%s]</name>
          <description>channels</description><addressOffset>0x40</addressOffset>
          <register><name>SRC</name><description>x</description><addressOffset>0</addressOffset>
            <size>64</size></register>
          <register><name>LEN</name><description>x</description><addressOffset>8</addressOffset>
            <size>16</size></register>
        </cluster>
      </registers>
    </peripheral>
    <peripheral derivedFrom="UART0"><name>UART1</name><baseAddress>0x1000</baseAddress></peripheral>
    <peripheral><name>EMPTY</name><baseAddress>0x2000</baseAddress></peripheral>
  </peripherals>
</device>
"""
TARGET = Target(["10ee:9038"], "bar0")


def compiled(tmp_path, source=SVD, target=TARGET):
    file = tmp_path / "board.svd"
    file.write_text(source)
    return compile_file(file, target)


def top_of(content):
    return Map.parse(text(content).encode()).outline()


def test_all_of_it(tmp_path):
    content = compiled(tmp_path)
    assert (content["name"], content["description"]) == ("BOARD", "A board")
    top = top_of(content)
    assert [name for name, _ in top.children()] == ["UART0", "UART1"]
    control = find(top, "UART0/CTRL")
    assert control.offset == 0x800
    names = ["EN", "MODE", "ERR", "DONE", "CHA", "CHB"]
    assert [field.name for field in control.fields] == names
    fields = dict(zip(names, control.fields, strict=True))
    assert (fields["MODE"].values, fields["MODE"].reset) == ({"OFF": 0, "BOTH": 3}, 3)
    assert fields["MODE"].meanings == {"BOTH": "both ways"}
    assert (fields["ERR"].access, fields["ERR"].on_read) == ("r", "rclr")
    assert (fields["DONE"].on_write, fields["DONE"].access) == ("woclr", "rw")
    assert [(f.lsb, f.msb) for f in control.fields[-2:]] == [(16, 18), (20, 22)]
    assert [f.name for f in find(top, "UART0/CTRL2").fields] == names
    data = find(top, "UART0/DATA")
    assert (data.size, data.readable, data.writable) == (1, True, False)
    assert effects_of_reading(data) == {"UART0/DATA": "ruser"}
    assert find(top, "UART0/BUF/2").offset == 0x820
    assert (find(top, "UART0/T_HI").offset, find(top, "UART0/T_LO").readable) == (0x834, False)
    source = find(top, "UART0/DMA/1/SRC")
    assert (source.offset, source.size, source.step) == (0x860, 8, 4)
    assert find(top, "UART1/DMA/1/LEN").offset == 0x1068
    assert find(top, "UART1/CTRL").fields == control.fields


def test_offsets(tmp_path):
    moved = top_of(compiled(tmp_path, target=Target(["10ee:9038"], "bar2", -0x800)))
    assert find(moved, "UART0/CTRL").offset == 0
    with pytest.raises(CompileError, match=r"board\.svd:7: the offset -0x801 puts it before"):
        compiled(tmp_path, target=Target(["10ee:9038"], "bar2", -0x801))
    with pytest.raises(CompileError, match="--bar 0"):
        compiled(tmp_path, target=Target(["10ee:9038"]))


def flat(items, start, path):
    """Registers of the other library's model, arrays expanded: path, offset and the model's."""
    for item in items:
        elements = getattr(item, "registers", None), getattr(item, "clusters", None)
        name = getattr(item, "name", None)
        if isinstance(item, SVDRegister):
            # It puts a cluster's name before those of its registers.
            own = name.removeprefix(f"{path.rpartition('/')[2]}_")
            yield f"{path}/{own}", start + item.address_offset, item
        elif isinstance(item, SVDRegisterCluster):
            inside = [*item.registers, *item.clusters]
            # It has added the offset of the cluster to theirs by now.
            yield from flat(inside, start, f"{path}/{name}")
        else:
            yield from flat(elements[0] or elements[1], start, path)


ACCESS = {"read-only": "r", "write-only": "w", "read-write": "rw"}


def test_another_library_reads_the_same(tmp_path):
    device = SVDParser(etree.ElementTree(etree.fromstring(SVD.encode()))).get_device()
    theirs = {}
    for peripheral in device.get_peripherals():
        found = flat(peripheral.registers or [], peripheral.base_address, peripheral.name)
        for path, offset, register in found:
            theirs[path.replace("[", "/").replace("]", "")] = offset, register
    ours = {register.path: register for register in registers(top_of(compiled(tmp_path)))}
    assert theirs.keys() == ours.keys()
    for path, (offset, register) in theirs.items():
        mine = ours[path]
        assert (mine.offset, 8 * mine.size) == (offset, register.size), path
        # It gives a cluster's register's fields as arrays and singles.
        fields = [f for one in register.fields for f in getattr(one, "fields", [one])]
        assert {f.name for f in fields} == {f.name for f in mine.fields}
        for field in fields:
            own = mine.field(field.name)
            assert (own.lsb, own.width) == (field.bit_offset, field.bit_width)
            assert own.access == ACCESS[field.access.value]
            written = field.modified_write_values
            assert own.on_write == (written and {"oneToClear": "woclr"}[written.value])
            read = field.read_action
            assert own.on_read == (read and {"clear": "rclr"}[read.value])


@pytest.mark.parametrize(
    ("before", "after", "where", "why"),
    [
        ("<device ", "<gadget ", "<?xml", ""),
        ("<bitRange>[5:4]<", "<bitRange>5:4<", "<name>MODE", "bitRange is '5:4'"),
        ("<bitRange>[5:4]<", "<bitRange>[55:4]<", "<register>", "CTRL: field MODE: bits 55 to 4"),
        ("<size>8<", "<size>zzz<", "<size>zzz", "'zzz' is no number"),
        (">oneToClear<", ">whatever<", ">whatever<", "modifiedWriteValues is 'whatever'"),
        ('derivedFrom="CTRL"', 'derivedFrom="CTR"', '"CTR"', "there is no register 'CTR'"),
        ('derivedFrom="CTRL"', 'derivedFrom="CTRL2"', '"CTRL2"', "there is no register 'CTRL2'"),
        ("<addressOffset>4<", "<addressOffset>2<", '"CTRL"', "CTRL2: offset 0x2 is no multiple"),
        ("<name>CTRL2</name>", "", '"CTRL"', "this register has no name"),
        (
            "<value>0x3</value>",
            "<value>4</value>",
            "<name>BOTH",
            "the value 4 of BOTH does not",
        ),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(tmp_path, before, after, where, why):
    assert before in SVD
    source = SVD.replace(before, after)
    line = 1 + source.count("\n", 0, source.index(where))
    line = r"\d+" if after == "<gadget " else line
    with pytest.raises(CompileError, match=rf"board\.svd:{line}: .*{why}"):
        compiled(tmp_path, source)


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ("<size>8<", "<size>24<", "DATA: a register can't be 24 bits wide"),
        ("<dimIndex>LO,HI<", "<dimIndex>LO<", "has 1 names for 2 elements"),
    ],
)
def test_what_is_wrong_with_a_register_is_said_with_its_line(tmp_path, before, after, why):
    source = SVD.replace(before, after)
    line = 1 + source.count("\n", 0, source.rindex("<register>", 0, source.index(after)))
    with pytest.raises(CompileError, match=rf"board\.svd:{line}: .*{why}"):
        compiled(tmp_path, source)


def test_nothing_outside_the_file_is_read(tmp_path):
    (tmp_path / "secret").write_text("<name>SECRET</name>")
    entity = f'<!DOCTYPE device [<!ENTITY x SYSTEM "{tmp_path}/secret">]>'
    source = SVD.replace("<device ", f"{entity}<device ", 1).replace("A board<", "&x;<")
    assert "SECRET" not in text(compiled(tmp_path, source))
