"""Logs that nobody takes, and what the service manager is told."""

import logging
import select
import socket

import pytest

from barfs.daemon import outlets


@pytest.fixture
def logger():
    """A log of its own; attach a handler to it."""
    found = logging.Logger("test")  # noqa: LOG001 - one that nobody else hears
    yield found
    for handler in found.handlers:
        handler.close()


def listen(path):
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(path))
    listener.settimeout(10)
    return listener


class Picky(outlets.LossyHandler):
    """Takes lines only while it is told to."""

    def __init__(self):
        super().__init__()
        self.taken, self.full = [], False

    def write(self, line, level):
        if self.full:
            raise OSError(28, "No space left on device")
        self.taken.append((line, level))


def test_lost_lines_are_counted(logger):
    handler = Picky()
    logger.addHandler(handler)
    logger.info("one")
    handler.full = True
    logger.info("two")
    logger.error("three")
    handler.full = False
    logger.info("four %s", "words")
    logger.info("five")
    assert handler.taken == [
        ("one", logging.INFO),
        ("2 lines of the log were lost here", logging.WARNING),
        ("four words", logging.INFO),
        ("five", logging.INFO),
    ]


def test_a_line_that_cannot_be_formatted_is_lost(logger):
    handler = Picky()
    logger.addHandler(handler)
    logger.info("%d", "words")
    logger.info("next")
    assert [line for line, _ in handler.taken] == ["1 lines of the log were lost here", "next"]


def test_syslog(logger, tmp_path):
    logger.addHandler(outlets.Syslog(str(tmp_path / "log")))
    logger.info("nobody listens")
    with listen(tmp_path / "log") as listener:
        logger.warning("pci/\udcff: caf\N{LATIN SMALL LETTER E WITH ACUTE}")
        assert listener.recv(4096) == b"<28>1 lines of the log were lost here"
        assert listener.recv(4096) == b"<28>pci/\\udcff: caf\xc3\xa9"
    (tmp_path / "log").unlink()
    with listen(tmp_path / "log") as listener:  # started anew
        logger.error("again")
        assert listener.recv(4096) == b"<27>again"


def test_a_syslog_that_does_not_read_holds_nobody_up(logger, tmp_path):
    logger.addHandler(outlets.Syslog(str(tmp_path / "log")))
    with listen(tmp_path / "log") as listener:
        for number in range(10000):
            logger.info("line %d", number)
        read = 0
        while select.select([listener], [], [], 0)[0]:
            listener.recv(4096)
            read += 1
        assert 0 < read < 10000
        logger.info("last")
        assert listener.recv(4096) == f"<28>{10000 - read} lines of the log were lost here".encode()
        assert listener.recv(4096) == b"<30>last"


@pytest.mark.parametrize("name", ["{}/notify", "@barfs-test-{}"])
def test_the_notify_protocol(name, tmp_path, monkeypatch):
    """sd_notify(3): a datagram to a socket in the file system or, with @, out of it."""
    path = name.format(tmp_path)
    address = "\0" + path[1:] if path.startswith("@") else path
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    with listen(address) as manager:
        outlets.notify("READY=1")
        assert manager.recv(4096) == b"READY=1"


@pytest.mark.parametrize("path", [None, ""])
def test_without_a_service_manager(path, monkeypatch):
    if path is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", path)
    outlets.notify("READY=1")


def test_a_service_manager_that_is_gone(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    outlets.notify("READY=1")
    assert "cannot be told: No such file or directory" in caplog.text
