"""The listeners of one controller, and the adapters of routers: for switches, their databases, REST, DNS,
zenoh, other domains."""

import asyncio

from retinue.controller.api.access import Access
from retinue.controller.api.managers import ManagersLink
from retinue.controller.api.peers import Peers
from retinue.controller.api.server import Api, Cluster
from retinue.controller.app import Controller
from retinue.controller.authn.switch_authz import SwitchAuthorization, anybody
from retinue.controller.authn.tls import TlsConfig
from retinue.controller.config import Config
from retinue.controller.config_tables import LISTENERS
from retinue.controller.dns.server import DnsServer
from retinue.controller.dns.zone import Zone
from retinue.controller.switches.port_watcher import PortWatch
from retinue.controller.zenoh_names import ZenohNames
from retinue.socket_addresses import endpoint
from retinue.southbound.openflow.connection import Mandate
from retinue.southbound.openflow.server import OpenFlowServer, SwitchHandler
from retinue.southbound.ovsdb import Connection, OvsdbListener
from retinue.southbound.routers.keeper import RouterKeeper


class Doors:
    """Opened and closed once each."""

    def __init__(
        self,
        config: Config,
        protected: TlsConfig,
        controller: Controller,
        *,
        handler: SwitchHandler | None = None,
        mandate: Mandate | None = None,
        cluster: Cluster | None = None,
    ) -> None:
        """Of a controller that is one of several: `handler` is told of switches in the controller's place."""
        self.active = asyncio.Event()
        """Set: what switches' databases show is taken. Until then they may connect, and wait."""
        self._config = config
        self._protected = protected
        openflow, ovsdb, rest = (protected.contexts.get(name) for name in LISTENERS)
        self._certificates = controller.context.certificates
        self.certificate_read()
        admission = SwitchAuthorization(controller.net, controller.events, self._certificates.saw)
        known, found = controller.net.switches.__len__, controller.inventory.ports
        self._switches = OpenFlowServer(
            handler or controller,
            ssl=openflow,
            admits=admission.switch if openflow is not None else anybody,
            known=known,
            mandate=mandate,
            hello_timeout=config.switch_seconds,
            answer_timeout=config.switch_seconds,
            echo_interval=config.switch_seconds,
            echo_timeout=2 * config.switch_seconds,
        )
        believed = admission.database if ovsdb is not None else anybody
        self._ports = PortWatch(found.changed, found.edge_read, believed)
        controller.fabric.read_again = self._ports.read_again
        self._databases = OvsdbListener(
            self._follow,
            ovsdb,
            proof_timeout=config.switch_seconds,
            may_dial=lambda certificate, peer: believed(certificate, (), peer),
            known=known,
        )
        self.peers = Peers(config.domain, protected.files, controller.domains)
        self._api = Api(
            controller,
            self._rejected,
            Access(controller, protected.tokens, open=protected.rest_is_open),
            rest,
            cluster,
        )
        self._routers = RouterKeeper(controller.net, config.routers(), controller)
        self.managers = ManagersLink(config.managers, protected.files, controller)
        self._names = _names(config, controller)
        self._zenoh = _zenoh(config, protected, controller)

    def certificate_read(self) -> None:
        """The controller may show another one from now on."""
        ends = self._protected.ends
        self._certificates.own(None if ends is None else ends.timestamp())

    async def _follow(self, connection: Connection) -> None:
        await self.active.wait()
        await self._ports.follow(connection)

    def _rejected(self) -> dict[str, dict[str, int]]:
        return {
            "openflow": dict(self._switches.rejected),
            "ovsdb": dict(self._databases.rejected),
            **self.peers.rejected(),
        }

    async def open_to_switches(self) -> None:
        """OpenFlow, and their databases."""
        await self._switches.start(*endpoint(self._config.listen.openflow))
        await self._databases.start(*endpoint(self._config.listen.ovsdb))

    async def open_to_managers(self) -> None:
        await self._api.start(*endpoint(self._config.listen.rest))

    async def open_to_others(self) -> None:
        """DNS, zenoh, the controllers of other domains, and the adapters of routers that are not ours: of
        several controllers only the active one may write to these."""
        self._routers.start()
        if self._names is not None:
            await self._names.start(*endpoint(self._config.dns.listen))
        if self._zenoh is not None:
            await self._zenoh.start()
        await self.peers.start()
        self.managers.start()

    def addresses(self) -> dict[str, str]:
        """Where it listens, for the log."""
        listen = self._config.listen
        return {
            name: at if name in self._protected.contexts else f"{at} (plain text)"
            for name, at in zip(LISTENERS, (listen.openflow, listen.ovsdb, listen.rest), strict=True)
        }

    async def close(self) -> None:
        await self._routers.stop()
        await self.managers.stop()
        await self.peers.stop()
        if self._zenoh is not None:
            await self._zenoh.stop()
        if self._names is not None:
            await self._names.stop()
        await self._api.stop()
        await self._databases.stop()
        await self._switches.stop()


def _names(config: Config, controller: Controller) -> DnsServer | None:
    """The server of the zone, if the configuration has one."""
    if not config.dns.zone:
        return None
    zone = Zone(config.dns, controller.entities, controller.context.clock, controller.domains.names)
    return DnsServer(zone, controller.context.counters)


def _zenoh(config: Config, protected: TlsConfig, controller: Controller) -> ZenohNames | None:
    if not config.zenoh.domain:
        return None
    return ZenohNames(config.zenoh, protected.files, controller.entities, controller.context.counters)
