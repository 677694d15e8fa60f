"""A mount that goes on after its command: the daemon as a process of its own.

The command waits until the mount answers. If it is interrupted until then, or can't tell its user
where the mount is, there is no mount: the daemon is ended again.
"""

import logging
import os
import select
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

from barfs.daemon import interruption
from barfs.daemon.mountpoint import MountError, clear_dead
from barfs.daemon.outlets import Syslog, log_to
from barfs.daemon.serve import prepare, serve
from barfs.daemon.settings import Settings

log = logging.getLogger(__name__)

# How often a command that waits looks whether it is interrupted, in milliseconds.
_GLANCE: Final = 50

# How long a daemon may take to end, in milliseconds.
_END_TIMEOUT: Final = 10_000


def run_in_background(
    settings: Settings, ready: Callable[[], None], finish: Callable[[], None]
) -> None:
    """Check, serve in a child process of its own session, and call `ready` once the mount answers.

    The child logs to syslog where there is one, and calls `finish` at its end. Raises MountError
    if the mount can't be, and Interrupted if a signal is waiting that would end this process;
    nothing is left mounted then, nor if `ready` raises something.
    """
    prepare(settings)
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        _serve(settings, send, finish)
    os.close(send)
    with os.fdopen(receive, "rb", buffering=0) as answers:
        try:
            answer = _answer(answers.fileno())
            if answer == "mounted":
                ready()
                return
        except BaseException:
            _end(child, settings.mountpoint)
            raise
    _, status = os.waitpid(child, 0)
    # It may have been killed after it had mounted.
    clear_dead(settings.mountpoint)
    raise MountError(answer or _how_it_ended(status))


def _serve(settings: Settings, send: int, finish: Callable[[], None]) -> None:
    """The child's work. `send` is the pipe for its messages. Does not return."""
    status = 1
    try:
        _detach()
        with os.fdopen(send, "w") as answers:

            def report(answer: str) -> None:
                if answers.closed:
                    log.error("%s", answer)
                else:
                    answers.write(answer)
                    answers.close()

            try:
                serve(settings, lambda: report("mounted"))
                status = 0
            except MountError as error:
                report(str(error))
            except Exception as error:
                log.exception("ended")
                report(f"{type(error).__name__}: {error}")
    finally:
        finish()
        os._exit(status)


def _answer(receive: int) -> str:
    """Everything that a pipe gives until its other end is closed. Raises Interrupted."""
    ready = select.poll()
    ready.register(receive, select.POLLIN)
    said = b""
    while True:
        interruption.check()
        if not ready.poll(_GLANCE):
            continue
        more = os.read(receive, 1 << 16)
        if not more:
            return said.decode(errors="surrogateescape")
        said += more


def _end(child: int, mountpoint: Path) -> None:
    """End a daemon, and its mount with it."""
    ended = os.pidfd_open(child)
    try:
        os.kill(child, signal.SIGTERM)
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        if not poll.poll(_END_TIMEOUT):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    finally:
        os.close(ended)
    clear_dead(mountpoint)


def _how_it_ended(status: int) -> str:
    """How a daemon ended that said nothing. `status` is as in wait(2)."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        how = f"was ended by signal {number} ({signal.strsignal(number)})"
    else:
        how = f"ended with status {os.WEXITSTATUS(status)}"
    return f"the daemon {how} before the mount answered; see why with: barfs mount -f"


def _detach() -> None:
    """Leave the terminal, the session, the working directory and the standard streams."""
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(null)
    log_to(Syslog(), f"barfs[{os.getpid()}]: %(message)s")
