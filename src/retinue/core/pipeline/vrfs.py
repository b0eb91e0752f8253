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
    in_order,
)
from retinue.core.pipeline.matches import ANY_TAG, NO_TAG
from retinue.core.pipeline.priorities import VRF_BAND
from retinue.core.pipeline.tables import Table

_PRESENT = ANY_TAG[1]
_UNTAGGED = (Field.VLAN_VID, NO_TAG, None)
E = TypeVar("E", bound=Flow | Group | Meter)


def in_band(flows: Iterable[Flow]) -> Iterator[Flow]:
    """What holds in every other VRF as it does in the default one, of the tables behind ADMIT."""
    return (_moved(flow, *ANY_TAG) for flow in flows if flow.table != Table.ADMIT)


def with_tag(flow: Flow) -> Flow:
    """An entry of ADMIT, for frames with a tag instead of those without."""
    return replace(flow, match=_with_vlan(flow.match, *ANY_TAG))


def at_edge(
    entries: Iterable[E], tag: int, uplink: int | None = None, vlan: int = 0, asker: int = 0
) -> Iterator[E]:
    """An edge's entries about a NIC, or about gateways, in the VRF that has this tag (0: the default one).

    `uplink`: the port where frames keep their tag. Back up goes also what DELIVER sends back. `vlan`: the tag
    that the NIC's frames have at its port (see `trunk`), `asker`: that of who is answered; 0: none.
    """
    for entry in entries:
        if not isinstance(entry, Flow) or not (tag or vlan):
            yield entry
        elif entry.table == Table.ADMIT:
            yield _admitted(entry, tag, vlan)  # type: ignore[misc]
        else:
            moved = _moved(entry, _PRESENT | tag) if tag else entry
            yield replace(moved, actions=_leaving(entry, tag, uplink, vlan, asker))  # type: ignore[misc]


def _admitted(entry: Flow, tag: int, vlan: int) -> Flow:
    """What asks for no tag lets that of the trunk in instead, and takes it off; what looks at none stays."""
    actions = entry.actions
    if vlan and _UNTAGGED in entry.match:
        taken = (PopVlan(),) if actions or entry.goto is not None else ()
        entry, actions = replace(entry, match=_with_vlan(entry.match, _PRESENT | vlan)), (*taken, *actions)
    if tag and entry.goto is not None:  # Else it ends here, or at the controller, as it came.
        actions = (*actions, *_put(tag))
    return replace(entry, actions=actions)


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
    return in_order(*others, (Field.VLAN_VID, value, mask))


def _put(tag: int) -> tuple[Action, ...]:
    """Of a frame without a tag, or (0) take away the one that it has."""
    return (PushVlan(), SetField(Field.VLAN_VID, _PRESENT | tag)) if tag else (PopVlan(),)


def _leaving(flow: Flow, tag: int, uplink: int | None, vlan: int, asker: int) -> tuple[Action, ...]:
    """The entry's actions, and before each port the tag that frames have there, or none."""
    actions: list[Action] = []
    has = tag
    for action in flow.actions:
        if isinstance(action, Output):
            goes_up = action.port == (PortNo.IN_PORT if flow.table == Table.DELIVER else uplink)
            elsewhere: dict[int, int] = {PortNo.CONTROLLER: 0, PortNo.IN_PORT: asker}
            wants = tag if goes_up else elsewhere.get(action.port, vlan)
            if has != wants:
                actions.extend(
                    (SetField(Field.VLAN_VID, _PRESENT | wants),) if has and wants else _put(wants)
                )
            has = wants
        actions.append(action)
    return tuple(actions)
