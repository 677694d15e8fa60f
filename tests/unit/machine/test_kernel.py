"""What a kernel lets through, from its files."""

import gzip
import random

import pytest
from machines import ADMIN, ALL, RAWIO, STRICT, Fixture, config_text

from barfs.machine import kernel
from barfs.machine.kernel import Config, Kernel, Process, parse_config, read_kernel, read_process
from barfs.machine.source import PlainSource


@pytest.fixture
def fixture(tmp_path):
    return Fixture(tmp_path)


def read(fixture):
    return read_kernel(fixture.machine.source)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("CONFIG_A=y\nCONFIG_B=m\n# CONFIG_C is not set\nCONFIG_D=n\n", {"A", "B"}),
        ("# CONFIG_C is not set", set()),
        ('CONFIG_A="y"\nCONFIG_B=0x1y\n', set()),
        ("CONFIG_STRICT_DEVMEM=y\n", {"STRICT_DEVMEM"}),
        (" CONFIG_A=y\nXCONFIG_B=y\n#CONFIG_C=y\nCONFIG_D=y", {"D"}),
        ("", None),
        ("# Linux/x86 6.12.0 Kernel Configuration\n", None),
        ("STRICT_DEVMEM=y\n", None),
        ("\0\xff\n", None),
    ],
)
def test_parse_config(text, options):
    assert parse_config(text) == options


def test_the_configuration_in_proc_comes_before_the_one_in_boot(fixture):
    installed = fixture.boot / "config-6.12.0-sim"
    installed.write_text(config_text(*STRICT))
    assert read(fixture).config == Config(
        fixture.proc / "config.gz", frozenset(("64BIT", "DEVMEM", "SECURITY_LOCKDOWN_LSM"))
    )
    (fixture.proc / "config.gz").unlink()
    assert read(fixture).config == Config(installed, frozenset(("64BIT", *STRICT)))
    installed.rename(fixture.boot / "config-6.12.0")
    assert read(fixture).config is None


@pytest.mark.parametrize(
    "packed",
    [
        *(b"", b"\x1f\x8b", b"garbage", gzip.compress(b"CONFIG_A=y\n")[:-9]),
        gzip.compress(b"CONFIG_A=y\n" * 99)[:20] + b"\xff" * 40,
        *(gzip.compress(b""), gzip.compress(bytes(1000))),
    ],
)
def test_a_packed_configuration_that_is_garbage(fixture, packed):
    (fixture.proc / "config.gz").write_bytes(packed)
    assert read(fixture).config is None
    (fixture.boot / "config-6.12.0-sim").write_text(config_text(*STRICT))
    assert read(fixture).strict is True


def test_a_huge_configuration_is_read_in_part(fixture, monkeypatch):
    monkeypatch.setattr(kernel, "_CONFIG_LIMIT", 1000)
    text = "CONFIG_A=y\n" + "#\n" * 10000 + "CONFIG_B=y\n"
    (fixture.proc / "config.gz").write_bytes(gzip.compress(text.encode()))
    assert read(fixture).config.options == {"A"}


def test_a_configuration_that_changes_is_read_anew(fixture):
    assert read(fixture).strict is False
    fixture.set_config(*STRICT)
    assert read(fixture).strict is True


@pytest.mark.parametrize("release", ["", "../../etc/passwd", "a b", "6.12\0", "\xe9", "x" * 5000])
def test_a_release_that_is_none_names_no_file(fixture, release):
    (fixture.proc / "config.gz").unlink()
    (fixture.proc / "sys/kernel/osrelease").write_text(release)
    assert read(fixture).config is None


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("ro", None),
        ("iomem=relaxed", "relaxed"),
        ("iomem=strict", "strict"),
        ("iomem=relaxed iomem=strict", "strict"),
        ("iomem=strict quiet iomem=relaxed", "relaxed"),
        ("xiomem=relaxed iomem", None),
        ("ro -- iomem=relaxed", None),
        ("iomem=", ""),
        ("iomem=a=b", "a=b"),
    ],
)
def test_parameters(fixture, words, value):
    fixture.set_parameters(words)
    assert kernel.parameter(fixture.machine.source, "iomem") == value
    assert read(fixture).iomem == value
    (fixture.proc / "cmdline").unlink()
    assert kernel.parameter(fixture.machine.source, "iomem") is None


@pytest.mark.parametrize(
    ("options", "words", "strict", "io_strict"),
    [
        ((), "", False, False),
        (("STRICT_DEVMEM",), "", True, False),
        (STRICT, "", True, True),
        # Relaxed is what drivers have claimed, not System RAM.
        (STRICT, "iomem=relaxed", True, False),
        (STRICT, "iomem=strict", True, True),
        (None, "", None, None),
        (None, "iomem=relaxed", None, False),
    ],
)
def test_what_is_kept_back(fixture, options, words, strict, io_strict):
    fixture.set_parameters(words)
    if options is None:
        (fixture.proc / "config.gz").unlink()
    else:
        fixture.set_config(*options)
    facts = read(fixture)
    assert (facts.strict, facts.io_strict) == (strict, io_strict)
    assert facts.relaxed == (words == "iomem=relaxed")


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("[none] integrity confidentiality", "none"),
        ("none [integrity] confidentiality", "integrity"),
        ("none integrity [confidentiality]", "confidentiality"),
        *((garbage, None) for garbage in ("", "none", "[]", "[maximum]", "[none", "\0\xff[")),
    ],
)
def test_lockdown(fixture, text, level):
    fixture.set_lockdown(text)
    assert read(fixture).lockdown == level


def test_lockdown_without_its_file(fixture):
    (fixture.security / "lockdown").unlink()
    assert read(fixture).lockdown is None  # securityfs is not mounted
    (fixture.security / "lsm").touch()
    assert read(fixture).lockdown == "none"  # it is, and has no such file
    (fixture.security / "lsm").unlink()
    fixture.security.rmdir()
    assert read(fixture).lockdown is None
    fixture.set_config("DEVMEM")
    assert read(fixture).lockdown == "none"  # built without it
    (fixture.proc / "config.gz").unlink()
    assert read(fixture).lockdown is None


def test_a_machine_of_nothing(tmp_path):
    source = PlainSource(tmp_path, tmp_path, tmp_path)
    assert read_kernel(source) == Kernel(None, None, None)
    assert read_process(source) is None
    assert not kernel.has_secure_boot(source)


@pytest.mark.parametrize(
    ("value", "on"), [(b"\6\0\0\0\1", True), (b"\6\0\0\0\0", False), (b"\1", False), (b"", False)]
)
def test_secure_boot(fixture, value, on):
    directory = fixture.paths.sysfs / "firmware/efi/efivars"
    directory.mkdir(parents=True)
    (directory / "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c").write_bytes(value)
    assert kernel.has_secure_boot(fixture.machine.source) == on


@pytest.mark.parametrize(
    ("mask", "missing"),
    [
        (ALL, []),
        (RAWIO | ADMIN, []),
        (ALL & ~RAWIO, ["CAP_SYS_RAWIO"]),
        (ALL & ~ADMIN, ["CAP_SYS_ADMIN"]),
        (0, ["CAP_SYS_RAWIO", "CAP_SYS_ADMIN"]),
    ],
)
def test_a_process_and_its_capabilities(fixture, mask, missing):
    fixture.set_process(uid=7, mask=mask)
    process = read_process(fixture.machine.source)
    # The effective user is the second number, not the first.
    assert process == Process(7, mask, in_namespace=False)
    assert process.missing == missing


def test_a_process_in_a_user_namespace(fixture):
    fixture.set_process(users="0 1000 1")
    assert read_process(fixture.machine.source).in_namespace
    (fixture.proc / "self/uid_map").unlink()  # a kernel without user namespaces
    assert not read_process(fixture.machine.source).in_namespace


@pytest.mark.parametrize(
    "text", ["", "Uid: 0\n", "Uid:\t0\t0\n", "CapEff:\t0\n", "Uid:\tx\ty\nCapEff:\t0\n", "\0\xff"]
)
def test_a_process_that_is_garbage(fixture, text):
    (fixture.proc / "self/status").write_text(text)
    assert read_process(fixture.machine.source) is None


def test_random_bytes_in_every_file(fixture):
    chance = random.Random(11)
    files = [
        *(fixture.proc / name for name in ("config.gz", "cmdline", "self/status", "self/uid_map")),
        *(fixture.proc / "sys/kernel/osrelease", fixture.security / "lockdown"),
    ]
    originals = {path: path.read_bytes() for path in files}
    for _ in range(500):
        for path in files:
            content = bytearray(originals[path])
            for _ in range(chance.randrange(6)):
                content[chance.randrange(len(content))] = chance.randrange(256)
            path.write_bytes(content[: chance.randrange(len(content) + 1)])
        facts = read(fixture)
        assert facts.lockdown in {None, *kernel.LOCKDOWN_LEVELS}
        assert facts.strict in {None, True, False}
        process = read_process(fixture.machine.source)
        assert process is None or 0 <= process.capabilities < 1 << 64
