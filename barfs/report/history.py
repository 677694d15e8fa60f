"""The lines of `log` for people: when, who, what and why."""

import datetime as dt
import json
import pwd
from typing import Any, Final

from barfs.diagnosis.text import printable
from barfs.report.looks import GAP, PLAIN, Look

_MODES: Final = {"r": "to read", "w": "to write", "rw": "to read and write"}
_VERBS: Final = {"read": ("read", "from"), "write": ("wrote", "to")}


def parse(line: bytes) -> dict[str, Any] | None:
    """The record in a line of `log`. None if the line is torn, or of something else."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "event" in found else None


def sentence(record: dict[str, Any], look: Look = PLAIN) -> str:
    """A record in one line: when, who, what, and why something was refused.

    The time is local, to the millisecond. A terminal does not show today's date.
    """
    words = [_when(str(record.get("time", "")), look), _who(record)]
    what = printable(_what(record))
    words.append(look.paint(what, "red") if record.get("event") == "refused" else what)
    return GAP.join(filter(None, words))


def _when(text: str, look: Look) -> str:
    try:
        when = dt.datetime.fromisoformat(text).astimezone()
    except ValueError:
        return text
    is_today = when.date() == dt.datetime.now().astimezone().date()
    form = "%H:%M:%S.%f" if look.width is not None and is_today else "%Y-%m-%d %H:%M:%S.%f"
    return when.strftime(form)[:-3]


def _who(record: dict[str, Any]) -> str:
    """Who did it: `root bash[731]`. It is empty for messages of the kernel."""
    if "pid" not in record:
        return ""
    name = printable(str(record.get("process") or "?"))
    return f"{_user(record.get('uid'))} {name}[{record['pid']}]"


def _user(uid: object) -> str:
    try:
        return pwd.getpwuid(int(str(uid))).pw_name
    except (KeyError, ValueError, OverflowError):
        return str(uid)


def _what(record: dict[str, Any]) -> str:
    event = str(record.get("event"))
    if event == "open":
        opened = f"opened {_path(record)} {_MODES.get(str(record.get('mode')), '')}".rstrip()
        warning = record.get("unclaimed")
        return f"{opened}, which nobody has claimed: {warning}" if warning else opened
    if event in _VERBS:
        verb, preposition = _VERBS[event]
        return f"{verb} {_data(record)} {preposition} {_place(record)}"
    if event == "refused" and "times" in record:
        return str(record.get("message"))
    if event == "refused":
        return f"{record.get('operation')} refused: {record.get('message')} ({record.get('errno')})"
    if "device" in record:
        return f"the kernel says: {event} {record['device']}"
    return json.dumps(record)


def _path(record: dict[str, Any]) -> str:
    return str(record.get("path", "?")).removeprefix("pci/")


def _data(record: dict[str, Any]) -> str:
    """The data of a record: `0x2a (32 bits)`, `3 bytes (61 62 63)`, `4096 bytes`."""
    length = record.get("length", 0)
    if "value" in record:
        width = record.get("width")
        return f"{record['value']} ({8 * width} bits)" if width else str(record["value"])
    size = f"{length} byte{'' if length == 1 else 's'}"
    return f"{size} ({record['bytes']})" if "bytes" in record else size


def _place(record: dict[str, Any]) -> str:
    """The place of a record: `0000:00:04.0 bar0 at 0x8`, `phys at 0x1e102c5`, or else the path."""
    if "bar" in record:
        return f"{record.get('device')} bar{record['bar']} at {record.get('offset')}"
    if "address" in record:
        return f"phys at {record['address']}"
    at = f" at {record['offset']}" if "offset" in record else ""
    return f"{_path(record)}{at}"
