"""Which ways to BARs a mount takes: what --bars-via names, and what is tried after it."""

from collections.abc import Sequence

from barfs.devmem import PhysicalMemory
from barfs.machine.functions import Allowed
from barfs.names import BarsVia
from barfs.spans.recorded import Recorded
from barfs.spans.uio import Uio
from barfs.spans.vfio import Vfio, VfioDevices
from barfs.spans.ways import MappedResource, Ports, Way, through_devmem


def ways_to_bars(
    pci: Allowed, memory: PhysicalMemory, bars_via: BarsVia, vfio: VfioDevices | None
) -> Sequence[Way]:
    """The ways to BARs, in the order in which they are tried. `vfio` is what is held through it."""
    if pci.source.recording is not None:
        return (Recorded(pci.source.recording.functions),)
    if vfio is not None:
        return (Vfio(vfio),)
    if bars_via == "devmem":
        return (Ports(pci), *through_devmem(memory))
    return (Ports(pci), MappedResource(pci, memory), Uio(pci))
