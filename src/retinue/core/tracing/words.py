"""Entries, and why the controller is told of a frame, in the words of the pipeline."""

from dataclasses import dataclass
from enum import IntEnum

from retinue.core.model import Role
from retinue.core.pipeline.cookies import Reason, reason_of
from retinue.core.pipeline.entry import Flow, Meter
from retinue.core.pipeline.priorities import PRIORITIES, VRF_BAND, EdgeAdmit, Route
from retinue.core.pipeline.tables import Table
from retinue.core.pipeline.text import actions_text, match_text

NOT_OURS = "not ours"
"""Of an entry that no priority of ours names: somebody else has put it there."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry that a frame has met, for people: table and priority by number and name."""

    table: int
    table_name: str
    priority: int
    priority_name: str
    match: str
    actions: str
    reason: str
    """What it is for (pipeline.cookies); "" where it is not ours."""
    meter: str
    """How much of what it matches passes; "": everything."""


def entry_words(role: Role, flow: Flow, meter: Meter | None) -> Entry:
    reason = reason_of(flow.cookie)
    return Entry(
        table=flow.table,
        table_name=table_name(flow.table),
        priority=flow.priority,
        priority_name=priority_name(role, flow),
        match=match_text(flow.match),
        actions=actions_text(flow),
        reason="" if reason is None else reason.name.lower(),
        meter="" if flow.meter is None else meter_words(flow.meter, meter),
    )


def table_name(number: int) -> str:
    return Table(number).name if number in Table._value2member_map_ else str(number)


def base_priority(flow: Flow) -> int:
    """The priority as it is in the default VRF's part of the table."""
    in_band = flow.priority >= VRF_BAND and flow.table not in (Table.ADMIT, Table.SERVERS)
    return flow.priority - VRF_BAND if in_band else flow.priority


def priority_name(role: Role, flow: Flow) -> str:
    """ "BOUND"; "PREFIX/24"; "HOST in a VRF"; NOT_OURS."""
    number = base_priority(flow)
    band = " in a VRF" if number != flow.priority else ""
    if flow.table not in Table._value2member_map_:
        return NOT_OURS
    names = PRIORITIES.get((role, Table(flow.table)))
    if number == 0:
        return f"MISS{band}"
    for base in (Route.PREFIX, Route.SIZE) if names is Route else ():
        if base <= number <= base + 128:
            return f"{base.name}/{number - base}{band}"
    member = None if names is None else named(names, flow)
    if member is not None:
        return f"{member.name}{band}"
    return NOT_OURS


def named(names: type[IntEnum], flow: Flow) -> IntEnum | None:
    """The priority by its name; None for none of ours."""
    number = base_priority(flow)
    if number not in names._value2member_map_:
        return None
    # Members of one number are one to an enumeration: of an edge's ports, those of VMs and all others.
    if names is EdgeAdmit and number == EdgeAdmit.FOREIGN_MAC and reason_of(flow.cookie) is Reason.FORWARD:
        return _Server.SERVER
    return names(number)


class _Server(IntEnum):
    SERVER = EdgeAdmit.SERVER


def meter_words(number: int, meter: Meter | None) -> str:
    if meter is None:
        return f"meter {number}, which the switch does not have"
    unit = "kbit/s" if meter.kilobits else "frames a second"
    return f"meter {number}: up to {meter.rate} {unit}"


TOLD: dict[Reason, str] = {
    Reason.DHCP_CLIENT: "the controller judges it and hands it on to the DHCP servers",
    Reason.DHCP6_CLIENT: "the controller judges it and hands it on to the DHCPv6 servers",
    Reason.DHCP_SERVER: "the controller judges the DHCP server's message and hands it on to the VM",
    Reason.DHCP6_SERVER: "the controller judges the DHCPv6 server's message and hands it on to the VM",
    Reason.VM_ARP: "the controller is asked",
    Reason.VM_ND: "the controller is asked",
    Reason.VDP: "the controller looks whether its leaf tells it another gateway's MAC",
    Reason.FIP_NODE: "the controller judges it and hands it on to the FCoE forwarders",
    Reason.FIP_FORWARDER: "the controller judges it and hands it on to the nodes that it is for",
    Reason.SERVER_ARP: "the controller is told: so servers are found, and answered",
    Reason.SERVER_ND_ANSWERED: "the controller is told: so servers are found",
    Reason.SERVER_ND: "the controller is told: so servers are found, and answered",
}
"""Of what is no spoofing: why a frame goes to the controller, and what comes of it."""
