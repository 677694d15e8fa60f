"""Claims of addresses for write-combining, or for exact accesses."""

import os
import random
import threading

import pytest
from machines import find, machine_of, tree_of

from barfs.access.contract import overlap
from barfs.errors import CombinedElsewhere
from barfs.machine import simulated
from barfs.names import PciAddress
from barfs.spans import combining
from barfs.spans.combining import Combining

PAGE = 4096


def test_one_or_the_other():
    claims = Combining()
    first = claims.combine(range(PAGE))
    second = claims.combine(range(2 * PAGE))  # both may merge
    for span in (range(4), range(PAGE - 1, PAGE + 1), range(2 * PAGE - 1, 9 * PAGE)):
        with pytest.raises(CombinedElsewhere, match=r"^here: .* --write-combining$"):
            claims.keep_exact(span, "here")
    third = claims.keep_exact(range(2 * PAGE, 3 * PAGE), "there")
    assert claims.combine(range(3 * PAGE)) is None
    first()
    with pytest.raises(CombinedElsewhere):
        claims.keep_exact(range(4), "here")
    second()
    fourth = claims.keep_exact(range(4), "here")
    fifth = claims.keep_exact(range(4), "here too")
    fourth()
    assert claims.combine(range(PAGE)) is None
    fifth()
    third()
    assert claims.combine(range(3 * PAGE)) is not None


def test_a_release_while_another_thread_looks_hides_no_claim(monkeypatch):
    """A file is closed in the loop's thread, while a worker opens another one."""
    claims = Combining()
    first, second = range(PAGE), range(PAGE, 2 * PAGE)
    release = claims.combine(first)
    claims.combine(second)
    closing = threading.Thread(target=release)

    def overlap_while_a_file_is_closed(one, other):
        if closing.ident is None:
            closing.start()
            closing.join(0.2)  # it ends by then, or waits until the look is over
        return overlap(one, other)

    monkeypatch.setattr(combining, "overlap", overlap_while_a_file_is_closed)
    with pytest.raises(CombinedElsewhere):
        claims.keep_exact(second, "second")
    closing.join()
    claims.keep_exact(first, "first")


def test_never_both_whatever_is_opened():
    generator = random.Random(1)
    claims, held = Combining(), []
    refused = 0
    for _ in range(5000):
        if len(held) > 8:
            held.pop(generator.randrange(len(held)))[2]()
        start = generator.randrange(64) * PAGE
        span = range(start, start + generator.randrange(1, 8) * PAGE)
        exact = generator.random() < 0.5
        others = [kind for kind, other, _ in held if set(other) & set(span[::PAGE])]
        try:
            release = claims.keep_exact(span, "x") if exact else claims.combine(span)
        except CombinedElsewhere:
            release = None
        assert (release is None) == ((not exact) in others)
        refused += release is None
        if release is not None:
            held.append((exact, span, release))
    assert refused > 100


@pytest.fixture
def machine(tmp_path):
    return machine_of(simulated.build(tmp_path))


@pytest.fixture
def tree(machine):
    return tree_of(machine, combining=Combining())


def opened(tree, path, mode=os.O_RDWR):
    return tree.open(find(tree, path), writable=mode != os.O_RDONLY)


BAR = "pci/0000:00:04.0"


def mapped():
    """The files that are mapped, by their names, as resource2 and resource2_wc are one file."""
    names = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            names.add(os.path.basename(os.readlink(f"/proc/self/fd/{name}")))
        except OSError:
            continue
    return {name for name in names if name.startswith("resource") and name != "resource"}


@pytest.mark.parametrize(
    ("path", "mode", "file"),
    [
        ("bar2", os.O_RDWR, "resource2_wc"),
        ("bar2", os.O_WRONLY, "resource2_wc"),
        ("bar2@40+4", os.O_RDWR, "resource2_wc"),
        ("bar2", os.O_RDONLY, "resource2"),
        ("u32/bar2", os.O_RDWR, "resource2"),
        ("x32/bar2@4", os.O_RDWR, "resource2"),
        ("bar0", os.O_RDWR, "resource0"),
    ],
)
def test_what_is_mapped_write_combining(tree, path, mode, file):
    view = opened(tree, f"{BAR}/{path}", mode)
    assert mapped() == {file}
    view.close()
    assert mapped() == set()


def test_a_machine_that_does_not_offer_it(tree, machine):
    (machine.source.sysfs / "bus/pci/devices/0000:00:04.0/resource2_wc").unlink()
    view = opened(tree, f"{BAR}/bar2")
    assert mapped() == {"resource2"}
    exact = opened(tree, f"{BAR}/u32/bar2")  # there is nothing that it could get in the way of
    exact.close()
    view.close()


def test_exact_files_and_write_combining_ones_keep_out_of_each_others_way(tree, machine):
    bar = machine.pci.bar(PciAddress(0, 0, 4, 0), 2)
    physical = f"phys/{bar.start + 0x100:x}+4"
    combined = opened(tree, f"{BAR}/bar2")
    for path in (f"{BAR}/u32/bar2@40+4", f"{BAR}/x8/bar2@0", physical, f"phys/u8/{bar.start:x}+1"):
        with pytest.raises(CombinedElsewhere):
            opened(tree, path)
    opened(tree, f"{BAR}/u32/bar0").close()
    opened(tree, f"{BAR}/bar2", os.O_RDONLY).close()
    opened(tree, "phys/100000+4").close()
    combined.close()
    for path in (f"{BAR}/x8/bar2@0", physical):
        exact = opened(tree, path)
        plain = opened(tree, f"{BAR}/bar2")
        assert mapped() - {"mem"} <= {"resource2"}
        assert plain.write(0, b"Dunia") == 5
        plain.close()
        exact.close()
    again = opened(tree, f"{BAR}/bar2")
    assert mapped() == {"resource2_wc"}
    again.close()


def test_a_register_as_text_is_no_more_than_that(tree, machine):
    """Its name may have no end: then the file's range goes on to that of /proc/iomem."""
    first, second = (machine.pci.bar(PciAddress(0, 0, device, 0), 2) for device in (4, 5))
    assert first.end < second.start
    combined = opened(tree, "pci/0000:00:05.0/bar2")
    opened(tree, f"phys/x32/{first.start:x}").close()
    with pytest.raises(CombinedElsewhere):
        opened(tree, f"phys/u32/{first.start:x}")
    with pytest.raises(CombinedElsewhere):
        opened(tree, f"phys/x32/{second.start + 4:x}")
    combined.close()


def test_a_refusal_leaves_no_claim(tree, machine):
    command = machine.source.sysfs / "bus/pci/devices/0000:00:04.0/config"
    data = command.read_bytes()
    command.write_bytes(data[:4] + bytes(2) + data[6:])
    for path in ("bar2", "u32/bar2"):
        with pytest.raises(Exception, match="decoding is off"):
            opened(tree, f"{BAR}/{path}")
    command.write_bytes(data)
    opened(tree, f"{BAR}/u32/bar2").close()
    opened(tree, f"{BAR}/bar2").close()
    assert mapped() == set()
