"""Named entities of the domain and what is said of each; and a decision as it is kept.

There is one table of entities: VMs, servers, services, images and roaming clients, each with a name that is
unique over all kinds and never changes, a profile, and a locator, which changes. What the manager says is in
the profile; what is measured, and where the entity is, is not kept: agents and switches tell it.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from retinue.core.model.addresses import ModelError
from retinue.core.placement.decision import Decision
from retinue.core.placement.snapshot import Snapshot


class EntityKind(StrEnum):
    VM = "vm"
    SERVER = "server"
    SERVICE = "service"
    """What clients know a VM by: "the shop"."""
    IMAGE = "image"
    CLIENT = "client"
    """A host that roams: it is where the attachment point is that reports its port."""
    DISK = "disk"
    """Of a VM, and called after it."""
    SEGMENT = "segment"
    """Of an image: some of its chunks, one after the other; it is called after the image."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What the manager says of an entity: 0 and "" where nothing is said. Fields that mean nothing for its
    kind are refused (FIELDS)."""

    os: str = ""
    version: str = ""
    applications: tuple[str, ...] = ()
    cpus: int = 0
    memory_mib: int = 0
    disk_mib: int = 0
    bandwidth_mbps: int = 0
    clients: tuple[str, ...] = ()
    """IP addresses of those whom the VM serves."""
    image: str = ""
    """Name of the image that the VM is made of."""
    apart: str = ""
    """VMs with the same word are kept on different servers."""
    pinned: bool = False
    """The VM is moved only to a server that the manager names."""
    served_by: tuple[str, ...] = ()
    """Names of the VMs that serve a service, the preferred one first."""


FIELDS = {
    EntityKind.VM: frozenset(
        [
            "os",
            "version",
            "applications",
            "cpus",
            "memory_mib",
            "disk_mib",
            "bandwidth_mbps",
            "clients",
            "image",
            "apart",
            "pinned",
        ]
    ),
    EntityKind.SERVER: frozenset(["os", "version", "cpus", "memory_mib", "disk_mib", "bandwidth_mbps"]),
    EntityKind.SERVICE: frozenset(["version", "applications", "served_by"]),
    EntityKind.IMAGE: frozenset(["os", "version", "applications", "disk_mib"]),
    EntityKind.CLIENT: frozenset(["os", "version", "applications", "bandwidth_mbps"]),
    EntityKind.DISK: frozenset(),
    EntityKind.SEGMENT: frozenset(),
}
"""By kind: the fields of a profile that may be given."""


@dataclass(frozen=True, slots=True)
class Entity:
    """What the manager has said of a named thing. A VM or server of which nothing was said has none."""

    name: str
    kind: EntityKind
    profile: Profile = field(default_factory=Profile)

    def __post_init__(self) -> None:
        said = {name for name in Profile.__dataclass_fields__ if getattr(self.profile, name)}
        if strange := sorted(said - FIELDS[self.kind]):
            raise ModelError(f"{self.name}: the profile of a {self.kind} has no {strange[0]}")
        if self.kind is EntityKind.SERVICE and not self.profile.served_by:
            raise ModelError(f"service {self.name}: say which VMs serve it (served_by)")


@dataclass(frozen=True, slots=True)
class Placement:
    """How the target of a migration was chosen: enough to choose it again."""

    migration: str
    match: str
    by: str
    """Who asked: "manager", or the server whose agent did."""
    snapshot: Snapshot
    decision: Decision
