"""Text about maps: which map a device has, and which registers are not listed."""

from collections.abc import Iterator

from barfs.registers.files import BUILT_IN, Found
from barfs.registers.maps import Block, registers
from barfs.registers.plans import effects_of_reading
from barfs.registers.texts import first_line, reason_of


def map_text(found: Found | None) -> str:
    """The map of a device, in one line. `none` if it has none."""
    if found is None:
        return "none"
    file = found.file.name if found.file.parent == BUILT_IN else str(found.file)
    if found.map is None:
        return f"{found.file} is refused: {found.refusal}"
    return " ".join(filter(None, [file, found.map.name and f"({found.map.name})"]))


def readme(found: Found | None, top: Block) -> str:
    """The text of `regs/README`."""
    return "".join(f"{line}\n" for line in _readme(found, top))


def _readme(found: Found | None, top: Block) -> Iterator[str]:
    yield f"map: {map_text(found)}"
    if found is not None and found.map is not None:
        if found.map.description:
            yield f"describes: {first_line(found.map.description)}"
        for source in found.map.source:
            yield f"made of: {source['file']}, SHA-256 {source['sha256']}"
    unlisted = [(r.path, effects) for r in registers(top) if (effects := effects_of_reading(r))]
    if unlisted:
        yield ""
        yield "These registers open by their names. They are not listed, as reading has an effect:"
    for path, effects in unlisted:
        yield f"  {path}: {reason_of(effects)}"
    yield ""
    yield "Capabilities of config space open by their names, too: config/CAP_PM/CTRL. They are not"
    yield "listed, as config space would have to be read for that. barfs regs list shows them."
