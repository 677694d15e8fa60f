"""Signals that end a program, and what must not be interrupted by them."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Final

# The signals that end a mount.
ENDING: Final = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))


class Interrupted(KeyboardInterrupt):
    """A signal waits that will end the command. Everything is as it was before."""


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Signals that end a program wait until the block has ended."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def all_or_nothing() -> Iterator[None]:
    """The same, and once the block is done they come too late: they are ignored from then on.

    If the block raises something, they end the program.
    """
    with held():
        yield
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)


def check() -> None:
    """Raise Interrupted if a signal is waiting."""
    if signal.sigpending() & ENDING:
        raise Interrupted
