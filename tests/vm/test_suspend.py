"""Suspend, as far as the freezer: that is where FUSE and suspend meet."""

import pytest

from vm.conftest import MOUNTS


@pytest.fixture(scope="module")
def freezer(guest):
    """A suspend freezes all processes, waits a second, thaws them (kernel/power/suspend_test.c)."""
    guest.run("echo freezer > /sys/power/pm_test")
    guest.run("echo 1 > /sys/module/suspend/parameters/pm_test_delay")
    guest.run("echo 2000 > /sys/power/pm_freeze_timeout")
    yield
    guest.run("echo none > /sys/power/pm_test")


def check_works(guest, word):
    for bars in MOUNTS.values():
        guest.run(f"ls {bars}/1af4:1110/bar2 && printf {word} > {bars}/1af4:1110/bar2")
        assert guest.peek(0, 0, len(word)) == word.encode()
        guest.poke(0, 0, bytes(8))


def test_with_files_open_and_a_shell_in_it(guest, bars, freezer):
    guest.run(f"cd {bars}/pci && exec 3<{bars}/1af4:1110/bar2 && echo mem > /sys/power/state")
    check_works(guest, "thawed")


def test_with_clients_in_the_middle_of_requests(guest, bars, freezer):
    """The kernel may give the suspend up, as nobody can be frozen who waits for an answer of FUSE
    (fs/fuse/dev.c, request_wait_answer) that a daemon owes who is frozen already. All goes on.
    """
    guest.run(
        f"while [ ! -e /run/enough ]; do dd if={bars}/1af4:1110/bar2 of=/dev/null bs=64K"
        f" status=none; ls -l {bars}/pci/*/ {bars}/pci/*/u32; done >/dev/null 2>/run/busy &"
        " echo $! > /run/busy.pid"
    )
    try:
        for _ in range(3):
            done = guest.try_run("echo mem > /sys/power/state")
            assert done.status == 0 or b"Device or resource busy" in done.stderr
            check_works(guest, "thawed")
    finally:
        guest.run(
            "touch /run/enough; while kill -0 $(cat /run/busy.pid); do sleep 0.1; done;"
            " rm /run/enough"
        )
    assert guest.run("cat /run/busy").text == ""
