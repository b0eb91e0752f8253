"""A controller killed at any state of a migration, whatever comes back in whichever order, costs nothing.

What is not heard of yet is left alone, what is known to be wrong goes as its switch is read, and no step of
the migration ends before.
"""

import asyncio
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retinue.controller.state import Stored
from retinue.core.migration import MigrationState
from retinue.core.model import PortRef
from support import virtual_time
from support.examples import examples
from support.fabric.networks import GATEWAY_MAC, OVER, add_vm, assignment, fabric, vm_ip, vm_port
from support.fabric.restart_world import WHOLE, RestartWorld, nothing_known_is_left, port_of
from support.fabric.world import OUTSIDE, udp_frame
from support.fakes.session import FakeNetwork, FakeSession

EDGES = ("edge1", "edge2", "edge3")
SWITCHES = (*EDGES, "leaf1", "leaf2", "spine1", "spine2")
SOON = 0.4
"""Seconds of virtual time in which a controller does what it can; less than any limit of a migration."""
AWAY = (0.0, 90.0, 7200.0, 90_000.0)
"""A restart; what is longer than any limit of a migration; a night's part, and more than a day."""


@settings(deadline=None, max_examples=examples(20), suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_controller_killed_at_any_state_of_a_migration_costs_nothing(data: st.DataObject) -> None:
    servers_on = data.draw(
        st.sampled_from([(1, 2, 1), (2, 1, 2), (1, 1, 2), (1, 2, 3)]), label="leaf of each server"
    )
    source = data.draw(st.integers(1, 3), label="source")
    target = data.draw(st.sampled_from([n for n in (1, 2, 3) if n != source]), label="target")
    said = data.draw(st.integers(0, len(WHOLE)), label="reports before the kill")
    in_the_middle = data.draw(st.booleans(), label="killed before the switches were told")
    goes_back = data.draw(st.booleans(), label="the migration fails")
    over = data.draw(st.sampled_from(OVER), label="what joins the leaves")
    away = data.draw(st.sampled_from(AWAY), label="seconds until there is a controller again")

    async def story() -> None:
        world = RestartWorld(servers_on, source, target, over == "tunnels", over == "macs")
        await world.begin()
        for report in WHOLE[:said]:
            await asyncio.sleep(SOON)
            world.say(report)
        failed = goes_back and "resumed" not in WHOLE[:said]
        if failed:
            world.say("failed")
        if not in_the_middle:
            await asyncio.sleep(SOON)
        places = {source, target}
        world.reachable(places)
        await world.kill(away)
        for what in data.draw(st.permutations(world.things_to_come()), label="order"):
            world.comes(what)
            await asyncio.sleep(SOON)
            world.reachable(places)
            world.nothing_known_is_left_beside_the_program()
        if failed:
            world.say("target_closed")
            world.say("rolled_back")
        else:
            for report in WHOLE[max(0, said - 1) :]:
                world.say(report)
                await asyncio.sleep(SOON)
                world.reachable(places)
        await asyncio.sleep(5.0)
        world.may_copy = False
        assert world.state is (MigrationState.UNDONE if failed else MigrationState.DONE)
        world.reachable({source} if failed else {target})
        assert not world.fake.controller.context.installer.pending()
        world.nothing_known_is_left_beside_the_program()
        await world.fake.stop()

    virtual_time.run(story())


CHANGES = st.sampled_from(["address given back", "vm elsewhere", "vm removed", "port gone", "nothing"])


@settings(deadline=None, max_examples=examples(20), suppress_health_check=[HealthCheck.too_slow])
@given(
    became=st.tuples(CHANGES, CHANGES, CHANGES),
    server_moved=st.booleans(),
    over=st.sampled_from(OVER),
    order=st.permutations([*SWITCHES, *(f"database of {edge}" for edge in EDGES)]),
)
def test_what_became_wrong_while_nobody_looked_goes_and_nothing_else(
    became: tuple[str, ...], server_moved: bool, over: str, order: list[str]
) -> None:
    """VM N is at server N. Until all is back a VM of which nothing changed is never cut off."""

    async def story() -> None:
        clock = asyncio.get_running_loop().time
        fake = FakeNetwork(fabric(over_ip=over == "tunnels", by_mac=over == "macs"), clock)
        vms = {n: add_vm(fake.net, n, at=n) for n in (1, 2, 3)}
        told = {name: dict(ports) for name, ports in fake.net._numbers.items()}
        await fake.start()
        again = FakeNetwork(fabric(over_ip=over == "tunnels", by_mac=over == "macs"), clock)
        for switch in again.net.switches:
            again.net.set_ports(switch, {})
        again.fabric = fake.fabric
        if server_moved:
            again.net.detect("server3", PortRef("leaf2", "p9"))
            told["leaf2"]["p9"] = 109
        stored, ports = Stored(), {n: n for n in vms}
        for number, what in enumerate(became, 1):
            if what in ("vm removed", "port gone"):
                del ports[number]
            if what != "vm removed":
                at = f"server{number % 3 + 1}" if what == "vm elsewhere" else f"server{number}"
                stored.vms.append(replace(vms[number], server=at))
                if what != "address given back":
                    stored.assignments.append(assignment(number))
        again.controller.restore(stored)
        await again.controller.start()
        same = [n for n, what in enumerate(became, 1) if what == "nothing" and not (n == 3 and server_moved)]
        for what in order:
            if over == "tunnels" and what.startswith("spine"):
                continue
            if what.startswith("database"):
                number = int(what[-1])
                here = [port_of(number, number)] if number in ports else []
                again.controller.inventory.ports.changed([], here)
                again.controller.inventory.ports.edge_read(
                    [0x30 + number], [port.iface_id or "" for port in here]
                )
            else:
                session = FakeSession(again, what, again.net.switches[what].dpid, dict(told[what]))
                again.sessions[what] = session
                again.controller.connected(session)
            await asyncio.sleep(SOON)
            nothing_known_is_left(again)
            for number in same:
                frame = udp_frame(again.net.servers["router"].mac, GATEWAY_MAC, OUTSIDE, vm_ip(number))
                for way in again.fabric.all_paths("leaf2", 91, frame):
                    assert [(s, p) for s, p, _ in way.arrivals] == [(f"edge{number}", vm_port(number))], what
        programs = again.controller.context.compiler.programs
        assert {n: again.fabric[n].flows.keys() for n in again.net.switches} == {
            n: {key for key in programs[n] if key[0] not in ("group", "meter")} for n in again.net.switches
        }
        assert not again.controller.context.installer.pending()
        await again.stop()
        await fake.stop()

    virtual_time.run(story())
