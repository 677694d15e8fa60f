"""64 clients at once, for BARFS_LOAD_SECONDS seconds, while devices come and go."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from mounted.conftest import TIMEOUT, wait_until
from mounted.test_bad_input import add_device, device

SECONDS = float(os.environ.get("BARFS_LOAD_SECONDS", "30"))
PROCESSES, THREADS = 8, 8
CLIENT = Path(__file__).parent / "load_client.py"
COMING_AND_GOING = (8, 9)
# What the daemon may have grown by since it got warm, in KiB.
GROWTH = 6 << 10


class Watched:
    """What a daemon holds."""

    def __init__(self, mount):
        self._mount = mount
        self._process = Path(f"/proc/{mount.process.pid}")

    def descriptors(self):
        return len(os.listdir(self._process / "fd"))

    def mappings(self):
        """The mappings of the machine's files. The others belong to threads and the allocator."""
        machine = str(self._mount.machine.sysfs.parent)
        return (self._process / "maps").read_text().count(machine)

    def memory(self):
        """In KiB."""
        (line,) = [
            line
            for line in (self._process / "status").read_text().splitlines()
            if line.startswith("VmRSS:")
        ]
        return int(line.split()[1])


def unplug_and_plug(mount, number):
    """A device goes, and comes back in the same place; the mount shows it at once."""
    directory = device(mount, f"0000:00:{number:02x}.0")
    shelf = mount.machine.sysfs / directory.name
    shown = mount.path / "pci" / directory.name
    assert shown.exists()
    directory.rename(shelf)
    assert not shown.exists()
    # As in sysfs, who has it open knows that it is gone.
    text = (shelf / "resource").read_text()
    (shelf / "resource").unlink()
    (shelf / "resource").write_text(text)
    shelf.rename(directory)


def test_64_clients(mount):
    for number in COMING_AND_GOING:
        add_device(mount, number)
    watched = Watched(mount)
    descriptors, mappings = watched.descriptors(), watched.mappings()
    clients = [
        subprocess.Popen(
            [sys.executable, CLIENT, mount.path, str(n * THREADS), str(THREADS), str(SECONDS)],
            stdout=subprocess.PIPE,
        )
        for n in range(PROCESSES)
    ]
    start, memory, plugged = time.monotonic(), [[], [], [], []], 0
    while any(client.poll() is None for client in clients):
        for number in COMING_AND_GOING:
            unplug_and_plug(mount, number)
            plugged += 1
        memory[min(3, int(4 * (time.monotonic() - start) / SECONDS))].append(watched.memory())
    results = [json.loads(client.communicate(timeout=TIMEOUT)[0]) for client in clients]
    done = sum((Counter(result["done"]) for result in results), Counter())
    used = [statistics.median(quarter) for quarter in memory]
    print(f"{plugged} times plugged, KiB in use: {used}; {done}")
    assert [wrong for result in results for wrong in result["wrong"]] == []
    assert all(client.returncode == 0 for client in clients)
    # All of it happened, what was to be expected of a device that goes included.
    assert all(done[name] > SECONDS for name in ("memory", "text", "listings", "ENOENT", "ENODEV"))
    assert plugged > SECONDS
    assert 100 * done["ESTALE"] < done["comes_and_goes"]
    wait_until(lambda: watched.descriptors() == descriptors, "descriptors are lost")
    assert watched.mappings() == mappings
    # In the first quarter it got warm, and its log of who did what was filled.
    assert used[3] < used[1] + GROWTH
    assert mount.alive()
