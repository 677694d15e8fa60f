"""What a random walk chooses from: places in files, lengths, lines of text, actions."""

from hypothesis import strategies as st

from walks.machine import SLOTS, VIEWS

MOST_OPEN = 12

# Where things begin and end: files, pages, what is mapped at once.
PLACES = {
    "start": lambda size: 0,
    "end": lambda size: size,
    "middle": lambda size: size // 2,
    "page": lambda size: min(size, 4096),
    "last page": lambda size: max(0, size - 4096),
    "mapping": lambda size: min(size, 64 << 20),
    "beyond": lambda size: 2 * size,
}
FAR = {"offset's end": lambda size: 1 << 63, "address's end": lambda size: 1 << 64}


def place(named, size):
    """An offset near one of those places."""
    name, beside = named
    return max(0, {**PLACES, **FAR}[name](size) + beside)


def bar_number(function, which):
    """The index of one of a function's BARs, or of one that it does not have."""
    bars = sorted(function.bars) if function else []
    return bars[which % len(bars)] if bars and which < ABSENT else 4


def hexadecimal(number, *, plain):
    return f"{number:x}" if plain else f"0x{number:X}"


NEAR = st.one_of(st.sampled_from([0, 8, 4, 0, -4, -8, -16]), st.integers(-9, 17))
INSIDE = st.tuples(st.sampled_from(list(PLACES)), NEAR)
ANYWHERE = st.tuples(st.sampled_from([*PLACES, *PLACES, *FAR]), NEAR)
FURTHER = st.sampled_from([0, 4, 11, 64, 300, 5000])
LENGTHS = st.one_of(
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([1, 2, 4, 8, 16]),
    st.integers(0, 40),
    st.sampled_from([*[0, 100] * 4, 4096, 4099, 9000, 70000]),
)
NUMBERS = st.one_of(
    st.integers(0, 255),
    st.integers(0, 255),
    st.builds(lambda power, beside: (1 << power) + beside, st.sampled_from([8, 16, 32, 64]), NEAR),
).map(abs)
NUMBER_TEXTS = st.builds(
    lambda number, form: form.format(number),
    NUMBERS,
    st.sampled_from(
        [*["{}", "{:#x}", "0X{:X}", "{:#b}"] * 4, "0{}", "{:x}", "+{}", "{:_}", "", "0x"]
    ),
)
LINES = st.one_of(
    st.builds("{}\n".format, NUMBER_TEXTS),
    st.builds("{}:{}".format, NUMBER_TEXTS, NUMBER_TEXTS),
    st.builds(" {}\t\n".format, NUMBER_TEXTS),
    st.text("0x1b: \n", max_size=9),
).map(str.encode)
SLOT = st.sampled_from(SLOTS)
VIEW = st.sampled_from(VIEWS)
# Below ABSENT one of those that the function has.
ABSENT = 8
BAR = st.integers(0, ABSENT + 1)


# Which open file, where, how long, whether of whole accesses, and what to write if not read.
REQUEST = st.tuples(
    st.integers(0, MOST_OPEN),
    INSIDE,
    LENGTHS,
    st.booleans(),
    st.one_of(st.none(), st.integers(0, 255)),
)


def pattern(start, length):
    """Bytes that differ from their neighbours and from those a page away."""
    return bytes((start + 7 * n + n // 251) & 0xFF for n in range(length))


WEIGHTS = {}
ARGUMENTS = {}


def action(weight, **arguments):
    """What may happen, and how often.

    Not a rule of its own: hypothesis leaves out half of the rules of a walk, and of ours the
    opening of files is in every one.
    """

    def register(method):
        WEIGHTS[method.__name__] = weight
        ARGUMENTS[method.__name__] = st.fixed_dictionaries(arguments)
        return method

    return register


def any_action():
    names = [name for name, weight in WEIGHTS.items() for _ in range(weight)]
    return st.sampled_from(names).flatmap(lambda name: st.tuples(st.just(name), ARGUMENTS[name]))
