"""Arguments and output."""

import argparse
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from barfs.daemon.mountpoint import MountError, unmount
from barfs.daemon.settings import REAL_DEVMEM, REAL_PROC, REAL_SYSFS, Settings
from barfs.errors import BarfsError
from barfs.machine.patterns import DevicePattern, Rules
from barfs.requests.policy import parse_mode

log = logging.getLogger(__name__)


def _say(text: str) -> None:
    print(text, flush=True)


def parser() -> argparse.ArgumentParser:
    """The command line's parser; also what the completion scripts are made from."""
    result = argparse.ArgumentParser(
        prog="barfs", description="PCI BARs and physical memory as files."
    )
    commands = result.add_subparsers(dest="command", required=True, metavar="COMMAND")

    mounting = argparse.ArgumentParser(add_help=False)
    mounting.add_argument(
        "-f", "--foreground", action="store_true", help="stay in the foreground, log to stderr"
    )
    mounting.add_argument(
        "-o",
        metavar="OPTIONS",
        dest="options",
        action="append",
        default=[],
        help="mount options, comma-separated: ro, allow_other, ...",
    )
    mounting.add_argument(
        "--force", action="store_true", help="replace a dead mount; a live one never"
    )
    mounting.add_argument("--sysfs", type=Path, metavar="DIR", help="instead of /sys")
    mounting.add_argument("--proc", type=Path, metavar="DIR", help="instead of /proc")
    mounting.add_argument("--devmem", type=Path, metavar="PATH", help="instead of /dev/mem")
    mounting.add_argument(
        "--bars-via",
        choices=("resource", "devmem"),
        default="resource",
        help="map BARs through sysfs's resourceN (default) or through /dev/mem at their addresses",
    )
    mounting.add_argument(
        "--write-combining",
        action="store_true",
        help="let the CPU merge what is written to prefetchable BARs: large writes get faster",
    )
    mounting.add_argument(
        "--enable",
        action="store_true",
        help="turn on decoding of a device while one of its BARs is open",
    )
    mounting.add_argument(
        "--log",
        type=Path,
        metavar="FILE",
        help="append the mount's log to FILE: opens, writes and refusals, as lines of JSON",
    )
    mounting.add_argument("--log-reads", action="store_true", help="have reads in the log too")
    mounting.add_argument(
        "--loop",
        choices=("fast", "stock"),
        default="fast",
        help="how requests are waited for: barfs's own way (default), or as pyfuse3 does",
    )
    _add_access(mounting)

    mount = commands.add_parser("mount", parents=[mounting], help="mount this machine")
    mount.add_argument("mountpoint", type=Path, metavar="MOUNTPOINT")
    mount.set_defaults(run=_mount)

    umount = commands.add_parser("umount", help="unmount")
    umount.add_argument(
        "-q", "--quiet", action="store_true", help="it is no error if nothing is mounted"
    )
    umount.add_argument("mountpoint", type=Path, metavar="MOUNTPOINT")
    umount.set_defaults(run=_umount)

    demo = commands.add_parser("demo", parents=[mounting], help="mount a simulated machine")
    demo.add_argument(
        "mountpoint",
        type=Path,
        metavar="MOUNTPOINT",
        nargs="?",
        help="by default a new temporary directory",
    )
    demo.set_defaults(run=_demo)

    ls = commands.add_parser(
        "ls",
        help="list this machine's PCI functions, without a mount",
        description="List PCI functions: address, id, name, driver, BARs and expansion ROM.",
    )
    form = ls.add_mutually_exclusive_group()
    form.add_argument("-v", "--verbose", action="store_true", help="the text of `info` of each")
    form.add_argument("--json", action="store_true", help="a list of objects")
    ls.add_argument("--sysfs", type=Path, metavar="DIR", help="instead of /sys")
    ls.add_argument(
        "pattern",
        metavar="PATTERN",
        nargs="?",
        help="a PCI address, vendor:device as links are named, or any part of a name",
    )
    ls.set_defaults(run=_ls)

    doctor = commands.add_parser(
        "doctor",
        help="say what works on this machine, what does not, and how to mend it",
        description="Say what works on this machine, what does not, and how to mend it.",
        epilog="Exit status 1 if something keeps barfs from working; with PATTERN also if "
        "something keeps it from those functions. Reads command registers.",
    )
    doctor.add_argument("--json", action="store_true", help="a list of objects")
    doctor.add_argument("--sysfs", type=Path, metavar="DIR", help="instead of /sys")
    doctor.add_argument("--proc", type=Path, metavar="DIR", help="instead of /proc")
    doctor.add_argument("--devmem", type=Path, metavar="PATH", help="instead of /dev/mem")
    doctor.add_argument(
        "pattern",
        metavar="PATTERN",
        nargs="?",
        help="only functions that a PCI address, vendor:device or part of a name means",
    )
    doctor.set_defaults(run=_doctor)
    return result


def _add_access(mounting: argparse.ArgumentParser) -> None:
    """The options that say who may see and open what."""
    mounting.add_argument(
        "--group", metavar="GROUP", help="a name or number: the group of the files of devices"
    )
    mounting.add_argument(
        "--mode",
        type=_mode,
        metavar="MODE",
        help="of BARs, in octal: 660 lets the group read and write them; needs -o allow_other",
    )
    for name, what in (
        ("--allow-device", "show only these functions"),
        ("--read-only-device", "never write to these functions"),
    ):
        mounting.add_argument(
            name,
            type=_pattern,
            metavar="PATTERN",
            action="append",
            default=[],
            help=f"{what}: a PCI address or vendor:device, with * ? []; may be repeated",
        )
    mounting.add_argument(
        "--no-phys", dest="phys", action="store_false", help="leave physical memory out"
    )


def _mode(text: str) -> int:
    mode = parse_mode(text)
    if mode is None:
        raise argparse.ArgumentTypeError(
            f"{text!a} is not of the form 6xx, of 0, 2 (write), 4 (read) and 6: 660, 640, 666"
        )
    return mode


def _pattern(text: str) -> DevicePattern:
    pattern = DevicePattern.parse(text)
    if pattern is None:
        raise argparse.ArgumentTypeError(
            f"{text!a} can match no function: it takes 0000:03:00.0, 1af4:1110 or"
            " 1af4:1110:1af4:1100, with * ? [] inside the fields"
        )
    return pattern


def _settings(arguments: argparse.Namespace, mountpoint: Path) -> Settings:
    options = [option for text in arguments.options for option in text.split(",") if option]
    return Settings(
        mountpoint=mountpoint.absolute(),
        options=tuple(options),
        sysfs=(arguments.sysfs or REAL_SYSFS).absolute(),
        proc=(arguments.proc or REAL_PROC).absolute(),
        devmem=(arguments.devmem or REAL_DEVMEM).absolute(),
        bars_via=arguments.bars_via,
        write_combining=arguments.write_combining,
        force=arguments.force,
        enable=arguments.enable,
        log_file=arguments.log and arguments.log.absolute(),
        log_reads=arguments.log_reads,
        loop=arguments.loop,
        phys=arguments.phys,
        group=arguments.group,
        mode=arguments.mode,
        rules=Rules(tuple(arguments.allow_device), tuple(arguments.read_only_device)),
    )


def _run(
    arguments: argparse.Namespace,
    settings: Settings,
    ready: Callable[[], None],
    finish: Callable[[], None],
) -> None:
    """Serve in the foreground, or return once a background daemon answers."""
    # Not needed by the other commands, so that they start faster.
    from barfs.daemon.serve import run_in_background, run_in_foreground  # noqa: PLC0415

    if arguments.foreground:
        try:
            run_in_foreground(settings, ready)
        finally:
            finish()
        return
    try:
        run_in_background(settings, finish)
    except MountError:
        finish()
        raise
    ready()


def _mount(arguments: argparse.Namespace) -> None:
    settings = _settings(arguments, arguments.mountpoint)

    def ready() -> None:
        if arguments.foreground:
            log.info("mounted on %s", settings.mountpoint)

    _run(arguments, settings, ready, lambda: None)


def _umount(arguments: argparse.Namespace) -> None:
    unmount(arguments.mountpoint.absolute(), quiet=arguments.quiet)


def _demo(arguments: argparse.Namespace) -> None:
    # Not needed by the other commands, so that they start faster.
    import tempfile  # noqa: PLC0415

    from barfs.commands import drawing  # noqa: PLC0415
    from barfs.daemon.serve import tree_of  # noqa: PLC0415
    from barfs.machine import simulated  # noqa: PLC0415

    directory = Path(tempfile.mkdtemp(prefix="barfs-demo-"))

    def finish() -> None:
        shutil.rmtree(directory, ignore_errors=True)

    try:
        machine = simulated.build(directory)
        mountpoint = arguments.mountpoint
        if mountpoint is None:
            mountpoint = directory / "mnt"
            mountpoint.mkdir()
        arguments.sysfs = arguments.sysfs or machine.sysfs
        arguments.proc = arguments.proc or machine.proc
        arguments.devmem = arguments.devmem or machine.devmem
        settings = _settings(arguments, mountpoint)
    except BaseException:
        finish()
        raise

    def ready() -> None:
        where = settings.mountpoint
        _say(f"A simulated machine is mounted on {where}\n\n{where}")
        tree = tree_of(settings)
        for line in drawing.draw(tree):
            _say(line)
        _say("\nTry:")
        for command in drawing.suggestions(where, tree):
            _say(f"  {command}")
        how = "press Ctrl-C, or" if arguments.foreground else "run"
        _say(f"\nTo end it, {how}: barfs umount {where}")

    _run(arguments, settings, ready, finish)


def _ls(arguments: argparse.Namespace) -> None:
    # Not needed by the other commands, so that they start faster.
    from barfs.report import listing  # noqa: PLC0415

    form: listing.Form = "json" if arguments.json else "text" if arguments.verbose else "table"
    for line in listing.show(arguments.sysfs or REAL_SYSFS, arguments.pattern, form):
        print(line)


def _doctor(arguments: argparse.Namespace) -> None:
    # Not needed by the other commands, so that they start faster.
    from barfs.diagnosis import checkup  # noqa: PLC0415
    from barfs.report import doctor  # noqa: PLC0415

    found = doctor.findings(
        (arguments.sysfs or REAL_SYSFS).absolute(),
        (arguments.proc or REAL_PROC).absolute(),
        (arguments.devmem or REAL_DEVMEM).absolute(),
        arguments.pattern,
    )
    print(doctor.as_json(found) if arguments.json else checkup.text(found).rstrip("\n"), flush=True)
    if doctor.is_hopeless(found, arguments.pattern):
        sys.exit(1)


def _run_command(arguments: argparse.Namespace) -> None:
    """Run a command; exit as by SIGPIPE, and as silently, if nobody reads its output any more."""
    broken = False
    try:
        arguments.run(arguments)
        print(end="", flush=True)
    except* BrokenPipeError:  # in a group if it was a mount in the foreground that printed
        broken = True
    if broken:
        # Python writes what is left when it ends, and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def main() -> NoReturn:
    """The command `barfs`: exit status 0, 1 with one line on standard error, 2 for wrong usage."""
    arguments = parser().parse_args()
    try:
        _run_command(arguments)
    except (MountError, BarfsError) as error:
        print(f"barfs: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)
