"""The C programs: built when they are older than their sources."""

import os
import subprocess
from pathlib import Path
from typing import Final

BENCH: Final = Path(__file__).parent
BUILD: Final = BENCH.parent / "build/bench"

_SOURCES: Final = {
    "reference": ("reference.c", "functions.c", "functions.h"),
    "client": ("client.c", "operations.c", "operations.h"),
}
_FLAGS: Final = ("-O2", "-Wall", "-Wextra", "-Wconversion")


def _fuse_flags() -> list[str]:
    command = ["pkg-config", "--cflags", "--libs", "fuse3"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def program(name: str) -> Path:
    """The path of "reference" or "client", built if need be. CalledProcessError."""
    result = BUILD / name
    sources = [BENCH / source for source in _SOURCES[name]]
    newest = max(source.stat().st_mtime for source in sources)
    if result.exists() and result.stat().st_mtime > newest:
        return result
    BUILD.mkdir(parents=True, exist_ok=True)
    compiled = [str(source) for source in sources if source.suffix == ".c"]
    libraries = _fuse_flags() if name == "reference" else ["-lpthread"]
    # Beside it and then renamed: another one that builds at the same time does no harm.
    made = result.with_suffix(f".{os.getpid()}")
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, *_FLAGS, *compiled, "-o", str(made), *libraries], check=True)
    made.rename(result)
    return result
