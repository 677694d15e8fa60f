"""The article's session with ordinary tools, seen from both sides of the device."""

import pytest

from vm.architecture import BIN
from vm.conftest import bar_address
from vm.machine import GIB

GREETING = b"Dunia,vipi?\r"


@pytest.mark.each_machine
def test_what_the_guest_writes_is_in_the_devices_memory(guest, bars):
    guest.poke(0, 0, bytes(64))
    guest.run(rf"printf 'Dunia,vipi?\r' | dd of={bars}/1af4:1110/bar2 bs=1")
    assert guest.peek(0, 0, 64) == GREETING + bytes(52)
    shown = guest.run(f"hd -n 16 {bars}/1af4:1110/bar2").text
    assert "44 75 6e 69 61 2c 76 69  70 69 3f 0d 00 00 00 00  |Dunia,vipi?.....|" in shown
    back = guest.run(f"dd if={bars}/1af4:1110/bar2 bs=1 count=12").stdout
    assert back == GREETING


@pytest.mark.each_machine
def test_what_the_host_changes_is_in_the_next_read(guest, bars):
    for text in (b"first", b"other"):
        guest.poke(0, 0x1003, text)
        assert guest.run(f"dd if={bars}/1af4:1110/bar2 bs=1 skip=4099 count=5").stdout == text


@pytest.mark.each_machine("resource")
def test_the_instances_are_different_devices(guest, bars):
    for instance in (0, 1):
        name = "1af4:1110" + (f".{instance}" if instance else "")
        guest.run(f"printf 'this is {instance}' > {bars}/{name}/bar2")
    assert guest.peek(0, 0, 9) == b"this is 0"
    assert guest.peek(1, 0, 9) == b"this is 1"
    assert guest.run(f"readlink {bars}/1af4:1110.1").text == "pci/0000:00:11.0\n"


@pytest.mark.each_machine
def test_a_bar_of_4_gib_is_reached_to_its_end(guest, bars):
    """Above 4 GiB, and mapped piece by piece."""
    bar = f"{bars}/1af4:1110.2/bar2"
    assert guest.run(f"stat -Lc %s {bar}").text == f"{4 * GIB}\n"
    for offset in (0, 3 * GIB + 5, (64 << 20) - 3, 4 * GIB - 6):
        guest.run(f"printf 'at end' | dd of={bar} bs=6 seek={offset} oflag=seek_bytes conv=notrunc")
        assert guest.peek(2, offset, 6) == b"at end"
        read = f"dd if={bar} bs=6 count=1 skip={offset} iflag=skip_bytes"
        assert guest.run(read).stdout == b"at end"
    done = guest.try_run(f"printf x | dd of={bar} bs=1 seek={4 * GIB} conv=notrunc")
    assert b"No space left on device" in done.stderr


@pytest.mark.each_machine
def test_large_copies_of_memory_are_whole(guest, bars):
    pattern = bytes((n * n >> 4) & 0xFF for n in range(1 << 20))
    guest.memory[1].write_bytes(pattern)
    bar = f"{bars}/1af4:1110.1/bar2"
    guest.run(
        f"cmp {bar} {guest.memory[1]} && dd if={bar} bs=999999 | cmp - {guest.memory[1]}"
        f" && tail -c +2 {bar} | dd of={bar} bs=65537 iflag=fullblock conv=notrunc"
    )
    assert guest.memory[1].read_bytes() == pattern[1:] + pattern[-1:]


def physical_nodename(guest):
    """From /proc/kallsyms and /proc/iomem, as docs/tour.md has it."""
    symbols = {}
    for line in guest.run("grep -E ' (_text|init_uts_ns)$' /proc/kallsyms").text.splitlines():
        address, _, name = line.split()
        symbols[name] = int(address, 16)
    code = guest.run("grep 'Kernel code' /proc/iomem").text
    start = int(code.split("-")[0], 16)
    # struct uts_namespace begins with struct new_utsname: sysname[65], nodename[65], ...
    return start + symbols["init_uts_ns"] - symbols["_text"] + 65


@pytest.mark.each_machine("resource")
def test_nodename_at_its_own_address(guest, bars):
    guest.run("hostname lab")
    address = physical_nodename(guest)
    assert guest.run(f"dd if={bars}/phys/{address:x}+4 bs=4").stdout == b"lab\0"
    guest.run(rf"printf 'NinjaNinja\0' | dd of={bars}/phys/{address:x} conv=notrunc")
    assert guest.run("hostname").text == "NinjaNinja\n"
    assert guest.run("uname -n").text == "NinjaNinja\n"


@pytest.mark.each_machine("resource")
def test_nodename_by_seeking_in_a_larger_range(guest, bars):
    address = physical_nodename(guest)
    name = guest.run("grep 'System RAM' /proc/iomem | tail -n 1").text.split()[0]
    start = int(name.split("-")[0], 16)
    guest.run(
        rf"printf 'Second\0' | dd of={bars}/phys/{name} bs=1 seek=$((0x{address:x} - 0x{start:x}))"
        " conv=notrunc"
    )
    assert guest.run("hostname").text == "Second\n"


@pytest.mark.each_machine
def test_nodename_by_the_commands_of_the_tour(guest, tour_blocks):
    (commands,) = [block for block in tour_blocks if "init_uts_ns" in block]
    guest.run("hostname lab")
    guest.run(commands.replace("sudo ", ""))
    assert guest.run("hostname").text == "NinjaNinja\n"


@pytest.mark.each_machine("resource")
@pytest.mark.parametrize("skew", range(8))
def test_unaligned_physical_addresses(guest, bars, skew):
    """0x1e102c5 in the article; memory that ivshmem backs, so the host knows the bytes."""
    start = bar_address(guest, "0000:00:11.0", 2)
    content = bytes(range(1, 33))
    guest.poke(1, 0x2C0, content)
    address = start + 0x2C0 + skew
    assert (
        guest.run(f"dd if={bars}/phys/{address:x} bs=9 count=1").stdout == content[skew : skew + 9]
    )
    guest.run(f"printf 'abcdefghi' | dd of={bars}/phys/{address:#x}+9 bs=9")
    after = guest.peek(1, 0x2C0, 32)
    assert after == content[:skew] + b"abcdefghi" + content[skew + 9 :]


@pytest.mark.each_machine
def test_mounting_in_the_background(guest):
    done = guest.run(
        f"mkdir -p /mnt/second && {BIN}/barfs mount -o ro /mnt/second && ls /mnt/second"
    )
    assert "1af4:1110.2\n" in done.text
    assert b"Read-only file system" in guest.try_run("> /mnt/second/1af4:1110/bar0").stderr
    guest.run(f"{BIN}/barfs umount /mnt/second && ! grep -q /mnt/second /proc/mounts")
    guest.run("for i in {1..100}; do pgrep -f '[m]ount -o ro' || exit 0; sleep 0.1; done; exit 1")
