"""FCoE through the laboratory's switches: a guest sends the frames of a node, a fake forwarder answers.

Real are the controller, Open vSwitch, the guest's NIC, and the migration by agents. Fake are the ends: no
kernel's initiator, and no disk.
"""

import contextlib
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from retinue.core.packets import ZERO_MAC, EtherType
from retinue.core.packets.fip import (
    ALL_FORWARDERS,
    FLAG_FPMA,
    REQUEST,
    SOLICITATION,
    Command,
    Descriptor,
    Fip,
    LinkService,
    Operation,
    mac_descriptor,
)
from retinue_lab.topology.topology import SANDBOX
from support.fabric.storage import FORWARDER, FORWARDER_MAC, fip_frame, storage_frame
from support.lab import fake_forwarder
from support.lab.programs import popen_in
from support.lab.tools import LabBench, at, eventually, mac_of
from support.lab.watch import Lines

pytestmark = pytest.mark.lab

VMS = [at("vm1", "server1"), at("vm2", "server2")]
GRANTED = "0e:fc:00:01:01:" + mac_of("vm1")[-2:]
_NETWORK = f"""
ip netns add {FORWARDER}
ip link add leaf2-{FORWARDER} netns fabric type veth peer name eth0 netns {FORWARDER}
ip -n {FORWARDER} link set eth0 address {FORWARDER_MAC} up
ip -n fabric link set leaf2-{FORWARDER} up
"""


@pytest.fixture
async def forwarder(bench: LabBench) -> AsyncIterator[Lines]:
    """At a port of leaf2; what it says."""
    await bench.run(SANDBOX, "sh", "-ec", _NETWORK)
    await bench.run("fabric", "ovs-vsctl", "add-port", "leaf2", f"leaf2-{FORWARDER}")
    tests = Path(fake_forwarder.__file__).parents[2]
    argv = ["ip", "netns", "exec", FORWARDER, "env", f"PYTHONPATH={tests}", f"PATH={os.environ['PATH']}"]
    argv += [sys.executable, "-m", fake_forwarder.__name__, "eth0"]
    process = await popen_in(bench.lab)(SANDBOX, ["sh", "-c", 'exec "$0" "$@" 2>&1', *argv])
    lines = Lines(process)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(lines.close)
        await lines.until("ready")
        place = f"leaf2:leaf2-{FORWARDER}"
        await bench.post("servers", {"id": FORWARDER, "mac": FORWARDER_MAC, "services": ["fcf"], "at": place})
        yield lines


def said(operation: int, subcode: int, dst: str, *named: tuple[int, bytes]) -> str:
    """What vm1 says by FIP."""
    return fip_frame(mac_of("vm1"), dst, Fip(operation, subcode, FLAG_FPMA, named)).hex()


def number(frame: bytes) -> int:
    """Of a storage frame, its mark."""
    return int(frame[14:][fake_forwarder.MARK].hex(), 16)


def marks(lines: Lines) -> Counter[int]:
    """Of storage frames that came to the forwarder, by their numbers."""
    return Counter(int(line.split()[2], 16) for _, line in lines.those(f"storage {GRANTED}"))


async def attempts(bench: LabBench) -> int:
    """Spoofed frames that were told."""
    return sum(int(port["count"]) for port in (await bench.get("spoof-attempts"))["ports"])


async def test_a_login_goes_with_its_vm_and_nothing_is_lost_on_the_way_out_or_copied_on_the_way_back(
    bench: LabBench, forwarder: Lines
) -> None:
    solicitation = said(Operation.DISCOVERY, SOLICITATION, ALL_FORWARDERS, mac_descriptor(mac_of("vm1")))
    flogi = LinkService(Descriptor.FLOGI, Command.FLOGI, 0xFFFFFE, 0, 1)
    question = ((Descriptor.FLOGI, flogi.build()), mac_descriptor(ZERO_MAC))
    first = storage_frame(GRANTED, FORWARDER_MAC, bytes(8)).hex()
    await bench.send("vm1", first)  # Before the login: dropped, and told.
    await bench.send("vm1", solicitation)
    await forwarder.until(f"fip {mac_of('vm1')} 1 1")
    async with bench.events() as events, bench.capture("server1", "tap-vm1", "out") as tap:
        await bench.send("vm1", said(Operation.LINK_SERVICE, REQUEST, FORWARDER_MAC, *question))
        login = await events.until("storage.login", lambda e: e["vm"] == "vm1")
        assert (login["mac"], login["forwarder"]) == (GRANTED, FORWARDER)
        await tap.until(lambda f: f.ethertype == 0x8914 and f.src == FORWARDER_MAC)
    assert GRANTED in await bench.cli("binding", "fcoe")
    assert not marks(forwarder), "nothing came before the login"

    # Forged: as another port, and by another VM as this one.
    before = await attempts(bench)
    await bench.send("vm2", first)
    await bench.send("vm1", storage_frame("0e:fc:00:01:01:77", FORWARDER_MAC).hex())

    async def told() -> bool:
        return await attempts(bench) >= before + 2

    await eventually(told)

    frame = storage_frame(GRANTED, FORWARDER_MAC, bytes(8)).hex()
    start = 2 * (14 + fake_forwarder.MARK.start)
    head, tail = frame[: start + 8], frame[start + 16 :]
    each = f"i=$((i + 1)); sendraw {head}$(printf %08x $i){tail}; usleep 5000"
    numbered = f"i=0; while ! [ -e /tmp/stop ]; do {each}; done; echo $i > /tmp/sent"
    async with bench.captures(("server1", "up0", "in"), ("server3", "up0", "in")) as uplinks:
        await bench.guest("vm1", f"({numbered}) > /dev/null 2>&1 &")
        await forwarder.until(f"storage {GRANTED}", times=20)
        await bench.migration("vm1", target_server="server3")
        after = len(forwarder.those(f"storage {GRANTED}"))
        await forwarder.until(f"storage {GRANTED}", times=after + 20)
        sent = int(
            await bench.guest("vm1", "touch /tmp/stop; until [ -s /tmp/sent ]; do :; done; cat /tmp/sent")
        )
        await forwarder.until(f"storage {GRANTED}", times=sent)
        await uplinks[1].until(lambda f: f.ethertype == EtherType.FCOE and number(f.data) == sent)
        came = [{number(f.data) for f in up.frames if f.ethertype == EtherType.FCOE} for up in uplinks]
    assert marks(forwarder) == Counter(range(1, sent + 1)), "each once: none lost, none doubled"
    assert not came[0] & came[1], "what comes back is never copied"
    assert came[0] | came[1] == set(range(1, sent + 1)), "and comes to one of the servers"
    assert len(came[0]) >= 20 and len(came[1]) >= 20
    row = (await bench.get("fc-logins"))["logins"][0]
    assert (row["mac"], row["switch"]) == (GRANTED, "edge3")
    assert not forwarder.those(f"fip {mac_of('vm1')} 2 1")[1:], "and no new login"
