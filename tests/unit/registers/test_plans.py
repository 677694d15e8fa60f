"""Writes of fields, against a model of a register that knows nothing of barfs."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from barfs.errors import BadRequest
from barfs.registers.maps import Map, find
from barfs.registers.plans import effects_of_reading, plan, words


class Model:
    """A register bit by bit, as SystemRDL 2.0, 9.6 has it.

    `kinds` has for each bit its access, on-read and on-write effect and whether it clears itself.
    Bits that no field has are stored like others.
    """

    def __init__(self, kinds, bits):
        self.kinds = kinds
        self.bits = list(bits)
        self.locked = [False] * len(bits)
        self.effects = set()  # bits that reading did something to
        self.started = set()  # bits that clear themselves, and have been set off

    def read(self, low, count):
        value = 0
        for at in range(low, low + count):
            access, on_read, _, _ = self.kinds[at]
            if access in {"rw", "r", "rw1"}:
                value |= self.bits[at] << at - low
            if on_read:
                self.effects.add(at)
                self.bits[at] = {"rclr": 0, "rset": 1, "ruser": 1 - self.bits[at]}[on_read]
        return value

    def write(self, low, count, value):
        for at in range(low, low + count):
            one = value >> at - low & 1
            access, _, on_write, clears_itself = self.kinds[at]
            if access in {"r", "na"} or self.locked[at]:
                continue
            if access in {"rw1", "w1"}:
                self.locked[at] = True
            old = self.bits[at]
            by_one = {"woset": 1, "woclr": 0, "wot": 1 - old}
            by_zero = {"wzs": 1, "wzc": 0, "wzt": 1 - old}
            by_any = {"wclr": 0, "wset": 1, "wuser": 1 - old}
            new = by_one.get(on_write, old) if one else by_zero.get(on_write, old)
            new = by_any.get(on_write, new) if on_write else one
            self.bits[at] = 0 if clears_itself else new
            if clears_itself and one != (on_write in by_zero):
                self.started.add(at)


# Those that keep every field of a register from being written are rare, so that most are.
BY_BITS = ["woset", "woclr", "wot", "wzs", "wzc", "wzt"]
KINDS = st.tuples(
    st.sampled_from([*["rw"] * 12, "r", "r", "w", "rw1", "w1", "na"]),
    st.sampled_from([*[None] * 12, "rclr", "rset", "ruser"]),
    st.sampled_from([*[None] * 6, *BY_BITS * 2, "wclr", "wset", "wuser"]),
    st.sampled_from([*[False] * 5, True]),
)


@st.composite
def registers(draw, kinds=KINDS):
    width = draw(st.sampled_from([8, 16, 32, 64]))
    access_width = draw(st.sampled_from([w for w in (8, 16, 32, 64) if w <= width]))
    fields, at = [], 0
    while True:
        lsb = at + draw(st.integers(0, 4))
        msb = lsb + draw(st.integers(0, 9))
        if msb >= width or len(fields) == 6:
            break
        access, on_read, on_write, clears_itself = draw(kinds)
        field = {"name": f"F{len(fields)}", "lsb": lsb, "msb": msb, "access": access}
        field |= {"on_read": on_read} if on_read else {}
        field |= {"on_write": on_write} if on_write else {}
        field |= {"self_clearing": True} if clears_itself else {}
        fields.append(field)
        at = msb + 1
    assume(fields)
    widths = {"width": width, "access_width": access_width}
    return {"name": "R", "offset": 0, "fields": fields, **widths}


def register_of(raw):
    part = {"in": "bar0", "registers": [raw]}
    found = Map({"format": "barfs registers 1", "for": ["8086:100e"], "parts": [part]})
    return find(found.outline(), "R")


def kinds_of(raw):
    """For each bit of a register what the model wants to know. Bits in no field are storage."""
    kinds = [("rw", None, None, False)] * raw["width"]
    readable = any(field["access"] in {"rw", "r", "rw1"} for field in raw["fields"])
    if not readable:  # nobody can keep what is in a register that can't be read
        kinds = [("na", None, None, False)] * raw["width"]
    for f in raw["fields"]:
        kind = f["access"], f.get("on_read"), f.get("on_write"), f.get("self_clearing", False)
        kinds[f["lsb"] : f["msb"] + 1] = [kind] * (f["msb"] + 1 - f["lsb"])
    return kinds


def write(model, planned, value):
    """What a view does with a plan."""
    low, count = planned.word.lsb, 8 * planned.word.step
    old = model.read(low, count) if planned.keep else 0
    model.write(low, count, planned.value(old, value))


@settings(max_examples=500)
@given(st.data())
def test_no_write_of_a_field_changes_a_bit_beside_it(data):
    raw = data.draw(registers())
    index = data.draw(st.integers(0, len(raw["fields"]) - 1))
    field = raw["fields"][index]
    width = field["msb"] + 1 - field["lsb"]
    mask = data.draw(st.none() | st.integers(0, (1 << width) - 1))
    register = register_of(raw)
    try:
        planned = plan(register, register.field(field["name"]), mask)
    except BadRequest:
        return
    bits = data.draw(st.lists(st.integers(0, 1), min_size=raw["width"], max_size=raw["width"]))
    value = data.draw(st.integers(0, (1 << width) - 1))
    kinds = kinds_of(raw)
    model, alone = Model(kinds, bits), Model(kinds, bits)
    write(model, planned, value)
    # The field's bits become what writing them, and nothing else, makes of them.
    targets = [
        at
        for at in range(field["lsb"], field["msb"] + 1)
        if mask is None or mask >> at - field["lsb"] & 1
    ]
    for at in targets:
        alone.write(at, 1, value >> at - field["lsb"] & 1)
    # What clears itself has done so long before anybody writes.
    settled = [
        at
        for at in range(raw["width"])
        if at in targets or not kinds[at][3] or kinds[at][0] in {"r", "na"}
    ]
    assert [model.bits[at] for at in settled] == [alone.bits[at] for at in settled]
    assert [model.locked[at] for at in settled] == [alone.locked[at] for at in settled]
    assert model.started <= set(targets)
    assert not model.effects or model.effects == {at for at in targets if kinds[at][1]}


PLAIN = st.just(("rw", None, None, False)) | st.just(("rw", None, "woclr", False))


@given(registers(PLAIN))
def test_where_nothing_is_in_the_way_every_field_in_one_access_is_written(raw):
    register = register_of(raw)
    for field in register.fields:
        if len(words(register, field.mask)) == 1:
            plan(register, field)
        else:
            with pytest.raises(BadRequest, match="accesses of"):
                plan(register, field)


def example(*fields, **more):
    return register_of({"name": "R", "offset": 0, "width": 32, "fields": list(fields), **more})


def f(name, lsb, msb=None, **more):
    return {"name": name, "lsb": lsb, "msb": lsb if msb is None else msb, **more}


def planned(register, name, mask=None):
    """Whether it reads, and what it writes for all ones into a register of all ones."""
    made = plan(register, register.field(name), mask)
    return bool(made.keep), made.value(0xFFFFFFFF, 0xFFFFFFFF)


def test_nothing_else_is_kept_one_write():
    assert planned(example(f("A", 0, 31)), "A") == (False, 0xFFFFFFFF)
    ones = example(f("A", 0, on_write="woclr"), f("B", 1, 31, on_write="woclr"))
    assert planned(ones, "A") == (False, 1)
    zeros = example(f("A", 0), f("B", 1, 31, on_write="wzc"))
    assert planned(zeros, "A") == (False, 0xFFFFFFFF)
    read_only = example(f("A", 0), f("B", 1, 31, access="r"))
    assert planned(read_only, "A") == (False, 1)
    write_only = example(f("A", 0, 3, access="w"))
    assert planned(write_only, "A") == (False, 0xF)
    status = example(f("A", 0, on_write="woclr"), f("B", 1, on_write="woclr"), reserved="zero")
    assert planned(status, "A") == (False, 1)


def test_one_read_and_one_write_with_neutral_bits():
    mixed = example(
        *(f("A", 0, 3), f("B", 4, 7), f("DONE", 8, on_write="woclr"), f("Z", 9, on_write="wzs")),
        *(f("RST", 10, self_clearing=True), f("GO", 11, access="w", on_write="woset")),
        *(f("RO", 12, access="r"),),
    )
    everything_kept = 0xFFFFFFFF & ~(1 << 8 | 1 << 10 | 1 << 11)
    assert planned(mixed, "A") == (True, everything_kept)
    assert planned(mixed, "A", mask=0) == (True, everything_kept)
    assert planned(mixed, "DONE") == (True, everything_kept | 1 << 8)
    # With the field's own rule, the bits that a mask leaves out are as those beside it.
    some = example(f("W1C", 0, 7, on_write="woclr"), f("REST", 8, 31))
    assert planned(some, "W1C", mask=0x0F) == (True, 0xFFFFFF0F)


def test_reserved_bits_are_kept():
    assert planned(example(f("A", 0), f("B", 1)), "A") == (True, 0xFFFFFFFF)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (f("B", 1, access="w"), "R.B beside it can't be read"),
        (f("B", 1, on_write="wclr"), "R.B beside it is cleared by any write"),
        (f("B", 1, on_write="wset"), "R.B beside it is set by any write"),
        (f("B", 1, on_write="wuser"), "R.B beside it is changed by any write"),
        (f("B", 1, access="rw1"), "R.B beside it can be written only once"),
        (f("B", 1, on_read="rclr"), "has an effect on R.B"),
        (f("B", 1, access="r", on_read="rset"), "has an effect on R.B"),
    ],
)
def test_refused(other, why):
    with pytest.raises(BadRequest, match=rf"^R\.A .*{why}; write the whole register$"):
        planned(example(f("A", 0), other), "A")


def test_a_field_is_written_in_its_own_access_only():
    wide = {"width": 64, "access_width": 32}
    halves = example(f("LOW", 0, 31, on_read="rclr"), f("A", 32), f("B", 33, 40), **wide)
    made = plan(halves, halves.field("A"))
    assert (made.word.offset, made.word.step, bool(made.keep)) == (4, 4, True)
    assert made.value(0xFFFFFFFE, 1) == 0xFFFFFFFF
    assert effects_of_reading(halves, halves.field("A").mask) == {}
    assert effects_of_reading(halves) == {"R.LOW": "rclr"}
    across = example(f("A", 24, 39), **wide)
    with pytest.raises(BadRequest, match="in 2 accesses of 4 bytes; write the whole register"):
        plan(across, across.field("A"))
