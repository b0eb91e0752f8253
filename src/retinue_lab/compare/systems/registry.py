"""All systems that can be compared, by their names."""

from collections.abc import Sequence

from retinue_lab.compare.systems.base import LearningSwitch, StaticPortSecurity, System
from retinue_lab.compare.systems.neighbour import RetinueNeighbour, RewriteOff
from retinue_lab.compare.systems.ovn import OvnMultichassisRarp, OvnNaive
from retinue_lab.compare.systems.own import LibvirtVirsh, Retinue, RetinueLibvirt
from retinue_lab.errors import LabError

SYSTEMS: Sequence[type[System]] = (
    Retinue,
    RetinueLibvirt,
    LibvirtVirsh,
    OvnMultichassisRarp,
    OvnNaive,
    LearningSwitch,
    StaticPortSecurity,
    RetinueNeighbour,
    RewriteOff,
)


def by_name(name: str) -> type[System]:
    """Raises LabError."""
    for system in SYSTEMS:
        if system.name == name:
            return system
    raise LabError(f"there is no system {name!r}; there are {', '.join(s.name for s in SYSTEMS)}")
