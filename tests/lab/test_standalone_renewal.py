"""The agent alone, no controller, with switches that snoop by themselves and know nothing of us."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from retinue_lab.sandbox import handle as sandbox
from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology.topology_file import DEFAULT_FILE
from support.lab.agent_command import Outcome, agent
from support.lab.frames import dhcp_type
from support.lab.snooping_network import (
    CLIENT_ID,
    MAC,
    SERVER,
    SERVER_MAC,
    TAP,
    VM,
    Machine,
    SnoopingNetwork,
    foreign_world,
)
from support.lab.tools import PATIENCE, Json
from support.oracles.dhcp import RENEWAL, asked_of_kea, tshark

pytestmark = pytest.mark.lab

RELAYED = DEFAULT_FILE.with_name("relayed.toml")
"""The smallest network there is; of it only the sandbox is used."""


@pytest.fixture
def foreign_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LabHandle]:
    monkeypatch.setenv("RETINUE_LAB_DIR", str(tmp_path))
    handle = sandbox.up("foreign", RELAYED, start_controller=False, tie_to_parent=True)
    try:
        yield handle
    finally:
        handle.down()


@pytest.fixture
async def world(foreign_lab: LabHandle) -> AsyncIterator[SnoopingNetwork]:
    async with foreign_world(foreign_lab) as made:
        yield made


def arguments(ip: str, *more: str) -> list[str]:
    return [
        *("renew", "--standalone", "--vm", VM, "--mac", MAC, "--ip", ip, "--server", SERVER),
        *("--server-mac", SERVER_MAC, "--client-id", CLIENT_ID, "--port", TAP, *more),
    ]


async def test_a_switch_of_others_binds_the_vm_where_it_has_arrived(
    world: SnoopingNetwork, tmp_path: Path
) -> None:
    """Before the renewal the VM is cut off, after it all is well."""
    source = await world.start("swa")
    address = await world.booted(source)
    first = await world.switches["swa"].until(lambda e: e["event"] == "bound")
    assert (first["ip"], first["port"]) == (address, TAP)
    assert await world.echo(address, 10)

    target = await world.start("swb", incoming=True)
    await world.migrate(source)
    switch = world.switches["swb"]
    assert not await world.echo(address, 1), "the switch lets a VM speak that it does not know"
    await switch.until(lambda e: e["event"] == "dropped" and e.get("mac") == MAC and e["type"] == 0x0806)
    assert switch.of("bound") == []

    at_guest = await world.capture("swb", TAP, "out")
    at_judge = await world.capture("judge", "eth0", "inout")
    outcome = await agent(world, "swb", *arguments(address, "--qmp", str(target.qmp)))
    assert outcome.code == 0, outcome.words
    assert (outcome.data["state"], outcome.data["lease_seconds"], outcome.data["sent"]) == ("acked", 600, 1)
    recorded = await switch.until(lambda e: e["event"] == "recorded")
    xid = int(outcome.data["xid"], 16)
    assert (recorded["port"], recorded["xid"], recorded["renewal"], recorded["unicast"]) == (
        TAP, xid, True, True,
    )  # fmt: skip
    bound = await switch.until(lambda e: e["event"] == "bound")
    assert (bound["ip"], bound["mac"], bound["port"]) == (address, MAC, TAP)
    assert await world.echo(address, 10)
    await at_guest.until(lambda f: f.ether.haslayer("UDP"))
    assert [str(f) for f in at_guest.frames if dhcp_type(f.ether)] == [], "the guest must see nothing"

    request = await at_judge.until(lambda f: dhcp_type(f.ether) == "request")
    (read,) = tshark([request.data], [*RENEWAL, "ip.src", "ip.dst", "eth.dst"], tmp_path)
    assert read == {**RENEWAL, "ip.src": address, "ip.dst": SERVER, "eth.dst": SERVER_MAC}
    (message,) = asked_of_kea("\n".join(world.kea.lines), xid)
    assert "msg_type=DHCPREQUEST" in message
    await untouched(world, "swb")


async def untouched(world: SnoopingNetwork, node: str) -> None:
    """Nothing of the agent is left on the server."""
    links = await world.run(node, "ip", "-o", "link")
    assert "rn" not in [line.split()[1][:2] for line in links.splitlines()]
    assert "clsact" not in await world.run(node, "tc", "qdisc", "show", "dev", TAP)


async def test_the_agent_waits_for_the_vm_and_the_guests_own_dhcp_goes_on(world: SnoopingNetwork) -> None:
    """RESUME is the word. What the guest asks itself, at the same time, is answered to the guest."""
    source = await world.start("swa")
    address = await world.booted(source)
    target = await world.start("swb", incoming=True)
    waiting = asyncio.Event()
    arriving = asyncio.create_task(
        agent(world, "swb", *arguments(address, "--qmp", str(target.qmp)), said=said_to(waiting))
    )
    async with asyncio.timeout(PATIENCE):
        await waiting.wait()
    assert not arriving.done(), "the VM has not arrived"
    await world.migrate(source)
    outcome = await arriving
    assert outcome.code == 0, outcome.words
    assert await world.echo(address, 10)

    at_guest = await world.capture("swb", TAP, "out")
    again, _ = await asyncio.gather(
        agent(world, "swb", *arguments(address)),
        in_guest(target, "kill -USR1 $(cat /run/udhcpc.pid)"),
    )
    own = await at_guest.until(lambda f: dhcp_type(f.ether) == "ack")
    assert again.code == 0, again.words
    assert own.ether["BOOTP"].xid != int(again.data["xid"], 16)
    assert len([f for f in at_guest.frames if dhcp_type(f.ether)]) == 1


def said_to(waiting: asyncio.Event) -> Callable[[str], None]:
    def hear(line: str) -> None:
        if "waiting for the VM to arrive" in line:
            waiting.set()

    return hear


async def in_guest(machine: Machine, command: str) -> None:
    from retinue_lab.guest.shell import GuestShell

    code, said = await GuestShell(machine.shell).run(command)
    assert code == 0, said


async def test_a_rejection_and_silence_are_told_by_the_exit_code(world: SnoopingNetwork) -> None:
    """A NAK before a VM has arrived: its port is enough, if a QEMU has it. The address is of no subnet."""
    early = await agent(world, "swa", *arguments("10.8.0.7"))
    assert early.code == 1
    assert "no carrier" in early.words
    await world.start("swa", incoming=True)
    rejected = await agent(world, "swa", *arguments("10.8.0.7"))
    assert (rejected.code, rejected.data["state"]) == (1, "rejected"), rejected.words
    assert rejected.data["reason"] == "rejected by DHCP server 10.9.0.2"
    told: Json = await world.switches["swa"].until(lambda e: e["event"] == "rejected")
    assert told["mac"] == MAC
    assert world.switches["swa"].of("bound") == []
    await world.kea.close()
    silent: Outcome = await agent(world, "swa", *arguments("10.8.0.7"))
    assert (silent.code, silent.data["state"], silent.data["sent"]) == (1, "silent", 4)
    assert silent.data["reason"] == "DHCP server 10.9.0.2 did not answer 4 requests in 15 s"
    await untouched(world, "swa")
