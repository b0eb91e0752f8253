"""A controller that is one of several, over and over: a standby, then perhaps active, then a standby again.

For each time it is built anew, from the configuration: whoever is no longer the active one knows nothing that
counts. As a standby everything of it stands but its content: the listeners are open, switches and their
databases are connected and wait, a REST client is told who is active. To take over it reads the database,
computes every switch's entries, and takes the switches over, which are read and sent what differs.
"""

import asyncio
import contextlib
import ssl
from pathlib import Path
from typing import Any

import structlog

from retinue import systemd
from retinue.config_file import ConfigError
from retinue.controller.app import Controller
from retinue.controller.authn.tls import TlsConfig
from retinue.controller.config import Config
from retinue.controller.config_tables import ClusterTable
from retinue.controller.context import Store
from retinue.controller.doors import Doors
from retinue.controller.leadership.election import Election, guard
from retinue.controller.leadership.mandate import Mandate
from retinue.controller.leadership.switchboard import Switchboard
from retinue.controller.store import Database, StoreError
from retinue.controller.store.members import Members
from retinue.core.link_watch import LinkLimits
from retinue.core.migration.copying import CopyOptions
from retinue.core.model import Network
from retinue.core.router_watch import RouterLimits
from retinue.security.contexts import TlsFilesError, client_context

log = structlog.get_logger()


def build(config: Config, net: Network, protected: TlsConfig, store: Store | None) -> Controller:
    """The controller that a configuration describes, without anything that the database has."""
    controller = Controller(
        net,
        store,
        migrations_kept=config.migrations_kept,
        audit_seconds=config.audit_seconds,
        warm_up_seconds=config.warm_up_seconds,
        leases_per_nic=config.leases_per_nic,
        forward_seconds=config.forward_seconds,
        copy_options=CopyOptions(config.postcopy, config.compress, config.step_factor),
        policy=config.placement.policy(),
        follow_clients=(config.placement.follow_switches, config.placement.follow_seconds),
        spread=(config.placement.spread_percent, config.placement.spread_seconds),
        probe_seconds=config.link_probe_seconds,
        link_limits=LinkLimits(hold=config.link_hold_seconds),
        router_limits=RouterLimits(config.router_silence_seconds, config.router_hold_seconds),
    )
    if protected.files is not None:
        controller.images.authority = protected.files[0]
    return controller


class Candidate:
    """One of several controllers. Raises ConfigError, StoreError and OSError as a single one does."""

    def __init__(
        self, config: Config, cluster: ClusterTable, protected: TlsConfig, opened: list[Doors]
    ) -> None:
        """`opened`: has the doors that stand, for whoever reloads them."""
        self._opened = opened
        self._config = config
        self._protected = protected
        self._members = Members(cluster.database, database_context(cluster))
        self._mandate = Mandate(cluster.mandate_seconds)
        self._election = Election(self._members, cluster.name, cluster.url, self._mandate)

    async def run(self, ended: asyncio.Event) -> None:
        """Until `ended`."""
        electing = asyncio.create_task(self._election.run(), name="election")
        try:
            await _first(self._election.known.wait(), ended.wait(), electing)
            async with systemd.ready(f"REST at {self._config.listen.rest}"):
                while not ended.is_set():
                    await self._stand(ended, electing)
        finally:
            electing.cancel()
            await asyncio.gather(electing, return_exceptions=True)

    async def _stand(self, ended: asyncio.Event, electing: "asyncio.Task[None]") -> None:
        """Be a standby; when it is this one's turn take over, and be the active one while that lasts."""
        election = self._election
        store = Database(deposed=election.depose)
        controller = build(self._config, self._config.network(), self._protected, store)
        board = Switchboard(controller, self._mandate, election.look)
        face = _Face(election, board)
        doors = Doors(
            self._config, self._protected, controller, handler=board, mandate=self._mandate, cluster=face
        )
        self._opened[:] = [doors]
        try:
            await doors.open_to_switches()
            await doors.open_to_managers()
            log.info("controller.standby", **doors.addresses())
            await _first(election.until(True), ended.wait(), electing)
            if ended.is_set():
                return
            lost = asyncio.create_task(election.until(False), name="end of the epoch")
            taking = asyncio.create_task(self._take_over(store, controller, board, doors), name="taking over")
            try:
                try:
                    await _first(taking, lost, ended.wait(), electing)
                    face.has_taken_over = taking.done()
                except StoreError as error:
                    log.error("leadership.not_taken_over", reason=str(error))
                    election.depose(f"it could not take over: {error}")
                await _first(lost, ended.wait(), electing)
            finally:
                face.has_taken_over = False
                await _cancel(taking, lost)
        finally:
            await board.stop()
            await doors.close()
            await controller.stop()
            election.moved = lambda reason: None
            if store.is_open:
                if election.is_active:
                    await store.flush()
                await store.stop()

    async def _take_over(
        self, store: Database, controller: Controller, board: Switchboard, doors: Doors
    ) -> None:
        assert self._election.active is not None
        epoch = self._election.active.epoch
        controller.events.begin(epoch)
        store.guard(guard(epoch))
        await store.start(self._members)
        self._election.moved = store.leave
        controller.restore(await store.load())
        controller.pairs.configured(self._config.pairs())
        await controller.start()
        controller.orchestrator.resume_all()
        board.activate(epoch)
        doors.active.set()
        await doors.open_to_others()
        log.info("controller.up", epoch=epoch, **doors.addresses())


class _Face:
    """What REST clients are told of all this (api.server.Cluster)."""

    def __init__(self, election: Election, board: Switchboard) -> None:
        self.has_taken_over = False
        self._election = election
        self._board = board

    def report(self) -> dict[str, Any]:
        return self._election.report() | {"switches_standing": self._board.standing}

    def speaks(self) -> bool:
        return self.has_taken_over and self._election.mandate.holds()

    def who_speaks(self) -> str:
        election, active = self._election, self._election.active
        if active is None:
            return f"controller {election.name} is a standby, and none has been active yet: ask again"
        if election.is_active:
            state = "cannot reach the database" if self.has_taken_over else "is just taking over"
            return f"controller {election.name} is the active one and {state}: ask again in a moment"
        return (
            f"controller {election.name} is a standby: the active one is {active.holder} at {active.url} "
            "(clients that know both addresses try them in turn: RETINUE_URL=URL,URL)"
        )


async def _first(*events: Any) -> None:
    """Return when the first of these is done; raise what it raised. Tasks of others are left running."""
    given = [event for event in events if isinstance(event, asyncio.Task)]
    own = [asyncio.ensure_future(event) for event in events if not isinstance(event, asyncio.Task)]
    try:
        done, _ = await asyncio.wait([*given, *own], return_when=asyncio.FIRST_COMPLETED)
        for one in done:
            one.result()
    finally:
        await _cancel(*own)


async def _cancel(*tasks: "asyncio.Future[None]") -> None:
    for task in tasks:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks, return_exceptions=True)


def database_context(cluster: ClusterTable) -> ssl.SSLContext | None:
    """What is shown to the database's servers; None: they are not asked over TLS. Raises ConfigError."""
    if cluster.tls is None:
        return None
    ca, certificate, key = map(Path, (cluster.tls.ca, cluster.tls.certificate, cluster.tls.key))
    try:
        return client_context(ca, certificate, key)
    except TlsFilesError as error:
        raise ConfigError(str(error)) from error
