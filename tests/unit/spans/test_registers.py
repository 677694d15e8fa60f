"""Views of registers and fields over an aperture that notes every access."""

import pytest

from barfs.errors import BadRequest, NotAllowed
from barfs.registers.maps import Map, find
from barfs.spans.registers import ConfigAperture, FieldView, RegisterView, SampledText


class Recorder:
    """Memory whose accesses are noted as (kind, offset, width)."""

    memory_like = False
    way = ""

    def __init__(self, content=b"\0" * 16, base=0x1000, max_width=8):
        self.content = bytearray(content)
        self.size, self.base, self.max_width = len(content), base, max_width
        self.seen = []
        self.closed = False

    def load_run(self, offset, width, into):
        self.seen.append(("read", offset, width))
        into[:] = self.content[offset : offset + width]

    def store_run(self, offset, width, data):
        self.seen.append(("write", offset, width))
        self.content[offset : offset + width] = data

    def close(self):
        self.closed = True


def register_of(*fields, width=32, **more):
    raw = {"name": "R", "offset": 0, "width": width, "fields": list(fields), **more}
    part = {"in": "bar0", "registers": [raw]}
    found = Map({"format": "barfs registers 1", "for": ["8086:100e"], "parts": [part]})
    return find(found.outline(), "R")


def field(name, lsb, msb=None, **more):
    return {"name": name, "lsb": lsb, "msb": lsb if msb is None else msb, **more}


def test_a_register_wider_than_its_accesses_takes_several_ascending():
    memory = Recorder(bytes(range(1, 9)))
    view = RegisterView(memory, register_of(width=64, access_width=16))
    assert view.read(0, 100) == b"0x0807060504030201\n"
    assert memory.seen == [("read", at, 2) for at in (0, 2, 4, 6)]
    assert (view.read(2, 4), len(memory.seen)) == (b"0807", 4)  # what is left of the line
    memory.seen.clear()
    view.write(0, b"0x1122334455667788\n")
    assert memory.seen == [("write", at, 2) for at in (0, 2, 4, 6)]
    assert view.raw is None
    memory.seen.clear()
    view.write(0, b"0xff00000000:0xffff00000000")
    assert memory.seen == [("read", 4, 2), ("write", 4, 2)]
    assert memory.content[:8].hex() == "88776655ff002211"
    assert view.width_at(0, 1) == 2
    assert list(view.reach(0, 1, writing=True)) == list(range(0x1000, 0x1008))
    view.close()
    assert memory.closed


def test_a_field_touches_its_own_access_only():
    register = register_of(
        field("LOW", 0, 7),
        field("HIGH", 32, 35),
        field("DONE", 40, on_write="woclr"),
        width=64,
        access_width=32,
    )
    memory = Recorder(b"\xaa" + b"\0" * 3 + b"\x05\x01\0\xf0")
    view = FieldView(memory, register, register.field("HIGH"))
    assert view.read(0, 100) == b"0x5\n"
    view.write(0, b"0x3")
    assert memory.seen == [("read", 4, 4), ("read", 4, 4), ("write", 4, 4)]
    # DONE is not cleared, and what is reserved is kept.
    assert (memory.content.hex(), view.raw) == ("aa000000030000f0", 0xF0000003)


def test_what_is_refused_makes_no_access():
    register = register_of(
        field("A", 0, 3, enum={"OFF": 0, "ON": 9}),
        field("B", 4, access="w"),
        field("C", 5, access="r"),
    )
    memory = Recorder()
    for name, text in (("A", b"1"), ("A", b"16"), ("A", b"on"), ("A", b"0x1:0x1"), ("B", b"2")):
        with pytest.raises(BadRequest):
            FieldView(memory, register, register.field(name)).write(0, text)
    with pytest.raises(NotAllowed):
        FieldView(memory, register, register.field("B")).read(0, 10)
    write_only = RegisterView(memory, register_of(field("B", 4, access="w")))
    with pytest.raises(NotAllowed):
        write_only.read(0, 10)
    with pytest.raises(NotAllowed):
        write_only.write(0, b"0x1:0x1")
    assert memory.seen == []
    with pytest.raises(BadRequest):
        RegisterView(Recorder(max_width=4), register_of(width=64))
    with pytest.raises(BadRequest):
        RegisterView(Recorder(base=0x1002), register_of())


def test_a_name_is_read_and_written():
    register = register_of(field("A", 0, 31, enum={"OFF": 0, "ON": 9}))
    memory = Recorder()
    view = FieldView(memory, register, register.field("A"))
    assert view.read(0, 100) == b"0x0 OFF\n"
    view.write(0, b" ON \n")
    assert memory.seen == [("read", 0, 4), ("write", 0, 4)]
    assert view.read(0, 100) == b"0x9 ON\n"


def test_sampled_text_is_made_when_it_is_read_from_its_beginning():
    made = []
    memory = Recorder()
    view = SampledText(memory, lambda _: made.append(1) or "abcdef", range(4), 4, 6)
    assert (view.read(0, 3), view.read(3, 10), view.read(6, 10)) == (b"abc", b"def", b"")
    assert made == [1]
    assert list(view.reach(0, 1, writing=False)) == [0, 1, 2, 3]
    assert len(view.reach(3, 1, writing=False)) == 0
    view.read(0, 1)
    assert made == [1, 1]


class ConfigFile:
    def __init__(self, content):
        self.content, self.seen = bytearray(content), []

    def read(self, offset, length):
        self.seen.append(("read", offset, length))
        return bytes(self.content[offset : offset + length])

    def write(self, offset, data):
        self.seen.append(("write", offset, len(data)))
        self.content[offset : offset + len(data)] = data
        return len(data)

    def close(self):
        self.seen.append("closed")


def test_config_space_is_asked_in_the_width_of_the_register():
    file = ConfigFile(bytes(range(64)))
    view = RegisterView(ConfigAperture(file, 6, 2), register_of(width=16))
    assert view.read(0, 100) == b"0x0706\n"
    view.write(0, b"0x1234")
    view.close()
    assert file.seen == [("read", 6, 2), ("write", 6, 2), "closed"]
