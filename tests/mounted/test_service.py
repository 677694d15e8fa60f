"""The service: what it tells its manager, its unit, updatedb. tests/vm runs it under systemd."""

import configparser
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mounted.conftest import BARFS, TIMEOUT, is_mounted, machine_options

SYSTEMD = Path(__file__).parents[2] / "contrib/systemd"
SERVICE = (SYSTEMD / "barfs.service").read_text()
INSTALLED = "/usr/local/bin/barfs"

# What gives a service a mount namespace of its own (src/core/execute.c,
# exec_needs_mount_namespace), in which the mount would stay.
NAMESPACES = re.compile(
    r"^(Root\w+|(Private(?!Network)|Protect(?!Clock|Hostname))\w+|(Read|Inaccessible|Exec)\w*Paths|"
    r"Bind\w*|TemporaryFileSystem|MountFlags|MountImages|ExtensionImages|ProcSubset|DynamicUser|"
    r"(State|Cache|Logs|Runtime|Configuration)Directory)=",
    re.MULTILINE,
)

# systemd's score, from 0 to 10: lower is better. Most of the rest would need a mount namespace.
EXPOSURE = 4.0


@pytest.mark.parametrize("name", ["{}/notify", "@barfs-mounted-{}"])
def test_the_manager_is_told_when_it_is_mounted_and_when_it_ends(machine, where, tmp_path, name):
    path = name.format(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + path[1:] if path.startswith("@") else path)
        manager.settimeout(TIMEOUT)
        process = subprocess.Popen(
            [*BARFS, "mount", "-f", *machine_options(machine), where],
            env={**os.environ, "NOTIFY_SOCKET": path},
            stderr=subprocess.DEVNULL,
        )
        try:
            assert manager.recv(4096).decode().split("\n") == [
                "READY=1",
                f"STATUS=mounted on {where}",
            ]
            assert "1af4:1110" in os.listdir(where)
        finally:
            process.send_signal(signal.SIGTERM)
        assert manager.recv(4096) == b"STOPPING=1"
        assert process.wait(TIMEOUT) == 0


@pytest.fixture
def unit(tmp_path, require):
    """The unit with the paths of this installation."""
    require(shutil.which("systemd-analyze"), "systemd-analyze: apt install systemd")
    assert SERVICE.count(f"{INSTALLED} ") == 2
    assert "/sbin/barfs" not in SERVICE
    path = tmp_path / "barfs.service"
    path.write_text(SERVICE.replace(INSTALLED, str(Path(sys.executable).parent / "barfs")))
    return path


def analyze(*arguments):
    return subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, check=False
    )


def test_the_unit_is_right(unit):
    done = analyze("verify", "--man=no", unit)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    unit.write_text(unit.read_text().replace("LockPersonality", "LockPersonalty"))
    assert "Unknown key" in analyze("verify", "--man=no", unit).stderr


def test_the_unit_confines(unit):
    security = ["security", "--offline=true", "--no-pager"]
    done = analyze(*security, f"--threshold={EXPOSURE * 10:.0f}", unit)
    assert done.returncode == 0, done.stdout
    assert "Overall exposure level for barfs.service: 3." in done.stdout


def test_the_unit_has_no_mount_namespace(unit):
    settings = [line for line in SERVICE.splitlines() if not line.startswith("#")]
    assert NAMESPACES.findall("\n".join(settings)) == []
    for name in ("ProtectSystem=full", "PrivateTmp=yes", "ReadOnlyPaths=/", "BindPaths=/a"):
        assert NAMESPACES.match(name)


def test_the_environment_file_is_one():
    """The file is in the shell's form, as far as systemd reads it the same way."""
    lines = (SYSTEMD / "barfs.default").read_text().splitlines()
    settings = [line for line in lines if not line.startswith("#")]
    assert settings == ["BARFS_OPTIONS="]
    assert "EnvironmentFile=-/etc/default/barfs\n" in SERVICE


def test_updatedb_stays_out(mount, tmp_path, require):
    require(shutil.which("updatedb.plocate"), "plocate")
    parser = configparser.ConfigParser(strict=False)
    parser.optionxform = str
    parser.read(SYSTEMD / "barfs.conf")
    command = shlex.split(parser["Service"]["ExecStart"])
    assert Path(command[0]).exists()
    # Below /tmp by default nothing is looked at, nor in tmpfs.
    command += ["-U", tmp_path, "-o", tmp_path / "db", "--prunepaths", "", "-l", "no"]

    def located(options):
        subprocess.run(options, check=True, timeout=TIMEOUT)
        done = subprocess.run(
            ["plocate", "-d", tmp_path / "db", str(mount.path)],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.splitlines()

    assert located(command) == [str(mount.path)]
    command.remove("--add-prunefs")
    command.remove("fuse.barfs")
    assert f"{mount.path}/pci" in located(command)
    assert is_mounted(mount.path)
