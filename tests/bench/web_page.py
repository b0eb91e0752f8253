"""How long the web page takes to draw 1,000 servers, and how it draws while 100 VMs move.

    PYTHONPATH=tests .venv/bin/python tests/bench/web_page.py [SERVERS] [VMS]

The network is a model, its switches are away; REST interface, page and Chromium are real. Figures are
of this machine as busy as it is now: the load is printed beside them.
"""

import asyncio
import itertools
import os
import sys
from ipaddress import IPv4Address, IPv4Network

from retinue.controller.api.server import Api
from retinue.controller.app import Controller
from retinue.core.migration import Migration, MigrationState
from retinue.core.model import NIC, VM, Link, Network, PortRef, Role, Server, Subnet, Switch
from retinue.protocol.events import EventType
from support.browser import Browser, chromium
from support.fabric.networks import GATEWAY_MAC

LEAVES, SPINES = 40, 8
RUNS = 9
MOVING = 100
SECONDS = 5.0

FRAMES = """
window.frameTimes = [];
const note = (now) => { window.frameTimes.push(now); requestAnimationFrame(note); };
requestAnimationFrame(note);
"""
DRAWN = """
const begin = performance.now();
[...document.querySelectorAll("button")].find((one) => one.textContent === arguments[0]).click();
document.querySelector("svg").getBoundingClientRect();
return performance.now() - begin;
"""


def network(servers: int, vms: int) -> Network:
    net = Network(GATEWAY_MAC)
    net.add_subnet(Subnet("servers", IPv4Network("10.16.0.0/16"), IPv4Address("10.16.255.254")))
    net.add_subnet(Subnet("blue", IPv4Network("10.17.0.0/16"), IPv4Address("10.17.255.254")))
    for number in range(1, SPINES + 1):
        net.add_switch(Switch(f"spine{number}", Role.SPINE, 0x100 + number))
    for number in range(1, LEAVES + 1):
        net.add_switch(Switch(f"leaf{number}", Role.LEAF, 0x1000 + number))
        for spine in range(1, SPINES + 1):
            net.add_link(Link(PortRef(f"leaf{number}", f"s{spine}"), PortRef(f"spine{spine}", f"l{number}")))
    for number in range(1, servers + 1):
        net.add_switch(Switch(f"edge{number}", Role.EDGE, 0x10000 + number, uplink="up0"))
        leaf = PortRef(f"leaf{1 + (number - 1) % LEAVES}", f"p{number}")
        address = IPv4Address("10.16.0.0") + number
        net.put_server(
            Server(f"server{number}", _mac(2, number), address, edge=f"edge{number}", given_at=leaf)
        )
    for number in range(1, vms + 1):
        id = f"vm{number}"
        net.put_vm(VM(id, (NIC(_mac(0x52, number), id, slot=1),), f"server{1 + (number - 1) % servers}"))
    return net


def _mac(first: int, number: int) -> str:
    return f"{first:02x}:00:00:{number >> 16:02x}:{number >> 8 & 255:02x}:{number & 255:02x}"


async def measure(browser: Browser, servers: int, vms: int) -> None:
    controller = Controller(network(servers, vms))
    api = Api(controller, dict)
    url = f"http://127.0.0.1:{await api.start('127.0.0.1', 0)}"
    clock = asyncio.get_running_loop().time
    began = clock()
    await browser.open(url)
    await browser.sees(".fold", "servers")
    print(f"{servers} servers, {vms} VMs; load {os.getloadavg()[0]:.1f}")
    print(f"from the address to the picture, all read: {clock() - began:.2f} s")
    for button in ("unfold all", "fold all"):
        taken = []
        for _ in range(RUNS):
            taken.append(await browser.run(DRAWN, button))
            await browser.run(DRAWN, "fold all" if button == "unfold all" else "unfold all")
        taken.sort()
        print(f"{button}: median {taken[RUNS // 2]:.0f} ms, {taken[0]:.0f} to {taken[-1]:.0f}, {RUNS} times")
    await browser.run(DRAWN, "unfold all")
    await browser.run(FRAMES)
    await move(controller, servers)
    times = await browser.run("return window.frameTimes")
    gaps = sorted(after - before for before, after in itertools.pairwise(times))
    rate = len(gaps) / (times[-1] - times[0]) * 1000
    median, most = gaps[len(gaps) // 2], gaps[len(gaps) * 95 // 100]
    print(f"{MOVING} VMs move within {SECONDS:g} s: {rate:.0f} frames a second")
    print(f"between two frames: median {median:.0f} ms, 95 % of them below {most:.0f} ms")
    print(f"load {os.getloadavg()[0]:.1f}; console: {browser.said()}")
    controller.events.close()
    await api.stop()
    await controller.stop()


async def move(controller: Controller, servers: int) -> None:
    """Events of migrations as if there were any: each copies, and then runs elsewhere."""
    now = controller.context.clock()
    for number in range(1, MOVING + 1):
        there = f"server{1 + (number + servers // 2) % servers}"
        begun = ((MigrationState.PLANNED, now), (MigrationState.COPYING, now))
        migration = Migration(
            f"migration-{number}", f"vm{number}", f"server{number}", there, MigrationState.COPYING, begun
        )
        controller.events.publish(EventType.MIGRATION_STEP, migration=migration)
        await asyncio.sleep(SECONDS / 4 / MOVING)
    for number in range(1, MOVING + 1):
        there = f"server{1 + (number + servers // 2) % servers}"
        steps = ((MigrationState.PLANNED, now), (MigrationState.SWITCHING, now + 1))
        migration = Migration(
            f"migration-{number}", f"vm{number}", f"server{number}", there, MigrationState.SWITCHING, steps,
            stopped_at=now, resumed_at=now,
        )  # fmt: skip
        controller.events.publish(EventType.MIGRATION_STEP, migration=migration)
        await asyncio.sleep(SECONDS * 3 / 4 / MOVING)


def main() -> None:
    servers, vms = (int(word) for word in [*sys.argv[1:], *("1000", "5000")[len(sys.argv) - 1 :]])
    with chromium() as browser:
        asyncio.run(measure(browser, servers, vms))


if __name__ == "__main__":
    main()
