"""Named entities as managers register them; GET /v1/entities shows them with what is measured, and where they
are."""

from typing import Annotated

import msgspec

from retinue.core.limits import LONGEST_ADDRESS, LONGEST_REASON, MOST_WORDS
from retinue.core.placement import EntityKind
from retinue.protocol.mobility import Name, Size

Word = Annotated[str, msgspec.Meta(max_length=LONGEST_ADDRESS)]
Words = Annotated[list[Word], msgspec.Meta(max_length=MOST_WORDS)]
Text = Annotated[str, msgspec.Meta(max_length=LONGEST_REASON)]


class ProfileBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What is said of an entity: see core.placement.Profile."""

    os: Text = ""
    version: Text = ""
    applications: Words = []
    cpus: Size = 0
    memory_mib: Size = 0
    disk_mib: Size = 0
    bandwidth_mbps: Size = 0
    clients: Words = []
    image: Name = ""
    apart: Name = ""
    pinned: bool = False
    served_by: Words = []


class EntityBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One entity of POST /v1/entities. The profile takes the place of the one before."""

    name: str
    kind: EntityKind
    profile: ProfileBody = msgspec.field(default_factory=ProfileBody)
