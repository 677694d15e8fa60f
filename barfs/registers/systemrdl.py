"""Maps from SystemRDL 2.0. Only this module imports systemrdl-compiler, which no daemon does.

Properties of barfs tell what SystemRDL has no words for. docs/registers.md lists them.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from systemrdl.compiler import RDLCompiler
from systemrdl.component import Addrmap, Field, Reg, Regfile
from systemrdl.messages import MessagePrinter, RDLCompileError, Severity
from systemrdl.node import AddressableNode, AddrmapNode, FieldNode, MemNode, Node, RegNode
from systemrdl.preprocessor.perl_preprocessor import (
    PerlPreprocessor,
    PPPMacroSegment,
    PPPPerlSegment,
)
from systemrdl.source_ref import DetailedFileSourceRef, FileSourceRef, SourceRefBase
from systemrdl.udp import UDPDefinition

from barfs.registers.checks import TAKEN, problem
from barfs.registers.compiled import (
    CompileError,
    Item,
    Target,
    assemble,
    numbered,
    without_defaults,
)

# Where a part of a map is, and what the map is for.
_BLOCKS: Final = {Addrmap, Regfile}
_OWN: Final = {
    "barfs_for": ({Addrmap}, str),
    "barfs_revision": ({Addrmap}, str),
    "barfs_in": (_BLOCKS, str),
    "barfs_offset": (_BLOCKS, int),
    "barfs_directory": (_BLOCKS, str),
    "barfs_when": (_BLOCKS, str),
    "barfs_base": (_BLOCKS, str),
    "barfs_limit": (_BLOCKS | {Reg}, str),
    "barfs_fit": (_BLOCKS | {Reg}, bool),
    "barfs_reserved_zero": ({Reg}, bool),
    # `singlepulse` works for single bits only.
    "barfs_self_clearing": ({Field}, bool),
}


def _property(name: str) -> type[UDPDefinition]:
    components, kind = _OWN[name]
    members = {"name": name, "valid_components": components, "valid_type": kind}
    return type(name, (UDPDefinition,), {**members, "default_assignment": kind is bool or None})


class _Messages(MessagePrinter):
    """Keeps the compiler's messages."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def print_message(self, severity: Severity, text: str, src_ref: SourceRefBase | None) -> None:
        """Keep a message. The compiler calls this."""
        # The last message says that it gives up. The ones before say what is wrong.
        if severity == Severity.ERROR or (severity > Severity.ERROR and not self.lines):
            self.lines.append(_at(src_ref, text))


def _at(source: SourceRefBase | None, text: str) -> str:
    if isinstance(source, DetailedFileSourceRef):
        return f"{source.path}:{source.line}: {text}"
    return f"{source.path}: {text}" if isinstance(source, FileSourceRef) else text


class _PerlRefused(Exception):
    """A file has Perl in it."""


_RUN_PERL: Final = PerlPreprocessor.run_perl_miniscript


def _refuse_perl(_: PerlPreprocessor, segments: Sequence[Any]) -> list[dict[str, Any]]:
    """Refuse Perl, in the place of the function that runs the Perl of a file and its includes."""
    for segment in segments:
        if isinstance(segment, PPPPerlSegment | PPPMacroSegment):
            line = segment.file_pp.text.count("\n", 0, segment.start) + 1
            raise _PerlRefused(f"{segment.file_pp.path}:{line}: <% %> runs Perl; --perl allows it")
    return []


def compile_files(
    files: Sequence[Path],
    target: Target,
    *,
    include: Sequence[Path] = (),
    top: str | None = None,
    perl: bool = False,
) -> Item:
    """The map of the last address map in the files, or of the one named `top`.

    With `perl` it runs the Perl in the files. Raises CompileError.
    """
    run = _RUN_PERL if perl else _refuse_perl
    PerlPreprocessor.run_perl_miniscript = run  # type: ignore[method-assign, assignment]
    messages = _Messages()
    try:
        compiler = RDLCompiler(message_printer=messages)
        for name in _OWN:
            compiler.register_udp(_property(name), soft=False)
        read = {}
        for file in files:
            info = compiler.compile_file(str(file), list(map(str, include)))
            read.update(dict.fromkeys([file, *map(Path, sorted(info.included_files))]))
        node = compiler.elaborate(top).top
    except _PerlRefused as error:
        raise CompileError(str(error)) from None
    except (RDLCompileError, OSError, ValueError) as error:
        raise CompileError("\n".join(messages.lines) or str(error)) from error
    reader = _Reader(target)
    parts = list(reader.parts(node))
    if reader.errors:
        raise CompileError("\n".join(reader.errors))
    return assemble(
        target,
        (node.get_property("barfs_for") or "").split(),
        parts,
        read,
        revision=[int(r, 16) for r in (node.get_property("barfs_revision") or "").split()],
        name=node.get_property("name") if "name" in node.list_properties() else None,
        description=node.get_property("desc"),
    )


def _description(node: Node) -> str:
    """The description of a component. A name is one line."""
    named = node.get_property("name") if "name" in node.list_properties() else ""
    return str(node.get_property("desc") or named or "").strip()


class _Reader:
    """Makes parts of a map from elaborated components. `errors` name files and lines."""

    def __init__(self, target: Target) -> None:
        self.errors: list[str] = []
        self._target = target

    def _error(self, node: Node, text: str) -> None:
        self.errors.append(_at(node.inst_src_ref or node.def_src_ref, text))

    def parts(self, top: AddrmapNode) -> Iterator[Item]:
        """The top itself, and components in it that are in another place."""
        rest = []
        for child in self._children(top):
            if child.get_property("barfs_in", default=None) is None:
                rest.append(child)
            else:
                yield from self._part(child, self._children(child))
        if rest:
            yield from self._part(top, rest)

    def _part(self, node: AddressableNode, children: Sequence[AddressableNode]) -> Iterator[Item]:
        is_top = isinstance(node.parent, Node) and node.parent.parent is None
        place = (self._target.place if is_top else None) or node.get_property("barfs_in")
        if place is None:
            self._error(node, f"nothing says where the registers of {node.inst_name} are: --bar 0")
            return
        offset = self._target.offset if is_top else 0
        directory = node.get_property("barfs_directory")
        if directory is None:
            directory = "" if is_top else node.inst_name
        yield without_defaults(
            {
                "in": place,
                "offset": offset or node.get_property("barfs_offset"),
                "directory": directory,
                "description": "" if is_top else _description(node),
                "when": self._when(node),
                "registers": [self._item(child, top=not directory) for child in children],
            },
            offset=0,
        )

    def _when(self, node: AddressableNode) -> Item | None:
        """`offset/width & mask = value...`: `2/16 & 0x80 = 0x80`."""
        text = node.get_property("barfs_when")
        if text is None:
            return None
        try:
            where, _, rest = text.partition("&")
            offset, width = where.split("/")
            mask, values = rest.split("=")
            return {
                "offset": numbered(offset),
                "width": numbered(width),
                "mask": numbered(mask),
                "values": list(map(numbered, values.split())),
            }
        except ValueError:
            self._error(node, f"barfs_when is {text!a}, not of the form '2/16 & 0x80 = 0x80'")
            return None

    def _children(self, node: AddressableNode) -> list[AddressableNode]:
        """The components of one, without memories, which have no registers."""
        if isinstance(node, AddrmapNode) and (
            node.get_property("bigendian") or node.get_property("msb0")
        ):
            self._error(
                node, "big-endian registers, or bits counted from the top, are no PCI BAR's"
            )
        return [
            child
            for child in node.children()
            if isinstance(child, AddressableNode) and not isinstance(child, MemNode)
        ]

    def _item(self, node: AddressableNode, *, top: bool = False) -> Item:
        before = len(self.errors)
        if top and node.inst_name in TAKEN:
            self._error(node, f"{node.inst_name} is the name of something else there")
        item: Item = {"name": node.inst_name, "offset": node.raw_address_offset}
        if node.is_array:
            dimensions = node.array_dimensions or []
            item["count"] = dimensions[0] if len(dimensions) == 1 else dimensions
            item["stride"] = node.array_stride
        item["limit"] = node.get_property("barfs_limit")
        item["fit"] = node.get_property("barfs_fit") or None
        item["description"] = _description(node)
        if isinstance(node, RegNode):
            item |= self._register(node)
            item = without_defaults(item, access_width=item["width"])
        else:
            item["base"] = node.get_property("barfs_base")
            if item["base"] is not None:
                # Its address in the source only says where there is room for it.
                item["offset"] = node.get_property("barfs_offset") or 0
            item["registers"] = [self._item(child) for child in self._children(node)]
            item = without_defaults(item)
        found = None if len(self.errors) > before else problem(item)
        if found is not None:
            self._error(node, found)
        return item

    def _register(self, node: RegNode) -> Item:
        return {
            "width": node.get_property("regwidth"),
            "access_width": node.get_property("accesswidth"),
            "reserved": "zero" if node.get_property("barfs_reserved_zero") else None,
            "fields": [self._field(field) for field in node.fields()],
        }

    @staticmethod
    def _field(node: FieldNode) -> Item:
        reset, encode = node.get_property("reset"), node.get_property("encode")
        on_read, on_write = node.get_property("onread"), node.get_property("onwrite")
        enum = None
        if encode is not None:
            enum = {
                member.name: [member.value, member.rdl_desc or member.rdl_name]
                if member.rdl_desc or member.rdl_name
                else member.value
                for member in encode
            }
        return without_defaults(
            {
                "name": node.inst_name,
                "lsb": node.low,
                "msb": node.high,
                "access": node.get_property("sw").name,
                "on_read": on_read and on_read.name,
                "on_write": on_write and on_write.name,
                "self_clearing": (
                    node.get_property("singlepulse") or node.get_property("barfs_self_clearing")
                )
                or None,
                "reset": reset if isinstance(reset, int) else None,
                "enum": enum,
                "description": _description(node),
            },
            msb=node.low,
            access="rw",
        )
