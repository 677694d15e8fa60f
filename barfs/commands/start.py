"""Where the programs `barfs` and `mount.barfs` begin, with nothing loaded yet.

Ctrl-C ends them as it ends a program in C, silently: what has to be put back first is done with
signals held (barfs.daemon.interruption). `tools/launcher` makes commands that start Python with
SIGINT blocked, since Python shows a traceback if its own start is interrupted.
"""

import contextlib
import os
import signal


def _begin(name: str) -> None:
    # Ignored signals stay ignored: nohup, and what a script has sent to the background.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    for stream in range(3):
        try:
            os.fstat(stream)
        except OSError:
            # No other file may take the place of a standard stream; writing to this one fails.
            os.open(os.devnull, os.O_RDONLY)
    # As which pgrep and top show it.
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as comm:
        comm.write(name)


def barfs() -> None:
    """The command `barfs`."""
    _begin("barfs")
    from barfs.commands.cli import main  # noqa: PLC0415

    main()


def mount_barfs() -> None:
    """The command `mount.barfs`."""
    _begin("mount.barfs")
    from barfs.commands.mount_helper import main  # noqa: PLC0415

    main()
