"""A router that is not ours, as a switch to whoever programs switches: entries in, entries out.

Only host routes, and that the rest of a subnet leads nowhere, are told to it; the other entries say what
any router does (core.pipeline.underlay.router_table). A change is confirmed by what the kernel holds
afterwards.
"""

from collections.abc import Callable, Mapping
from ipaddress import AddressValueError, IPv4Address, IPv4Network, NetmaskValueError

import structlog

from retinue.core.model.network import Network
from retinue.core.model.plain_routers import OTHERS
from retinue.core.pipeline.entry import Change, Group, Meter
from retinue.core.pipeline.underlay.router_table import entries, taken_back, told
from retinue.southbound.openflow.codec.messages import FlowStats, MeterStats
from retinue.southbound.routers.link import Answer, RouterError, RouterLink

log = structlog.get_logger()

OTHERS_PORT = 0xFFFF_0000
"""The number of its port to other routers, which is none of the kernel's."""

Table = dict[IPv4Network, IPv4Address | None]


class RouterSession:
    """One router, from its adapter's first answer until the adapter ends."""

    def __init__(
        self, net: Network, router: str, link: RouterLink, first: Answer, gone: Callable[[str], None]
    ) -> None:
        """`gone` is called once, with the reason, when the session ends. Raises RouterError for a router that
        would not forward what edges send it."""
        self.dpid = net.switches[router].dpid
        self.peer = f"adapter of {router}"
        self.openflow = ""
        """None is spoken with it."""
        self.ports: dict[str, int] = {}
        self.down: frozenset[str] = frozenset()
        """Without a link, or such that no server is reached there until somebody sets them right."""
        self._unfit: frozenset[str] = frozenset()
        self._net, self._router, self._link, self._gone = net, router, link, gone
        self._table: Table = {}
        self._ended = False
        self._take(first)

    @property
    def alive(self) -> bool:
        return not self._ended

    def waited(self) -> float:
        return 0.0

    # ---- what can be asked ----

    async def apply(self, change: Change, now: float) -> None:
        """Make the change, and return when the router's table says so. Raises RouterError when it does not;
        ConnectionError, TimeoutError."""
        try:
            put = told(self._net, change.add)
        except ValueError as error:
            raise RouterError(f"router {self._router}: {error}") from None
        gone = sorted(taken_back(change.remove) - put.keys())
        if not put and not gone:
            return
        held = table_of((await self._link.change(put, gone)).routes)
        self._table = {
            prefix: hop for prefix, hop in self._table.items() if prefix not in {*put, *gone}
        } | held
        for prefix in (*put, *gone):
            if (prefix in held, held.get(prefix)) != (prefix in put, put.get(prefix)):
                raise RouterError(
                    f"router {self._router} was told {_words(put, prefix)}, and has {_words(held, prefix)}"
                )

    async def read_flows(self, cookie: int = 0, cookie_mask: int = 0) -> list[FlowStats]:
        """Its entries; those of drops that are counted it has none of."""
        if cookie_mask:
            return []
        self._table = table_of((await self._link.look()).routes)
        found = entries(self._net, self._router, self._table)
        return [FlowStats(flow, 0, 0, 0.0, 0) for flow in found]

    async def read_packets(self, cookie: int = 0, cookie_mask: int = 0) -> int:
        return 0

    async def read_groups(self) -> dict[int, Group]:
        return {}

    async def read_meters(self) -> dict[int, Meter]:
        return {}

    async def read_meter_stats(self) -> list[MeterStats]:
        return []

    def packet_out(self, frame: bytes, port: int) -> None:
        """Nothing is sent by a router that is not ours."""

    def close(self, reason: str) -> None:
        if not self._ended:
            self._ended = True
            self._link.end()
            self._gone(reason)

    async def look(self) -> bool:
        """Whether its ports have become others. Raises RouterError where the router is not as it was told, or
        would no longer forward; ConnectionError, TimeoutError."""
        before, table = (self.ports, self.down), dict(self._table)
        answer = await self._link.look()
        if self._table == table and table_of(answer.routes) != table:
            raise RouterError(f"the table of router {self._router} was changed by somebody else")
        self._take(answer)
        return (self.ports, self.down) != before

    def _take(self, answer: Answer) -> None:
        if not answer.forwards:
            raise RouterError(f"router {self._router} does not forward: sysctl -w net.ipv4.ip_forward=1")
        servers = {
            at.port: server.id
            for server in self._net.servers.values()
            if server.edge and (at := self._net.location(server.id)) is not None and at.switch == self._router
        }
        wrong: dict[str, str] = {}
        for name, (_, mac, up) in sorted(answer.ports.items()):
            strict = up and name in answer.strict
            if strict:
                wrong[name] = (
                    f"port {name} of router {self._router} takes a packet only where the way back to its "
                    "source leads, and a VM that migrates sends from two places: "
                    f"sysctl -w net.ipv4.conf.{name}.rp_filter=2"
                )
            elif name in servers and mac != self._net.gateway_mac:
                wrong[name] = (
                    f"port {name} of router {self._router} has MAC {mac}, and edges send to the gateway's: "
                    f"ip link set {name} address {self._net.gateway_mac}"
                )
            # Where VMs are their last packets come in there; and by whatever other port, from other routers.
            if strict and (name not in servers or self._net.vms_on(servers[name])):
                raise RouterError(wrong[name])
        for name in sorted(wrong.keys() - self._unfit):
            log.warning("router.port_unfit", router=self._router, server=servers[name], error=wrong[name])
        self._unfit = frozenset(wrong)
        self.ports = {name: number for name, (number, _, _) in answer.ports.items()} | {OTHERS: OTHERS_PORT}
        self.down = frozenset(name for name, (_, _, up) in answer.ports.items() if not up)
        self.down |= self._unfit


def table_of(routes: Mapping[str, str | None]) -> Table:
    """Raises ConnectionError for what is no table of routes."""
    try:
        return {
            IPv4Network(prefix): None if hop is None else IPv4Address(hop) for prefix, hop in routes.items()
        }
    except (AddressValueError, NetmaskValueError, ValueError) as error:
        raise ConnectionError(f"the adapter told what is no route: {error}") from None


def _words(table: Mapping[IPv4Network, IPv4Address | None], prefix: IPv4Network) -> str:
    if prefix not in table:
        return f"no {prefix}"
    return f"{prefix} by {table[prefix]}" if table[prefix] is not None else f"{prefix} to nowhere"
