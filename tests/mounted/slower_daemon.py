"""barfs on a machine where one run of accesses in seven is slow: slower_daemon.py ARGUMENTS..."""

import time
from itertools import count

from barfs.access.apertures import MappedAperture
from barfs.commands.cli import main

# How long a slow one takes, in seconds: more than may be done at once.
DELAY = 0.003
turn = count()


def slow(access):
    def run(self, offset, width, data):
        if next(turn) % 7 == 0:
            time.sleep(DELAY)
        access(self, offset, width, data)

    return run


MappedAperture.load_run = slow(MappedAperture.load_run)
MappedAperture.store_run = slow(MappedAperture.store_run)
main()
