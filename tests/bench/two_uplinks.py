"""What servers with two uplinks cost the controller: a network of fakes, without VMs, in one process.

    PYTHONPATH=tests .venv/bin/python tests/bench/two_uplinks.py [SERVERS]

Each server has its first uplink at one leaf and its second at the next one. Told are milliseconds of a
processor, which a busy machine makes more, too: of the model alone, and of the controller's work of each
second, while nothing happens.
"""

import asyncio
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

from bench.packet_ins import PER_LEAF, network
from bench.room import Session
from retinue.controller.app import Controller
from retinue.core.model import Network, PortRef
from retinue.core.model.uplinks import holders
from retinue.core.packets.lldp import Lldp, lldp_frame
from retinue.core.snooping import chassis

REPEATED = 5


def with_two(servers: int) -> Network:
    net = network(servers)
    leaves = -(-servers // PER_LEAF)
    for n in range(servers):
        known = net.servers[f"server{n}"]
        net.put_server(replace(known, given_at=None))
        net.add_switch(replace(net.switches[f"edge{n}"], standby=("up1",)))
        net.set_ports(f"edge{n}", {"up0": 1, "up1": 2})
        assert known.given_at is not None
    for leaf in range(leaves):
        before = (leaf - 1) % leaves
        there = range(before * PER_LEAF, min(servers, (before + 1) * PER_LEAF))
        ports = {f"q{n}": 100 + n - there[0] for n in there}
        net.set_ports(f"leaf{leaf}", {**net._numbers[f"leaf{leaf}"], **ports})
    return net


def find_all(net: Network, servers: int) -> None:
    leaves = -(-servers // PER_LEAF)
    for n in range(servers):
        leaf = n // PER_LEAF
        for name, at in (("up0", f"leaf{leaf}:p{n}"), ("up1", f"leaf{(leaf + 1) % leaves}:q{n}")):
            net.find_uplink(PortRef(f"edge{n}", name), PortRef(*at.split(":")))
        net.use_uplink(f"edge{n}", "up0")


def _cost(work: Callable[[], object]) -> float:
    """Milliseconds of a processor, of the middle one."""
    took = []
    for _ in range(REPEATED):
        began = time.process_time()
        work()
        took.append(time.process_time() - began)
    return 1000 * median(took)


def of_the_model(servers: int) -> tuple[Network, dict[str, float]]:
    net = with_two(servers)
    began = time.process_time()
    find_all(net, servers)
    found = {"where all lead is found, one by one": 1000 * (time.process_time() - began)}
    uplink, numbers = PortRef("edge0", "up1"), dict(net._numbers["leaf0"])
    frame = lldp_frame(Lldp(b"\x07x", b"\x07p", 120), "02:00:00:00:00:99")

    def lost_and_back() -> None:
        net.lose_link(uplink, "nothing comes in")
        net.return_link(uplink)

    def down_and_up() -> None:
        net.set_ports("leaf0", numbers, {"p0"})
        net.set_ports("leaf0", numbers)

    found["an uplink loses frames, and is well again"] = _cost(lost_and_back)
    found["a leaf tells that a port is down, and up again"] = _cost(down_and_up)
    found["who is at a port, for a frame that comes in there"] = _cost(
        lambda: list(holders(net, PortRef("leaf0", "p0")))
    )
    found["LLDP of a stranger"] = _cost(lambda: chassis.judge(net, PortRef("leaf0", "p0"), frame))
    return net, found


async def of_the_controller(net: Network) -> dict[str, float]:
    controller = Controller(net)
    for switch in list(net.switches.values()):
        controller.connected(Session(switch.id, switch.dpid, dict(net._numbers[switch.id])))  # type: ignore[arg-type]
    while controller.context._tasks:
        await asyncio.wait(controller.context._tasks)
    return {"each second: which uplink is the best one": _cost(controller.uplinks.tick)}


def main() -> None:
    servers = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    net, found = of_the_model(servers)
    found |= asyncio.run(of_the_controller(net))
    print(f"{servers} servers with two uplinks; milliseconds of a processor, load {os.getloadavg()[0]:.1f}")
    for what, cost in found.items():
        print(f"{cost:12.3f}  {what}")


if __name__ == "__main__":
    main()
