"""The access engine in builds that watch themselves: AddressSanitizer, UBSan."""

import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from unit.access.engine_sources import SOURCE, with_mistake

EXERCISES = Path(__file__).parent / "engine_exercises.py"

BUILDS = {
    "gcc": ["gcc", "-O2"],
    "gcc-sanitized": ["gcc", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover"],
    # Trapping needs no runtime library, which clang has in a package of its own.
    "clang-sanitized": [
        *("clang", "-O1", "-g", "-fsanitize=undefined", "-fsanitize-trap=undefined")
    ],
}

OPTIONS = {
    # The interpreter keeps a lot at its end. SIGSEGV and SIGBUS are the engine's to handle.
    "ASAN_OPTIONS": "detect_leaks=0:handle_segv=0:handle_sigbus=0:allow_user_segv_handler=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    # Each object in memory of its own, so that what is just behind it is nobody's.
    "PYTHONMALLOC": "malloc",
}


def build(name, source, directory):
    path = directory / "_mmio.so"
    include = sysconfig.get_path("include")
    subprocess.run(
        [*BUILDS[name], "-shared", "-fPIC", f"-I{include}", source, "-o", path], check=True
    )
    return path


def exercise(name, library):
    environment = {**os.environ, **OPTIONS}
    if name == "gcc-sanitized":
        asked = ["gcc", "-print-file-name=libasan.so"]
        runtime = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        environment["LD_PRELOAD"] = runtime
    return subprocess.run(
        [sys.executable, EXERCISES, library],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment,
    )


@pytest.mark.parametrize("name", BUILDS)
def test_the_engine_does_all_that_it_can_do_without_a_complaint(name, tmp_path):
    done = exercise(name, build(name, SOURCE, tmp_path))
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert len(done.stdout.split()) == 5


LOOP = "size_t n = length / sizeof *at;"
COPIED = "memcpy(data, &value, sizeof value)"
ALIGNED = "width > rest || (uintptr_t)(job->at + done) % width"
PLANTED = [
    ("gcc-sanitized", LOOP, LOOP.replace(";", " + 1;"), "use-after-poison"),
    ("gcc-sanitized", COPIED, COPIED.replace("value)", "value + 1)"), "stack-buffer-overflow"),
    ("gcc-sanitized", ALIGNED, "width > rest", "misaligned address"),
    ("gcc-sanitized", "rest % width", "rest % (width - width)", "division by zero"),
    ("clang-sanitized", "rest % width", "rest % (width - width)", ""),
]


@pytest.mark.parametrize(("name", "right", "wrong", "complaint"), PLANTED)
def test_a_mistake_would_be_seen(name, right, wrong, complaint, tmp_path):
    source = with_mistake(tmp_path, right, wrong)
    done = exercise(name, build(name, source, tmp_path))
    assert done.returncode == (1 if complaint else -signal.SIGILL)
    assert complaint in done.stderr
    assert "AssertionError" not in done.stderr
