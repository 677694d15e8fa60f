"""Registers as text: what a size can be told of before the register is read."""

import random

from barfs.registers import texts
from barfs.registers.files import DIRECTORIES, MapFiles
from barfs.registers.maps import registers


def built_in():
    files = MapFiles(DIRECTORIES)
    for path in sorted(DIRECTORIES[-1].glob("*.json")):
        found = files.find([path.stem])
        if found is not None and found.map is not None:
            yield from registers(found.map.outline())


def test_a_decoded_text_has_one_length_whatever_the_value():
    seen = 0
    for register in built_in():
        size = len(texts.decoded(register, 0))
        values = [(1 << 8 * register.size) - 1]
        values += [random.Random(0).getrandbits(8 * register.size) for _ in range(3)]
        values += [value << f.lsb for f in register.fields for value in f.values.values()]
        for value in values:
            assert len(texts.decoded(register, value)) == size, (register.path, hex(value))
            seen += 1
    assert seen > 1000


def test_no_field_has_a_longer_line_than_is_told():
    for register in built_in():
        for field in register.fields:
            lines = [texts.line_of(field, value) for value in field.values.values()]
            lines.append(texts.line_of(field, (1 << field.width) - 1))
            assert max(map(len, lines)) == texts.longest_line(field)
