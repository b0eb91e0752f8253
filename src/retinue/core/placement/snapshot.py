"""What a decision goes by: the VM's needs, each server as it was then, and the operator's policy.

Memory and disk are in MiB, processors in whole ones, bandwidth in Mbit/s, shares in hundredths of a per cent.
"""

from dataclasses import dataclass, field
from enum import StrEnum

WHOLE = 10_000
"""A whole, in hundredths of a per cent."""


class Reason(StrEnum):
    """Why a VM is to migrate: a closed list, each with its sentence."""

    OPERATOR = "operator"
    COMPUTING = "computing"
    MEMORY = "memory"
    BANDWIDTH = "bandwidth"
    CLIENTS = "clients"
    UTILISATION = "utilisation"

    @property
    def sentence(self) -> str:
        return _SENTENCES[self]


_SENTENCES = {
    Reason.OPERATOR: "the manager asked for it",
    Reason.COMPUTING: "it needs more computing power than its server has left",
    Reason.MEMORY: "its server is short of memory",
    Reason.BANDWIDTH: "it needs more bandwidth than its server has left",
    Reason.CLIENTS: "its clients are nearer to another server",
    Reason.UTILISATION: "the domain spreads its VMs",
}


class Presence(StrEnum):
    """What was heard of a server's agent when the match was asked for."""

    ANSWERED = "answered"
    SILENT = "silent"
    """It listens, and has not answered in time."""
    AWAY = "away"
    """Its agent has listened and does so no longer, or its switch is not connected."""
    NO_AGENT = "no agent"
    """None was ever heard of: somebody else speaks for its hypervisor."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What led to a request: what was measured, and the threshold it had passed for a time."""

    reason: Reason = Reason.OPERATOR
    measured: int = 0
    """Hundredths of a per cent, of CLIENTS hundredths of switches, as `threshold`; both 0 where nothing was
    measured."""
    threshold: int = 0
    seconds: int = 0
    """For how long it had been passed."""


@dataclass(frozen=True, slots=True)
class Need:
    """What the VM needs of a server; 0 where nothing is asked for."""

    vm: str
    memory_mib: int = 0
    """0: nobody knows, and then no server may take it."""
    cpus: int = 0
    disk_mib: int = 0
    bandwidth_mbps: int = 0
    apart: str = ""
    """VMs with the same word here are kept on different servers."""
    image: str = ""
    pinned: bool = False
    """It is moved only to a server that the manager names."""
    moved_ago: int | None = None
    """Seconds since it last migrated, or None."""


@dataclass(frozen=True, slots=True)
class ServerSizes:
    """What a server is and has, whichever VM looks for one. 0 where a size is not known, None where a
    measurement is not."""

    server: str
    presence: Presence = Presence.ANSWERED
    drained: bool = False
    fenced: bool = False
    attached: bool = True
    """The underlay knows the way to it."""
    cpus: int = 0
    memory_mib: int = 0
    free_mib: int | None = None
    """What its kernel says could be used."""
    disk_free_mib: int | None = None
    bandwidth_mbps: int = 0
    bandwidth_used_mbps: int = 0
    cpu_used: int | None = None
    """Share of its processors' time, over the last minute."""
    cpu_pressure: int = 0
    memory_pressure: int = 0
    """Share of the last minute in which something waited for a processor, or for memory (PSI, some avg60)."""
    images: tuple[str, ...] = ()
    """Names of the images it holds, sorted."""


@dataclass(frozen=True, slots=True)
class ServerState(ServerSizes):
    """One server that runs VMs, as one VM finds it that looks for a server."""

    promised_cpus: int = 0
    promised_mib: int = 0
    """To VMs that are there or on their way there or from there, and not to the VM in question, unless this
    is its source."""
    unknown_vms: int = 0
    """How many of those VMs' memory nobody knows."""
    distance: int | None = None
    """Hundredths of switches on the way to the VM's clients, on average; None where it has none."""
    groups: tuple[str, ...] = ()
    """The `apart` words of the VMs there, sorted."""


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each measure counts."""

    memory: int = 1
    cpu: int = 1
    bandwidth: int = 1
    distance: int = 1
    image: int = 1


@dataclass(frozen=True, slots=True)
class Policy:
    """The operator's rules."""

    memory_percent: int = 100
    """Of a server's memory that may be promised to VMs; over 100 only where the operator says so."""
    cpu_percent: int = 100
    weights: Weights = field(default_factory=Weights)
    margin: int = 500
    """By how much (hundredths of a per cent) a server must be better than the source, or a move of a plan
    must relieve the fuller server, where the manager has not asked for the move itself."""
    rest_seconds: int = 600
    """How long a VM that has migrated is left where it is, but by the manager."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole input of one decision."""

    need: Need
    source: str
    servers: tuple[ServerState, ...]
    """Sorted by name, the source among them."""
    wish: Wish = field(default_factory=Wish)
    policy: Policy = field(default_factory=Policy)
    named: str = ""
    """The only server to be considered, or ""."""
    waited_ms: int = 0
    """For answers."""


def share(part: int, whole: int) -> int:
    """A part of a whole in hundredths of a per cent, at least 0 and at most WHOLE; 0 of nothing."""
    return 0 if whole <= 0 else max(0, min(WHOLE, part * WHOLE // whole))


def percent(hundredths: int) -> str:
    """ "71.25 %"."""
    sign = "-" if hundredths < 0 else ""
    return f"{sign}{abs(hundredths) // 100}.{abs(hundredths) % 100:02} %"
