"""Patterns that mean functions, against names that are and names that are not."""

import random
import re
from fnmatch import fnmatchcase

import pytest

from barfs.machine.patterns import NO_RULES, DevicePattern, Form, Rules


@pytest.mark.parametrize(
    ("text", "form", "yes", "no"),
    [
        ("1af4:1110", Form.ID, "1af4:1110", "1af4:1111 1af4:111 1af4:11100 11af4:1110"),
        ("1AF4:111A", Form.ID, "1af4:111a", "1af4:1110"),
        ("1af4:*", Form.ID, "1af4:1110 1af4:0000", "1af5:1110 1af4:1110:1af4:1100"),
        ("*:*", Form.ID, "1af4:1110 ffff:0000", "0000:00:04.0 1af4:1110:1af4:1100"),
        ("*:11?0", Form.ID, "1af4:1110 8086:11f0", "1110:1af4 1af4:1100:1af4:1110"),
        ("[18]*:100[0-9e]", Form.ID, "1af4:1000 8086:100e", "9086:100e 8086:100d"),
        ("[!8]*:*", Form.ID, "1af4:1110", "8086:100e"),
        ("[^8]*:*", Form.ID, "1af4:1110", "8086:100e"),
        ("[A-C]000:0000", Form.ID, "a000:0000 c000:0000", "d000:0000"),
        ("0000:00:04.0", Form.ADDRESS, "0000:00:04.0", "0000:00:04.1 1000:00:04.0 0000:00:14.0"),
        ("0000:03:00.?", Form.ADDRESS, "0000:03:00.0 0000:03:00.7", "0000:03:01.0"),
        ("*:03:*", Form.ADDRESS, "0000:03:00.0 10000:03:1f.7", "0003:00:03.0"),
        ("10000:*:*", Form.ADDRESS, "10000:e1:00.0", "1000:00:00.0"),
        ("0000:00:1[0-F].0", Form.ADDRESS, "0000:00:1f.0 0000:00:10.0", "0000:00:0f.0"),
        ("1af4:1110:1af4:11*", Form.SUBSYSTEM, "1af4:1110:1af4:1100", "1af4:1110 1af4:1110:1af4:1"),
        ("*:*:1af4:1100", Form.SUBSYSTEM, "8086:100e:1af4:1100", "1af4:1100:8086:100e 1af4:1100"),
        # What they may be short for.
        ("*", Form.ADDRESS, "0000:00:04.0 10000:e1:1f.7", "1af4:1110"),
        ("1af4", Form.ID, "1af4:1110 1af4:0000", "8086:1af4 1af5:1110"),
        ("1AF4:", Form.ID, "1af4:1110", "8086:1af4"),
        (":1110", Form.ID, "1af4:1110 8086:1110", "1110:1af4"),
        ("1af?", Form.ID, "1af4:1110", "8086:1af4"),
        ("1af4:1110:1af4:", Form.SUBSYSTEM, "1af4:1110:1af4:1100", "1af4:1110:8086:1100"),
        ("00:04.0", Form.ADDRESS, "0000:00:04.0", "0001:00:04.0 0000:00:04.1 0000:04:00.0"),
        ("00:1F.3", Form.ADDRESS, "0000:00:1f.3", "0000:00:1f.2"),
        ("00:04", Form.ADDRESS, "0000:00:04.0 0000:00:04.7", "0000:00:05.0"),
        ("00:", Form.ADDRESS, "0000:00:04.0 0000:00:1f.7", "0000:01:00.0 0001:00:04.0"),
        ("0?:*", Form.ADDRESS, "0000:00:04.0 0000:0f:1f.7", "0000:10:00.0"),
        ("*:00.0", Form.ADDRESS, "0000:00:00.0 0000:ff:00.0", "0001:00:00.0 0000:00:01.0"),
        ("04.0", Form.ADDRESS, "0000:00:04.0 10000:e1:04.0", "0000:00:04.1"),
        (".0", Form.ADDRESS, "0000:00:04.0 10000:e1:1f.0", "0000:00:04.1"),
        ("0:4.0", Form.ADDRESS, "0000:00:04.0", "0000:00:14.0"),
        ("0:0:4.0", Form.ADDRESS, "0000:00:04.0", "0000:00:14.0"),
        ("0000:00:04", Form.ADDRESS, "0000:00:04.0 0000:00:04.1", "0000:00:14.0"),
        ("::04.0", Form.ADDRESS, "0000:00:04.0 10000:e1:04.0", "0000:00:04.1"),
        # For tools that take `:` for something else.
        ("1af4-1110", Form.ID, "1af4:1110", "1af4:1111"),
        ("0000-00-04.0", Form.ADDRESS, "0000:00:04.0", "0000:00:04.1"),
        ("00-04.0", Form.ADDRESS, "0000:00:04.0", "0000:00:04.1"),
        ("1af4-1110-1af4-1100", Form.SUBSYSTEM, "1af4:1110:1af4:1100", "1af4:1110:1af4:1101"),
        ("1af4-111[0-1]", Form.ID, "1af4:1110 1af4:1111", "1af4:1112"),
    ],
)
def test_what_a_pattern_means(text, form, yes, no):
    pattern = DevicePattern.parse(text)
    assert pattern.form == form
    assert str(pattern) == text
    assert [name for name in yes.split() if not pattern.matches(name)] == []
    assert [name for name in no.split() if pattern.matches(name)] == []


@pytest.mark.parametrize(
    "text",
    [
        *("", "?", ":", "-", "::", ":::", "af4", "e1000", "ethernet", "*mem*", "1af4:1110:*"),
        *("af4:1110", "1af4:111", "1af4:11100", "01af4:1110", "1af4:1110.1", "03", "3"),
        *("0x1af4:1110", "1af4:111g", "1af4: 1110", "1af4:1110\n", "1af4:?????", "1af4:*g"),
        *("00000:03:00.0", "0000:03:00.8", "0000:03.0", "003:00.0"),
        *("0000:03:20.0", "0000:03:00.0.0", "0000:03:00:0", "0000:03:?.0", "000000000:00:00.0"),
        *(
            "1af4:1110:1af4",
            "1af4:1110:1af4:1100:",
            "1af4:1110-",
            "1af4:1110:1af4:1100:0000",
            "1af4:1110:1af4:x",
        ),
        *("[1af4:1110", "1af4:111[", "1af4:111[]", "1af4:111[!]", "1af4:111[^]", "1af4:111]"),
        *("1af4:111[g-z]", "1af4:111[f-a]", "[1:2]af4:1110", "1af4:111[!0-9a-f]", "1af4:[.]*"),
        *("1af4:111{0,1}", "1af4:!(1110)", "1af4:111\\0", "1af4:1110,1af4:1111", "!1af4:1110"),
        *("\N{ARABIC-INDIC DIGIT ONE}af4:1110", "1af4:111\udcff", "1af4:111\0"),
    ],
)
def test_what_no_function_can_match_is_no_pattern(text):
    assert DevicePattern.parse(text) is None


def test_many_wildcards_take_no_longer():
    assert DevicePattern.parse(f"{'*' * 2000}:{'*0' * 4}{'*' * 2000}").matches("1af4:0000")
    assert DevicePattern.parse(f"{'*?' * 2000}:*") is None


def random_names(choose):
    digits = "".join(choose.choice("01af") for _ in range(16))
    slot = f"{choose.choice('01')}{digits[0]}.{choose.choice('07')}"
    yield f"{digits[:4]}:{digits[4:8]}"
    yield f"{digits[:4]}:{digits[4:6]}:{slot}"
    yield f"{digits[:4]}:{digits[4:8]}:{digits[8:12]}:{digits[12:]}"


def as_a_shell(pattern, name):
    """Field by field, and nothing for a bracket that is not closed."""
    parts, fields = pattern.lower().split(":"), name.split(":")
    return len(parts) == len(fields) and all(map(fnmatchcase, fields, parts))


def is_in_full(pattern):
    """Whether it says all that it means: no field is short, empty or left out."""
    if "-" in re.sub(r"\[[^]]*\]", "", pattern):
        return False
    fields = pattern.lower().split(":")
    numbers = [field for field in fields if re.fullmatch("[0-9a-f]*", field)]
    return (
        len(fields) > 1
        and all(len(number) in {2, 4} for number in numbers)
        and (len(fields) == 2 or "." in fields[2] or len(fields) == 4)
        and not (len(fields) == 2 and len(fields[0]) < 4)
        and not (len(fields) == 2 and "." in fields[1])
        and not (len(fields) == 3 and len(fields[0]) == 2)
        and not (len(fields) == 3 and re.match(r"[0-9a-f]?\.", fields[2]))
        and not (len(fields) == 3 and fields[2].endswith("."))
    )


def mutated(choose, name):
    """A name with some of it made wildcards, or damaged."""
    text = list(name)
    for _ in range(choose.randrange(4)):
        at = choose.randrange(len(text))
        text[at] = choose.choice(["*", "?", "[01]", "[!f]", "[0-a]", "", "[", "]", "g", ":", "!-"])
    return "".join(text)


def test_fuzz_patterns_mean_what_they_mean_to_a_shell():
    choose = random.Random(4)
    counts = {True: 0, False: 0, None: 0}
    for _ in range(4000):
        names = list(random_names(choose))
        text = mutated(choose, choose.choice(names))
        if not is_in_full(text):
            continue
        pattern = DevicePattern.parse(text)
        names += random_names(choose)
        for name in names:
            result = pattern and pattern.matches(name)
            assert bool(result) == as_a_shell(text, name), (text, name)
            counts[result] += 1
    assert min(counts.values()) > 500


def test_fuzz_nonsense_is_refused_or_matches_something_of_its_form():
    choose = random.Random(7)
    parsed = 0
    for _ in range(20000):
        text = "".join(choose.choice("****?[]!-.:::0g\n") for _ in range(choose.randrange(12)))
        pattern = DevicePattern.parse(text)
        if pattern is not None:
            parsed += 1
            assert len(pattern.fields) == pattern.form
    assert parsed > 50


IVSHMEM = {
    Form.ID: "1af4:1110",
    Form.ADDRESS: "0000:00:04.0",
    Form.SUBSYSTEM: "1af4:1110:1af4:1100",
}.get
NAMELESS = {Form.ADDRESS: "0000:00:04.0"}.get


def patterns(*texts):
    return tuple(map(DevicePattern.parse, texts))


@pytest.mark.parametrize(
    ("texts", "known", "nameless"),
    [
        (["1af4:*"], (True, True), (False, True)),
        (["8086:*"], (False, False), (False, True)),
        (["8086:*", "0000:00:04.?"], (True, True), (True, True)),
        (["0000:00:05.0"], (False, False), (False, False)),
        (["*:*:1af4:1100"], (True, True), (False, True)),
    ],
)
def test_rules_and_what_is_not_known_is_refused(texts, known, nameless):
    rules = Rules(allow=patterns(*texts), read_only=patterns(*texts))
    assert (rules.allows(IVSHMEM), rules.protects(IVSHMEM)) == known
    assert (rules.allows(NAMELESS), rules.protects(NAMELESS)) == nameless


def test_without_rules_nothing_is_asked():
    assert NO_RULES.allows(None)
    assert not NO_RULES.protects(None)
