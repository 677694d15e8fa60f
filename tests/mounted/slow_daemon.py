"""barfs on a machine with slow BARs: slow_daemon.py RECORD ARGUMENTS...

Each access to them is a line in the file RECORD: load or store, the address, the width, the bytes,
and whether it was made in the loop's own thread.
"""

import os
import sys
import threading
import time

from barfs.access.apertures import MappedAperture
from barfs.commands.cli import main

# How long an access takes, in seconds, for BARs by their addresses.
DELAYS = {
    range(0xFEB00000, 0xFEB20000): 0.0005,  # 8086:100e bar0
    range(0x800200000, 0x800204000): 0.05,  # 1b36:0010 bar0
}


def slow(access, kind):
    def run(self, offset, width, data):
        address = self.base + offset
        delay = next((DELAYS[bar] for bar in DELAYS if address in bar), None)
        if delay is None:
            access(self, offset, width, data)
            return
        here = "loop" if threading.current_thread() is threading.main_thread() else "thread"
        with memoryview(data) as rest:
            for at in range(0, len(rest), width):
                piece = rest[at : at + width]
                time.sleep(delay)
                access(self, offset + at, width, piece)
                os.write(record, f"{kind} {address + at:x} {width} {piece.hex()} {here}\n".encode())

    return run


record = os.open(sys.argv.pop(1), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
MappedAperture.load_run = slow(MappedAperture.load_run, "load")
MappedAperture.store_run = slow(MappedAperture.store_run, "store")
main()
