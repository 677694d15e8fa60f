"""The expansion ROM through sysfs: enabled for each read, and for one at a time."""

import os
import threading

from barfs.access import files
from barfs.access.files import RomFile


class Rom:
    """The kernel's side: data only while it is enabled, EINVAL otherwise (pci_read_rom)."""

    def __init__(self):
        self.enabled = False
        self.reading = threading.Semaphore(0)
        self.go_on = threading.Event()

    def pwrite(self, fd, data, offset):
        self.enabled = data[:1] == b"1"
        return len(data)

    def pread(self, fd, length, offset):
        self.reading.release()
        self.go_on.wait(0.2)
        if not self.enabled:
            raise OSError(22, "Invalid argument")
        return bytes(length)

    def __getattr__(self, name):
        return getattr(os, name)


def test_readers_do_not_switch_it_off_for_each_other(tmp_path, monkeypatch):
    path = tmp_path / "rom"
    path.write_bytes(bytes(64))
    roms = [RomFile(path, what="rom", writable=True) for _ in range(2)]
    kernel = Rom()
    monkeypatch.setattr(files, "os", kernel)
    outcomes = []

    def read(rom):
        try:
            outcomes.append(rom.read(0, 16))
        except Exception as error:  # noqa: BLE001
            outcomes.append(error)

    readers = [threading.Thread(target=read, args=(rom,)) for rom in roms * 3]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(20)
    assert outcomes == [bytes(16)] * 6
    assert not kernel.enabled
    for rom in roms:
        rom.close()
