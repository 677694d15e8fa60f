"""Random walks over a machine's files, each step compared with the model; hypothesis leads."""

import contextlib
import errno
import os
import secrets
import sys

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from walks.choices import (
    ANYWHERE,
    BAR,
    FURTHER,
    INSIDE,
    LENGTHS,
    LINES,
    MOST_OPEN,
    NEAR,
    REQUEST,
    SLOT,
    VIEW,
    action,
    any_action,
    bar_number,
    hexadecimal,
    pattern,
    place,
)
from walks.files import Handle, Refused
from walks.machine import DEVICES

STEPS_IN_A_WALK = 80
# More steps, led by another seed each time, if this says how many.
STEPS = "BARFS_MODEL_STEPS"


def refuse(errnos):
    raise Refused(*errnos)


class Walk(RuleBasedStateMachine):
    """What may happen. `driver` does the same to barfs that `machine` does to the model."""

    steps = 0  # of all walks since the last test began

    def __init__(self, machine, driver):
        super().__init__()
        self.machine, self.driver = machine, driver
        self.open = []

    @rule(action=st.deferred(any_action))
    def step(self, action):
        name, arguments = action
        getattr(self, name)(**arguments)
        Walk.steps += 1

    def compare(self, call, expect):
        """Do it to both; results, errno and accesses have to be the same."""
        refused, wanted = (), None
        try:
            wanted = expect()
        except Refused as error:
            refused = error.errnos
        try:
            got = call()
        except OSError as error:
            if error.errno in refused:
                return False
            raise
        assert not refused, got
        assert got == wanted
        return True

    def check_accesses(self, expected):
        got = self.driver.accesses()
        assert got is None or got == expected

    def try_open(self, names, meaning, request, *, writable):
        """Look a name up, and open it and make a request of it where that succeeds."""
        refused = meaning if isinstance(meaning, set) else ()

        def expect():
            if refused:
                raise Refused(*refused)
            return meaning.shown_size, meaning.blksize

        def find():
            size, blksize = self.driver.find(names)
            return size, blksize if refused or meaning.blksize else None

        if not self.compare(find, expect):
            self.check_accesses([])
            return
        refused = meaning.refusals()
        opened = []
        if self.compare(
            lambda: opened.append(self.driver.open(names, writable=writable)),
            lambda: refuse(refused) if refused else None,
        ):
            self.check_accesses([])
            self.open.append(
                (Handle(meaning, writable=writable, joins=self.driver.joins), opened[0])
            )
            self.request(len(self.open) - 1, ("start", 0), 8, fit=True)
            self.request(len(self.open) - 1, *request[1:])
        self.check_accesses([])
        if len(self.open) > MOST_OPEN:
            self.close_one(0)

    @action(
        6,
        slot=SLOT,
        view=VIEW,
        bar=BAR,
        read_only=st.sampled_from([False, False, False, True]),
        plain=st.booleans(),
        form=st.sampled_from(["", "", "@", "@", "+", "-"]),
        first=ANYWHERE,
        length=LENGTHS,
        request=REQUEST,
    )
    def open_bar(self, slot, view, bar, read_only, plain, form, first, length, request):
        """By its PCI address, whole or a window."""
        function = self.machine.plugged.get(slot)
        bar = bar_number(function, bar)
        name, window = f"bar{bar}", None
        if form:
            start, end, _ = function.bars.get(bar, (0, 99, 0)) if function else (0, 99, 0)
            number = place(first, end + 1 - start)
            second = length if form == "+" else number + length - 1
            window = (form, number, second)
            name += f"@{hexadecimal(number, plain=plain)}"
            if form != "@":
                name += f"{form}{hexadecimal(max(0, second), plain=plain)}"
                window = (form, number, max(0, second))
        meaning = self.machine.bar_file(slot, view, bar, window)
        names = ["pci", slot, *filter(None, [view]), name]
        self.try_open(names, meaning, request, writable=not read_only)

    @action(
        3,
        view=VIEW,
        row=st.integers(0, 20),
        at_end=st.booleans(),
        beside=NEAR,
        plain=st.booleans(),
        form=st.sampled_from(["", "+", "-"]),
        length=LENGTHS,
        read_only=st.sampled_from([False, False, False, True]),
        request=REQUEST,
    )
    def open_phys(self, view, row, at_end, beside, plain, form, length, read_only, request):
        """By an address near the end of a range of the machine's, or of a BAR in it."""
        rows = self.machine.ranges + self.machine.owned
        start, end, _ = rows[row % len(rows)]
        first = max(0, (end + 1 if at_end else start) + beside)
        second = max(0, length if form == "+" else first + length - 1)
        name = hexadecimal(first, plain=plain)
        if form:
            name += form + hexadecimal(second, plain=plain)
        meaning = self.machine.phys_file(view, form, first, second)
        names = ["phys", *filter(None, [view]), name]
        self.try_open(names, meaning, request, writable=not read_only)

    def request(self, which, at, length, fit, start=None):
        """One read, or a write of bytes that begin with `start`."""
        if not self.open:
            return
        handle, fd = self.open[which % len(self.open)]
        view = handle.file.view
        offset = place(at, handle.file.shown_size)
        if fit and view[:1] == "u":
            width = int(view[1:]) // 8
            offset, length = offset - offset % width, length - length % width
        length = max(1, length)  # the kernel answers what asks for nothing by itself
        if start is None or not handle.writable:
            self.compare(
                lambda: self.driver.read(fd, offset, length),
                lambda: handle.read(self.machine, offset, length),
            )
            self.check_accesses(handle.expected())
        else:
            self.put(handle, fd, offset, pattern(start, length))

    def put(self, handle, fd, offset, data):
        """One write."""
        self.compare(
            lambda: self.driver.write(fd, offset, data),
            lambda: handle.write(self.machine, offset, data),
        )
        self.check_accesses(handle.expected())

    @action(8, requests=st.lists(REQUEST, min_size=2, max_size=6))
    def requests(self, requests):
        for request in requests:
            self.request(*request)

    @action(1, request=REQUEST)
    def write_and_read_all(self, request):
        """What was written comes back, through whichever file has the same bytes."""
        which, at, length, *_ = request
        self.request(which, at, length, fit=True, start=length)
        self.read_all(at, length)

    def read_all(self, at, length):
        for which in range(len(self.open)):
            self.request(which, at, length, fit=True)

    @action(3, which=st.integers(0, MOST_OPEN), text=LINES, offset=FURTHER)
    def write_line(self, which, text, offset):
        """A line to a register's text; where in the file is all the same."""
        texts = [pair for pair in self.open if pair[0].writable and pair[0].file.view[:1] == "x"]
        if not texts or not text:
            return
        self.put(*texts[which % len(texts)], offset, text)

    @action(3, which=st.integers(0, MOST_OPEN), text=LINES, size=st.integers(1, 5))
    def write_pieces(self, which, text, size):
        """A line that goes on, a few bytes at a time; the offset stays where a piece is refused."""
        texts = [pair for pair in self.open if pair[0].writable and pair[0].file.view[:1] == "x"]
        if texts:
            handle, fd = texts[which % len(texts)]
            for at in range(0, len(text), size):
                offset = handle.next if handle.joins else at
                self.put(handle, fd, offset, text[at : at + size])

    @action(1, which=st.integers(0, MOST_OPEN))
    def close(self, which):
        if self.open:
            self.close_one(which % len(self.open))
        else:
            self.check_accesses([])

    def close_one(self, which):
        """What was typed without a newline is carried out then."""
        handle, fd = self.open.pop(which)
        self.compare(lambda: self.driver.close(fd), lambda: handle.close(self.machine))
        self.check_accesses(handle.expected())

    @action(2, slot=SLOT, which=st.integers(0, len(DEVICES)), at=INSIDE, offset=FURTHER)
    def unplug_or_plug(self, slot, which, at, offset):
        """The function that is there goes, or one comes that was unplugged there or elsewhere."""
        if slot in self.machine.plugged:
            self.machine.unplug(slot)
            self.read_all(at, 8)
            for handle, fd in self.open:
                if handle.writable and handle.file.view[:1] == "x":
                    self.put(handle, fd, offset, b"1\n")
        elif self.machine.unplugged:
            self.machine.plug(which % len(self.machine.unplugged), slot)

    @action(1, slot=SLOT, bar=BAR, by=st.sampled_from([-1, 1, 2]), back=st.booleans())
    def move(self, slot, bar, by, back):
        """By a few times its size, onto another one's address perhaps."""
        function = self.machine.plugged.get(slot)
        bar = bar_number(function, bar)
        if function and bar in function.bars:
            start, end, _ = function.resources[bar]
            size = end + 1 - start
            if 0 < start + by * size < self.machine.size - size:
                self.machine.move(slot, bar, start + by * size)
                if back:
                    # Who has noticed does not forget it.
                    self.read_all(("start", 0), 8)
                    self.machine.move(slot, bar, start)

    @action(2, slot=SLOT, value=st.sampled_from([0, 1, 2, 3, 3, 3, 3, 3, 7, 0x403, 0xFFFF]))
    def decode(self, slot, value):
        if slot in self.machine.plugged:
            self.machine.command(slot, value)

    @action(2, slot=SLOT, bar=BAR, at=INSIDE, start=st.integers(0, 255), length=st.integers(1, 40))
    def poke(self, slot, bar, at, start, length):
        """The device changes its own bytes: none of them are kept anywhere."""
        function = self.machine.plugged.get(slot)
        bar = bar_number(function, bar)
        if function and bar in function.bars:
            first, end, _ = function.resources[bar]
            backing, base = self.machine.backing(function, bar)
            offset = place(at, end + 1 - first)
            length = min(length, end + 1 - first - offset)
            if length > 0:
                self.machine.poke(backing, base + offset, pattern(start, length))

    @action(1, slot=SLOT, view=VIEW)
    def look(self, slot, view):
        """Listings and links."""
        assert set(self.driver.list(["pci"])) == set(self.machine.plugged)
        links = self.machine.links()
        listed = {name for name in links if name.count(":") == 1}
        assert listed | {"pci", "phys"} <= set(self.driver.list([]))
        for name, address in links.items():
            assert self.driver.readlink(name) == f"pci/{address}"
        names = self.machine.listing(slot, view)
        directory = ["pci", slot, *filter(None, [view])]
        if names is None:
            self.compare(lambda: self.driver.find(directory), lambda: refuse({errno.ENOENT}))
        else:
            assert set(self.driver.list(directory)) == names
        self.check_accesses([])

    @action(1, slot=SLOT, at=INSIDE, length=LENGTHS, start=st.integers(0, 255), write=st.booleans())
    def config(self, slot, at, length, start, write):
        function = self.machine.plugged.get(slot)
        if function is None:
            return
        whole = function.config
        offset = place(at, len(whole))
        length = max(length, 1)
        data = pattern(start, length)[: max(0, len(whole) - offset)]
        fd = self.driver.open(["pci", slot, "config"], writable=write)
        if write:
            self.compare(
                lambda: self.driver.write(fd, offset, pattern(start, length)),
                lambda: len(data) if data else refuse({errno.ENOSPC}),
            )
            whole[offset : offset + len(data)] = data
        wanted = bytes(whole[offset : offset + length])
        assert self.driver.read(fd, offset, length) == wanted
        self.driver.close(fd)
        self.check_accesses([])

    @action(1, slot=SLOT, name=st.sampled_from(["rom", "info"]), at=INSIDE, length=LENGTHS)
    def read_only_files(self, slot, name, at, length):
        names = ["pci", slot, name]
        function = self.machine.plugged.get(slot)
        if function is None or (name == "rom" and 6 not in function.resources):
            self.compare(lambda: self.driver.find(names), lambda: refuse({errno.ENOENT}))
            return self.check_accesses([])
        self.compare(lambda: self.driver.open(names, writable=True), lambda: refuse({errno.EACCES}))
        fd = self.driver.open(names, writable=False)
        if name == "rom":
            start, end, _ = function.resources[6]
            offset = place(at, end + 1 - start)
            length = max(0, min(length, end + 1 - start - offset))
            wanted = function.memory[6].read(offset, length)
            assert self.driver.read(fd, offset, length) == wanted
        else:
            text = self.driver.read(fd, 0, 1 << 16).decode()
            command = int.from_bytes(function.config[4:6], "little")
            words = ["off", "on"] if command != 0xFFFF else ["unknown"] * 2
            assert text.startswith(f"address: {slot}\nid: {function.id}")
            assert f"\nmemory decoding: {words[command >> 1 & 1]}\n" in text
            for bar, (start, _, _) in function.bars.items():
                assert f"\nbar{bar}: address {start:#x}, " in text
        self.driver.close(fd)
        self.check_accesses([])
        return None

    def teardown(self):
        if sys.exc_info()[0] is None:
            while self.open:
                self.close_one(0)
            self.machine.check()
            return
        # A step that failed says more than what it left behind.
        for _, fd in self.open:
            with contextlib.suppress(OSError):
                self.driver.close(fd)


def run(make, steps):
    """Make walks of so many steps in all, the same ones each time; gives how many there were."""
    wanted = int(os.environ.get(STEPS, "0"))
    number = secrets.randbits(32) if wanted else 0
    Walk.steps = 0
    while Walk.steps < max(steps, wanted):
        print(f"{Walk.steps} steps done, next seed {number}")
        run_state_machine_as_test(
            seed(number)(lambda: make()),
            settings=settings(
                max_examples=29,
                stateful_step_count=STEPS_IN_A_WALK,
                # To find the shortest way to what was found takes minutes.
                phases=[Phase.generate, *([Phase.shrink] if wanted else [])],
                suppress_health_check=list(HealthCheck),
                deadline=None,
                database=None,
            ),
        )
        number += 1
    return Walk.steps
