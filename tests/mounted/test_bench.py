"""The bench runs: each kind of case once, for a moment. What comes out is not looked at here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

ONE_OF_EACH = (
    "small requests: 4-byte read, registers, at random, one CPU",
    "small requests: 4-byte write, registers, in order, one CPU",
    "CPUs and clients: 4-byte read, registers, at random, 4 clients, unpinned, beside*",
    "large requests: 1 MiB read, memory, one CPU",
    "large requests: 4 KiB read, 64 GiB*",
    "1 MiB read of memory, raw and in u32/: one CPU",
    "1 MiB read, and a reference that can't read a device: one CPU",
    "names: open, read, close, 16 functions, one CPU",
    "names: stat of a link, 16 functions, one CPU",
    "names: ls, 16 functions, one CPU",
    "names: ls -l, 16 functions, one CPU",
    "at rest: idle CPU",
    "at rest: own memory (RssAnon) after all of the above",
    "at rest: mount, 16 functions",
    "a process for each 32-bit read: unpinned",
    "a program that makes many 32-bit reads: unpinned",
    "1 MiB of memory, read: unpinned",
)


def bench(*arguments):
    command = [sys.executable, "-m", "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def mounts():
    """What is mounted by benchmarks. Others may run on this machine."""
    lines = Path("/proc/mounts").read_text().splitlines()
    return {line.split()[1] for line in lines if "barfs-bench-" in line}


@pytest.fixture(scope="module")
def measured(fuse, tmp_path_factory):
    result = tmp_path_factory.mktemp("bench") / "bench.json"
    only = [word for pattern in ONE_OF_EACH for word in ("--only", pattern)]
    before = mounts()
    done = bench("--quick", "--rounds", 1, "--slice", 1, "--json", result, *only)
    assert done.returncode == 0, done.stderr
    return json.loads(result.read_text()), done.stdout, mounts() - before


def test_all_that_was_asked_for_was_measured(measured, require):
    run, *_ = measured
    require(run["missing"] == [], f"{run['missing']}, to compare with")
    assert len(run["cases"]) == len(ONE_OF_EACH)
    assert all(len(case["contenders"]) >= 2 for case in run["cases"])
    for case in run["cases"]:
        for label, one in case["contenders"].items():
            assert len(one["samples"]) == 1, (case["name"], label)
            if case["unit"] == "ns":
                assert one["median"] > 0, (case["name"], label)


def test_cpu_time_is_that_of_the_daemon(measured):
    run, *_ = measured
    for one in run["cases"][0]["contenders"].values():
        assert one["cpu"] > 0


def test_it_is_printed(measured):
    run, printed, _ = measured
    for case in run["cases"]:
        assert case["name"] in printed
        assert all(label in printed for label in case["contenders"])


def test_nothing_stays(measured):
    *_, left = measured
    assert left == set()


def test_a_part_is_chosen_by_name():
    assert bench("--list", "--only", "idle").stdout == "at rest: idle CPU\n"
    quick, every = bench("--list", "--quick").stdout, bench("--list").stdout
    assert set(quick.splitlines()) < set(every.splitlines())
    assert len(every.splitlines()) == len(set(every.splitlines())) > 60
