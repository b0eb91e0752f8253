"""Neighbour discovery that a switch answers by itself, as it does ARP: for gateways, and VMs delivered there.

Only Open vSwitch can, with a datapath in user space. Of another switch the controller finds that it cannot
(`controller.switches.abilities`), and answers everybody there itself. Whoever answers, what is said is the
same (`responders.nd`).

A solicitation that names its sender's MAC is turned into the advertisement in two passes through ANSWER: the
fields of an advertisement can be written only where a match says that it is one. The option with the sender's
MAC becomes that with the wanted one. So who names no MAC is answered by the controller: no switch makes room
for an option. Nor does a switch answer a duplicate check, which names none by its nature (RFC 4861, 4.3): who
holds an address, or may make it, the controller decides for the whole network at once.

Each answer is made in the part of Open vSwitch that is slow. All that a VM asks is metered on its way here,
by the table ND, as are questions to the controller: that bounds the answers; but a frame that the meter drops
has come to the slow part, too.
"""

from collections.abc import Iterable, Iterator
from ipaddress import IPv6Address

from retinue.core.model import Assignment, BindingKind, Mac
from retinue.core.model.link_local import LINK_LOCAL, UNSPECIFIED
from retinue.core.model.network import Network, Owner
from retinue.core.packets import HOP_LIMIT, NDType
from retinue.core.packets.nd import OVERRIDE, ROUTER, SOLICITED
from retinue.core.packets.nd_options import SOURCE_MAC, TARGET_MAC
from retinue.core.pipeline.cookies import Reason, cookie
from retinue.core.pipeline.entry import (
    CONTROLLER,
    Action,
    Field,
    FieldValue,
    Flow,
    Match,
    Output,
    PortNo,
    RegMove,
    Resubmit,
    SetField,
    in_order,
    set_field,
)
from retinue.core.pipeline.matches import icmpv6_match
from retinue.core.pipeline.meters import LeafMeter
from retinue.core.pipeline.priorities import TABLE_MISS, Answer, LeafAdmit
from retinue.core.pipeline.tables import Table

WHOLE = 0
"""`ip_frag` of what is no fragment: neighbour discovery is never fragmented (RFC 6980)."""


def edge_flows(owner: Owner, gateways: Iterable[IPv6Address], gateway_mac: Mac) -> Iterator[Flow]:
    """What an edge switch holds whatever VMs it has: its gateways' answers."""
    mark = cookie(Reason.FORWARD, owner)
    for gateway in gateways:
        asked, answer = _asked_for(gateway), _answer(gateway_mac, router=True)
        yield Flow(Table.ANSWER, Answer.GATEWAY, asked, answer, cookie=mark)
    yield advertisement(owner)


def for_all_vrfs(owner: Owner) -> Iterator[Flow]:
    quiet = cookie(Reason.QUIET, owner)
    yield Flow(Table.ANSWER, TABLE_MISS, (), cookie=cookie(Reason.FORWARD, owner))
    from_nobody = icmpv6_match(NDType.NEIGHBOUR_SOLICITATION, ipv6_src=UNSPECIFIED)
    yield Flow(Table.ANSWER, Answer.UNSPECIFIED, from_nobody, cookie=quiet)


def advertisement(owner: Owner) -> Flow:
    """The second pass: what is an advertisement by now is sent back with the MAC that it comes from."""
    told = (RegMove(Field.ETH_SRC, Field.IPV6_ND_TLL), Output(PortNo.IN_PORT))
    is_one = icmpv6_match(NDType.NEIGHBOUR_ADVERTISEMENT)
    return Flow(Table.ANSWER, Answer.ADVERTISEMENT, is_one, told, cookie=cookie(Reason.FORWARD, owner))


def vm_questions(owner: Owner, port: int) -> Flow:
    """What the edge switch cannot answer of a VM's questions, the controller is asked; ND has metered it."""
    asked = icmpv6_match(NDType.NEIGHBOUR_SOLICITATION, in_port=port)
    to_controller = cookie(Reason.VM_ND, owner)
    return Flow(Table.ANSWER, Answer.TO_CONTROLLER, asked, (CONTROLLER,), cookie=to_controller)


def vm_address_flows(
    net: Network, owner: Owner, assignment: Assignment, port: int, gateway_mac: Mac, *, delivered: bool
) -> Iterator[Flow]:
    """Questions about an address of a VM at this port; when the VM is `delivered` here the switch answers."""
    mark, ip, until = cookie(Reason.FORWARD, owner), assignment.ip, assignment.lease_end
    assert isinstance(ip, IPv6Address)
    quiet, its_own = cookie(Reason.QUIET, owner), _asked_for(ip, in_port=port)
    yield Flow(Table.ANSWER, Answer.OWN_ADDRESS, its_own, cookie=quiet, expires_at=until)
    subnet = net.subnet_of(ip, assignment.vrf)
    if not delivered or subnet is None:
        return
    # An address that may be another's in a moment is found by the gateway: no cache has to be told.
    is_shared = assignment.kind is BindingKind.ALLOWED
    answer = _answer(gateway_mac if is_shared else assignment.mac)
    for neighbours in (subnet.prefix, LINK_LOCAL):
        asked = _asked_for(ip, ipv6_src=neighbours)
        yield Flow(Table.ANSWER, Answer.LOCAL_VM, asked, answer, cookie=mark, expires_at=until)


def guest_flow(ip: IPv6Address, mac: Mac, port: int, gateway_mac: Mac, mark: int) -> Flow:
    """What a guest at this port asks for in the name of its address, wherever it is delivered."""
    asked = icmpv6_match(NDType.NEIGHBOUR_SOLICITATION, in_port=port, eth_src=mac, ipv6_src=ip, ip_frag=WHOLE)
    return Flow(Table.ANSWER, Answer.GUEST, asked, _answer(gateway_mac, router=True), cookie=mark)


def leaf_flows(net: Network, owner: Owner, gateways: Iterable[IPv6Address], here: Match) -> Iterator[Flow]:
    """A leaf answers for gateways, and tells the controller, so that servers are found. `here`: where the
    question comes in."""
    told = cookie(Reason.SERVER_ND_ANSWERED, owner)
    unspecified = icmpv6_match(NDType.NEIGHBOUR_SOLICITATION, ipv6_src=UNSPECIFIED)
    yield Flow(
        Table.ADMIT, LeafAdmit.ND_UNSPECIFIED, in_order(*unspecified, *here), (CONTROLLER,),
        meter=LeafMeter.ARP, cookie=cookie(Reason.SERVER_ND, owner),
    )  # fmt: skip
    for gateway in gateways:
        asked = _asked_for(gateway, ip_ttl=HOP_LIMIT, nd_options_type=SOURCE_MAC)
        yield Flow(
            Table.ADMIT, LeafAdmit.ND_GATEWAY, in_order(*asked, *here),
            (CONTROLLER, *_turned(net.gateway_mac, router=True)), goto=Table.ANSWER,
            meter=LeafMeter.ARP, cookie=told,
        )  # fmt: skip


def _asked_for(target: IPv6Address, **terms: FieldValue) -> Match:
    return icmpv6_match(NDType.NEIGHBOUR_SOLICITATION, ipv6_nd_target=target, ip_frag=WHOLE, **terms)


def _answer(with_mac: Mac, *, router: bool = False) -> tuple[Action, ...]:
    return (*_turned(with_mac, router=router), Resubmit(Table.ANSWER))


def _turned(with_mac: Mac, *, router: bool) -> tuple[Action, ...]:
    """Of a solicitation the advertisement that the wanted address is at `with_mac`, but for the MAC in it."""
    return (
        RegMove(Field.ETH_SRC, Field.ETH_DST),
        set_field(Field.ETH_SRC, with_mac),
        RegMove(Field.IPV6_SRC, Field.IPV6_DST),
        RegMove(Field.IPV6_ND_TARGET, Field.IPV6_SRC),
        SetField(Field.ND_RESERVED, (ROUTER * router | SOLICITED | OVERRIDE) << 24),
        SetField(Field.ND_OPTIONS_TYPE, TARGET_MAC),
        SetField(Field.ICMPV6_TYPE, NDType.NEIGHBOUR_ADVERTISEMENT),
    )
