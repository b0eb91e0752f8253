"""A VM as managers register it, as the controller shows it, and what its hypervisor reports of it."""

from enum import StrEnum
from typing import Annotated, ClassVar

import msgspec

from retinue.core.limits import (
    LATEST,
    LEAST_MTU,
    MOST_ADDRESSES,
    MOST_MEMORY_MIB,
    MOST_MTU,
    MOST_NICS,
    MOST_TRUNK_NICS,
)
from retinue.core.model import Ending, Power, Restart
from retinue.protocol.disks import DiskBodies, DiskRecord
from retinue.protocol.nics import Addresses, NICBody, NICRecord, SubnetRecord

SHUTDOWN_SECONDS, LONGEST_SHUTDOWN = 60.0, 3600.0
"""How long a guest may take to shut down, where nobody says otherwise, and at the most."""


class VMState(StrEnum):
    REGISTERED = "registered"
    """Its network is not complete yet: the VM must not be started."""
    READY = "ready"
    """Every switch concerned has confirmed the VM's flow entries: it may be started."""
    RUNNING = "running"
    """Its hypervisor has reported that it runs."""
    OFF = "off"
    """It was switched off, from inside or as ordered, and is not started before somebody orders it."""
    CRASHED = "crashed"
    """It has ended by itself, or could not be started; `power_reason` says why."""


class VMReport(StrEnum):
    """What the hypervisors' side reports of a VM: the field `event` of POST /v1/vms/{id}/events."""

    STARTED = "started"
    STOPPED = "stopped"


MemoryMib = Annotated[int, msgspec.Meta(ge=0, le=MOST_MEMORY_MIB)]
"""0: as the configuration of the VM's server has it."""


class VMBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One VM of POST /v1/vms, with its NICs in `nics` or, if it has one, with that one's MAC and static
    addresses here; one without any asks for one by DHCP."""

    id: str
    server: str = ""
    mac: str = ""
    server_mac: str = ""
    """The server by its physical MAC, in the place of `server`."""
    addresses: Addresses = []
    nics: Annotated[list[NICBody], msgspec.Meta(max_length=MOST_NICS + MOST_TRUNK_NICS)] = []
    restart: Restart = Restart.NEVER
    """Whether it is started again when it has ended by itself."""
    memory_mib: MemoryMib = 0
    disks: DiskBodies = []
    """In the order in which the guest finds them."""

    ONE_OF: ClassVar = ("server", "server_mac")
    """Fields of which one at least is given, for the interface's description (openapi.py)."""

    def __post_init__(self) -> None:
        if not (self.server or self.server_mac):
            raise ValueError(f"VM {self.id}: say its server, by `server` or by `server_mac`")


class VMChangeBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """PATCH /v1/vms/{id}: what is to be different; what is left out, or null, stays as it is.

    `mac` is known, so that a sentence can say why it does not change.
    """

    memory_mib: MemoryMib | None = None
    addresses: Annotated[list[str], msgspec.Meta(max_length=MOST_ADDRESSES)] | None = None
    """All static addresses of the VM's first NIC."""
    restart: Restart | None = None
    mac: str | None = None
    server: str | None = None
    server_mac: str | None = None
    """The server by its physical MAC, in the place of `server`."""


ShutdownSeconds = Annotated[float, msgspec.Meta(ge=0, le=LONGEST_SHUTDOWN)]


class StopBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/vms/{id}/stop, which may be empty: the guest is asked, by its power button, to shut down, and
    is switched off if it has not within `seconds`."""

    hard: bool = False
    """Do not ask."""
    seconds: ShutdownSeconds = SHUTDOWN_SECONDS


class RebootBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/vms/{id}/reboot, which may be empty: the guest is asked to shut down, and is reset if it has
    not within `seconds`."""

    seconds: ShutdownSeconds = SHUTDOWN_SECONDS


class VMReportBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/vms/{id}/events. `server`: where it has started or stopped; `how` is for `stopped`."""

    event: VMReport
    server: str = ""
    at: Annotated[float, msgspec.Meta(ge=0, le=LATEST)] = 0.0
    reason: str = ""
    how: Ending = Ending.OFF


class VMRecord(msgspec.Struct, frozen=True):
    """A VM as GET /v1/vms and the events show it: the fields that an agent acts on."""

    id: str
    mac: str
    server: str
    state: VMState = VMState.REGISTERED
    reported: bool = False
    """Nobody registered the VM; a switch reported its port."""
    power: Power = Power.RUNNING
    """Whether it is to run."""
    restart: Restart = Restart.NEVER
    memory_mib: MemoryMib = 0
    mtu: Annotated[int, msgspec.Meta(ge=LEAST_MTU, le=MOST_MTU)] = 1500
    """Bytes of an IP packet that its network takes."""
    addresses: list[str] = []
    subnets: dict[str, SubnetRecord] = {}
    nics: list[NICRecord] = []
    """In the order in which the guest finds them; `mac`, `addresses` and `subnets` are the first
    one's."""
    disks: list[DiskRecord] = []

    @property
    def all_nics(self) -> list[NICRecord]:
        """Its NICs that are devices of the machine, with ports; one that is known by its MAC alone has a port
        of its own id. Those in a trunk go by the port of one of these."""
        nics = [nic for nic in self.nics if not nic.trunk]
        return nics or [NICRecord(self.id, self.mac, addresses=self.addresses, subnets=self.subnets)]


class VMsRecord(msgspec.Struct, frozen=True):
    """GET /v1/vms as an agent reads it: the VMs, and what of others may still be where it does not belong."""

    vms: list[VMRecord]
    removed: list[str] = []
    """Ids of VMs that were removed, and whose ports still stand."""
    fenced: list[str] = []
    """Servers that the operator has called dead: a VM of theirs that is registered elsewhere runs there."""
