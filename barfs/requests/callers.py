"""The process that makes a request."""

import logging

from barfs.journal.records import Caller
from barfs.machine import kernel

log = logging.getLogger(__name__)


def caller_of(uid: int, pid: int) -> Caller:
    """The process that makes a request, by the numbers that the kernel gives.

    The kernel gives a pid of 0 for a process of another namespace. For a thread it gives the number
    of the thread (fs/fuse/dev.c, fuse_get_req), while people know the number of its process.
    """
    process = None
    try:
        if pid:
            pid = kernel.process_of(pid)
            process = kernel.name_of(pid)
    except OSError:
        log.debug("nothing is known of process %d", pid)
    return Caller(uid, pid, process)
