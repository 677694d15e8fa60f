"""Files and open files of the model: what they refuse, what comes back, and by which accesses."""

import errno

from walks.contract import begins, fixed_accesses, line, merged, parts, raw_accesses, update


def width_of(view):
    return int(view[1:]) // 8


class File:
    """A BAR's or a physical range's file by its name, before it is opened."""

    def __init__(self, view, stretches, owners, bar):
        self.view, self.stretches, self.owners, self.bar = view, stretches, owners, bar
        self.size = sum(stretch.size for stretch in stretches)

    @property
    def shown_size(self):
        """What stat tells."""
        if self.view[:1] == "x":
            return len(line(0, width_of(self.view)))
        return self.size

    @property
    def blksize(self):
        """What stat tells, where docs/reference.md does."""
        if self.view[:1] == "u":
            return width_of(self.view)
        raw = self.view == ""
        return 4 if raw and not any(part.memory_like for part in self.stretches) else None

    def refusals(self):
        """Why it can't be opened now."""
        why = set()
        if self.bar is not None and not self.owners[0][2].decoded(self.bar):
            why.add(errno.EIO)
        if self.view not in {"", "mem"}:
            width = width_of(self.view)
            stretches = self.stretches
            if self.view[0] == "x":
                if self.size < width:
                    why.add(errno.EINVAL)
                stretches = [stretches[0]]
            if any(part.bus % width or width > part.widest for part in stretches):
                why.add(errno.EINVAL)
        return why


class Refused(Exception):
    """What is asked for must fail, with one of `errnos`."""

    def __init__(self, *errnos):
        super().__init__(", ".join(errno.errorcode[n] for n in errnos))
        self.errnos = errnos


class Watch:
    """A part of an open file, and the function that it belonged to at the time."""

    def __init__(self, start, end, function):
        self.start, self.end, self.function = start, end, function
        self.then = (function.address, function.plugged, function.text)
        self.gone = False

    def is_gone(self, machine):
        """As those know who have asked before: if nobody asks, it may come back."""
        function = self.function
        there = machine.plugged.get(function.address) is function
        now = (function.address, function.plugged, function.text)
        self.gone |= not there or self.then != now
        return self.gone


class Handle:
    """An open file. Requests give what must come back, and leave in `made` the accesses for it."""

    def __init__(self, file, *, writable, joins=False):
        self.file, self.writable = file, writable
        self.joins = joins  # pieces of a line
        # What is typed, where the next piece goes on, and how: in a line, after one that was
        # carried out for want of a newline, after a piece that was refused.
        self.typed, self.next, self.how = b"", 0, "in"
        self.made = []
        self.line = b""
        self.watches = [Watch(*owner) for owner in file.owners]

    def _check(self, machine, offset, length):
        """Who has gone is gone for good; a text is all of its register."""
        whole = self.file.view[:1] == "x"
        for watch in self.watches:
            touched = whole or (offset < watch.end and watch.start < offset + length)
            if touched and watch.is_gone(machine):
                raise Refused(errno.ENODEV)

    def _check_answers(self, machine):
        """A BAR whose decoding is off has no data: whoever has it open learns of it."""
        file = self.file
        if file.bar is not None and not file.owners[0][2].decoded(file.bar):
            raise Refused(errno.EIO)

    def _go(self, verb, part, accesses):
        self.made += [(verb, kind, part.backing, at, width) for kind, at, width in accesses]

    def _register(self):
        width = width_of(self.file.view)
        return self.file.stretches[0].part(0, width), width

    def read(self, machine, offset, length):
        data = self._read(machine, offset, length)
        # Only what could be no answer is doubted.
        if data and not data[:16].strip(b"0xf\n" if self.file.view[:1] == "x" else b"\0\xff"):
            self._check_answers(machine)
        return data

    def _read(self, machine, offset, length):
        self.made = []
        self._end_line(machine)
        self._check(machine, offset, length)
        file = self.file
        if file.view[:1] == "x":
            return self._read_line(offset, length)
        self._check_whole(offset, max(0, min(length, file.size - offset)), set())
        data = b""
        for part in parts(file.stretches, offset, length):
            self._go("load", part, self._accesses(part))
            data += part.backing.read(part.at, part.size)
        return data

    def close(self, machine):
        self.made = []
        self._end_line(machine)

    def write(self, machine, offset, data):
        self.made = []
        file = self.file
        if file.view[:1] == "x" and self.joins:
            return self._write_piece(machine, offset, data)
        self._check(machine, offset, len(data))
        self._check_answers(machine)
        if file.view[:1] == "x":
            return self._write_line(data)
        past = {errno.ENOSPC} if data and offset >= file.size else set()
        self._check_whole(offset, len(data), past)
        self._check_whole(offset, max(0, min(len(data), file.size - offset)), past)
        if past:
            raise Refused(*past)
        done = 0
        for part in parts(file.stretches, offset, len(data)):
            self._go("store", part, self._accesses(part))
            part.backing.write(part.at, data[done : done + part.size])
            done += part.size
        return done

    def _check_whole(self, offset, length, others):
        if self.file.view[:1] == "u" and (
            offset % width_of(self.file.view) or length % width_of(self.file.view)
        ):
            raise Refused(errno.EINVAL, *others)

    def _accesses(self, part):
        view = self.file.view
        return fixed_accesses(part, width_of(view)) if view[:1] == "u" else raw_accesses(part)

    def _read_line(self, offset, length):
        part, width = self._register()
        whole = len(line(0, width))
        if length and (offset == 0 or (not self.line and offset < whole)):
            self._go("load", part, fixed_accesses(part, width))
            value = part.backing.read(part.at, width)
            self.line = line(int.from_bytes(value, "little"), width)
        return self.line[offset : offset + length]

    def _end_line(self, machine):
        if self.typed:
            text, self.typed, self.how = self.typed, b"", "after"
            self._check(machine, 0, 1)
            self._check_answers(machine)
            self._write_line(text)

    def _write_piece(self, machine, offset, data):
        if offset != self.next:
            self._end_line(machine)
            self.how = "in"
        how, text = self.how, self.typed + data
        self.typed, self.next = b"", offset
        ends = data[-1:] == b"\n"
        self.how = "in" if ends else "refused"
        _, width = self._register()
        allowed = {
            "refused": False,
            "after": data.strip(b" \t") in {b"", b"\n"},
            "in": (update(text, width) is not None) if ends else begins(text, width),
        }
        if not allowed[how]:
            raise Refused(errno.EINVAL)
        self.next = offset + len(data)
        if not ends:
            self.how = how
            self.typed = text if how == "in" else b""
        elif how == "in":
            self._check(machine, 0, 1)
            self._check_answers(machine)
            self._write_line(text)
        return len(data)

    def _write_line(self, data):
        part, width = self._register()
        wanted = update(data, width)
        if wanted is None:
            raise Refused(errno.EINVAL)
        value, mask = wanted
        if mask is not None:
            self._go("load", part, fixed_accesses(part, width))
            old = int.from_bytes(part.backing.read(part.at, width), "little")
            value = (old & ~mask) | (value & mask)
        self._go("store", part, fixed_accesses(part, width))
        part.backing.write(part.at, value.to_bytes(width, "little"))
        return len(data)

    def expected(self):
        return merged(self.made)
