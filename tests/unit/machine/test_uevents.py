"""What the kernel says of devices is told on, and its silence or trouble is no harm."""

import errno
import os
import sys
import types

import pytest
import trio
import trio.testing

from barfs.machine.uevents import Watch


class Monitor:
    """As pyudev's, over a pipe: a byte in it is a device, or an error, in the list."""

    def __init__(self):
        self.read_end, self._write_end = os.pipe2(os.O_NONBLOCK)
        self.subsystems, self.started, self._devices = [], False, []

    def say(self, *devices):
        self._devices += devices
        os.write(self._write_end, b"." * len(devices))

    def fileno(self):
        return self.read_end

    def filter_by(self, subsystem):
        self.subsystems.append(subsystem)

    def start(self):
        self.started = True

    def poll(self, timeout):
        assert timeout == 0
        if not self._devices:
            return None
        os.read(self.read_end, 1)
        device = self._devices.pop(0)
        if isinstance(device, OSError):
            raise device
        return device

    def close(self):
        os.close(self.read_end)
        os.close(self._write_end)


def device(name, action):
    return types.SimpleNamespace(sys_name=name, action=action)


@pytest.fixture
def monitor(monkeypatch):
    monitor = Monitor()

    class Monitors:
        @staticmethod
        def from_netlink(context, source):
            assert source == "kernel"
            return monitor

    pyudev = types.SimpleNamespace(Context=lambda: None, Monitor=Monitors)
    monkeypatch.setitem(sys.modules, "pyudev", pyudev)
    yield monitor
    monitor.close()


def test_changes_are_told_in_their_order_and_others_are_not(monitor):
    told = []

    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                Watch().run, lambda address, action: told.append((str(address), action))
            )
            await trio.testing.wait_all_tasks_blocked()
            assert monitor.started
            assert monitor.subsystems == ["pci"]
            monitor.say(device("0000:00:04.0", "remove"), device("0000:00:04.0", "add"))
            await trio.testing.wait_all_tasks_blocked(0.01)
            monitor.say(device("pci0000:00", "add"), device("0000:00:05.0", None))
            monitor.say(OSError(errno.ENOBUFS, "No buffer space available"))
            await trio.testing.wait_all_tasks_blocked(0.01)
            monitor.say(device("0000:00:05.0", "bind"))
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert told == [("0000:00:04.0", "remove"), ("0000:00:04.0", "add"), ("0000:00:05.0", "bind")]


def test_lost_messages_are_logged(monitor, caplog):
    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Watch().run, lambda *_: None)
            await trio.testing.wait_all_tasks_blocked()
            monitor.say(OSError(errno.ENOBUFS, "No buffer space available"))
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert "uevents were lost: No buffer space available" in caplog.text


@pytest.mark.parametrize("error", [ImportError("No library named udev"), OSError(93, "netlink")])
def test_without_libudev_or_netlink_there_are_none(monkeypatch, error, caplog):
    def context():
        raise error

    monitors = types.SimpleNamespace(from_netlink=lambda *_, **__: pytest.fail("not reached"))
    monkeypatch.setitem(
        sys.modules, "pyudev", types.SimpleNamespace(Context=context, Monitor=monitors)
    )
    caplog.set_level("INFO")
    trio.run(Watch().run, lambda *_: None)
    assert f"no uevents: {error}" in caplog.text
