"""Rows that switches with a snooping table of their own report: judged, and then bindings like all others."""

from collections.abc import Sequence

from retinue.controller.context import Context
from retinue.controller.leases.binder import bind, release
from retinue.core.snooping.switch_rows import Holding, SwitchRow, ended, judged
from retinue.protocol.events import EventType

GONE = "the switch that had made it has it no longer"


class SwitchRows:
    """Takes the tables of switches in, each as a whole."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._reported: dict[str, frozenset[Holding]] = {}
        """By switch: what it had when it reported last."""

    async def reported(self, switch: str, rows: Sequence[SwitchRow]) -> list[str]:
        """A switch's whole table. For each row why it is not believed, or "": then it is a binding, and what
        it rests on is confirmed by every switch that is connected."""
        net, context = self._context.net, self._context
        before = self._reported.get(switch, frozenset())
        now = frozenset((row.mac, row.ip) for row in rows)
        self._reported[switch] = now
        for held in ended(net, switch, before - now):
            await release(context, held, GONE)
        return [await self._row(switch, row) for row in rows]

    async def _row(self, switch: str, row: SwitchRow) -> str:
        context = self._context
        found = judged(context.net, switch, row)
        if found is None:
            return ""
        if isinstance(found, str):
            vm = context.net.vm_of_mac(row.mac)
            data = {"vm": "" if vm is None else vm.id, "ip": row.ip, "reason": found}
            context.events.tell((switch, row.mac), EventType.BINDING_REJECTED, **data)
            return found
        other = context.net.holder(found.ip, found.vrf)
        made = await bind(context, found, other is not None, lambda held: None)
        if made:
            return ""
        held = context.net.holder(found.ip, found.vrf)
        if held == found:
            return "not every switch has confirmed it yet"
        return "it is not free" if held is None else f"{found.ip} is held by VM {held.vm}"
