"""What the daemon gives up once it has mounted: in the kernel's own words, for all its threads."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from barfs.daemon import confine, serve
from barfs.daemon.background import run_in_background
from barfs.daemon.confine import Capability
from barfs.daemon.mountpoint import MountError
from barfs.machine import kernel
from mounted.conftest import (
    TIMEOUT,
    Mount,
    barfs,
    daemons,
    is_mounted,
    machine_options,
    wait_until,
)

# A simulated machine is somebody's files.
NEEDED = confine.SERVING | confine.OTHER_PEOPLES_FILES


def bits(capabilities):
    return sum(1 << capability for capability in capabilities)


def rights(process):
    """The lines about rights in the status of each thread. Sets are integers."""
    found = []
    for task in Path(f"/proc/{process}/task").iterdir():
        lines = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines())
        names = ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb", "NoNewPrivs")
        found.append({name: int(lines[name], 16) for name in names})
    return found


def test_status_misses_none_of_them(fuse):
    """`status` is made by the daemon, and tells of capabilities that it does not have."""
    assert {capability.value for capability in confine.SERVING} == set(kernel.CAPABILITIES)


def check(process):
    kept = bits(NEEDED) & rights("self")[0]["CapPrm"]
    for thread in rights(process):
        assert thread == {
            "CapPrm": kept,
            "CapEff": kept,
            "CapBnd": kept,
            "CapInh": 0,
            "CapAmb": 0,
            "NoNewPrivs": 1,
        }


def test_in_the_foreground(machine, tmp_path):
    """And it still unmounts itself."""
    assert rights("self")[0]["CapEff"] > bits(NEEDED), "nothing to give up"
    mount = Mount(machine, tmp_path)
    check(mount.process.pid)
    assert mount.alive()
    mount.process.send_signal(signal.SIGTERM)
    assert mount.process.wait(TIMEOUT) == 0
    assert mount.end() == 0


def test_in_the_background(machine, where):
    assert barfs("mount", *machine_options(machine), where).returncode == 0
    (process,) = daemons(where)
    check(process)
    os.kill(process, signal.SIGTERM)
    wait_until(lambda: not is_mounted(where), "it is still mounted")


def in_a_child(program):
    """What a function says in a process of its own, which may give up its rights."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(send, repr(program()).encode())
        finally:
            os._exit(0)
    os.close(send)
    with os.fdopen(receive) as said:
        answer = said.read()
    os.waitpid(child, 0)
    return answer


def test_what_is_kept_is_no_more_than_there_was(fuse):
    def program():
        confine.keep_only({Capability.SYS_ADMIN})
        confine.keep_only(confine.SERVING)
        return rights("self") == [
            {
                **dict.fromkeys(("CapPrm", "CapEff", "CapBnd"), bits({Capability.SYS_ADMIN})),
                "CapInh": 0,
                "CapAmb": 0,
                "NoNewPrivs": 1,
            }
        ]

    assert in_a_child(program) == "True"


def test_a_bounding_set_that_cannot_be_cut_stays(fuse):
    """As in a container without CAP_SETPCAP."""

    def program():
        (before,) = rights("self")
        sets = confine._Sets()
        fewer = sets.permitted & ~(1 << confine._SETPCAP)
        sets.set(effective=fewer, permitted=fewer, inheritable=0)
        confine.keep_only(confine.SERVING)
        (after,) = rights("self")
        return after["CapBnd"] == before["CapBnd"] and after["CapPrm"] == bits(confine.SERVING)

    assert in_a_child(program) == "True"


def test_with_threads_it_refuses(fuse):
    """They would keep theirs."""
    program = (
        "import threading; from barfs.daemon import confine; end = threading.Event();"
        "threading.Thread(target=end.wait).start()\n"
        "try: confine.keep_only(confine.SERVING)\n"
        "finally: end.set()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert "there are threads already" in done.stderr


def test_entering_is_tried(fuse, tmp_path):
    private, readable = tmp_path / "private", tmp_path / "readable"
    for directory, mode in ((private, 0o700), (readable, 0o755)):
        directory.mkdir(mode=mode)
        assert confine.may_enter(str(directory), confine.SERVING, writing=True)
        os.chown(directory, 65534, 65534)

    def program():
        return [
            confine.may_enter(str(private), confine.SERVING),
            confine.may_enter(str(private), confine.OTHER_PEOPLES_DIRECTORIES),
            confine.may_enter(str(readable), confine.SERVING),
            confine.may_enter(str(readable), confine.SERVING, writing=True),
            confine.may_enter(str(private), confine.OTHER_PEOPLES_FILES, writing=True),
            rights("self")[0]["CapEff"] == rights("self")[0]["CapPrm"],
        ]

    assert in_a_child(program) == "[False, True, True, False, True, True]"


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"mountpoint": "bars"}, confine.SERVING),
        (
            {"mountpoint": "home/bars"},
            confine.SERVING | confine.OTHER_PEOPLES_DIRECTORIES,
        ),
        ({"mountpoint": "bars", "log_file": "log"}, confine.SERVING),
        (
            {"mountpoint": "bars", "log_file": "home/log"},
            confine.SERVING | confine.OTHER_PEOPLES_FILES,
        ),
    ],
)
def test_of_the_real_machine_what_it_takes(tmp_path, monkeypatch, fuse, settings, kept):
    (tmp_path / "home/bars").mkdir(parents=True)
    (tmp_path / "home").chmod(0o700)
    os.chown(tmp_path / "home", 65534, 65534)
    (tmp_path / "bars").mkdir()
    for name in ("mountpoint", "log_file"):
        if name in settings:
            settings = {**settings, name: tmp_path / settings[name]}
    wanted = []
    monkeypatch.setattr(confine, "keep_only", wanted.append)
    serve._give_up_rights(serve.Settings(**settings))
    assert wanted == [kept]


def test_if_the_kernel_refuses_there_is_no_mount(machine, where, monkeypatch):
    def refuse(_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(confine, "keep_only", refuse)
    settings = serve.Settings(where, **vars(machine))
    with pytest.raises(MountError, match="capabilities cannot be given up"):
        run_in_background(settings, lambda: None, lambda: None)
