"""What everything else may ask about the way between servers, without knowing what the way is made of."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol

from retinue.core.model import IP, Link, Mac, Prefix, Server, Switch
from retinue.core.pipeline.entry import EntriesBySwitch, Flow, FlowsBySwitch, Group, Meter, SetField

Near = Sequence[Collection[str]]
"""Groups of switches told before all others, group by group: around a VM's new location."""


class Underlay(Protocol):
    """The way between servers: its entries on each switch, and the order in which switches must be told."""

    # ---- what edge switches write into frames, and know them by ----

    def reach(self, server: Server) -> tuple[SetField, ...]:
        """Addresses a frame to a server's edge switch; the frame then goes out of the sender's uplink."""

    def brought_to(self, server: Server, ip_type: int) -> Mapping[str, int | str]:
        """Match terms of IP packets of this EtherType that the underlay brings a server's edge switch."""

    @property
    def copies(self) -> bool:
        """True where a server's edge switch can send another one a copy of what is for neither's VMs."""

    @property
    def asks_servers(self) -> bool:
        """True where those to whom a server's frames go ask for its own MAC by broadcast ARP."""

    def copy_source(self, server: Server) -> Mac:
        """The source MAC of the copies a server's edge switch makes: so another edge switch knows them."""

    # ---- entries, by what they are computed for ----

    def switch_flows(self, switch: Switch) -> Iterable[Flow | Group | Meter]:
        """What a switch that is no edge holds whatever servers there are."""

    def server_flows(self, server: Server) -> FlowsBySwitch:
        """The ways to a server, to its own address and to the prefixes behind it."""

    def prefix_flows(self, prefix: Prefix, vrf: str) -> FlowsBySwitch:
        """What switches hold about a prefix of a VRF that is routed to a NIC, wherever that is."""

    def host_routes(self, server: Server, ip: IP | Prefix, mark: int) -> FlowsBySwitch:
        """The way to one address, or prefix, that is at a server; `mark` is the cookie of its entries."""

    def copy_ways(self, server: Server, to: Server, ip: IP | Prefix, mark: int) -> FlowsBySwitch:
        """Lets copies of what one server is sent for this address, or prefix, through, to another server."""

    def flood_ways(self, servers: Collection[Server], vlan: int, group: int, mark: int) -> EntriesBySwitch:
        """What has this tag and goes to a group comes from each of these servers to each other one, once.

        `group`: the number that a group may have for it on each switch.
        """

    def way_home(self, server: Server, gateway: Server, ip: IP | Prefix, mark: int) -> FlowsBySwitch:
        """Lets what a guest at a server sends from this address through, to the gateway to its home."""

    def storage_ways(
        self,
        mac: Mac,
        forwarder: Mac,
        server: Server,
        open_at: Collection[Server],
        mark: int,
        only_from: Mac = "",
    ) -> FlowsBySwitch:
        """Storage frames of the port with this MAC: from each server of `open_at` to the forwarder with that
        MAC, and to `server` alone what is for the port; `only_from`: and comes from this MAC."""

    # ---- where servers are ----

    def is_reachable(self, server: str) -> bool:
        """True when it is known where the server is: traffic can be delivered at it."""

    def attachment(self, server: str) -> tuple[str, int] | None:
        """The switch and port number a server is at; None while the location or the port is not known."""

    def trunk_ports(self, switch: str) -> frozenset[int]:
        """Numbers of a switch's ports that lead to other switches; any other port may lead to a server."""

    def knows(self, server: str, switch: str) -> bool:
        """True when all has been told that this switch's entries towards the server depend on.

        Of a switch that has told its own ports; the server may be gone from where it was, and is known then.
        """

    def lost_with(self, server: str) -> frozenset[str]:
        """The switches, beside its edge, that are dead when the server is: nobody waits for them."""

    # ---- which switches, and in which order ----

    def near(self, server: str) -> frozenset[str]:
        """The switches that must know of a VM first for it to be found at this server."""

    def concerned(self, servers: Iterable[str]) -> frozenset[str]:
        """The switches with entries of a VM that is at these servers. Servers that are gone are left out."""

    def order_to_divert(self, source: str, target: str) -> Near:
        """Told first when a VM's traffic goes from now on to the target instead of the source."""

    def order_to_return(self, source: str, target: str) -> Near:
        """Told first when that is undone: the source gets its traffic again, and what comes to the target."""

    def order_to_withdraw(self, server: str) -> Near:
        """Told first when a server that had part in a VM's traffic has no part in it any more."""

    def old_ways(self, source: str, target: str) -> Sequence[Sequence[tuple[Link, bool]]]:
        """The links that a packet for a VM may be on, on its way to the source, after it has left the first
        switch that knows of the target: those of one list at the same time, each upwards (True) or down."""

    def ways_up(self, server: str) -> Sequence[Sequence[tuple[Link, bool]]]:
        """The links that what comes from the server may be on, from its leaf up to where each way to others
        may go on from; as `old_ways`."""

    def stages(self, changed: Mapping[str, Collection[object]], near: Near) -> list[list[str]]:
        """The switches of `changed` in the order they must be told, those of one list at the same time."""
