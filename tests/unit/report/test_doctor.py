"""What `barfs doctor` prints, and its exit status."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from machines import E1000, FIRST, NVME, SECOND, STRICT, Fixture

from barfs.diagnosis import checkup
from barfs.errors import NoSuchNode
from barfs.report import doctor
from barfs.report.looks import Look

README = (Path(__file__).parents[3] / "README.md").read_text()


@pytest.fixture
def fixture(tmp_path):
    return Fixture(tmp_path)


@pytest.fixture
def findings(fixture):
    def findings(pattern=None):
        paths = fixture.paths
        return doctor.findings(
            *(paths.sysfs, paths.proc, paths.devmem, pattern),
            boot=fixture.boot,
            fuse=fixture.fuse,
            pci_ids=[],
        )

    return findings


def barfs_doctor(fixture, *arguments, **more):
    paths = fixture.paths
    options = ["--sysfs", paths.sysfs, "--proc", paths.proc, "--devmem", paths.devmem]
    return subprocess.run(
        [sys.executable, "-m", "barfs", "doctor", *options, *arguments],
        check=False,
        **{"capture_output": True, "text": True, "timeout": 30, **more},
    )


def amiss(fixture):
    """What README shows: a kernel as distributions build them, two devices with trouble."""
    fixture.set_config("DEVMEM", "SECURITY_LOCKDOWN_LSM", "STRICT_DEVMEM")
    fixture.set_command(FIRST, 0)
    fixture.set_attribute(SECOND, "power_state", "D3hot")


def test_the_text_in_the_readme(fixture, findings):
    amiss(fixture)
    (shown,) = re.findall(r"^\$ sudo barfs doctor\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    printed = checkup.text(findings())
    for path, real in (
        *((fixture.paths.sysfs, "/sys"), (fixture.proc, "/proc")),
        *((fixture.paths.devmem, "/dev/mem"), (fixture.fuse, "/dev/fuse")),
    ):
        printed = printed.replace(str(path), real)
    assert shown == printed


def test_on_the_simulated_machine(fixture):
    """`barfs demo` mounts this machine."""
    for name in ("self/status", "self/uid_map", "sys/kernel/osrelease", "config.gz", "kcore"):
        (fixture.proc / name).unlink()
    (fixture.security / "lockdown").unlink()
    fixture.security.rmdir()
    fixture.btf.unlink()
    fixture.btf.parent.rmdir()
    fixture.security.parent.rmdir()
    done = barfs_doctor(fixture)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "ok       fuse          /dev/fuse is there\n"
        f"ok       devmem        {fixture.paths.devmem} opens\n"
        f"ok       iomem         {fixture.proc}/iomem shows 11 ranges\n"
        f"ok       {E1000}  D0; bar0, bar1 decoded; driver e1000\n"
        f"ok       {FIRST}  D0; bar0, bar2 decoded; no driver\n"
        f"ok       {SECOND}  D0; bar0, bar2 decoded; no driver\n"
        f"ok       {NVME}  D0; bar0 decoded; no driver\n"
    )


@pytest.mark.parametrize(
    ("pattern", "addresses"),
    [
        (None, [E1000, FIRST, SECOND, NVME]),
        ("1af4:1110", [FIRST, SECOND]),
        ("1af4:1110.1", [SECOND]),
        (NVME, [NVME]),
        ("e1000", [E1000]),
    ],
)
def test_patterns_choose_functions_and_leave_the_machine(findings, pattern, addresses):
    found = findings(pattern)
    assert [str(one.device) for one in found if one.device] == addresses
    assert [one.subject for one in found if one.device is None][:2] == ["root", "fuse"]


def test_what_cannot_be_looked_at(fixture, findings):
    with pytest.raises(NoSuchNode, match="nothing matches 'no such'"):
        findings("no such")
    for name in ("sysfs", "proc"):
        paths = {"sysfs": fixture.paths.sysfs, "proc": fixture.proc}
        paths[name] = fixture.boot / "nowhere"
        with pytest.raises(NoSuchNode, match=f"--{name} .*/nowhere is not a directory"):
            doctor.findings(paths["sysfs"], paths["proc"], fixture.paths.devmem, None)
    no_pci = doctor.findings(fixture.boot, fixture.proc, fixture.paths.devmem, None)
    assert [one for one in no_pci if one.device] == []


@pytest.mark.parametrize(
    ("amiss", "alone", "named", "other"),
    [
        (lambda machine: None, 0, 0, 0),
        # One device of many has its trouble, and barfs works.
        (lambda machine: machine.set_command(FIRST, 0), 0, 1, 0),
        (lambda machine: machine.set_attribute(FIRST, "power_state", "D3hot"), 0, 1, 0),
        # Distributions' kernels keep System RAM back, and barfs works on the rest.
        (lambda machine: machine.set_config(*STRICT), 0, 0, 0),
        (lambda machine: (machine.security / "lockdown").unlink(), 0, 0, 0),
        # Nothing works.
        (lambda machine: machine.set_lockdown("none [integrity] confidentiality"), 1, 1, 1),
        (lambda machine: machine.set_process(uid=1000), 1, 1, 1),
        (lambda machine: machine.paths.devmem.unlink(), 1, 1, 1),
        (lambda machine: (machine.proc / "iomem").write_text(""), 1, 1, 1),
    ],
)
def test_exit_status(fixture, amiss, alone, named, other):
    amiss(fixture)
    for pattern, status in ((None, alone), (FIRST, named), (NVME, other)):
        done = barfs_doctor(fixture, *filter(None, [pattern]))
        assert (done.returncode, done.stderr) == (status, ""), (pattern, done.stdout)
        assert "ok       " in done.stdout
        assert done.stdout.startswith("trouble") or status == 0


@pytest.mark.parametrize(
    ("arguments", "status", "stderr"),
    [
        (["no such"], 1, "barfs: nothing matches 'no such'\n"),
        (["--sysfs", "/nowhere"], 1, "barfs: --sysfs /nowhere is not a directory\n"),
        (["--proc", "/nowhere"], 1, "barfs: --proc /nowhere is not a directory\n"),
        (["one", "two"], 2, "barfs doctor: 'two' is a word too many; it takes at most one PATTERN"),
    ],
)
def test_in_vain(fixture, arguments, status, stderr):
    done = barfs_doctor(fixture, *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(stderr)


def test_json(fixture):
    amiss(fixture)
    done = barfs_doctor(fixture, "--json", FIRST)
    assert (done.returncode, done.stderr) == (1, "")
    objects = json.loads(done.stdout)
    assert objects[0] == {
        "subject": FIRST,
        "device": FIRST,
        "state": "trouble",
        "sentence": "bar0, bar2: memory decoding is off in the command register",
        "mend": f"echo 1 > {fixture.devices}/{FIRST}/enable",
        "advice": None,
    }
    assert objects[-1]["device"] is None
    assert {tuple(one) for one in objects} == {tuple(objects[0])}
    assert {one["state"] for one in objects} == {"trouble", "note", "ok"}


@pytest.mark.parametrize("form", ["", "--json"])
def test_a_closed_pipe_ends_it_silently(fixture, form):
    receive, send = os.pipe()
    os.close(receive)
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    more = {"capture_output": False, "stdout": send, "stderr": subprocess.PIPE, "env": buffered}
    done = barfs_doctor(fixture, *filter(None, [form]), **more)
    os.close(send)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_at_a_terminal_sentences_fit_and_commands_stay_whole(fixture, findings, width):
    amiss(fixture)
    plain = checkup.text(findings()).splitlines()
    shown = list(doctor.lines(findings(), Look(width)))
    assert shown[0].split()[:2] == ["STATE", "SUBJECT"]
    mends = [line.strip() for line in plain if line.startswith(" ") and "# " not in line]
    assert len(mends) > 1
    assert set(mends) <= {line.strip() for line in shown}
    # Nor is a word broken, as a long path.
    assert all(len(line) <= width or len(max(line.split(), key=len)) > 25 for line in shown)
    words = " ".join(line.replace("# ", "") for line in shown[1:]).split()
    assert words == " ".join(line.replace("# ", "") for line in plain).split()
    assert list(doctor.lines(findings())) == plain


def test_colours_say_how_bad_it_is(fixture, findings):
    amiss(fixture)
    shown = list(doctor.lines(findings(), Look(80, colour=True)))
    for state, colour in (("trouble", 31), ("note", 33), ("ok", 32)):
        assert any(line.startswith(f"\x1b[{colour}m{state}") for line in shown)
