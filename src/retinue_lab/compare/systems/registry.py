"""All systems that can be compared, by their names.

`MECHANISMS` are the five of the documents that retinue is made of, each alone where the rest is not ours: the
lease that is renewed at arrival, the message after the fact, the server's address that is changed ahead, the
gateway's rewrite (on and off), and last all of them in one migration.
"""

from collections.abc import Sequence

from retinue_lab.compare.systems.base import LearningSwitch, StaticPortSecurity, System
from retinue_lab.compare.systems.neighbour import RetinueNeighbour, RewriteOff
from retinue_lab.compare.systems.ovn import OvnMultichassisRarp, OvnNaive
from retinue_lab.compare.systems.own import LibvirtVirsh, Retinue, RetinueLibvirt
from retinue_lab.compare.systems.renewal import RenewalAlone
from retinue_lab.compare.systems.sites import RetinueDomains, StretchedLayer2
from retinue_lab.compare.systems.told import ToldAfterwards, ToldAhead
from retinue_lab.errors import LabError

USUAL: Sequence[type[System]] = (
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
"""What a comparison is of where nothing else is asked for."""
MECHANISMS: Sequence[type[System]] = (
    RenewalAlone,
    ToldAfterwards,
    ToldAhead,
    RetinueNeighbour,
    RewriteOff,
    Retinue,
)
SITES: Sequence[type[System]] = (RetinueDomains, StretchedLayer2)
"""Between two sites: by another network, so that they are compared with each other alone."""
SYSTEMS: Sequence[type[System]] = (
    *USUAL,
    *(system for system in MECHANISMS if system not in USUAL),
    *SITES,
)


def by_name(name: str) -> type[System]:
    """Raises LabError."""
    for system in SYSTEMS:
        if system.name == name:
            return system
    raise LabError(f"there is no system {name!r}; there are {', '.join(s.name for s in SYSTEMS)}")
