"""The format of maps: what is refused, where it is said to be wrong, and what is made of it."""

import copy
import json
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from barfs.errors import MapRefused
from barfs.registers.maps import Array, Block, Map, Place, Register, Space, find, registers
from barfs.registers.plans import effects_of_reading


def reg(name, offset=0, width=32, **more):
    return {"name": name, "offset": offset, "width": width, **more}


def content(*items, **part):
    parts = [{"in": "bar0", "registers": list(items), **part}]
    return {"format": "barfs registers 1", "for": ["8086:100e"], "parts": parts}


FIELD = {"name": "LU", "lsb": 1}
GOOD = content(
    reg(
        "STATUS",
        8,
        description="what it does",
        fields=[
            {**FIELD, "access": "r", "reset": 1, "enum": {"DOWN": 0, "UP": [1, "link is up"]}},
            {"name": "SPEED", "lsb": 6, "msb": 7, "on_write": "woclr", "on_read": "rclr"},
        ],
    ),
    reg("WIDE", 0x10, 64, access_width=32),
    reg("RDBAL", 0x2800, count=2, stride=0x100),
    reg("GRID", 0x3000, 8, count=[2, 3], stride=4),
    {
        "name": "PORT",
        "offset": 0x100,
        "count": 4,
        "stride": 0x80,
        "fit": True,
        "registers": [reg("IS", 0x10), {"name": "SUB", "offset": 0x20, "registers": [reg("X", 4)]}],
    },
)


def outline(what):
    return Map(what).outline()


def test_what_is_in_a_map():
    top = outline(GOOD)
    assert [(name, type(entry)) for name, entry in top.children()] == [
        *(("STATUS", Register), ("WIDE", Register), ("RDBAL", Array), ("GRID", Array)),
        ("PORT", Array),
    ]
    status = find(top, "STATUS")
    assert (status.offset, status.size, status.step) == (8, 4, 4)
    lu, speed = status.fields
    assert (lu.name, lu.lsb, lu.msb, lu.width, lu.mask, lu.reset) == ("LU", 1, 1, 1, 2, 1)
    assert (lu.values, lu.meanings) == ({"DOWN": 0, "UP": 1}, {"UP": "link is up"})
    assert (lu.readable, lu.writable, speed.mask) == (True, False, 0xC0)
    assert effects_of_reading(status) == {"STATUS.SPEED": "rclr"}
    assert (find(top, "WIDE").size, find(top, "WIDE").step) == (8, 4)
    assert [find(top, f"RDBAL/{index}").offset for index in range(2)] == [0x2800, 0x2900]
    grid = [find(top, f"GRID/{i}/{j}").offset for i in range(2) for j in range(3)]
    assert grid == [0x3000, 0x3004, 0x3008, 0x300C, 0x3010, 0x3014]
    assert find(top, "PORT/3/IS").offset == 0x100 + 3 * 0x80 + 0x10
    assert find(top, "PORT/3/SUB/X").offset == 0x100 + 3 * 0x80 + 0x24
    assert find(top, "PORT/3/SUB/X").path == "PORT/3/SUB/X"
    assert len(list(registers(top))) == 2 + 2 + 6 + 4 * 2
    for path in ("RDBAL/2", "RDBAL/01", "RDBAL/-1", "RDBAL/x", "STATUS/LU", "PORT/0/IS/0", "X"):
        assert find(top, path) is None, path


def test_elements_past_the_end_of_the_place_are_not_there():
    top = Map(GOOD).top([Place(Space.BAR, 0, 0, 0x200)])
    assert [name for name, _ in find(top, "PORT").children()] == ["0", "1"]
    assert find(top, "PORT/2") is None


def test_parts_in_places():
    what = content(reg("A"), offset=0x40)
    what["parts"] += [
        {"in": "bar2", "directory": "SECOND", "registers": [reg("B", 4)]},
        {"in": "virtio 1", "directory": "SECOND", "registers": [reg("C", 4)]},
        {"in": "config cap 01", "directory": "GONE", "registers": [reg("D", 4)]},
    ]
    places = [
        *(Place(Space.BAR, 0, 0, 0x100), Place(Space.BAR, 2, 0, 0x100)),
        *(Place(Space.BAR, 4, 0x1000, 0x1038), None),
    ]
    top = Map(what).top(places)
    assert [name for name, _ in top.children()] == ["A", "SECOND"]
    assert isinstance(find(top, "SECOND"), Block)
    found = [find(top, path) for path in ("A", "SECOND/B", "SECOND/C")]
    assert [(r.place.bar, r.offset) for r in found] == [(0, 0x40), (2, 4), (4, 0x1004)]
    assert find(top, "GONE/D") is None


def test_a_block_that_a_register_says_the_place_of():
    block = {"name": "OP", "offset": 4, "base": "LENGTH", "registers": [reg("CMD")]}
    top = outline(content(reg("LENGTH", 0, 8), block))
    command = find(top, "OP/CMD")
    assert (command.offset, command.where.base.path) == (4, "LENGTH")
    assert find(top, "LENGTH").where.base is None


def test_an_array_that_a_register_says_the_length_of():
    count = reg("PARAMS", 0, fields=[{"name": "PORTS", "lsb": 4, "msb": 7}])
    ports = {"name": "PORT", "offset": 8, "count": 8, "stride": 4, "limit": "PARAMS.PORTS"}
    top = outline(content(count, ports | {"registers": [reg("SC")]}))
    (limit,) = find(top, "PORT/3/SC").where.limits
    assert (limit[0].path, limit[1].name, limit[2]) == ("PARAMS", "PORTS", 3)
    block = {"name": "OP", "offset": 4, "base": "PARAMS", "registers": [ports | reg("X")]}
    top = outline(content(count, block))
    where = find(top, "OP/X/2").where
    assert (where.base.path, where.limits[0][2]) == ("PARAMS", 2)


def test_a_register_past_the_end_of_the_place_is_not_there_if_it_may_be_missing():
    what = Map(content(reg("A"), reg("B", 8, fit=True)))
    assert what.parts[0].reach == 4
    for end, names in ((8, ["A"]), (12, ["A", "B"]), (None, ["A", "B"])):
        top = what.top([Place(Space.BAR, 0, 0, end)])
        assert [name for name, _ in top.children()] == names


def nest(depth):
    inner = [reg("X")]
    for _ in range(depth):
        inner = [{"name": "B", "offset": 0, "registers": inner}]
    return inner[0]


def one(**field):
    return content(reg("R", fields=[{"name": "F", "lsb": 0, **field}]))


BAD = [
    ({}, "it has no 'format'"),
    ([], r"\[\] is not an object"),
    (GOOD | {"format": "barfs registers 2"}, "'format' is \"barfs registers 2\""),
    (GOOD | {"surprise": 1}, "there is no 'surprise' here"),
    (GOOD | {"for": []}, "it is for nothing"),
    (GOOD | {"for": ["8086:100E"]}, "'for' has '8086:100E'"),
    (GOOD | {"revision": [256]}, "'revision' has 256"),
    (GOOD | {"parts": [1]}, r"parts\[0\]: 1 is not an object"),
    (content(reg("A"), **{"in": "bar6"}), r"parts\[0\]: 'in' is 'bar6'"),
    (content(reg("A"), offset=2), r"parts\[0\]: offset 0x2 is no multiple of 4 bytes"),
    (content(reg("A"), reg("A", 4)), "A: there are two of the name A"),
    (content(reg("README")), "README: there are two"),
    (content(reg("X"), directory="config"), "there are two of the name config"),
    (content(reg("A/B")), r"registers\[0\]: 'A/B' is no name"),
    (content(reg("A.B")), "'A.B' is no name"),
    (content(reg("A\n")), r"'A\\n' is no name"),
    (content(reg("A\x9b")), "is no name"),
    (content(reg("..")), "is no name"),
    (content(reg("")), "is no name"),
    (content(reg("\u202e")), "can't be printed"),
    (content(reg("A" * 200)), "too long"),
    (content(reg("A", 2)), "A: offset 0x2 is no multiple of 4 bytes"),
    (content(reg("A", -4)), "A: 'offset' is -4"),
    (content(reg("A", 4.0)), "it is no JSON: 4.0 is no whole number"),
    (content(reg("A", True)), "A: 'offset' is true"),
    (content(reg("A", width=24)), "A: a register can't be 24 bits wide"),
    (content(reg("A", access_width=64)), "A: a register of 32 bits can't be accessed 64"),
    (content(reg("A", count=2, stride=2)), "A: elements of 0x4 bytes every 0x2 bytes overlap"),
    (content(reg("A", count=2, stride=6)), "A: stride 0x6 is no multiple"),
    (content(reg("A", count=0, stride=4)), r"A: 'count' is \[0\]"),
    (content(reg("A", count=1 << 40, stride=4)), "too big"),
    (content(nest(40)), "too deep"),
    (content(nest(2) | {"offset": 2}), "B: offset 0x2 is no multiple of 4"),
    (one(lsb=31, msb=32), r"R: field F: bits 32 to 31 are none of a register 32 bits wide"),
    (one(lsb=2, msb=1), "R: field F: bits 1 to 2"),
    (one(access="x"), "R: field F: 'access' is not one of"),
    (one(access=[]), "R: field F: "),
    (one(on_read="x"), "R: field F: 'on_read' is not one of"),
    (one(on_write={}), "R: field F: "),
    (one(reset=2), "R: field F: 'reset' is 2"),
    (one(enum={"A": 2}), "R: field F: the value 2 of A does not fit"),
    (one(enum={"1": 1}), "could be taken for a number"),
    (one(self_clearing=1), "R: field F: 'self_clearing' is neither"),
    (content(reg("R", fields=[FIELD, {"name": "B", "lsb": 0, "msb": 4}])), "R: field B: its bits"),
    (content(reg("R", fields=[FIELD, FIELD])), "R: field LU: "),
    (content(reg("R", fields=[{"name": "A"}])), "R: field A: it has no 'lsb'"),
    (content({"name": "B", "offset": 0, "base": "X", "registers": []}), "'base' is for blocks"),
    (content(reg("A", count=2, stride=4, limit="B.C")), "A: 'limit' names no field"),
    (content(reg("A", limit="B.C")), "A: 'stride' and 'limit' are for what has a 'count'"),
]


@pytest.mark.parametrize(("what", "why"), BAD)
def test_what_is_wrong_is_refused_and_where_is_said(what, why):
    with pytest.raises(MapRefused, match=why):
        Map.parse(json.dumps(what).encode())


def leaves(what, path=()):
    """Where in a map there are values."""
    items = what.items() if isinstance(what, dict) else enumerate(what)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from leaves(value, (*path, key))


JUNK = st.none() | st.booleans() | st.integers(-4, 1 << 66) | st.floats() | st.text(max_size=3)
JUNK = st.recursive(
    JUNK,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(st.sampled_from(list(leaves(GOOD))), JUNK)
def test_whatever_stands_in_a_map_it_is_refused_or_can_be_used(path, junk):
    what = copy.deepcopy(GOOD)
    *way, last = path
    inner = what
    for key in way:
        inner = inner[key]
    inner[last] = junk
    try:
        found = Map.parse(json.dumps(what).encode())
    except MapRefused:
        return
    for register in registers(found.outline()):
        assert register.fields is not None
        assert register.readable or register.writable is not None


def test_a_big_map_loads_fast_and_small():
    """2,000 registers and 16,000 fields."""
    fields = [
        {"name": f"FIELD_{n}", "lsb": 4 * n, "msb": 4 * n + 3, "description": f"Field {n} of 8"}
        for n in range(8)
    ]
    items = [reg(f"REG{n}", 4 * n, fields=fields, description=f"number {n}") for n in range(2000)]
    data = json.dumps(content(*items)).encode()

    def load():
        started = time.process_time()
        Map.parse(data)
        return time.process_time() - started

    assert min(load() for _ in range(7)) < 0.1
    tracemalloc.start()
    kept = Map.parse(data)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < 10 << 20, kept
