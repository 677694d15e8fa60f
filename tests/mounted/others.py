"""Being somebody else: what nobody, a member of the group, and root get."""

import ctypes
import errno
import os
import pickle
import traceback

NOBODY = 65534
GROUP = 4242  # which no machine has
LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_DUMPABLE = 4

DEVICE, PROTECTED = "pci/0000:00:04.0", "pci/0000:00:05.0"
FLAGS = (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)

# A program in Python that runs the command as nobody. The interpreter and barfs may lie where only
# root can look, so all is loaded before. It has no single quotes, so it may stand between them.
RUN_AS_NOBODY = """
import contextlib, importlib, os, pkgutil, barfs
for module in pkgutil.walk_packages(barfs.__path__, "barfs."):
    if module.name != "barfs.__main__":
        with contextlib.suppress(ImportError):
            importlib.import_module(module.name)
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
barfs.commands.cli.main()
"""


def attempt(call):
    """What a call gives, or the name of its errno."""
    try:
        return call()
    except OSError as error:
        return errno.errorcode[error.errno]


def as_other(call, *groups):
    """What a call gives in a child process that is nobody, in no groups but these."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(groups)
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            # As after exec: its own files in /proc are its own.
            LIBC.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
            answer = attempt(call)
        except BaseException:  # noqa: BLE001 - it must not run the parent's code
            answer = AssertionError(traceback.format_exc())
        with os.fdopen(send, "wb") as pipe:
            pipe.write(pickle.dumps(answer))
        os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        answer = pickle.loads(pipe.read())
    os.waitpid(child, 0)
    if isinstance(answer, AssertionError):
        raise answer
    return answer


def opened(path, flags=os.O_RDONLY, **more):
    """Whether a file opens: `ok`, or the name of the errno."""

    def call():
        os.close(os.open(path, flags, **more))
        return "ok"

    return attempt(call)


def files(root):
    """Every file that is listed, and some that are not."""
    found = [os.path.join(path, name) for path, _, names in os.walk(root) for name in names]
    found = [path for path in found if not os.path.islink(path)]
    for directory in (DEVICE, PROTECTED):
        for name in ("bar0@40", "bar0@40+4", "u32/bar0@0-3f", "x32/bar0@8", "x64/bar2@8"):
            found.append(f"{root}/{directory}/{name}")
    for name in ("1000+4", "feb20000", "u32/feb20000+100", "x32/feb20040"):
        found.append(f"{root}/phys/{name}")
    assert len(found) > 180
    return found


def contents(machine):
    """All that can be written to, but memory that nothing writes to here."""
    devices = machine.sysfs / "bus/pci/devices"
    return {path: path.read_bytes() for path in devices.glob("*/*") if path.is_file()}
