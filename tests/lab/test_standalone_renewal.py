"""The agent alone, no controller, with switches that snoop by themselves and know nothing of us."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from retinue.agent.renewal.standalone.snooping_table import AdaptedTable
from retinue_lab.sandbox import handle as sandbox
from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology.topology import SANDBOX
from retinue_lab.topology.topology_file import DEFAULT_FILE
from support.lab.agent_command import Outcome, agent
from support.lab.foreign_libvirt import LibvirtServer, libvirt_missing
from support.lab.foreign_vm import Said
from support.lab.frames import dhcp_type, packet
from support.lab.snooping_network import (
    CLIENT_ID,
    MAC,
    SERVER,
    SERVER_MAC,
    TAP,
    VM,
    SnoopingNetwork,
    foreign_world,
)
from support.lab.tools import PATIENCE, Json
from support.oracles.dhcp import RENEWAL, asked_of_kea, tshark

pytestmark = [pytest.mark.lab, pytest.mark.patient]

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
async def world(foreign_lab: LabHandle, request: pytest.FixtureRequest) -> AsyncIterator[SnoopingNetwork]:
    """With the switches' options that the test is given."""
    async with foreign_world(foreign_lab, *getattr(request, "param", ())) as made:
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
    address = await source.booted()
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
    address = await source.booted()
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
        target.guest("kill -USR1 $(cat /run/udhcpc.pid)"),
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


CONFIGURATION = """\
server = "{node}"
listen = "{address}:7800"
folder = "{folder}/agent-{node}"
bridge = ""
plaintext = true

[alone]
{vms}
snooping_table = "{table}"
peers = {{ {peers} }}
"""


MANAGEMENT = {"swa": "192.0.2.1", "swb": "192.0.2.2"}


async def agent_alone(world: SnoopingNetwork, node: str, *peers: str, libvirt: str = "") -> Said:
    """`retinue agent run` on a server of the network, ready; `libvirt`: the URI of who runs its VMs."""
    config = world.folder / f"{node}.toml"
    named = ", ".join(f'{peer} = "{MANAGEMENT[peer]}:7800"' for peer in peers)
    values = {"node": node, "address": MANAGEMENT[node], "folder": world.folder, "peers": named}
    values["table"] = world.control(node)
    values["vms"] = f'libvirt = "{libvirt}"' if libvirt else f'qmp = ["{world.folder}/{node}.qm*"]'
    config.write_text(CONFIGURATION.format(**values))
    argv = [sys.executable, "-P", "-m", "retinue.cli.main", "agent", "run", "--config", str(config)]
    said = await world.program(node, *argv)
    await said.until_line("agent.ready")
    return said


async def leases(world: SnoopingNetwork, node: str) -> list[Json]:
    shown = await agent(world, node, "leases", "--config", str(world.folder / f"{node}.toml"))
    assert shown.code == 0, shown.words
    rows: list[Json] = list(shown.data)  # type: ignore[arg-type]
    return rows


@pytest.mark.long
async def test_an_agent_that_was_told_nothing_renews_who_arrives(world: SnoopingNetwork) -> None:
    """Neither MAC nor address nor server is typed anywhere: QEMU, the VM's own DHCP and the other agent say
    it all."""
    await management_line(world)
    source_agent = await agent_alone(world, "swa")
    source = await world.start("swa")
    address = await source.booted()
    await source_agent.until_line("lease.learned")
    (row,) = await leases(world, "swa")
    assert (row["mac"], row["ip"], row["server"], row["client_id"]) == (MAC, address, SERVER, CLIENT_ID)
    assert row["next_hop"] == SERVER_MAC
    assert 0 < row["seconds_left"] <= 600

    await source_agent.close()
    next_agent = await agent_alone(world, "swa")
    await next_agent.until_line("renewal.ended")  # It cannot know since when the VM has been here.
    (again,) = await leases(world, "swa")
    ends = ("seconds_left", "end")
    assert {**again, **dict.fromkeys(ends, 0)} == {**row, **dict.fromkeys(ends, 0)}, "the next agent knows it"
    assert again["end"] >= row["end"], "and has it renewed"

    target_agent = await agent_alone(world, "swb", "swa")
    at_guest = await world.capture("swb", TAP, "out")
    await world.start("swb", incoming=True)
    assert await leases(world, "swb") == []
    await world.migrate(source)
    bound = await world.switches["swb"].until(lambda e: e["event"] == "bound")
    assert (bound["ip"], bound["mac"], bound["port"]) == (address, MAC, TAP)
    assert await world.echo(address, 10)
    (at_source,) = await leases(world, "swa")
    await target_agent.until_line("renewal.ended")
    (kept,) = await leases(world, "swb")
    assert (kept["ip"], kept["server"], kept["client_id"]) == (address, SERVER, CLIENT_ID)
    assert kept["seconds_left"] > at_source["seconds_left"], "updated from the ACK"
    assert [str(f) for f in at_guest.frames if dhcp_type(f.ether)] == [], "the guest must see nothing"


@pytest.mark.long
async def test_the_row_that_is_left_at_the_old_switch_is_deleted(world: SnoopingNetwork) -> None:
    """After the ACK at the new one, when the VM's machine has gone; then nobody speaks from the old port."""
    await management_line(world)
    source_agent = await agent_alone(world, "swa")
    await agent_alone(world, "swb", "swa")
    source = await world.start("swa")
    address = await source.booted()
    await source_agent.until_line("lease.learned")
    target = await world.start("swb", incoming=True)
    await world.migrate(source)
    await world.switches["swb"].until(lambda e: e["event"] == "bound")
    await source_agent.until_line("binding.moved")
    old, new = (AdaptedTable(world.control(switch)) for switch in ("swa", "swb"))
    assert [(row.mac, str(row.ip), row.port) for row in await old.rows()] == [(MAC, address, TAP)]
    await source.monitor.disconnect()
    await source.process.close()
    await source_agent.until_line("binding.removed")
    assert await old.rows() == []
    assert [(row.mac, str(row.ip), row.port) for row in await new.rows()] == [(MAC, address, TAP)]
    await world.sends("swa", bytes.fromhex(packet(MAC, SERVER_MAC, address, SERVER)))
    await world.switches["swa"].until(
        lambda e: e["event"] == "dropped" and e.get("mac") == MAC and e["type"] == 0x0800
    )
    assert await world.echo(address, 10)
    assert await target.guest("echo well") != ""


@pytest.mark.long
@pytest.mark.parametrize("world", [["--broadcasts-only"]], indirect=True)
async def test_a_row_that_the_switch_has_not_made_itself_is_stored(world: SnoopingNetwork) -> None:
    """It looks at no renewal. By way of its adapter it is given the row, and lets the VM speak."""
    await management_line(world)
    source_agent = await agent_alone(world, "swa")
    target_agent = await agent_alone(world, "swb", "swa")
    source = await world.start("swa")
    address = await source.booted()
    await source_agent.until_line("lease.learned")
    await world.start("swb", incoming=True)
    await world.migrate(source)
    await target_agent.until_line("binding.stored")
    switch = world.switches["swb"]
    assert switch.of("bound") == []
    assert [one["ip"] for one in switch.of("not looked at")] == [address]
    (row,) = await AdaptedTable(world.control("swb")).rows()
    assert (row.mac, str(row.ip), row.port) == (MAC, address, TAP)
    assert row.seconds_left is not None
    assert 0 < row.seconds_left <= 600
    assert await world.echo(address, 10)
    await source.monitor.disconnect()
    await source.process.close()
    await source_agent.until_line("binding.removed")
    assert await AdaptedTable(world.control("swa")).rows() == []
    assert await world.echo(address, 10)


@pytest.mark.long
async def test_an_agent_that_was_told_nothing_renews_who_arrives_by_libvirt(world: SnoopingNetwork) -> None:
    """The same where libvirt runs the VMs: who arrives, and with which MAC at which tap, libvirt says."""
    if missing := libvirt_missing():
        pytest.skip(missing)
    await management_line(world)
    servers = [await LibvirtServer.start(world, node, MANAGEMENT[node]) for node in ("swa", "swb")]
    source, target = servers
    source_agent = await agent_alone(world, "swa", libvirt=source.uri)
    target_agent = await agent_alone(world, "swb", "swa", libvirt=target.uri)
    address = await source.create()
    await source_agent.until_line("lease.learned")
    (before,) = await leases(world, "swa")
    assert (before["mac"], before["ip"], before["server"]) == (MAC, address, SERVER)
    assert await leases(world, "swb") == []
    at_guest = await world.capture("swb", TAP, "out")
    await source.migrate(target)
    bound = await world.switches["swb"].until(lambda e: e["event"] == "bound")
    assert (bound["ip"], bound["mac"], bound["port"]) == (address, MAC, TAP)
    assert await world.echo(address, 10)
    await target_agent.until_line("renewal.ended")
    (at_source,), (kept,) = await leases(world, "swa"), await leases(world, "swb")
    assert (kept["ip"], kept["server"], kept["client_id"]) == (address, SERVER, CLIENT_ID)
    assert kept["seconds_left"] > at_source["seconds_left"], "updated from the ACK"
    assert [str(f) for f in at_guest.frames if dhcp_type(f.ether)] == [], "the guest must see nothing"
    await source_agent.until_line("binding.removed")  # Its VM has gone from there, as libvirt says.


async def management_line(world: SnoopingNetwork) -> None:
    """By which the agents of both servers reach each other."""
    script = """
    ip link add mgmt netns swa type veth peer name mgmt netns swb
    ip -n swa address add 192.0.2.1/24 dev mgmt; ip -n swb address add 192.0.2.2/24 dev mgmt
    ip -n swa link set mgmt up; ip -n swb link set mgmt up
    """
    await world.run(SANDBOX, "sh", "-ec", script)
