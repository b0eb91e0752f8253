"""What an agent knows of one VM on its server."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Protocol

from retinue.agent.records import VMRecord
from retinue.hypervisor import Machine
from retinue.hypervisor.argv import Files


class KeptMachine(Machine, Protocol):
    @property
    def files(self) -> Files: ...

    async def let_go(self) -> None:
        """Leave it as it is."""


Bypassed = Callable[[Collection[str], str], Awaitable[bool]]
"""Returns when the switch hands nothing out at these taps any more, but for copies that come from this MAC:
True; False where nobody can tell. HypervisorError when it goes on doing so."""


async def unknown(taps: Collection[str], copies_from: str) -> bool:
    """Bypassed, for a switch that cannot be asked."""
    return False


class Ports(Protocol):
    """Makes and removes VM ports on this server. Failures are HypervisorError; doing it twice is no error."""

    async def add(self, vm: str, mac: str) -> None: ...

    async def remove(self, vm: str) -> None: ...

    async def come(self, vm: str) -> int:
        """How many frames have come to the VM's port since it was made; 0 also where nobody knows."""


@dataclass
class Kept:
    """One VM that has, or is about to have, a port on this server."""

    record: VMRecord
    plugged: bool = False
    machine: KeptMachine | None = None
    runs: bool = False
    """It runs here, or did until it was stopped to move; not so while it is on its way in."""
    coming: bool = False
    """It is on its way in, or has failed to arrive: it is not to be started beside."""
    life: object = None
    """Stands for the present machine: what an earlier one has to tell is no news."""
    ending: bool = False
    """The machine is being ended by us: its end is no news."""
    resumed_at: float = 0.0
    """When it ran on after its last move."""
    waited: int = 0
    """Frames that had come for it when it ran on after a move that failed."""
    handed_over: bool = False
    """It has been given away, and only the target's word gives it back."""
    copying: asyncio.Task[None] | None = None
    may_copy: asyncio.Event = field(default_factory=asyncio.Event)
    """Where a move is begun before it is copied: the controller has said that it may be."""
    move: str = ""
    """The last move it had to do with here."""
    todo: "asyncio.Queue[Callable[[], Awaitable[None]]]" = field(default_factory=asyncio.Queue)
    worker: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        return self.record.id

    def arrived(self, at: float) -> None:
        self.runs, self.coming, self.ending, self.resumed_at = True, False, False, at
