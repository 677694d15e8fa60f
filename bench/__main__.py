"""Measure, print tables, write JSON. See docs/performance.md."""

import argparse
import contextlib
import datetime as dt
import fnmatch
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from bench import others, report
from bench.cases import Case, through_daemons
from bench.daemons import BenchError
from bench.lab import Lab
from bench.stats import Sample, rotated, summarise

ROOT: Final = Path(__file__).parents[1]
RESULT: Final = ROOT / "build/bench.json"


def parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    result = argparse.ArgumentParser(
        prog="python -m bench", description="How fast barfs is, next to a small C daemon."
    )
    result.add_argument("--quick", action="store_true", help="the main cases, in half a minute")
    result.add_argument(
        "--only", metavar="PATTERN", action="append", default=[], help="cases with these words, * ?"
    )
    result.add_argument("--rounds", type=int, metavar="N", help="9, or 3 if quick")
    result.add_argument("--slice", type=int, metavar="MS", help="of a measurement: 60, or 20")
    result.add_argument("--json", type=Path, metavar="FILE", default=RESULT, help=f"not {RESULT}")
    result.add_argument("--list", action="store_true", help="only name the cases")
    return result


def chosen(cases: Iterator[Case], patterns: Sequence[str], *, quick: bool) -> Iterator[Case]:
    """The cases that were asked for."""
    for case in cases:
        wanted = any(fnmatch.fnmatch(case.id, f"*{pattern}*") for pattern in patterns)
        if wanted if patterns else case.quick or not quick:
            yield case


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """All rounds of a case, for the JSON. BenchError."""
    samples: dict[str, list[Sample]] = {label: [] for label in case.contenders}
    for turn in range(min(rounds, case.most_rounds or rounds)):
        for label in rotated(list(samples), turn):
            samples[label].append(case.contenders[label]())
    summaries = {label: summarise(taken) for label, taken in samples.items()}
    return report.case_json(case.about(), summaries)


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def system() -> dict[str, Any]:
    """What machine this is; nothing that names it."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", cpuinfo, re.MULTILINE)
    commit = _output("git", "rev-parse", "--short", "HEAD") or "unknown"
    changed = _output("git", "status", "--porcelain", "--untracked-files=no", "barfs")
    return {
        "commit": f"{commit} with changes" if changed else commit,
        "cpus": len(os.sched_getaffinity(0)),
        "model": model[1] if model else platform.machine(),
        "virtual": re.search(r"^flags\s*:.*\bhypervisor\b", cpuinfo, re.MULTILINE) is not None,
        "kernel": platform.release().partition("-")[0],
        "libfuse": _output("pkg-config", "--modversion", "fuse3"),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("pyfuse3", "trio")},
    }


def _show(case: dict[str, Any], took: float) -> None:
    """A line while it goes on."""
    parts = []
    for label, contender in case["contenders"].items():
        parts.append(f"{label} {report.format_value(contender['median'], case['unit'])}")
    words = f"{case['section']}: {case['name']}: {', '.join(parts)} ({took:.1f} s)"
    print(words, file=sys.stderr, flush=True)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure what was asked for. BenchError."""
    quick = arguments.quick
    rounds = arguments.rounds or (3 if quick else 9)
    slice_ms = arguments.slice or (20 if quick else 60)
    when = dt.datetime.now(dt.UTC).strftime("%Y-%m-%d")
    about, load = system(), [os.getloadavg()[0]]
    cases = []
    with Lab(slice_ms, idle_s=1 if quick else 3) as lab:
        every = chosen(_all(lab), arguments.only, quick=quick)
        for case in every:
            started = time.monotonic()
            cases.append(measure(case, rounds))
            _show(cases[-1], time.monotonic() - started)
    load.append(os.getloadavg()[0])
    return {
        "time": when,
        "system": {**about, "load": load},
        "settings": {"rounds": rounds, "slice_ms": slice_ms, "quick": quick},
        "missing": others.missing(),
        "cases": cases,
    }


def _all(lab: Lab) -> Iterator[Case]:
    yield from through_daemons(lab)
    yield from others.all_others(lab)


def main() -> int:
    """The exit status."""
    arguments = parser().parse_args()
    if arguments.list:
        with Lab(0, 0) as lab:
            for case in chosen(_all(lab), arguments.only, quick=arguments.quick):
                print(case.id)
        return 0
    try:
        result = run(arguments)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(report.describe(result))
    for heading, rows in report.tables(result["cases"]):
        print(f"\n{heading}\n\n{report.as_text(rows)}")
    if result["missing"]:
        print(f"\nnot measured, as it is not installed: {', '.join(result['missing'])}")
    with contextlib.suppress(FileExistsError):
        arguments.json.parent.mkdir(parents=True)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
