"""The hypervisor interface: what any hypervisor must be able to do for us, and what it tells.

A `Machine` is one virtual machine on one server. During a migration there are two of the same VM: the source,
which runs, and the target, opened to take its memory in. Times are seconds since the epoch, by the clock of
the hypervisor's own host.
"""

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Generic, Protocol, TypeVar, runtime_checkable

from retinue.core.migration.copying import PLAIN, CopyOptions
from retinue.core.migration.precopy import WANTED_DOWNTIME
from retinue.core.model import Ending
from retinue.hypervisor.memory_channel import Again, Channel


@dataclass(frozen=True, slots=True)
class NICSpec:
    """One network interface of a VM."""

    id: str
    mac: str
    port: str
    """Name of the tap it plugs into; the tap must exist."""
    slot: int
    """Its place in the machine, from 1: a target is built with each NIC where the source has it."""
    mtu: int = field(default=1500, compare=False)
    """Bytes of an IP packet that its network takes: the guest is told, and its driver sends no larger one.

    A NIC that is there keeps the one it has: it is no other NIC when its network has another.
    """


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """One disk of a VM, as it is on this server."""

    number: int
    """Its place in the machine, from 1."""
    path: Path
    """The file that the VM writes."""
    private: bool = True
    """The file is this server's, made when it is needed, and copied when the VM moves: an overlay in qcow2.
    Else it is on shared storage, and whoever runs the VM writes it."""
    format: str = "qcow2"
    base: Path | None = None
    """What the overlay is made over: nobody writes it."""
    base_format: str = "raw"
    size: int = 0
    """Bytes of an overlay, as the guest sees it; 0: as large as its base."""

    @property
    def node(self) -> str:
        """Its name at the hypervisor."""
        return f"disk{self.number}"


@dataclass(frozen=True, slots=True)
class VMSpec:
    """A VM to run on a server, with its first network interface."""

    id: str
    mac: str
    port: str
    """Name of the tap it plugs into; the tap must exist. The VM's files here are called by it, too."""
    kernel: Path
    initrd: Path
    append: str = ""
    """The kernel's command line."""
    memory_mib: int = 128
    restart_on_crash: bool = False
    """For a hypervisor that notices the crash of a guest by itself."""
    mtu: int = 1500
    """The first network interface's."""
    more_nics: tuple[NICSpec, ...] = ()
    """Its network interfaces but the first."""
    disks: tuple[DiskSpec, ...] = ()

    @property
    def private_disks(self) -> tuple[DiskSpec, ...]:
        """Those that are copied when it moves."""
        return tuple(disk for disk in self.disks if disk.private)

    @property
    def nics(self) -> tuple[NICSpec, ...]:
        return (NICSpec(self.id, self.mac, self.port, 1, self.mtu), *self.more_nics)

    @property
    def ports(self) -> tuple[str, ...]:
        """The taps of all its network interfaces."""
        return tuple(nic.port for nic in self.nics)


class RunState(StrEnum):
    """What a machine does at present."""

    RUNNING = "running"
    PAUSED = "paused"
    INCOMING = "incoming"
    """Opened as a migration's target; its memory has not arrived."""
    MOVED = "moved"
    """Stopped at the source because the VM now runs elsewhere."""
    OFF = "off"
    """Switched off, from inside or as it was asked to, and its process is about to be ended."""
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Started:
    """The VM's processor runs for the first time."""

    vm: str
    at: float


@dataclass(frozen=True, slots=True)
class Copying:
    """A pass over the VM's memory has begun at the source, where the VM runs."""

    vm: str
    at: float
    copy_pass: int
    """The first is 1; 0: its disks are being copied, before the first."""
    remaining: int
    """Bytes of memory to go over in it; in pass 0, of its disks that have yet to be copied."""
    written_a_second: int
    """Bytes of memory that the VM wrote a second during the pass before; 0 when that is not known."""
    postcopy: bool = False
    """The VM runs at the target already, and the source has so much of its memory yet."""


@dataclass(frozen=True, slots=True)
class StartedAnew:
    """The guest has rebooted, or was reset: the VM runs on, at the same port."""

    vm: str
    at: float


@dataclass(frozen=True, slots=True)
class Stopped:
    """The VM is paused at the source: from here on it sends nothing."""

    vm: str
    at: float


@dataclass(frozen=True, slots=True)
class RunsElsewhere:
    """The target has said that the VM runs there, and the source has some of its memory yet: post-copy."""

    vm: str
    at: float


@dataclass(frozen=True, slots=True)
class Resumed:
    """The VM runs at the target."""

    vm: str
    at: float


@dataclass(frozen=True, slots=True)
class MigrationFailed:
    """The migration failed. `source_runs` tells whether the VM runs at the source again."""

    vm: str
    at: float
    reason: str
    source_runs: bool
    queued_frames: int = 0
    """Frames that came for the VM while it was paused, and that it found when it was resumed."""


@dataclass(frozen=True, slots=True)
class Exited:
    """The VM's process has ended, asked or not."""

    vm: str
    at: float
    how: Ending = Ending.CRASHED
    reason: str = ""


Event = Started | StartedAnew | Copying | Stopped | RunsElsewhere | Resumed | MigrationFailed | Exited
OnEvent = Callable[[Event], None]
"""Called at once, in the event loop; must not block."""


Divert = Callable[[Collection[str]], Awaitable[bool]]
"""Diverts the VM's traffic to the target; returns when the switches have confirmed it. HypervisorError.

The argument is the VM's taps. The result is True when it is known that nothing more comes to them, False when
packets that are on their way may still come.
"""


Opened = Callable[[], Awaitable[None]]
"""Called when the target is open and its port is there; returns when the copy may start. HypervisorError."""


OpenDisk = Callable[[int], Awaitable[Channel]]
"""A connection of its own to the target, for the content of the VM's disk of this number. HypervisorError."""


def ignore(event: Event) -> None:
    """An OnEvent for a caller who wants no events."""


@dataclass(frozen=True, slots=True)
class MigrationResult:
    """The figures of a migration that has succeeded, as its source knows them."""

    stopped_at: float
    resumed_at: float
    total_ms: float
    """From the order to copy until the VM runs at the target."""
    transferred: int
    """Bytes of memory that went over, 0 if the source could not tell."""
    passes: int
    """How often the source looked which pages were written meanwhile; see qemu.outgoing."""

    @property
    def downtime_ms(self) -> float:
        """How long the VM was paused."""
        return (self.resumed_at - self.stopped_at) * 1000


LINK_DOWN_SECONDS = 0.3
"""How long a link is down that is to be seen to go: a guest that was told of it looks at once."""


class HeldFrames(Protocol):
    """The frames that wait for a VM at its ports, held whatever becomes of the machine."""

    def take(self, most: int, most_bytes: int) -> list[bytes]:
        """Those frames, in order, up to so many of so many bytes; they wait no longer. The machine must have
        ended. Raises HostError."""

    def let_go(self) -> None:
        """Hold nothing any more; the ports can be removed, or used by another machine."""


class Machine(Protocol):
    """One VM on one server. Every method raises HypervisorError."""

    @property
    def spec(self) -> VMSpec: ...

    async def state(self) -> RunState: ...

    async def resume(self) -> None:
        """Resume the VM. Tried for a while, since a migration that was just cancelled may still hold it."""

    async def take_disk(self, number: int, channel: Channel) -> None:
        """Write what the source copies of this disk, to the connection's end. At a target that is open."""

    async def waiting(self) -> int:
        """How many frames have come for the VM that it has not read yet."""

    async def expect_postcopy(self) -> None:
        """Of a target that waits: be ready to run the VM before all of its memory has come. HypervisorError
        where this server cannot."""

    def hold_frames(self) -> HeldFrames | None:
        """Hold what waits for the VM, which has not run here; None where that is not possible."""

    async def set_nics(self, nics: Sequence[NICSpec], gone: Collection[str]) -> None:
        """Put NICs in and take NICs out of the running VM, until it has these besides its first, and none
        with an id of `gone`. A guest that does not let one go in time keeps it, and that is an error."""

    async def press_power(self) -> None:
        """Press the power button (ACPI): a guest that heeds it shuts down, and `Exited` is told as OFF."""

    async def reboot(self) -> None:
        """Press the power button, and start the guest anew when it has shut down."""

    async def reset(self) -> None:
        """Start the guest anew at once, as its reset button would."""

    async def flap_link(self) -> None:
        """Take the link of the guest's NIC down and up again. A DHCP client that watches it asks anew whether
        its lease is good."""

    async def cut_power(self) -> None:
        """End the machine at once, as if it had been unplugged; `Exited` is told as OFF."""

    async def quit(self) -> None:
        """End the machine, whatever its state. Ending a machine that has ended is no error."""


M = TypeVar("M", bound=Machine)


@dataclass
class Left(Generic[M]):
    """What an earlier agent has left on a server."""

    machines: list[M] = field(default_factory=list)
    ended: dict[str, Ending] = field(default_factory=dict)
    """By VM: how its machine has ended while nobody looked."""
    lacking: set[str] = field(default_factory=set)
    """VMs whose machines run, and lack some of their memory: see Hypervisor.receive_the_rest."""


class Hypervisor(Protocol[M]):
    """Runs VMs on one server. Every method raises HypervisorError and has a time limit of its own."""

    async def start(self, spec: VMSpec, on_event: OnEvent = ignore) -> M:
        """Boot a VM; returns when it runs."""

    def end_is_reported(self, spec: VMSpec) -> None:
        """The controller knows of the end of the VM's last machine: `Left` need not have it any more."""

    def forget(self, spec: VMSpec) -> None:
        """The VM is removed for good: its consoles and logs go as well."""

    def forget_all_but(self, specs: Collection[VMSpec]) -> None:
        """Do so with every VM that does not run here and is none of these."""

    async def open_target(self, spec: VMSpec, on_event: OnEvent = ignore) -> M:
        """Open a machine that waits for the memory of the same VM, its port plugged in."""

    async def run_outgoing(
        self,
        source: M,
        channel: Channel,
        on_event: OnEvent = ignore,
        divert: Divert | None = None,
        wanted_downtime: float = WANTED_DOWNTIME,
        options: CopyOptions = PLAIN,
        open_disk: OpenDisk | None = None,
    ) -> MigrationResult:
        """Migrate the running VM to whoever takes it in at the other end of the channel.

        With `divert`, the VM runs until its traffic goes to the target and what was on its way to the source
        has arrived. Returns when it runs there; the source is left stopped, for the caller to end.
        `open_disk` is needed for a VM with private disks: they are copied before the memory, and from then on
        both ends have whatever the VM writes, until it is handed over.
        `wanted_downtime`, in seconds, is how long the VM should be paused at the most, where the hypervisor
        can do something for it: a VM that writes much is paused for as long as it takes, or goes over by
        post-copy where `options` allow it. Then `RunsElsewhere` is told when the target runs the VM, and the
        call returns when all of the memory has gone over; it waits for that also when it is cancelled.

        On failure, and when this call is cancelled, the VM runs at the source again, `MigrationFailed` is
        told, and HypervisorError raised; HandedOverError when it is not known whether the VM runs at the
        target, so that the source stays as it is. The channel is closed.
        """

    async def run_incoming(self, target: M, channel: Channel, on_event: OnEvent = ignore) -> float:
        """Take a VM in, and run it as soon as the source has handed it over; returns since when it runs.

        In post-copy `Resumed` is told when it runs, and the call returns when all of its memory has come; it
        waits for that also when it is cancelled. A VM whose memory does not come is ended.

        On failure the target is ended, the source told, and HypervisorError raised; HandedOverError, the
        source not being told, when the VM may have run here. The channel is closed.
        """

    async def send_the_rest(self, source: M, again: Again, on_event: OnEvent = ignore) -> None:
        """In post-copy, when whoever sent the memory has ended: have the target get the rest of it; returns
        at once when it has. `again` connects to its agent. Raises HypervisorError: it will not get it."""

    async def receive_the_rest(self, target: M, again: Again) -> None:
        """The same of a machine that `Left` names as lacking memory. `again` waits for the source's agent.

        On failure the target is ended, and HandedOverError raised. A call that is cancelled leaves it as it
        is, for another agent.
        """


@runtime_checkable
class ManagedHypervisor(Hypervisor[M], Protocol[M]):
    """A hypervisor under a manager of its own, such as libvirt, which others use, too.

    A VM's port comes with the VM, and a migration's target is opened from its source: `open_target` opens
    nothing yet. Others make, end and migrate VMs, too, so what is here has to be asked for.
    """

    async def plug(self, spec: VMSpec) -> M:
        """Make a VM, and with it its port; it does not run before `start`. What is there is left alone."""

    async def find(self, vm: str) -> M | None:
        """The VM, if this server has it, running or not, whoever made it."""

    async def run_outgoing(
        self,
        source: M,
        channel: Channel,
        on_event: OnEvent = ignore,
        divert: Divert | None = None,
        wanted_downtime: float = WANTED_DOWNTIME,
        options: CopyOptions = PLAIN,
        open_disk: OpenDisk | None = None,
        opened: Opened | None = None,
    ) -> MigrationResult:
        """As any hypervisor's. `opened` is awaited when the target is open, before anything is copied."""

    async def call_off(self, machine: M) -> bool:
        """End a migration that is under way from here, whoever began it. True when the VM stays here."""
