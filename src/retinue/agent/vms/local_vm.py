"""One VM as its server's agent holds it, and what the agent needs of the server for it."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from retinue.core.migration.presence import (
    Absent,
    HandedOver,
    Incoming,
    IncomingFailed,
    Outgoing,
    Plugged,
    Presence,
    Running,
)
from retinue.host.errors import HostError
from retinue.hypervisor import HeldFrames, Machine, MigrationResult
from retinue.hypervisor.paths import MachineFiles
from retinue.protocol.migrations import MigrationRecord
from retinue.protocol.vms import VMRecord


class LocalMachine(Machine, Protocol):
    """A machine of this server's hypervisor, which outlives the agent."""

    @property
    def files(self) -> MachineFiles: ...

    async def let_go(self) -> None:
        """Leave the machine as it is; the agent ends."""


class Switch(Protocol):
    """This server's, of which a migration must know what it forwards by, not what it was told."""

    async def until_bypassed(self, taps: Collection[str], copies_from: str, /) -> bool:
        """Return when it hands nothing out at these taps any more, but for copies that come from this MAC:
        True; False where nobody can tell. HostError when it goes on doing so."""

    async def given(self, taps: Collection[str], /) -> Mapping[str, str] | None:
        """What it has handed out at these taps so far, in whatever terms: another when there was more since.
        None where nobody can tell."""

    async def until_taken(self, taps: Collection[str], /) -> None:
        """Return when it has taken all that has come in at these taps. HostError: nobody can tell."""

    async def until_followed(self) -> None:
        """Return when it forwards by all that it was told, or nobody can tell. HostError when it does not."""


class UnknownSwitch(Switch):
    """One that cannot be asked."""

    async def until_bypassed(self, taps: Collection[str], copies_from: str, /) -> bool:
        return False

    async def given(self, taps: Collection[str], /) -> Mapping[str, str] | None:
        return None

    async def until_taken(self, taps: Collection[str], /) -> None:
        return

    async def until_followed(self) -> None:
        return


class Ports(Protocol):
    """Makes and removes VM ports on this server. Failures are HostError; doing it twice is no error."""

    async def add(self, nic: str, mac: str, vm: str = "", /) -> None:
        """Make the port of the NIC with this id, whose VM is `vm` ("": of the same id)."""

    async def remove(self, nic: str, /) -> None: ...

    async def missing(self, nics: Mapping[str, str], /) -> list[str]:
        """Those of these NICs, given with their MACs, whose port is not as `add` made it: looked at."""

    async def rx_frames(self, nic: str, /) -> int:
        """How many frames have come to the NIC's port since it was made; 0 also where nobody knows."""


@dataclass(eq=False)
class LocalVM:
    """One VM that has, or is about to have, a port on this server.

    `presence` says where the VM stands, and is changed by VMLifecycle alone; the rest are the things that go
    with it. A machine belongs to the VM's presence or, where that is Absent or Plugged, has just been made.
    """

    record: VMRecord
    presence: Presence = field(default_factory=Absent)
    machine: LocalMachine | None = None
    held: HeldFrames | None = None
    """What waits for the VM at its ports here, until it runs here or they go."""
    listening: object = None
    """Identifies the machine whose end is news: one that was replaced, or is being ended by us, is not."""
    migration: MigrationRecord | None = None
    """The last migration that this server took part in."""
    lacking: LocalMachine | None = None
    """The machine of it that runs, and some of whose memory came through the agent before this one."""
    rest_given_up: bool = False
    """What its target lacks of its memory does not go over, in the last migration: that was tried."""
    by_hand: bool = False
    """The controller has no part in that migration, and is told nothing of it."""
    transfer: asyncio.Task[None] | None = None
    """Brings the VM's memory in or out, beside the steps, so that it can be called off."""
    failure: str = ""
    """Why a migration by hand has failed."""
    outcome: MigrationResult | HostError | None = None
    """What came of the last outgoing transfer."""
    may_copy: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when an outgoing transfer that has opened its target may copy."""
    prepared: dict[str, int] = field(default_factory=dict)
    """How long its last incoming migration took to prepare: the fields of its report."""
    queued_frames: int = 0
    """Frames that had come for the VM when it was resumed after a migration that failed."""
    port_frames: int = 0
    """Frames that had come to its port here when its incoming migration was rolled back."""
    powering: asyncio.Task[None] | None = None
    """Switches the VM off, or starts its guest anew, beside the steps."""
    machine_over: asyncio.Event = field(default_factory=asyncio.Event)
    started_anew: asyncio.Event = field(default_factory=asyncio.Event)
    """Of the machine, since `powering` began: it has ended; its guest has started anew."""
    retries: dict[str, asyncio.TimerHandle] = field(default_factory=dict)
    """Steps that have failed, and are to be tried once more, by name."""
    steps: "asyncio.Queue[Callable[[], Awaitable[None]]]" = field(default_factory=asyncio.Queue)
    worker: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def runs(self) -> bool:
        """The VM is this server's, and runs, as far as the agent knows."""
        return isinstance(self.presence, Running | Outgoing)

    @property
    def handed_over(self) -> bool:
        return isinstance(self.presence, HandedOver)

    @property
    def has_port(self) -> bool:
        """The VM has, or is to have, its port here, which may be looked for."""
        match self.presence:
            case Plugged() | Running() | Outgoing() | Incoming():
                return True
            case IncomingFailed(plugged=plugged):
                return plugged
        return False

    @property
    def incoming(self) -> bool:
        """The VM was to come here and has not, or not yet."""
        return isinstance(self.presence, Incoming | IncomingFailed)

    @property
    def since(self) -> float:
        """When the VM was started, or resumed, here; 0 if it does not run here."""
        return self.presence.since if isinstance(self.presence, Running | Outgoing) else 0.0

    @property
    def migration_id(self) -> str:
        return "" if self.migration is None else self.migration.id

    def let_frames_go(self) -> None:
        """What waits here for the VM is its machine's alone, or nobody's."""
        if self.held is not None:
            self.held.let_go()
            self.held = None

    @property
    def lacks_memory(self) -> bool:
        """That machine does; one that was started since does not."""
        return self.machine is not None and self.machine is self.lacking

    @property
    def transferring(self) -> bool:
        return self.transfer is not None and not self.transfer.done()

    def retry_nothing(self) -> None:
        """What has failed is not tried any more."""
        for waiting in self.retries.values():
            waiting.cancel()
        self.retries.clear()


async def ended(task: asyncio.Task[None] | None) -> None:
    """Cancel a task and wait until it has put things in order."""
    if task is not None and not task.done():
        task.cancel()
        await asyncio.wait({task})
