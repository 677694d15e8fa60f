"""What people type by mistake, and the answer: short, and about what they meant."""

import subprocess
import sys

import pytest

from mounted.conftest import BARFS, TIMEOUT, machine_options

# The words of a command line, its exit status, and the first line of standard error. {options} are
# those of the simulated machine, {bars} an empty directory, {mount} a mount, and {here} is where
# they are. Nothing here may ask this machine for its devices.
SLIPS = [
    # Which command?
    ("", 2, "barfs: a machine's PCI BARs and physical memory as files."),
    ("mont {bars}", 2, "barfs: there is no command 'mont'; did you mean: barfs mount?"),
    ("Mount {bars}", 2, "barfs: there is no command 'Mount'; did you mean: barfs mount?"),
    ("mount. {bars}", 2, "barfs: there is no command 'mount.'; did you mean: barfs mount?"),
    ("unmont {bars}", 2, "barfs: there is no command 'unmont'; did you mean: barfs unmount?"),
    ("lspci", 2, "barfs: there is no command 'lspci'; did you mean: barfs ls?"),
    ("list", 2, "barfs: there is no command 'list'; did you mean: barfs ls?"),
    ("info", 2, "barfs: there is no command 'info'; did you mean: barfs ls -v?"),
    ("status", 2, "barfs: there is no command 'status'; did you mean: barfs doctor?"),
    ("check", 2, "barfs: there is no command 'check'; did you mean: barfs doctor?"),
    ("docter", 2, "barfs: there is no command 'docter'; did you mean: barfs doctor?"),
    ("logs", 2, "barfs: there is no command 'logs'; did you mean: barfs log?"),
    ("deno", 2, "barfs: there is no command 'deno'; did you mean: barfs demo?"),
    ("xyzzy", 2, "barfs: there is no command 'xyzzy'"),
    ("{bars}", 2, "barfs: '{bars}' is no command; to mount there: barfs mount {bars}"),
    ("-v", 2, "barfs: there is no option -v before a command"),
    ("--sysfs /sys ls", 2, "barfs: there is no option --sysfs before a command"),
    ("help mont", 2, "barfs: there is no command 'mont'; did you mean: barfs mount?"),
    # Words and options of a command
    ("mount", 2, "barfs mount: the following arguments are required: MOUNTPOINT"),
    ("umount", 2, "barfs umount: the following arguments are required: MOUNTPOINT"),
    ("mount none {bars}", 2, "barfs mount: '{bars}' is a word too many; it takes one MOUNTPOINT"),
    ("umount {bars} x", 2, "barfs umount: 'x' is a word too many; it takes one MOUNTPOINT"),
    ("demo {bars} x", 2, "barfs demo: 'x' is a word too many; it takes at most one MOUNTPOINT"),
    (
        "mount --enabel {bars}",
        2,
        "barfs mount: there is no option --enabel; did you mean --enable?",
    ),
    ("mount --enab {bars}", 2, "barfs mount: there is no option --enab; did you mean --enable?"),
    ("demo --bogus", 2, "barfs demo: there is no option --bogus"),
    ("mount -ro {bars}", 2, "barfs mount: there is no option -ro; did you mean --read-only?"),
    ("mount -r {bars}", 2, "barfs mount: there is no option -r; did you mean --read-only?"),
    ("mount --ro {bars}", 2, "barfs mount: there is no option --ro; did you mean --read-only?"),
    (
        "mount -t barfs {bars}",
        2,
        "barfs mount: there is no option -t; did you mean: mount -t ",
    ),
    ("mount --mode {bars}", 2, "barfs mount: argument --mode: '{bars}' is not of the form 6xx, "),
    ("mount --mode 777 {bars}", 2, "barfs mount: argument --mode: '777' is not of the form 6xx, "),
    ("mount --bars-via mmap {bars}", 2, "barfs mount: argument --bars-via: invalid choice: 'mmap'"),
    ("mount --log", 2, "barfs mount: argument --log: expected one argument"),
    (
        "mount --force=yes {bars}",
        2,
        "barfs mount: argument --force: ignored explicit argument 'yes'",
    ),
    (
        "umount -f {bars}",
        2,
        "barfs umount: there is no option -f; a dead mount is cleared without ",
    ),
    (
        "umount -l {bars}",
        2,
        "barfs umount: there is no option -l; a dead mount is cleared without ",
    ),
    ("ls -k", 2, "barfs ls: there is no option -k; ids, drivers and domains are always shown"),
    ("ls -nn", 2, "barfs ls: there is no option -nn; ids, drivers and domains are always shown"),
    (
        "ls -xxx",
        2,
        "barfs ls: there is no option -xxx; config space is the file `config` of a mount",
    ),
    ("ls -x", 2, "barfs ls: there is no option -x; config space is the file `config` of a mount"),
    ("ls -v --json", 2, "barfs ls: argument --json: not allowed with argument -v/--verbose"),
    ("ls one two", 2, "barfs ls: 'two' is a word too many; it takes at most one PATTERN"),
    (
        "log /a /b",
        2,
        "barfs log: it takes at most one MOUNTPOINT, which has a / or is a directory,",
    ),
    # Patterns
    ("mount --allow-device e1000 {bars}", 2, "barfs mount: argument --allow-device: 'e1000' can "),
    ("mount --allow-device= {bars}", 2, "barfs mount: argument --allow-device: '' can match no "),
    (
        *("mount --allow-device 1af4:1110.1 {bars}", 2),
        "barfs mount: argument --allow-device: '1af4:1110.1' can match no function: .1 counts ",
    ),
    ("ls --sysfs {sysfs} 1af4:9999", 1, "barfs: nothing matches '1af4:9999'"),
    ("ls --sysfs {sysfs} ''", 1, "barfs: the pattern is empty; leave it out to have all functions"),
    ("ls --sysfs {here}", 1, "barfs: {here} shows no PCI functions: it has no bus/pci/devices"),
    ("ls --sysfs /nowhere", 1, "barfs: --sysfs /nowhere is not a directory"),
    # Where to mount
    ("mount {options} {here}/no", 1, "barfs: {here}/no does not exist; create it with: mkdir -p "),
    (
        "mount {options} '{here}/a b'",
        1,
        "barfs: {here}/a b does not exist; create it with: mkdir -p ",
    ),
    (
        "mount {options} /etc/passwd",
        1,
        "barfs: /etc/passwd is not a directory; mount on a directory",
    ),
    (
        "mount {options} {mount}",
        1,
        "barfs: {mount} is already mounted; unmount with: barfs umount ",
    ),
    (
        "mount {options} --group nogroup- {bars}",
        1,
        "barfs: --group gives no rights by itself; add ",
    ),
    ("mount {options} --mode 660 {bars}", 1, "barfs: --mode is for others, who see nothing of a "),
    ("mount {options} -o max_read=1 {bars}", 1, "barfs: -o max_read=1 cuts requests into other "),
    ("umount {bars}", 1, "barfs: {bars} is not a barfs mount"),
    ("umount {here}/no", 1, "barfs: {here}/no does not exist"),
    ("umount /proc", 1, "barfs: /proc is not a barfs mount"),
    ("umount {mount}/pci", 1, "barfs: {mount}/pci is not a barfs mount"),
    ("log {bars}", 1, "barfs: {bars} is not a barfs mount, nor a file that --log has written"),
]


def test_there_are_many():
    assert len(SLIPS) >= 60
    assert len({words for words, *_ in SLIPS}) == len(SLIPS)


@pytest.fixture(scope="module")
def slip(fuse, tmp_path_factory):
    """What a line of a shell answers, with the places that it names filled in."""
    from barfs.machine import simulated
    from mounted.conftest import mounted

    here = tmp_path_factory.mktemp("slips")
    # Where the command lines are typed, a directory is called like what other programs have.
    for name in ("machine", "empty", "elsewhere/check"):
        (here / name).mkdir(parents=True)
    machine = simulated.build(here / "machine")
    with mounted(machine, here) as mount:
        places = {
            "options": " ".join(map(str, machine_options(machine))),
            "sysfs": machine.sysfs,
            "bars": here / "empty",
            "mount": mount.path,
            "here": here,
        }

        def slip(words, said):
            done = subprocess.run(
                ["bash", "-c", f"{' '.join(BARFS)} {words.format(**places)}"],
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=False,
                cwd=here / "elsewhere",
            )
            return done, said.format(**places)

        yield slip


@pytest.mark.parametrize(("words", "status", "said"), SLIPS, ids=[words for words, *_ in SLIPS])
def test_a_slip_and_its_answer(slip, words, status, said):
    done, said = slip(words, said)
    assert done.stdout == ""
    first, *more = done.stderr.splitlines()
    assert first.startswith(said)
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    if status == 1:
        assert more == []
    elif words:
        # The usage is that of the command that was meant, in one line.
        command = first.removeprefix("barfs").split(":")[0].strip()
        (usage,) = more
        assert usage.startswith(f"usage: barfs {command or 'COMMAND'}")
        assert usage.endswith(f"(see: barfs help{f' {command}' if command else ''})")


def test_hints_are_quoted_for_the_shell(slip):
    done, quoted = slip("mount {options} '{here}/a b'", "mkdir -p '{here}/a b'")
    assert done.stderr.rstrip().endswith(quoted)
    done, quoted = slip("mount {options} $'{here}/a\\nb'", "mkdir -p $'{here}/a\\\\x0ab'")
    assert done.stderr.rstrip().endswith(quoted.replace("\\\\", "\\"))


@pytest.mark.parametrize("command", ["", "mount", "umount", "demo", "ls", "doctor", "log", "regs"])
def test_help_has_a_description_arguments_and_examples(command):
    spellings = [["help", command], [command, "--help"], [command, "-h"]] if command else [["help"]]
    texts = set()
    for words in spellings:
        done = subprocess.run(
            [*BARFS, *words], capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        texts.add(done.stdout)
    (text,) = texts
    assert "\nexamples:\n" in text
    assert f"  barfs {command}" in text or f"  sudo barfs {command}" in text
    if command:
        assert text.startswith(f"usage: barfs {command}")
        assert "show this and exit" in text


def test_mount_says_at_a_terminal_what_is_mounted_and_how_to_go_on(machine, where):
    """Through a pipe it says nothing."""
    words = [*BARFS, "mount", *map(str, machine_options(machine)), str(where)]
    script = f"import pty, sys; sys.exit(pty.spawn({words!r}) >> 8)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=TIMEOUT, check=True
    )
    assert done.stdout.splitlines() == [
        f"mounted on {where}; look with: ls {where}   end with: barfs umount {where}"
    ]
    subprocess.run([*BARFS, "umount", where], check=True, timeout=TIMEOUT)
