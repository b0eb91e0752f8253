"""Routing domains (VRFs) on the switches: how a packet's own is known, and kept apart from all others.

An edge knows it by the port where a VM's packet comes in, and puts the VRF's tag before what it admits
(802.1Q). From there on the tag says whose the packet is, through edges, leaves and spines, until an edge
takes it away before a VM's port. Packets of the default VRF have none, as in a network that has no other.
Whether a frame from outside may bring a tag ADMIT decides: from a VM's port never, at a leaf from the ports
of edges and spines.

What the tables say of an address or a gateway they say for each VRF: in a *band* of priorities of its own,
above the default VRF's, by entries that match its tag. The lowest entry of the band drops whatever has a tag,
so nothing that has one ever meets an entry of the default VRF; and those of a network are the same, be there
other VRFs or not. Tables that go by servers' MACs (SERVERS) are for all.

The entries are computed as for the default VRF, and then, here, moved into the band.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

from retinue.core.pipeline.entry import (
    Action,
    Field,
    Flow,
    FlowsBySwitch,
    Group,
    Match,
    Meter,
    Output,
    PopVlan,
    PortNo,
    PushVlan,
    SetField,
)
from retinue.core.pipeline.matches import ANY_TAG
from retinue.core.pipeline.priorities import VRF_BAND
from retinue.core.pipeline.tables import Table

_PRESENT = ANY_TAG[1]
E = TypeVar("E", bound=Flow | Group | Meter)


def in_band(flows: Iterable[Flow]) -> Iterator[Flow]:
    """What holds in every other VRF as it does in the default one, of the tables behind ADMIT."""
    return (_moved(flow, *ANY_TAG) for flow in flows if flow.table != Table.ADMIT)


def with_tag(flow: Flow) -> Flow:
    """An entry of ADMIT, for frames with a tag instead of those without."""
    return replace(flow, match=_with_vlan(flow.match, *ANY_TAG))


def at_edge(entries: Iterable[E], tag: int, uplink: int | None = None) -> Iterator[E]:
    """An edge's entries about a NIC, or about gateways, in the VRF that has this tag (0: the default one).

    `uplink`: the port where frames keep their tag. Back up goes also what DELIVER sends back.
    """
    for entry in entries:
        if not tag or not isinstance(entry, Flow):
            yield entry
        elif entry.table != Table.ADMIT:
            moved = _moved(entry, _PRESENT | tag)
            yield replace(moved, actions=_leaving(entry, tag, uplink))  # type: ignore[misc]
        elif entry.goto is None:
            yield entry  # It ends here, or at the controller, as it came.
        else:
            yield replace(entry, actions=(*entry.actions, *_put(tag)))


def on_fabric(flows: Iterable[Flow], tag: int) -> Iterator[Flow]:
    """Entries of leaves and spines about addresses of the VRF that has this tag."""
    for flow in flows:
        if not tag:
            yield flow
        elif flow.table == Table.ADMIT:
            yield replace(flow, match=_with_vlan(flow.match, _PRESENT | tag))
        else:
            yield _moved(flow, _PRESENT | tag)


def on_each(found: FlowsBySwitch, tag: int) -> FlowsBySwitch:
    """As `on_fabric`, by switch."""
    return {switch: list(on_fabric(flows, tag)) for switch, flows in found.items()} if tag else found


def _moved(flow: Flow, value: int, mask: int | None = None) -> Flow:
    return replace(flow, priority=VRF_BAND + flow.priority, match=_with_vlan(flow.match, value, mask))


def _with_vlan(match: Match, value: int, mask: int | None = None) -> Match:
    others = [term for term in match if term[0] is not Field.VLAN_VID]
    return tuple(sorted([*others, (Field.VLAN_VID, value, mask)], key=lambda term: term[0]))


def _put(tag: int) -> tuple[Action, ...]:
    return PushVlan(), SetField(Field.VLAN_VID, _PRESENT | tag)


def _leaving(flow: Flow, tag: int, uplink: int | None) -> tuple[Action, ...]:
    """The entry's actions, the tag being taken away before each port where no frame has one."""
    actions: list[Action] = []
    tagged = True
    for action in flow.actions:
        if isinstance(action, Output):
            goes_up = action.port == (PortNo.IN_PORT if flow.table == Table.DELIVER else uplink)
            if tagged and not goes_up:
                actions.append(PopVlan())
            elif goes_up and not tagged:
                actions.extend(_put(tag))
            tagged = goes_up
        actions.append(action)
    return tuple(actions)
