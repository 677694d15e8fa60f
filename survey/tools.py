"""The tools: how each is asked to show 4 bytes at 8, and to change the byte at 9 to 0x55.

The working directory is that of the device. $W has `image`, the bytes of the BAR, `changed`, the
same with the one byte changed, and what `prepare` has made. $P has the programs of this package.
"""

from dataclasses import dataclass
from typing import Final

PYTHON: Final = "python3-minimal"
ARROWS: Final = b"\x1b[C" * 9


@dataclass(frozen=True)
class Tool:
    """A use of a tool: a shell's command, or what is typed on its terminal.

    `package` is Debian's, for the version. `tested` are those that `make test` has.
    """

    command: str
    package: str
    label: str = ""
    keys: tuple[bytes, ...] = ()
    prepare: str = ""
    tested: bool = True

    @property
    def name(self) -> str:
        """What the table calls it, in Markdown."""
        return self.label or f"`{self.command.replace('$W/', '')}`"


def _later(command: str, package: str, label: str = "", *keys: bytes, prepare: str = "") -> Tool:
    """What is measured only where somebody has installed it."""
    return Tool(command, package, label, keys, prepare, tested=False)


def _python(statements: str, label: str) -> Tool:
    program = f"import mmap, os; {statements}"
    return Tool(f"/usr/bin/python3 -c '{program}'", PYTHON, f"Python: `{label}`")


def _numpy(statements: str, label: str) -> Tool:
    return _later(
        f"/usr/bin/python3 -c 'import numpy; {statements}'", "python3-numpy", f"numpy: `{label}`"
    )


_C: Final = 'cc -O1 -o "$W/stdio" "$P/stdio.c"'
_MUSL: Final = 'musl-gcc -O1 -o "$W/stdio" "$P/stdio.c"'
_GO: Final = 'GOCACHE="$W/cache" go build -o "$W/access" "$P/access.go"'
_NODE: Final = 'node "$P/access.js"'
_JAVA: Final = 'java "$P/Access.java"'

SHOW: Final = (
    Tool("xxd -s 8 -l 4 bar0", "xxd"),
    Tool("hd -s 8 -n 4 bar0", "bsdextrautils"),
    Tool("hexdump -s 8 -n 4 bar0", "bsdextrautils"),
    Tool("od -t x4 -j 8 -N 4 bar0", "coreutils"),
    _later("hexyl -s 8 -n 4 bar0", "hexyl"),
    Tool("dd if=bar0 bs=4 skip=2 count=1", "coreutils"),
    Tool("dd if=bar0 bs=1 skip=8 count=4", "coreutils"),
    Tool("tail -c +9 bar0", "coreutils"),
    Tool("head -c 12 bar0", "coreutils"),
    Tool("cmp -i 8 -n 4 bar0 $W/image", "diffutils"),
    Tool("cmp bar0 $W/image", "diffutils"),
    Tool("cat bar0 > $W/copy", "coreutils"),
    Tool("cp bar0 $W/copy", "coreutils"),
    Tool("grep -c x bar0", "grep"),
    _later("rg -c x bar0", "ripgrep"),
    Tool("busybox xxd -s 8 -l 4 bar0", "busybox"),
    Tool("busybox hexdump -s 8 -n 4 bar0", "busybox"),
    Tool("busybox od -t x4 -j 8 -N 4 bar0", "busybox"),
    Tool("busybox dd if=bar0 bs=4 skip=2 count=1", "busybox"),
    Tool("busybox tail -c +9 bar0", "busybox"),
    Tool("busybox head -c 12 bar0", "busybox"),
    Tool("busybox cmp -s bar0 $W/image", "busybox"),
    Tool("busybox cat bar0 > $W/copy", "busybox"),
    Tool("busybox cp bar0 $W/copy", "busybox"),
    Tool("hexedit bar0", "hexedit", "hexedit", (b"\x03",)),
    _later("tweak bar0", "tweak", "tweak", b"\x18\x03"),
    _later("bvi bar0", "bvi", "bvi", b":q\r"),
    _later("hexer bar0", "hexer", "hexer", b"\x1b", b":q\r"),
    _later("vim -u NONE -b bar0", "vim", "`vim -b`, `:%!xxd`", b":%!xxd\r", b":q!\r"),
    _later(
        "emacs -nw -Q --eval '(hexl-find-file \"bar0\")'",
        "emacs-nox",
        "Emacs: `M-x hexl-find-file`",
        b"\x18\x03",
    ),
    Tool('"$W/stdio" show bar0', "libc6-dev", "C, glibc: `fseek`, `fread`", prepare=_C),
    _later('"$W/stdio" show bar0', "musl-tools", "C, musl: `fseek`, `fread`", prepare=_MUSL),
    Tool(
        "perl -e 'open F, q(<), q(bar0); seek F, 8, 0; read F, $x, 4'",
        "perl-base",
        "Perl: `seek`, `read`",
    ),
    Tool(
        "perl -e 'open F, q(<), q(bar0); sysseek F, 8, 0; sysread F, $x, 4'",
        "perl-base",
        "Perl: `sysseek`, `sysread`",
    ),
    _python('f = open("bar0", "rb"); f.seek(8); f.read(4)', 'open(name, "rb")'),
    _python(
        'f = open("bar0", "rb", buffering=0); f.seek(8); f.read(4)',
        'open(name, "rb", buffering=0)',
    ),
    _python('os.pread(os.open("bar0", os.O_RDONLY), 4, 8)', "os.pread(fd, 4, 8)"),
    _python(
        'mmap.mmap(os.open("bar0", os.O_RDONLY), 4096, prot=mmap.PROT_READ)[8:12]',
        "mmap.mmap(fd, 4096)",
    ),
    _python(
        'mmap.mmap(os.open("bar0", os.O_RDONLY), 4096, access=mmap.ACCESS_COPY)[8:12]',
        "mmap.mmap(fd, 4096, access=mmap.ACCESS_COPY)",
    ),
    _numpy('numpy.fromfile("bar0", "<u4", 1, offset=8)', 'fromfile(name, "<u4", 1, offset=8)'),
    _numpy('int(numpy.memmap("bar0", "<u4", "r", 8, 1)[0])', 'memmap(name, "<u4", "r", 8, 1)'),
    _numpy('int(numpy.memmap("bar0", "<u4", "c", 8, 1)[0])', 'memmap(name, "<u4", "c", 8, 1)'),
    _later(f"{_NODE} readSync", "nodejs", "Node: `fs.readSync(fd, buffer, 0, 4, 8)`"),
    _later(f"{_NODE} stream", "nodejs", "Node: `fs.createReadStream(name, {start: 8, end: 11})`"),
    _later(f"{_NODE} readFile", "nodejs", "Node: `fs.readFileSync(name)`"),
    _later('"$W/access" readat', "golang-go", "Go: `file.ReadAt`", prepare=_GO),
    _later('"$W/access" bufio', "golang-go", "Go: `file.Seek`, `bufio.Reader`", prepare=_GO),
    _later('"$W/access" readfile', "golang-go", "Go: `os.ReadFile`", prepare=_GO),
    _later(f"{_JAVA} readInt", "openjdk-17-jdk-headless", "Java: `RandomAccessFile.readInt`"),
    _later(f"{_JAVA} read", "openjdk-17-jdk-headless", "Java: `RandomAccessFile.read(byte[4])`"),
    _later(f"{_JAVA} channel", "openjdk-17-jdk-headless", "Java: `FileChannel.read(buffer, 8)`"),
    _later(f"{_JAVA} map", "openjdk-17-jdk-headless", "Java: `FileChannel.map`"),
)

CHANGE: Final = (
    Tool("echo '9: 55' | xxd -r - bar0", "xxd"),
    Tool("xxd -r $W/dump bar0", "xxd", prepare='xxd "$W/changed" "$W/dump"'),
    Tool(r"printf '\x55' | dd of=bar0 bs=1 seek=9", "coreutils"),
    Tool(r"printf '\x55' | dd of=bar0 bs=1 seek=9 conv=notrunc", "coreutils"),
    Tool(r"printf '\x55' > bar0@9", "bash"),
    Tool("cp $W/changed bar0", "coreutils"),
    Tool("cat $W/changed > bar0", "coreutils"),
    Tool(r"sed -i 's/\x04/\x55/' bar0", "sed"),
    Tool(r"perl -p -i -e 's/\x04/\x55/' bar0", "perl-base"),
    Tool(r"printf '\x55' | busybox dd of=bar0 bs=1 seek=9", "busybox"),
    Tool(r"printf '\x55' | busybox dd of=bar0 bs=1 seek=9 conv=notrunc", "busybox"),
    Tool("busybox cp $W/changed bar0", "busybox"),
    Tool("hexedit bar0", "hexedit", "hexedit", (b"\r", b"9\r", b"55", b"\x18", b"y")),
    _later("tweak bar0", "tweak", "tweak", ARROWS, b"55", b"\x18\x13", b"\x18\x03", b"n"),
    _later("bvi bar0", "bvi", "bvi", b"9l", b"r55", b":wq\r"),
    _later("hexer bar0", "hexer", "hexer", b"\x1b", b"9l", b"r55", b":wq\r"),
    _later(
        "vim -u NONE -b bar0",
        "vim",
        "`vim -b`, `:%!xxd`, `:%!xxd -r`",
        *(b":%!xxd\r", b"gg33|R55\x1b", b":%!xxd -r\r", b":wq\r"),
    ),
    _later(
        "emacs -nw -Q --eval '(hexl-find-file \"bar0\")'",
        "emacs-nox",
        "Emacs: `M-x hexl-find-file`",
        *(b"\x1bj9\r", b"\x1b\x1855\r", b"\x18\x13", b"y", b"\x18\x03", b"y"),
    ),
    Tool('"$W/stdio" change bar0', "libc6-dev", "C, glibc: `fseek`, `fputc`", prepare=_C),
    _later('"$W/stdio" change bar0', "musl-tools", "C, musl: `fseek`, `fputc`", prepare=_MUSL),
    Tool(
        "perl -e 'open F, q(+<), q(bar0); seek F, 9, 0; print F chr 0x55'",
        "perl-base",
        "Perl: `seek`, `print`",
    ),
    Tool(
        "perl -e 'open F, q(+<), q(bar0); sysseek F, 9, 0; syswrite F, chr 0x55'",
        "perl-base",
        "Perl: `sysseek`, `syswrite`",
    ),
    _python(
        'f = open("bar0", "r+b"); f.seek(9); f.write(b"\\x55"); f.close()', 'open(name, "r+b")'
    ),
    _python(
        'f = open("bar0", "r+b", buffering=0); f.seek(9); f.write(b"\\x55")',
        'open(name, "r+b", buffering=0)',
    ),
    _python('os.pwrite(os.open("bar0", os.O_WRONLY), b"\\x55", 9)', 'os.pwrite(fd, b"\\x55", 9)'),
    _python(
        'mmap.mmap(os.open("bar0", os.O_RDWR), 4096)[9] = 0x55', "mmap.mmap(fd, 4096)[9] = 0x55"
    ),
    _numpy(
        'f = open("bar0", "r+b"); f.seek(9); numpy.uint8([0x55]).tofile(f)',
        "file.seek(9); array.tofile(file)",
    ),
    _numpy('numpy.memmap("bar0", "u1", "r+")[9] = 0x55', 'memmap(name, "u1", "r+")[9] = 0x55'),
    _later(f"{_NODE} writeSync", "nodejs", "Node: `fs.writeSync(fd, buffer, 0, 1, 9)`"),
    _later(f"{_NODE} writeFile", "nodejs", "Node: `fs.writeFileSync(name, all)`"),
    _later('"$W/access" writeat', "golang-go", "Go: `file.WriteAt`", prepare=_GO),
    _later(
        '"$W/access" writefile', "golang-go", "Go: `os.WriteFile(name, all, 0600)`", prepare=_GO
    ),
    _later(f"{_JAVA} write", "openjdk-17-jdk-headless", "Java: `RandomAccessFile.write(0x55)`"),
)

# The tables, and what is in them.
TOOLS: Final = {"show": SHOW, "change": CHANGE}
