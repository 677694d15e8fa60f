"""`sysfs` on a real sysfs: programs that map a BAR find it by the device's name."""

import shutil

from vm.test_accesses import reads

EDU, IVSHMEM = "1234:11e8", "1af4:1110"


def test_a_program_maps_a_bar_by_the_devices_name(guest, bars, edu, require):
    require(shutil.which("memtool"), "memtool: apt install memtool")
    guest.run(f"printf 'Dunia,vipi?\\r' | dd of={bars}/{IVSHMEM}/bar2 bs=12 conv=notrunc")
    shown = guest.run(f"memtool md -b -s {bars}/{IVSHMEM}/sysfs/resource2 0+12").text
    assert bytes.fromhex(shown.partition(": ")[2][: 3 * 12]) == b"Dunia,vipi?\r"
    with guest.traced(edu) as seen:
        shown = guest.run(f"memtool md -l -s {bars}/{EDU}/sysfs/resource0 0+4").text
    assert shown.split()[1] == "010000ed"
    assert seen == reads((0, 4))


def test_an_attribute_is_written_by_the_devices_name(guest, bars, edu):
    device = guest.run(f"readlink -f {bars}/{EDU}/sysfs").text.strip()
    assert device.startswith("/sys/devices/pci")
    before = int(guest.run(f"cat {device}/enable").text)
    with guest.traced(edu) as seen:
        guest.run(f"echo 1 > {bars}/{EDU}/sysfs/enable")
        assert int(guest.run(f"cat {device}/enable").text) == before + 1
        guest.run(f"echo 0 > {bars}/{EDU}/sysfs/enable; ls -lR {bars}/{EDU}/ > /dev/null")
    assert int(guest.run(f"cat {device}/enable").text) == before
    assert seen == []
