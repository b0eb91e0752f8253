"""What the interface shows of each thing, as plain values ready for JSON."""

from typing import Any

import msgspec

from retinue import __version__
from retinue.controller.controller import Controller
from retinue.controller.events import Event
from retinue.flows.compiler import contribution
from retinue.flows.entry import Flow
from retinue.flows.pipeline import Table, reason_of
from retinue.flows.text import actions_text, match_text
from retinue.model import VM, Binding
from retinue.model.network import Owner
from retinue.moves import Move


def plain(value: Any) -> Any:
    """Dataclasses, enums and addresses become dicts, strings and lists."""
    return msgspec.to_builtins(value, enc_hook=str)


def encode(value: Any) -> bytes:
    return msgspec.json.encode(value, enc_hook=str)


def status(controller: Controller, refused: dict[str, dict[str, int]]) -> dict[str, Any]:
    net, context = controller.net, controller.context
    return {
        "version": __version__,
        "switches": {"known": len(net.switches), "connected": len(context.sessions)},
        "servers": {"known": len(net.servers), "placed": sum(net.place(s) is not None for s in net.servers)},
        "vms": len(net.vms),
        "bindings": len(net.bindings()),
        "moves_under_way": sum(not m.state.ended for m in controller.mover.moves.values()),
        "flow_mods": context.installer.flow_mods,
        "pending": context.installer.pending(),
        "rejected": context.installer.rejected,
        "forgeries": context.forgeries.total,
        "counters": dict(sorted(context.counters.items())),
        "refused": refused,
        "refused_by_agents": controller.agent_refusals.totals(),
        "last_event": controller.events.last_id,
    }


def switches(controller: Controller) -> list[dict[str, Any]]:
    context = controller.context
    pending = context.installer.pending()
    found = []
    for switch in controller.net.switches.values():
        session = context.sessions.get(switch.id)
        runs = controller.net.server_of_edge(switch.id)
        found.append(
            {
                "id": switch.id,
                "role": switch.role,
                "dpid": f"{switch.dpid:#x}",
                "connected": session is not None,
                "peer": session.peer if session else "",
                "server": runs.id if runs else "",
                "flows": len(context.compiler.program(switch.id)),
                "pending": pending.get(switch.id, 0),
                "ports": dict(sorted(session.ports.items())) if session else {},
            }
        )
    return found


def servers(controller: Controller) -> list[dict[str, Any]]:
    net = controller.net
    found = []
    for server in net.servers.values():
        detected, place = net.detected.get(server.id), net.place(server.id)
        if place is None:
            state = "missing"
        elif server.given_at is not None and detected not in (None, server.given_at):
            state = "mismatch"
        else:
            state = "matched" if detected is not None else "given"
        row = plain(server)
        row.update(
            given_at=str(server.given_at or ""), detected_at=str(detected or ""), at=str(place or ""),
            state=state, vms=sorted(net.vms_on(server.id)),
        )  # fmt: skip
        found.append(row)
    for address, ref in controller.arp.unknown.items():
        if net.server_of_mac(address) is None:
            found.append({"id": "", "mac": address, "detected_at": str(ref), "at": "", "state": "unknown"})
    return found


def vm(controller: Controller, value: VM) -> dict[str, Any]:
    net = controller.net
    ports = net.vm_ports.get(value.id, {})
    edge = net.servers[value.server].edge
    move = controller.mover.of_vm(value.id)
    held = net.held_by(value.id)
    return {
        **plain(value),
        "also": sorted(value.also),
        "state": controller.vm_states.get(value.id, "booked"),
        "missing": controller.missing_for(value),
        "switch": edge,
        "port": ports[edge].number if edge in ports else None,
        "holds": [str(h.ip) for h in held],
        "move": move.id if move else "",
        "forgeries": controller.context.forgeries.of_vm(value.id),
        "subnets": {str(a): _subnet(controller, a) for a in value.addresses},
    }


def _subnet(controller: Controller, address: Any) -> dict[str, Any]:
    subnet = controller.net.subnet_of(address)
    return {} if subnet is None else {"prefixlen": subnet.prefix.prefixlen, "gateway": str(subnet.gateway)}


def bindings(controller: Controller, rows: list[Binding]) -> list[dict[str, Any]]:
    """Rows of the snooping table; `confirmed` when the switch has confirmed the entries that make it true."""
    confirmed = {row.vm: controller.context.stands(Owner("vm", row.vm)) for row in rows}
    return [{**plain(row), "confirmed": confirmed[row.vm]} for row in rows]


def forgeries(controller: Controller) -> dict[str, Any]:
    frames: dict[str, int] = {}
    for (switch, _), count in controller.forged_frames.items():
        frames[switch] = frames.get(switch, 0) + count
    return {
        "forgeries": plain(controller.context.forgeries.rows()),
        "dropped_frames": {switch: count for switch, count in sorted(frames.items()) if count},
    }


def move(controller: Controller, value: Move) -> dict[str, Any]:
    figures = plain(controller.mover.figures.get(value.id, {}))
    steps = [{"state": state, "at": at} for state, at in value.steps]
    return {**plain(value), "steps": steps, "figures": figures}


def flows(controller: Controller, switch: str, vm: str | None = None) -> list[dict[str, Any]]:
    """The entries a switch should hold, in the order it looks at them, each with whether it is confirmed.

    With `vm` only those that are there for this VM, and would go with it.
    """
    installer = controller.context.installer
    mirror = installer.mirror(switch)
    program = controller.context.compiler.program(switch)
    its = program if vm is None else contribution(controller.net, Owner("vm", vm)).get(switch, {})
    entries = [entry for key, entry in program.items() if key in its and isinstance(entry, Flow)]
    entries.sort(key=lambda f: (f.table, -f.priority, f.match))
    return [
        {
            "switch": switch,
            "role": controller.net.switches[switch].role,
            "table": flow.table,
            "table_name": Table(flow.table).name,
            "priority": flow.priority,
            "match": match_text(flow.match),
            "actions": actions_text(flow),
            "reason": (reason.name.lower() if (reason := reason_of(flow.cookie)) is not None else ""),
            "cookie": f"{flow.cookie:#x}",
            "expires_at": flow.expires_at,
            "confirmed": installer.confirmed(switch, flow.key) and flow.key in mirror,
        }
        for flow in entries
    ]


def event(value: Event, controller: Controller) -> dict[str, Any]:
    """An event with its things shown as the rest of the interface shows them."""
    data = {key: _shown(item, controller) for key, item in value.data.items()}
    return {"id": value.id, "at": value.at, "type": value.type, **data}


def _shown(item: Any, controller: Controller) -> Any:
    match item:
        case Move():
            return move(controller, item)
        case VM() if item.id in controller.net.vms:
            return vm(controller, item)
        case _:
            return plain(item)


__all__ = [
    "bindings",
    "encode",
    "event",
    "flows",
    "forgeries",
    "move",
    "plain",
    "servers",
    "status",
    "switches",
    "vm",
]
