"""What the interface shows of each thing, as plain values ready for JSON."""

from collections.abc import Container
from typing import Any

import msgspec

from retinue import __version__
from retinue.controller.api import nics
from retinue.controller.app import Controller
from retinue.controller.event_ring import Event
from retinue.core.migration import Migration
from retinue.core.model import VM, Binding, PortRef, mac_to_come
from retinue.core.model.links import all_upward_ports, has_carrier
from retinue.core.model.network import Owner
from retinue.core.model.uplinks import all_found, used_uplink
from retinue.core.model.ways import ways_by
from retinue.core.pipeline.compiler import contribution
from retinue.core.pipeline.cookies import reason_of
from retinue.core.pipeline.entry import Flow
from retinue.core.pipeline.mac_table import mac_table as table_of
from retinue.core.pipeline.tables import Table
from retinue.core.pipeline.text import actions_text, match_text
from retinue.core.snooping.renewed import told_otherwise
from retinue.core.tracing.forgeries import id_of
from retinue.protocol.links import LinkShown
from retinue.protocol.servers import AgentState, ServerState


def plain(value: Any) -> Any:
    """Dataclasses, enums and addresses become dicts, strings and lists."""
    return msgspec.to_builtins(value, enc_hook=str)


def status(controller: Controller, rejected: dict[str, dict[str, int]]) -> dict[str, Any]:
    net, context = controller.net, controller.context
    managers = controller.mobility.deciding.managers
    return {
        "version": __version__,
        "switches": {"known": len(net.switches), "connected": len(context.sessions())},
        "servers": {
            "known": len(net.servers),
            "placed": sum(net.location(s) is not None for s in net.servers),
        },
        "vms": len(net.vms),
        "bindings": len(net.bindings()),
        "migrations_under_way": sum(1 for _ in controller.orchestrator.migrations.under_way()),
        "flow_mods": context.installer.flow_mods,
        "pending": context.installer.pending(),
        "entries_rejected": context.installer.rejected,
        "spoof_attempts": context.spoof_attempts.total,
        "counters": dict(sorted(context.counters.items())),
        "rejected": rejected,
        "rejected_by_agents": controller.agent_rejections.totals(),
        "left_out": sorted(context.state.taken_out),
        "managers": {} if managers is None else managers.shown(),
        "not_kept": context.store_trouble,
        "certificates": context.certificates.soon(context.clock()),
        "last_event": controller.events.last_id,
    }


def switches(controller: Controller, ids: Container[str] | None = None) -> list[dict[str, Any]]:
    """All switches, or of some."""
    context, net = controller.context, controller.net
    pending = context.installer.pending()
    found = []
    for switch in [one for one in net.switches.values() if ids is None or one.id in ids]:
        session = context.session(switch.id)
        runs = net.server_of_edge(switch.id)
        found.append(
            {
                "id": switch.id,
                "role": switch.role,
                "dpid": f"{switch.dpid:#x}",
                "connected": session is not None,
                "peer": session.peer if session else "",
                "openflow": session.openflow if session else "",
                "server": runs.id if runs else "",
                "flows": len(context.compiler.program(switch.id)),
                "pending": pending.get(switch.id, 0),
                "ports": dict(sorted(session.ports.items())) if session else {},
                "rejected_ports": [
                    {"port": one.port.name, "vm": one.port.iface_id, "reason": one.reason}
                    for one in controller.inventory.ports.rejected.values()
                    if one.switch == switch.id
                ],
                "uplink": switch.uplink,
                "standby": switch.standby,
                "places": "given" if switch.given else "detected",
                "tunnel": switch.tunnel,
                "endpoint": "" if switch.endpoint is None else str(switch.endpoint),
                "vdp": switch.vdp,
                "gateway_group": switch.gateway_group,
                "configured": f"switch {switch.id}" in net.configured,
            }
        )
    return found


def links(controller: Controller) -> list[dict[str, Any]]:
    """Links between switches, and uplinks of edges that have several; those of one switch together."""
    net, found = controller.net, []
    used = all_upward_ports(net)
    for link in sorted((*net.links, *all_found(net)), key=lambda one: (one.lower, one.upper)):
        watched = controller.link_probes.watched(link)
        is_idle = link.lower in net.idle_links
        if is_idle:
            state = LinkShown.IDLE
        elif not has_carrier(net, link):
            state = LinkShown.NO_CARRIER
        elif watched is None or not watched.is_looked_at:
            state = LinkShown.LOST if link.lower in net.lost_links else LinkShown.UNKNOWN
        else:
            state = LinkShown(watched.state)
        found.append(
            {
                "lower": str(link.lower),
                "upper": str(link.upper),
                "state": state,
                "reason": controller.fabric.why_idle(link) if is_idle else net.lost_links.get(link.lower, ""),
                "carries": (
                    used_uplink(net, link.lower.switch) == link.lower.port
                    if link.lower in net.uplink_places
                    else net.port_number(link.lower) in used[link.lower.switch]
                ),
                "configured": f"link {link}" in net.configured,
            }
        )
    return found


def servers(controller: Controller) -> list[dict[str, Any]]:
    net = controller.net
    found = []
    for server in net.servers.values():
        detected, location = net.detected.get(server.id), net.location(server.id)
        if location is None:
            state = ServerState.MISSING
        elif server.given_at is not None and detected not in (None, server.given_at):
            state = ServerState.MISMATCH
        else:
            state = ServerState.MATCHED if detected is not None else ServerState.GIVEN
        row = plain(server)
        row.update(
            mac="" if server.mac == mac_to_come(server.id) else server.mac,
            given_at=str(server.given_at or ""), detected_at=str(detected or ""), at=str(location or ""),
            state=state, vms=sorted(net.vms_on(server.id)), fenced=server.id in net.fenced,
            drained=server.id in net.drained, agent=_agent(controller, server.id),
            agent_release=controller.context.agents.release(server.id),
            ways=[str(prefix) for prefix in ways_by(net, server.id)],
            lost=net.lost_routers.get(server.id, ""),
            subinterfaces=[
                {**plain(one), "ways": [str(prefix) for prefix in ways_by(net, server.id, one.vrf)]}
                for one in server.subinterfaces
            ],
        )  # fmt: skip
        found.append(row)
    for address, ref in controller.arp.unknown.items():
        if net.server_of_mac(address) is None:
            found.append(
                {"id": "", "mac": address, "detected_at": str(ref), "at": "", "state": ServerState.UNKNOWN}
            )
    return found


def _agent(controller: Controller, server: str) -> AgentState:
    agents = controller.context.agents
    if agents.listens(server):
        return AgentState.LISTENING
    return AgentState.AWAY if agents.is_known(server) else AgentState.NONE


def vm(controller: Controller, value: VM) -> dict[str, Any]:
    net = controller.net
    edge = net.servers[value.server].edge
    port = net.port_of(value.nic, edge)
    migration = controller.orchestrator.of_vm(value.id)
    held = net.held_by(value.id)
    return {
        **registration(value),
        "state": controller.inventory.state_of(value.id),
        "missing": controller.inventory.missing_for(value),
        "switch": edge,
        "port": port.number if port is not None else None,
        "holds": [str(h.leads) for h in held],
        "migration": migration.id if migration else "",
        "spoof_attempts": controller.context.spoof_attempts.of_vm(value.id),
        "mtu": net.mtu_of(value.nic),
        "warnings": [
            *controller.inventory.settings.doubts(value),
            *controller.external_migrations.doubts(value),
            *(words for lease in held if (words := told_otherwise(lease))),
            *filter(None, [controller.dhcp.unanswered.doubt(value.id, controller.context.clock())]),
        ],
        "subnets": nics.subnets(net, value.nic),
        "nics": nics.with_state(net, value),
        "profile": controller.resources.profile_shown(value.id),
        "reported_addresses": [
            str(ip) for nic in value.nics for ip in controller.inventory.reports.waiting(value, nic)
        ],
    }


def registration(value: VM) -> dict[str, Any]:
    """A VM by itself: its first NIC's MAC and addresses stand beside the VM's own fields, too."""
    first = {"mac": value.nic.mac, "addresses": [str(a) for a in value.nic.addresses]}
    return {**plain(value), **first, "nics": nics.shown(value), "also": sorted(value.also)}


def bindings(controller: Controller, rows: list[Binding]) -> list[dict[str, Any]]:
    """Rows of the snooping table; `confirmed` when the switch has confirmed the entries that make it true."""
    confirmed = {row.vm: controller.context.is_programmed(Owner("vm", row.vm)) for row in rows}
    return [{**plain(row), "confirmed": confirmed[row.vm]} for row in rows]


def spoof_attempts(controller: Controller, vm: str | None = None) -> dict[str, Any]:
    """The spoofing log: each port, the rows that are kept, and what the switches have dropped; or a VM's."""
    frames: dict[str, int] = {}
    for (switch, _), count in controller.spoof_counts.frames.items():
        frames[switch] = frames.get(switch, 0) + count
    log = controller.context.spoof_attempts
    return {
        "ports": plain(log.ports(vm)),
        "spoof_attempts": [{"id": id_of(row), **plain(row)} for row in log.rows(vm)],
        "dropped_frames": {switch: count for switch, count in sorted(frames.items()) if count},
    }


def migration(controller: Controller, value: Migration) -> dict[str, Any]:
    figures = plain(controller.orchestrator.figures_of(value.id))
    steps = [{"state": state, "at": at} for state, at in value.steps]
    waits = controller.orchestrator.waits_for(value.id) if _is_now(controller, value) else ""
    chosen = placement(controller, value.id)
    return {**plain(value), "steps": steps, "figures": figures, "waits_for": waits, "placement": chosen}


def placement(controller: Controller, migration: str) -> dict[str, Any] | None:
    """How a migration's target was chosen, in short; None: it was named by whoever started it."""
    kept = controller.context.state.placements.get(migration)
    if kept is None:
        return None
    decision, wish = kept.decision, kept.snapshot.wish
    return {
        "match": kept.match,
        "by": kept.by,
        "reason": wish.reason,
        "measured": wish.measured,
        "threshold": wish.threshold,
        "seconds": wish.seconds,
        "runner_up": decision.runner_up,
        "decided_by": decision.decided_by,
        "text": decision.text,
    }


def _is_now(controller: Controller, value: Migration) -> bool:
    """False for what an earlier event tells of a migration."""
    return controller.orchestrator.migrations.get(value.id) == value


def flows(controller: Controller, switch: str, vm: str | None = None) -> list[dict[str, Any]]:
    """The entries a switch should hold, in the order it looks at them, each with whether it is confirmed.

    With `vm` only those that are there for this VM, and would go with it.
    """
    programmer = controller.context.installer.switches[switch]
    program = controller.context.compiler.program(switch)
    its = None if vm is None else contribution(controller.net, Owner("vm", vm)).get(switch, {})
    wanted = program.whole() if its is None else program.taken(its)
    entries = [e for e in wanted.values() if isinstance(e, Flow) and programmer.lacking.is_given(e)]
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
            "confirmed": programmer.confirmed(flow.key),
        }
        for flow in entries
    ]


def mac_table(controller: Controller, switch: str) -> list[dict[str, Any]]:
    """Of an edge switch: local MACs with their ports, and the gateway's at the uplink."""
    net, programmer = controller.net, controller.context.installer.switches[switch]
    program = controller.context.compiler.program(switch).whole()
    wanted = [entry for entry in program.values() if isinstance(entry, Flow)]
    used = net.port_number(PortRef(switch, used_uplink(net, switch)))
    held = table_of((entry for entry in wanted if programmer.confirmed(entry.key)), used)
    return [
        {
            "mac": row.mac,
            "port": row.port,
            "name": net.port_name(switch, row.port) or "",
            "vm": "" if row.shared or (vm := net.vm_of_mac(row.mac)) is None else vm.id,
            "shared": row.shared,
            "confirmed": row in held,
        }
        for row in table_of(wanted, used)
    ]


def event(value: Event, controller: Controller) -> dict[str, Any]:
    """An event with its things shown as the rest of the interface shows them."""
    data = {key: _shown(item, controller) for key, item in value.data.items()}
    return {"id": value.id, "at": value.at, "type": value.type, **data}


def _shown(item: Any, controller: Controller) -> Any:
    match item:
        case Migration():
            return migration(controller, item)
        case VM() if item.id in controller.net.vms:
            return vm(controller, item)
        case VM():
            return registration(item)
        case _:
            return plain(item)


__all__ = [
    "bindings",
    "event",
    "flows",
    "mac_table",
    "spoof_attempts",
    "migration",
    "plain",
    "servers",
    "status",
    "switches",
    "vm",
]
