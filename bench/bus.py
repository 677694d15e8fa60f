"""Reads of a device's registers on a real bus: QEMU's edu device, in the guest of tests/vm.

usage: python -m bench.bus

Prints how many 32-bit reads a second a program makes through barfs, and through a mapping of its
own. The guest is emulated, so that both are slower than on a machine. What counts is the ratio.
"""

import importlib
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from bench.programs import program

TESTS: Final = Path(__file__).parents[1] / "tests"
EDU: Final = "0000:00:13.0"
ROUNDS: Final = 5
MILLISECONDS: Final = 500

# Below 0x80 the device has registers of 32 bits. The identification is one, and is not zero.
WAYS: Final = {
    "C: a load from a mapping": ("load", f"/sys/bus/pci/devices/{EDU}/resource0"),
    "barfs: pread in C": ("read", f"/mnt/bars/pci/{EDU}/bar0"),
    "barfs: pread in C of x32/bar0@0": ("read", f"/mnt/bars/pci/{EDU}/x32/bar0@0"),
}


def _require(there: object, what: str) -> None:
    if not there:
        raise SystemExit(f"bench.bus: needs {what}")


def measure(guest: Any, client: Path, kind: str, path: str) -> float:
    """Reads a second of one way, by the best of some rounds."""
    length = "11" if "x32" in path else "4"
    words = f"{client} -t {MILLISECONDS} -w 100 -l {length} -s {length} {kind} {path}"
    found = [json.loads(guest.run(words).text) for _ in range(ROUNDS)]
    return max(1e9 * float(one["operations"]) / float(one["ns"]) for one in found)


def main() -> None:
    """Boot, measure, print."""
    sys.path.insert(0, str(TESTS))
    # The tests are no package of barfs, and have no types.
    x86 = importlib.import_module("vm.architecture").X86
    boot = importlib.import_module("vm.machine").Guest
    client = program("client")
    kernel = x86.find_kernel(_require)
    directory = Path(tempfile.mkdtemp(prefix="barfs-bench-bus-"))
    try:
        guest = boot(x86, kernel, directory, x86.arguments)
        try:
            guest.mount("/mnt/bars", log="/run/bars.log")
            speeds = {way: measure(guest, client, *words) for way, words in WAYS.items()}
        finally:
            guest.close()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print("| | reads a second | time of one |\n| --- | --: | --: |")
    for way, speed in speeds.items():
        print(f"| {way} | {speed:,.0f} | {1e6 / speed:.3g} µs |")


if __name__ == "__main__":
    main()
