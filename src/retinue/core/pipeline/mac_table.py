"""The MAC table that an edge switch's entries amount to: where frames to which MAC go out.

US 9,515,930, figure 5.

Local MACs are those of NICs that are delivered there, the last row is the gateway's shared MAC: every other
unicast MAC becomes that, and goes up. Nothing is learned, so it is read from the entries.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from retinue.core.model import Mac
from retinue.core.model.addresses import mac_from_int
from retinue.core.pipeline.entry import Field, Flow, Output, SetField, ToGroup
from retinue.core.pipeline.priorities import VRF_BAND, Forward
from retinue.core.pipeline.tables import Table
from retinue.core.pipeline.uplinks import UP_GROUP


@dataclass(frozen=True, slots=True, order=True)
class MacRow:
    """Frames to this MAC go out of this port; `shared`: all others do, under it."""

    shared: bool
    mac: Mac
    port: int


def mac_table(flows: Iterable[Flow], uplink: int | None = None) -> list[MacRow]:
    """Local MACs in their order, then the shared one. `uplink`: of several that which is in use."""
    found = set()
    for flow in flows:
        if flow.table is not Table.FORWARD:
            continue
        ports = [action.port for action in flow.actions if isinstance(action, Output)]
        if uplink is not None and ToGroup(UP_GROUP) in flow.actions:
            ports.append(uplink)
        if flow.priority % VRF_BAND == Forward.LOCAL_VM and ports:
            macs = [value for field, value, mask in flow.match if field is Field.ETH_DST and mask is None]
            found |= {MacRow(False, mac_from_int(mac), ports[0]) for mac in macs}
        elif flow.priority % VRF_BAND == Forward.UP and ports:
            written = [action for action in flow.actions if isinstance(action, SetField)]
            macs = [action.value for action in written if action.field is Field.ETH_DST]
            found |= {MacRow(True, mac_from_int(mac), ports[0]) for mac in macs}
    return sorted(found)
