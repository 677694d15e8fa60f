"""Where the daemon's messages go: standard error, syslog, the service manager.

None of them may delay the daemon or end it, even if the disk is full or the reader sleeps. A line
that can't be written at once is lost. The next line that can be written says how many were lost.
"""

import errno
import logging
import os
import select
import socket
from typing import Final

log = logging.getLogger(__name__)

STANDARD_ERROR: Final = 2
SYSLOG_SOCKET: Final = "/dev/log"

# How many bytes a pipe takes without waiting when it is ready for writing (pipe(7)). A terminal or
# a socket that is ready takes at least some bytes.
_PIECE: Final = select.PIPE_BUF

# The facility `daemon` and severities, syslog(3).
_DAEMON: Final = 3 << 3
_SEVERITIES: Final = {
    logging.CRITICAL: 2,
    logging.ERROR: 3,
    logging.WARNING: 4,
    logging.INFO: 6,
    logging.DEBUG: 7,
}


class LossyHandler(logging.Handler):
    """A log that loses lines and never waits. Subclasses write a line or raise OSError."""

    def __init__(self) -> None:
        super().__init__()
        self._lost = 0

    def write(self, line: str, level: int) -> None:
        """Write a line without its end, at once or not at all."""
        raise NotImplementedError

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        try:
            if self._lost:
                self.write(f"{self._lost} lines of the log were lost here", logging.WARNING)
                self._lost = 0
            self.write(self.format(record), record.levelno)
        except Exception:  # noqa: BLE001 - no words are worth the mount
            self._lost += 1


class StandardError(LossyHandler):
    """Lines on standard error."""

    def write(self, line: str, level: int) -> None:  # noqa: ARG002 - the same for all
        """See LossyHandler. A line that is longer than a pipe takes at once may be cut."""
        data = line.encode(errors="backslashreplace") + b"\n"
        ready = select.poll()
        ready.register(STANDARD_ERROR, select.POLLOUT)
        while data:
            if not ready.poll(0):
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            data = data[os.write(STANDARD_ERROR, data[:_PIECE]) :]


class Syslog(LossyHandler):
    """Lines to syslog or the journal, whenever there is one."""

    def __init__(self, path: str = SYSLOG_SOCKET) -> None:
        super().__init__()
        self._path = path
        self._socket: socket.socket | None = None

    def write(self, line: str, level: int) -> None:
        """See LossyHandler."""
        data = f"<{_DAEMON | _SEVERITIES.get(level, 5)}>{line}".encode(errors="backslashreplace")
        if self._socket is not None:
            try:
                self._socket.send(data)
            except BlockingIOError:
                raise
            except OSError:  # syslog was started anew, and has another socket
                self.close_socket()
            else:
                return
        self._connect().send(data)

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        connection.setblocking(False)  # noqa: FBT003 - its signature
        try:
            connection.connect(self._path)
        except OSError:
            connection.close()
            raise
        self._socket = connection
        return connection

    def close_socket(self) -> None:
        """Give the connection up. The next line makes a new one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        """See logging.Handler."""
        self.close_socket()
        super().close()


def log_to(handler: logging.Handler, form: str) -> None:
    """Send everything that barfs logs to this handler alone."""
    handler.setFormatter(logging.Formatter(form))
    root = logging.getLogger("barfs")
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)


def notify(state: str) -> None:
    """Tell the service manager, if one listens: `READY=1`, `STOPPING=1` (sd_notify(3)).

    No library is used: those in pure Python are not maintained any more, and the others need
    libsystemd's headers.
    """
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    # @ stands for a null byte. Names that are not in the file system begin with it (unix(7)).
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
            connection.setblocking(False)  # noqa: FBT003 - its signature
            connection.sendto(state.encode(), address)
    except OSError as error:
        log.warning("the service manager at %s cannot be told: %s", path, error.strerror)
