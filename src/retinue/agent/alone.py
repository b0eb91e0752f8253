"""The agent of a server without a controller of ours: it renews the lease of every VM that arrives.

Nothing is typed. Which VMs there are, with their MACs and taps, QEMU says (`qemu_watch`), or libvirt
(`libvirt_watch`); what lease each has
is learned from its own DHCP as that passes at its tap (`tap_watch`), and of a VM that has come from elsewhere
from the agent there (`lease_desk`).

    VM there, MAC unheard of          its DHCP is watched
    VM arrived                        its lease is looked for here and at the peers, and renewed at its tap
    VM seen for the first time, and   the same: it may have arrived while nobody looked
      running already
    no answer to a renewal, or none   tried again, up to TRIES times
      of a peer that may know it
    renewed here                      the switch here has its row, or is given it; then the peers hear of it:
                                      what their switches have of the VM is left
"""

import asyncio
import contextlib
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from weakref import WeakValueDictionary

import structlog

from retinue import systemd
from retinue.agent import admin_socket
from retinue.agent.config import AgentConfig, AloneTable
from retinue.agent.migration.peer import Transfer
from retinue.agent.renewal.lease_notes import LEASES, LeaseNotes
from retinue.agent.renewal.renewing import InjectionError, fresh_xid
from retinue.agent.renewal.standalone.at_tap import renew_at_tap
from retinue.agent.renewal.standalone.lease_desk import LeaseDesk, PeersAwayError
from retinue.agent.renewal.standalone.libvirt_watch import LibvirtWatch
from retinue.agent.renewal.standalone.qemu_watch import ForeignNIC, QemuWatch
from retinue.agent.renewal.standalone.rows_here import RowsHere
from retinue.agent.renewal.standalone.rows_left import RowsLeft
from retinue.agent.renewal.standalone.snooping_table import AdaptedTable, Row, SnoopingTable
from retinue.agent.renewal.tap_watch import TapWatch, WatchedTap
from retinue.core.lease_renewal import RenewalState
from retinue.core.model import Mac
from retinue.hypervisor.aio import both
from retinue.hypervisor.libvirt.connection import LibvirtHost
from retinue.hypervisor.libvirt.domain_xml import uuids

TRIES = 4
"""Renewals of one VM that has arrived, until the DHCP server answers."""
AGAIN_SECONDS = 30.0
"""Between two of them."""
AT_ONCE = 8
"""VMs whose leases are asked for at a time: when an agent starts it sees all of them for the first time."""

log = structlog.get_logger()


class AloneAgent:
    """Watches and renews; `serve` runs it."""

    def __init__(
        self,
        notes: LeaseNotes,
        desk: LeaseDesk,
        bridge: str,
        server: str = "",
        table: SnoopingTable | None = None,
    ) -> None:
        """`server`: as whose agent it speaks; `table`: the snooping table of this server's switch."""
        self.notes, self._desk, self._bridge, self._server = notes, desk, bridge, server
        self._rows_here = RowsHere(table)
        self._rows_left = RowsLeft(table, self._macs, notes.seconds_left)
        desk.renewed_elsewhere = self._rows_left.renewed_elsewhere
        self._here: dict[str, tuple[ForeignNIC, ...]] = {}
        self.changes = 0
        """How often VMs have come or gone (tap_watch.Taps)."""
        self._renewing: dict[str, asyncio.Task[None]] = {}
        """By tap."""
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """By tap: one that is called off has let go of its tap before the next one begins."""
        self._at_once = asyncio.Semaphore(AT_ONCE)

    def watched(self) -> Mapping[str, WatchedTap]:
        return {nic.tap: WatchedTap(vm, nic.mac) for vm, nics in self._here.items() for nic in nics}

    def there(self, vm: str, nics: Sequence[ForeignNIC], arrived: bool) -> None:
        """As qemu_watch.There."""
        first = vm not in self._here
        self._here[vm] = tuple(nics)
        self.changes += 1
        self.notes.named({nic.mac: vm for nic in nics})
        if arrived or first:
            self._rows_left.back([nic.mac for nic in nics])
        for nic in nics:
            if arrived or first or self.notes.of(nic.mac) is None:
                self._later(vm, nic, arrived)

    def gone(self, vm: str) -> None:
        """The lease stays known: the agent where the VM is now may ask for it."""
        nics = self._here.pop(vm, ())
        self.changes += 1
        for nic in nics:
            if (task := self._renewing.pop(nic.tap, None)) is not None:
                task.cancel()
        self._rows_left.look()

    def _macs(self) -> set[Mac]:
        return {nic.mac for nics in self._here.values() for nic in nics}

    async def close(self) -> None:
        for task in self._renewing.values():
            task.cancel()
        await asyncio.gather(*self._renewing.values(), return_exceptions=True)
        await self._rows_left.close()

    # ---- one VM ----

    def _later(self, vm: str, nic: ForeignNIC, arrived: bool) -> None:
        if (task := self._renewing.get(nic.tap)) is not None:
            task.cancel()
        name = f"renewal at {nic.tap}"
        turn = self._turns.setdefault(nic.tap, asyncio.Lock())
        self._renewing[nic.tap] = asyncio.create_task(self._in_turn(turn, vm, nic, arrived), name=name)

    async def _in_turn(self, turn: asyncio.Lock, vm: str, nic: ForeignNIC, arrived: bool) -> None:
        async with turn:
            await self._renew(vm, nic, arrived)

    async def _renew(self, vm: str, nic: ForeignNIC, arrived: bool) -> None:
        for turn in range(TRIES):
            if turn:
                await asyncio.sleep(AGAIN_SECONDS)
            try:
                async with self._at_once:
                    kept = await self._desk.find(nic.mac)
            except PeersAwayError as error:
                log.warning("renewal.lease_not_found_yet", vm=vm, mac=nic.mac, error=str(error))
                continue
            if kept is None:
                if arrived:
                    log.warning("renewal.no_lease_known", vm=vm, mac=nic.mac, tap=nic.tap)
                return
            began = asyncio.get_running_loop().time()
            try:
                done = await renew_at_tap(kept.lease, fresh_xid(), nic.tap, self._bridge)
            except InjectionError as error:
                log.warning("renewal.not_sent", vm=vm, tap=nic.tap, error=str(error))
                continue
            log.info("renewal.ended", vm=vm, state=str(done.state), lease_seconds=done.lease_seconds)
            if done.lease_seconds is not None:
                took = asyncio.get_running_loop().time() - began
                self.notes.renewed(kept.lease, done.lease_seconds, vm, took)
            if done.state is RenewalState.ACKED:
                # First the row here, then the word by which others delete theirs: never none.
                row = Row(nic.mac, kept.lease.ip, nic.tap, done.lease_seconds)
                stored = await self._rows_here.store(row)
                await self._desk.tell(nic.mac, kept.lease.ip, self._server)
                if not stored:
                    await self._rows_here.store_later(row)
            if done.state is not RenewalState.SILENT:
                return


async def serve(config: AgentConfig, transfer: Transfer) -> None:
    """Run until told to end (SIGTERM, SIGINT). Raises OSError."""
    assert config.alone is not None
    folder = Path(config.folder)
    notes = LeaseNotes(folder / LEASES)
    desk = LeaseDesk(notes, transfer, config.alone.peers)
    transfer.visitors = desk
    adapter = config.alone.snooping_table
    table = AdaptedTable(Path(adapter)) if adapter else None
    agent = AloneAgent(notes, desk, config.bridge, config.server, table)
    watch = TapWatch(notes, agent)
    await transfer.start(*config.endpoint)
    try:
        async with admin_socket.serving(folder / admin_socket.SOCKET, None, notes):
            watch.start()
            watching = asyncio.create_task(_watch(config.server, config.alone, agent), name="VMs")
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, watching.cancel)
            log.info("agent.ready", server=config.server, listens=transfer.address, alone=True)
            with contextlib.suppress(asyncio.CancelledError):
                async with systemd.ready(f"server {config.server}, alone"):
                    await watching
            log.info("agent.stopping")
    finally:
        watch.close()
        await agent.close()
        await notes.written()
        await transfer.close()


async def _watch(server: str, alone: AloneTable, agent: AloneAgent) -> None:
    """For ever. Raises LibvirtMissingError."""
    watches = [QemuWatch(alone.qmp, agent.there, agent.gone).run()]
    if alone.libvirt:
        host = LibvirtHost(server, alone.libvirt, ids_of=uuids)
        watches.append(LibvirtWatch(host, agent.there, agent.gone).run())
    await both(*watches)


__all__ = ["AloneAgent", "serve"]
