"""What must hold of the fate of every frame, in every moment.

    (a) no frame of a NIC leaves its switch from a source that the NIC has not, and none from a port where
        the NIC is not any more; the controller gets copies, metered
    (b) each honest frame arrives once, at the right port; while a migration changes where that is, at one of
        the right ports; while it is copied, at each of them. So does what the fabric has brought to a server
        where the VM is, or from where it is sent on; what is for outside, at the router of its VRF; and what
        is for an anycast address, at one of those that have it
    (c) no frame goes round
    (d) from one subnet to another, and so from one vnet to another, a frame comes only by being routed: with
        its time to live less one, from the gateway's MAC, or from its server's where a copy of it is made.
        What is no IP comes to no other NIC at all
    (e) from one VRF to another no frame comes at all, nor from a machine at a leaf, but from a router by the
        tag that the VRF has there; and to no NIC one with a tag of the fabric's own
    (f) what a NIC of a vnet that floods sends to all of it comes to each other NIC of the vnet, as it was
        sent, once to each port; what is sent to a group comes to no other NIC

Each function yields what is wrong with a fate, with a frame that shows it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

import z3

from prove import honest, wire
from prove.moments import Moment
from prove.reach import ON_A_CABLE, ROUND, Emission, End, Explorer, Fate
from prove.terms import SIZE, TAGGED, UNKNOWN, Bits, Fields, Sent, Value, all_of, undecided
from retinue.core.limits import LEAST_MTU
from retinue.core.model import DEFAULT_VRF, IP, NIC, VM, Network, Role, Server, mac_to_int
from retinue.core.model.anycast import members_of
from retinue.core.pipeline.entry import Field, Output, PortNo
from retinue.core.pipeline.underlay.vxlan import VNI_OF_FLOODING, VNI_OF_VRF

NO_LEAFS, NO_VRFS = 0xAC10_4D07, 0xFFFF
"""An address of no leaf's, and an identifier (VNI) of no VRF's."""
A, B, C, D, E, F = (
    "a frame leaves from a source that its sender has not",
    "an honest frame does not arrive once at the right port",
    "a frame goes round",
    "a frame comes to another subnet without being routed",
    "a frame comes to another VRF, or with a VRF's tag",
    "a frame to a group does not come to each NIC of its vnet, and to these alone",
)
AMBIGUOUS = "two entries match a frame, and it is not said which counts"


@dataclass(frozen=True)
class Counterexample:
    """A frame that has a fate it should not have."""

    property: str
    why: str
    moment: Moment
    fate: Fate
    frame: dict[Field, int]


@dataclass
class Door:
    """A port where frames come in, and who is there."""

    at: End
    vm: VM | None = None
    nic: NIC | None = None
    server: Server | None = None
    """A machine at a leaf, or the server itself at the LOCAL port of its edge."""
    sends_here: bool = False
    """The VM may send from here: its NIC's honest frames must arrive."""
    brought_to: Server | None = None
    """Of the uplink of an edge: the server to which the fabric brings frames here."""
    is_open: bool = False
    """The port may be open; if not, nothing that it sends may leave."""
    beside: Fields = field(default_factory=lambda: ON_A_CABLE)
    """What the port knows of frames beside what is in them: of a tunnel's end, from where they are."""

    @property
    def who(self) -> str:
        if self.nic is not None:
            return f"NIC {self.nic.port_id}"
        return f"server {self.server.id}" if self.server is not None else "the fabric"


@dataclass
class Tally:
    """What has been looked at: a proof about nothing proves nothing."""

    doors: int = 0
    fates: int = 0
    honest: int = 0
    """Fates of honest frames, each for one sender and one receiver."""
    pairs: set[tuple[str, str]] = field(default_factory=set)
    """Sender and receiver of which honest frames were followed."""
    checks: int = 0


def doors(moment: Moment) -> Iterator[Door]:
    """Every port where somebody may send frames in, and, for what is on its way already, every cable's
    end."""
    net = moment.net
    for vm in net.vms.values():
        for nic in vm.nics:
            for switch, port in net.vm_ports.get(nic.port_id, {}).items():
                here = net.server_of_edge(switch)
                sends = here is not None and here.id in moment.senders[nic.port_id]
                is_open = here is not None and here.id in moment.open[nic.port_id]
                yield Door((switch, port.number), vm, nic, sends_here=sends, is_open=is_open)
    for server in net.servers.values():
        if server.edge:
            yield Door((server.edge, PortNo.LOCAL), server=server)
        elif (at := net.location(server.id)) is not None and (number := net.port_number(at)) is not None:
            yield Door((at.switch, number), server=server)
    for end in sorted(moment.cables):
        yield Door(end, brought_to=net.server_of_edge(end[0]))
    vnis = [VNI_OF_VRF + vrf.tag for vrf in net.vrfs.values()]
    vnis += [VNI_OF_FLOODING + vnet.vlan for vnet in net.vnets.values() if vnet.floods]
    for address, end in moment.tunnels.items():
        for other, vni in product({*moment.tunnels, NO_LEAFS} - {address}, [*vnis, NO_VRFS]):
            by_tunnel = {**ON_A_CABLE, Field.TUN_SRC: other, Field.TUN_DST: address, Field.TUNNEL_ID: vni}
            yield Door(end, beside=by_tunnel)


def check(explorer: Explorer, moment: Moment, door: Door, tally: Tally) -> Iterator[Counterexample]:
    """All that is wrong with frames which come in by a door."""
    asked = _Asked(explorer, moment, door, tally)
    tally.doors += 1
    before = explorer.checks
    for fate in explorer.fates(door.at, door.beside):
        tally.fates += 1
        if fate.trouble:
            what = C if fate.trouble == ROUND else AMBIGUOUS
            yield from asked.wrong(what, fate.trouble, fate)
            continue
        yield from asked.leaves_as_its_own(fate)
        yield from asked.is_flooded(fate)
        yield from asked.is_routed(fate)
        yield from asked.arrives(fate)
    tally.checks += explorer.checks - before


@dataclass(frozen=True, slots=True)
class _Way:
    """Frames that somebody sends to a NIC, to a VRF's outside, or to a service: conditions on what is known,
    and on all else."""

    to: honest.Holding | None
    vrf: str
    bits: tuple[Bits, ...]
    rest: z3.BoolRef
    service: IP | None = None


class _Asked:
    """Questions about the fates of frames that come in by one door."""

    def __init__(self, explorer: Explorer, moment: Moment, door: Door, tally: Tally) -> None:
        self.explorer, self.moment, self.door, self.tally = explorer, moment, door, tally
        self.net: Network = moment.net
        self.own: list[tuple[Bits, ...]] = []
        self.to_all: list[tuple[Bits, ...]] = []
        if door.vm is not None and door.nic is not None and door.is_open:
            self.own = honest.may_leave(self.net, door.vm, door.nic)
            self.to_all = honest.floods_as(self.net, door.vm, door.nic)
        self.ways = [*self._honest_ways()]

    def _honest_ways(self) -> Iterator[_Way]:
        """The honest frames that come in by the door."""
        macs = [nic.mac for vm in self.net.vms.values() for nic in vm.nics]
        receivers = [to for to in honest.holdings(self.net) if to.nic is not self.door.nic]
        anybody = z3.BoolVal(True)
        sources: list[tuple[str, tuple[Bits, ...], z3.BoolRef]]
        if self.door.nic is not None and self.door.sends_here:
            sources = [(self.net.vrf_of(self.door.nic), own, anybody) for own in self.own]
        elif self.door.server is not None and self.door.server.ways:
            own, gateway = self.door.server, self.net.gateway_mac
            vlans = {one.vrf: one.vlan for one in own.subinterfaces} | {DEFAULT_VRF: 0}
            sources = [
                (vrf, honest.to_gateway(gateway, v, vlans[vrf]), honest.from_outside(self.net, v, vrf))
                for vrf in dict.fromkeys(vrf for vrf, _ in own.ways)
                for v in honest.versions(self.net)
            ]
        elif (here := self.door.brought_to) is not None:
            receivers = [to for to in receivers if here.id in self.moment.brought[to.nic.port_id]]
            sources = [
                (vrf.id, honest.brought_to(here, self.net.gateway_mac, v, vrf.tag), anybody)
                for v in honest.versions(self.net)
                for vrf in self.net.vrfs.values()
            ]
        else:
            return
        for vrf, sent, source in sources:
            version = honest.version_of(sent)
            always = (source, honest.ordinary(version), honest.lives())
            for to in receivers:
                if (to.vrf, to.ip.version) == (vrf, version):
                    others = tuple(mac for mac in macs if mac != to.nic.mac)
                    at = honest.inside(honest.DST[version], to.ip)
                    yield _Way(to, vrf, (*sent, at), z3.And(*always, honest.to_one(others)))
            for ip in self.net.anycast() if self.door.brought_to is None and vrf == DEFAULT_VRF else ():
                if ip.version == version:
                    at = honest.inside(honest.DST[version], ip)
                    unlike = honest.to_one(tuple(macs))
                    yield _Way(None, vrf, (*sent, at), z3.And(*always, unlike), ip)
            router = honest.router_of(self.net, vrf) if self.door.nic is not None else None
            if router is not None and any(prefix.version == version for prefix in router.routes_in(vrf)):
                away = honest.outside(self.net, version, vrf)
                yield _Way(None, vrf, sent, z3.And(*always, away, honest.to_one(tuple(macs))))

    def wrong(self, what: str, why: str, fate: Fate, *conditions: z3.BoolRef) -> Iterator[Counterexample]:
        """It is, if there is a frame of this fate of which the conditions hold."""
        # One that can be written down is worth more than one that the entries alone allow.
        model = self.explorer.example(*conditions)
        if model is not None:
            model = self.explorer.example(*conditions, *wire.real()) or model
            frame = {f: model.eval(x, model_completion=True).as_long() for f, x in UNKNOWN.items()}
            yield Counterexample(what, why, self.moment, fate, frame)

    # ---- (a) ----

    def leaves_as_its_own(self, fate: Fate) -> Iterator[Counterexample]:
        if self.door.nic is None and self.door.server is None:
            return
        for told in fate.told:
            if len(told.hops) == 1 and not told.metered:
                yield from self.wrong(A, "the controller gets a copy that no meter holds back", fate)
        left = [sent for sent in fate.sent if len(sent.hops) == 1 and sent.port != self.door.at[1]]
        if not left:
            return
        if self.door.nic is not None:
            may = (*self.own, *self.to_all)
            own = [all_of(rest) for one in may if (rest := undecided(one, fate.known)) is not None]
            allowed = z3.Or(*own)
        elif self.door.server is not None and not self.door.server.edge:
            allowed = z3.Or(*honest.may_leave_service(self.net, self.door.server))
        else:
            return
        yield from self.wrong(A, f"{self.door.who} has sent it to {_ports(left)}", fate, z3.Not(allowed))

    # ---- (b) ----

    def arrives(self, fate: Fate) -> Iterator[Counterexample]:
        for way in self.ways:
            left = undecided(way.bits, fate.known)
            if left is None:
                continue
            conditions = (all_of(left), way.rest)
            if not self.explorer.is_possible(*conditions):
                continue
            self.tally.honest += 1
            whom = "outside" if way.to is None else f"NIC {way.to.nic.port_id}"
            self.tally.pairs.add((self.door.who, whom if way.service is None else str(way.service)))
            if way.service is not None:
                yield from self._reaches_service(fate, way.service, conditions)
                continue
            if way.to is None:
                yield from self._reaches_outside(fate, way.vrf, conditions)
                continue
            why = self._not_once(fate, way.to)
            if why:
                yield from self.wrong(B, f"{self.door.who} to {way.to.ip}: {why}", fate, *conditions)
            for arrived in () if why else fate.arrived:
                yield from self._is_whole(fate, arrived, way.to, conditions)

    def _not_once(self, fate: Fate, to: honest.Holding) -> str:
        """What is wrong with where a frame for a NIC has arrived; "" if nothing is."""
        if fate.told:
            return "the controller gets it"
        places = self.moment.places[to.nic.port_id]
        if self.door.brought_to is not None:
            places = self.moment.brought[to.nic.port_id][self.door.brought_to.id]
        right = set(self._ports_of(to.nic, places))
        came = [(sent.switch, sent.port) for sent in fate.arrived]
        if not came:
            return "it is lost"
        if len(set(came)) < len(came):
            return f"it comes twice to one port: {_ports(fate.arrived)}"
        if not set(came) <= right:
            return f"it comes to {_ports(fate.arrived)}, and should to {sorted(right)}"
        if to.nic.port_id not in self.moment.copied and len(came) > 1:
            return f"it comes to {_ports(fate.arrived)}, and should to one of them"
        if self.moment.everywhere and set(came) != right:
            return f"it comes to {_ports(fate.arrived)} only, and should to {sorted(right)}"
        return ""

    def _is_whole(
        self, fate: Fate, arrived: Emission, to: honest.Holding, conditions: tuple[z3.BoolRef, ...]
    ) -> Iterator[Counterexample]:
        """It arrives with the receiver's MAC, and with the addresses it was sent with."""
        version = to.ip.version
        macs = {mac_to_int(to.mac), mac_to_int(to.nic.mac)}
        at = arrived.fields[Field.ETH_DST]
        why = f"to {to.ip}: it comes to a MAC that is not the receiver's"
        if isinstance(at, Sent):
            mismatch = z3.And(*(UNKNOWN[at.field] != mac for mac in macs))
            yield from self.wrong(B, why, fate, *conditions, mismatch)
        elif at not in macs:
            yield from self.wrong(B, why, fate, *conditions)
        for name in (honest.SRC[version], honest.DST[version], Field.IP_PROTO, Field.VLAN_VID):
            untagged = name is Field.VLAN_VID and arrived.fields[name] == 0
            if name is Field.VLAN_VID and self.door.brought_to and self.net.vrfs[to.vrf].tag and not untagged:
                yield from self.wrong(E, f"to {to.ip}: its tag is left", fate, *conditions)
            if arrived.fields[name] != Sent(name) and not untagged:
                yield from self.wrong(B, f"to {to.ip}: its {name.name.lower()} is another", fate, *conditions)

    def _reaches_outside(
        self, fate: Fate, vrf: str, conditions: tuple[z3.BoolRef, ...]
    ) -> Iterator[Counterexample]:
        router = honest.router_of(self.net, vrf)
        assert router is not None
        at = self.net.location(router.id)
        number = None if at is None else self.net.port_number(at)
        assert at is not None
        came = [(sent.switch, sent.port) for sent in fate.arrived]
        if came != [(at.switch, number)] or fate.told:
            why = f"{self.door.who} to outside: it comes to {_ports(fate.arrived) or 'nowhere'}"
            yield from self.wrong(B, why, fate, *conditions)
        elif fate.arrived[0].fields[Field.ETH_DST] != mac_to_int(router.mac):
            yield from self.wrong(B, "it comes to a MAC that is not the router's", fate, *conditions)

    def _reaches_service(
        self, fate: Fate, ip: IP, conditions: tuple[z3.BoolRef, ...]
    ) -> Iterator[Counterexample]:
        """It comes to one of those that have the address, whichever is the nearest."""
        doors: dict[tuple[str, int], int] = {}
        for _, nic in members_of(self.net, ip):
            doors |= dict.fromkeys(self._ports_of(nic, self.moment.places[nic.port_id]), mac_to_int(nic.mac))
        for server in self.net.serving(ip):
            at = self.net.location(server)
            number = None if at is None else self.net.port_number(at)
            if at is not None and number is not None:
                doors[at.switch, number] = mac_to_int(self.net.servers[server].mac)
        came = [(sent.switch, sent.port) for sent in fate.arrived]
        if len(came) != 1 or came[0] not in doors or fate.told:
            why = f"{self.door.who} to {ip}: it comes to {_ports(fate.arrived) or 'nowhere'}"
            yield from self.wrong(B, why, fate, *conditions)
        elif fate.arrived[0].fields[Field.ETH_DST] != doors[came[0]]:
            yield from self.wrong(
                B, f"to {ip}: it comes to a MAC that is not its receiver's", fate, *conditions
            )

    # ---- (f) ----

    def is_flooded(self, fate: Fate) -> Iterator[Counterexample]:
        nic = self.door.nic
        if nic is None or not self.door.sends_here:
            return
        for one in self.to_all:
            left = undecided(one, fate.known)
            if left is None:
                continue
            version = honest.version_of(one)
            conditions = (
                all_of(left), honest.to_its_vnet(self.net, nic, version), honest.ordinary(version),
                z3.ULE(SIZE, LEAST_MTU),
            )  # fmt: skip
            if not self.explorer.is_possible(*conditions):
                continue
            self.tally.honest += 1
            self.tally.pairs.add((self.door.who, f"vnet {nic.vnet}"))
            why = self._not_to_each(fate, nic)
            if why:
                yield from self.wrong(F, f"{self.door.who} to vnet {nic.vnet}: {why}", fate, *conditions)
            for arrived in () if why else fate.arrived:
                for name in (Field.ETH_DST, Field.IP_TTL, honest.SRC[version], honest.DST[version]):
                    if arrived.fields[name] != Sent(name):
                        why = f"its {name.name.lower()} is another at {_ports([arrived])}"
                        yield from self.wrong(F, why, fate, *conditions)

    def _not_to_each(self, fate: Fate, nic: NIC) -> str:
        """What is wrong with where a frame to all of a vnet has come; "" if nothing is."""
        came = [(sent.switch, sent.port) for sent in fate.arrived]
        if len(set(came)) < len(came):
            return f"it comes twice to one port: {_ports(fate.arrived)}"
        if fate.told:
            return "the controller gets it"
        others: set[End] = set()
        for _, other in self.net.members(nic.vnet):
            if other.port_id == nic.port_id or not other.enabled:
                continue
            right = set(self._ports_of(other, self.moment.places[other.port_id]))
            others |= right
            if not right & set(came):
                return f"it does not come to NIC {other.port_id}"
            if self.moment.everywhere and not right <= set(came):
                return f"of NIC {other.port_id} it does not come to each place"
        return (
            "" if set(came) <= others else f"it comes to {_ports(fate.arrived)}, not {sorted(others)} alone"
        )

    def _ports_of(self, nic: NIC, servers: frozenset[str]) -> Iterator[End]:
        for server in servers:
            edge = self.net.servers[server].edge
            port = self.net.port_of(nic, edge)
            if port is not None:
                yield edge, port.number

    # ---- (d) and (e) ----

    def is_routed(self, fate: Fate) -> Iterator[Counterexample]:
        if self.door.nic is None and self.door.server is None:
            return
        for arrived in fate.arrived:
            if (arrived.switch, arrived.port) == self.door.at and len(arrived.hops) == 1:
                continue  # The switch's own answer, back to who has asked.
            nic = self.net.nic_at(arrived.switch, arrived.port)
            vm = self.net.vm_at(arrived.switch, arrived.port)
            if nic is not None and vm is not None:
                yield from self._comes_rightly(fate, arrived, vm, nic)
            elif self.net.switches[arrived.switch].role is Role.LEAF:
                yield from self._goes_out_rightly(fate, arrived)

    def _vrfs_of_sender(self) -> list[tuple[str, z3.BoolRef]]:
        """The VRFs that what comes in by the door may be of, and when it is."""
        if self.door.server is None:
            return [(self.net.vrf_of(self.door.nic), z3.BoolVal(True))]
        mine = self.door.server.subinterfaces
        tag = UNKNOWN[Field.VLAN_VID]
        default = z3.And(*(tag != TAGGED | one.vlan for one in mine))
        return [(DEFAULT_VRF, default), *((one.vrf, tag == TAGGED | one.vlan) for one in mine)]

    def _goes_out_rightly(self, fate: Fate, arrived: Emission) -> Iterator[Counterexample]:
        """To a machine at a leaf comes what is of the default VRF, untagged; to a router what is of a VRF of
        its own, with the tag there."""
        at = (arrived.switch, arrived.port)
        here = next((s for s in self.net.servers.values() if _end(self.net, s) == at), None)
        has = arrived.fields[Field.VLAN_VID]
        for vrf, is_of in self._vrfs_of_sender():
            there = None if here is None else here.interface_in(vrf)
            what = f"from VRF {vrf} to {_ports([arrived])}"
            if vrf != DEFAULT_VRF and there is None:
                yield from self.wrong(E, f"{what}: nobody there is of it", fate, is_of)
            elif has == Sent(Field.VLAN_VID):
                yield from self.wrong(E, f"{what}: it has a tag", fate, is_of, UNKNOWN[Field.VLAN_VID] != 0)
            elif has != (0 if there is None else TAGGED | there.vlan):
                yield from self.wrong(E, f"{what}: it has another tag than there", fate, is_of)

    def _comes_rightly(self, fate: Fate, arrived: Emission, vm: VM, nic: NIC) -> Iterator[Counterexample]:
        what = f"from {self.door.who} to NIC {nic.port_id}"
        for vrf, is_of in self._vrfs_of_sender():
            if vrf != self.net.vrf_of(nic):
                yield from self.wrong(E, f"{what}: they are in different VRFs", fate, is_of)
        sender, to = self.door.nic, arrived.fields[Field.ETH_DST]
        if to == Sent(Field.ETH_DST):
            group = z3.Extract(honest.GROUP_BIT, honest.GROUP_BIT, UNKNOWN[Field.ETH_DST]) == 1
            if sender is None or not honest.may_flood(self.net, sender) or sender.vnet != nic.vnet:
                yield from self.wrong(F, f"{what}, which is not in a vnet that floods with it", fate, group)
        tagged = UNKNOWN[Field.VLAN_VID] != 0  # It may have a tag of the sender's: none that is taken.
        if arrived.fields[Field.VLAN_VID] == Sent(Field.VLAN_VID):
            yield from self.wrong(E, f"{what}: it has a tag", fate, tagged)
        elif arrived.fields[Field.VLAN_VID] != 0:
            yield from self.wrong(E, f"{what}: it has a tag of the fabric's", fate)
        if fate.known.get(Field.ETH_TYPE) not in [(kind, 0xFFFF) for kind in honest.ETH_TYPE.values()]:
            no_ip = z3.And(*(UNKNOWN[Field.ETH_TYPE] != kind for kind in honest.ETH_TYPE.values()))
            yield from self.wrong(D, f"{what}: it is no IP", fate, no_ip)
        ttl = arrived.fields[Field.IP_TTL]
        if ttl == Sent(Field.IP_TTL, 1):
            here = self.net.server_of_edge(arrived.switch)
            froms: set[Value] = {mac_to_int(self.net.gateway_mac_of(here))}
            if here is not None and _copies(arrived):
                froms = {mac_to_int(here.mac)}  # The mark of what the VM's other place has a copy of.
            if arrived.fields[Field.ETH_SRC] not in froms:
                yield from self.wrong(D, f"{what}: it is routed, and not from the gateway's MAC", fate)
            return
        if ttl != Sent(Field.IP_TTL):
            yield from self.wrong(D, f"{what}: its time to live is {ttl}", fate)
            return
        subnets = self.net.subnets_of(self.net.assignments_of(vm, nic))
        same = [
            z3.And(
                UNKNOWN[Field.ETH_TYPE] == honest.ETH_TYPE[s.prefix.version],
                honest.within(honest.SRC[s.prefix.version], s.prefix),
            )
            for s in subnets
        ]
        if to == Sent(Field.ETH_DST) and sender is not None and sender.vnet == nic.vnet:
            same.append(group)  # Of what is flooded see (f).
        yield from self.wrong(D, f"{what}: its time to live is what it was", fate, z3.Not(z3.Or(*same)))


def _end(net: Network, server: Server) -> End | None:
    """The leaf's port where a machine is."""
    at = net.location(server.id)
    number = None if at is None else net.port_number(at)
    return None if at is None or number is None else (at.switch, number)


def _ports(sent: Sequence[Emission]) -> str:
    return ", ".join(f"{one.switch} port {one.port}" for one in sent)


def _copies(arrived: Emission) -> bool:
    """True where the entry that has sent it sends it to somewhere else as well."""
    return sum(isinstance(action, Output) for action in arrived.flow.actions) > 1
