"""Renewal through a relay: our own, and two of Debian's isc-dhcp-relay in a row before Kea."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology.topology_file import DEFAULT_FILE, load
from support.lab.agent_command import renew
from support.lab.frames import dhcp_type
from support.lab.guest_dhcp import of_vm, udhcpc
from support.lab.relay_node import RELAY_FAR, SERVER, captured_behind, standing_between
from support.lab.start import boot, lab_of, running
from support.lab.tools import Doorman, LabBench, at, mac_of
from support.lab.watch import Lines
from support.oracles.dhcp import RENEWAL, asked_of_kea, kea_log, kea_tells_all, tshark

pytestmark = [pytest.mark.lab, pytest.mark.patient]

ONE = mac_of("vm1")
GATEWAY_IP = "10.1.0.254"


# ---- our own relay ----


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHandle]:
    """The network whose DHCP server is in another subnet than its VMs."""
    network = load(DEFAULT_FILE.with_name("relayed.toml"))
    with lab_of(tmp_path_factory.mktemp("labs"), network, "relayed") as handle:
        boot(handle, [at("vm1", "server1")])
        yield handle


async def test_a_vm_has_its_address_through_our_relay(bench: LabBench) -> None:
    """The guest boots behind the relay, asks and is answered, with nothing set up on it."""
    (row,) = await bench.bindings("vm1")
    assert row["ip"].startswith("10.1.0.1")
    assert await bench.ping("vm1", GATEWAY_IP)
    assert await bench.ping("vm1", "10.0.0.2")


async def test_a_renewal_passes_our_relay(bench: LabBench, tmp_path: Path) -> None:
    """giaddr is the gateway's, one hop more, option 82 says the port; its answer is the agent's."""
    await kea_tells_all(bench)
    (before,) = await bench.bindings("vm1")
    async with (
        bench.events() as events,
        bench.capture("server1", "tap-vm1", "inout") as tap,
        bench.capture("dhcp", "eth0") as at_server,
    ):
        outcome = await renew(bench, "server1", "vm1")
        assert outcome.code == 0, outcome.words
        acked = await events.until("renewal.acked", of_vm("vm1"))
        assert await bench.ping("vm1", GATEWAY_IP)
    assert [str(f) for f in tap.frames if dhcp_type(f.ether)] == []
    assert acked["renewal"]["dhcp_server"] == "10.0.0.2"

    circuit, remote = f"edge1:{before['port']}".encode().hex(), b"vm1".hex()
    xid = int(outcome.data["xid"], 16)
    (sent,) = [f for f in at_server.frames if dhcp_type(f.ether) == "request"]
    of_relays = {
        "dhcp.hops": "1",
        "dhcp.ip.relay": GATEWAY_IP,
        "udp.srcport": "67",
        "ip.src": GATEWAY_IP,
        "ip.dst": "10.0.0.2",
        "dhcp.ip.client": before["ip"],
        "dhcp.option.agent_information_option.agent_circuit_id": circuit,
        "dhcp.option.agent_information_option.agent_remote_id": remote,
    }
    (read,) = tshark([sent.data], list(RENEWAL | of_relays), tmp_path)
    assert read == RENEWAL | of_relays
    (answer,) = [f for f in at_server.frames if dhcp_type(f.ether) == "ack"]
    (read,) = tshark([answer.data], ["ip.dst", "udp.dstport", "dhcp.ip.relay"], tmp_path)
    assert read == {"ip.dst": GATEWAY_IP, "udp.dstport": "67", "dhcp.ip.relay": GATEWAY_IP}

    (message,) = asked_of_kea(kea_log(bench), xid)
    assert "msg_type=DHCPREQUEST" in message
    assert "type=082" in message
    for absent in ("type=050", "type=054"):
        assert absent not in message
    (row,) = await bench.bindings("vm1")
    assert row["lease_end"] > before["lease_end"]
    assert (row["port"], row["confirmed"]) == (before["port"], True)


async def test_the_guests_own_renewal_passes_our_relay_and_is_answered(bench: LabBench) -> None:
    """Without option 82: RFC 3046, 2.1, the relay that added it removes it."""
    (before,) = await bench.bindings("vm1")
    async with bench.events() as events, bench.capture("server1", "tap-vm1", "out") as tap:
        await udhcpc(bench, "vm1", "USR1")
        answer = await tap.until(lambda f: dhcp_type(f.ether) == "ack")
        await events.until("binding.renewed", of_vm("vm1"))
    options = dict(o for o in answer.ether["DHCP"].options if isinstance(o, tuple) and len(o) == 2)
    assert "relay_agent_information" not in options
    assert options["server_id"] == "10.0.0.2"
    (row,) = await bench.bindings("vm1")
    assert row["lease_end"] > before["lease_end"]


# ---- somebody else's relay ----


@pytest.fixture(scope="module")
def foreign_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHandle]:
    with lab_of(tmp_path_factory.mktemp("labs"), None, "foreign") as handle:
        yield handle


@pytest.fixture
async def behind(foreign_lab: LabHandle) -> AsyncIterator[tuple[LabBench, Lines]]:
    doorman = Doorman(foreign_lab)
    bench = LabBench(foreign_lab, doorman)
    try:
        async with standing_between(bench) as kea:
            yield bench, kea
    finally:
        await bench.aclose()
        doorman.close()


async def test_a_vm_boots_and_is_renewed_through_two_relays_of_isc_in_a_row(
    behind: tuple[LabBench, Lines], tmp_path: Path
) -> None:
    """Relays and server are not ours, the server is outside every subnet of ours. It sees the first one's
    giaddr and two hops, and its answer comes back through both.
    """
    bench, kea = behind
    async with bench.events() as events:
        await bench.post("vms", [at("vm1", "server1")])
        await running(bench, events, "vm1")
    (before,) = await bench.bindings("vm1")
    async with (
        bench.events() as events,
        bench.capture("server1", "tap-vm1", "inout") as tap,
        bench.capture("dhcp", "eth0") as at_relay,
        bench.capture("dhcp", "far") as beyond,
        captured_behind(bench) as at_server,
    ):
        outcome = await renew(bench, "server1", "vm1")
        assert outcome.code == 0, outcome.words
        acked = await events.until("renewal.acked", of_vm("vm1"))
        assert await bench.ping("vm1", "10.1.0.2")
    assert [str(f) for f in tap.frames if dhcp_type(f.ether)] == []
    assert acked["renewal"]["dhcp_server"] == SERVER

    (sent,) = [f for f in at_relay.frames if dhcp_type(f.ether) == "request"]
    (read,) = tshark([sent.data], [*RENEWAL, "ip.src", "ip.dst"], tmp_path)
    assert read == {**RENEWAL, "ip.src": before["ip"], "ip.dst": SERVER}
    relayed = [f for f in beyond.frames if dhcp_type(f.ether) == "request"]
    (read,) = tshark([relayed[0].data], ["ip.src", "dhcp.hops", "dhcp.ip.relay", "dhcp.ip.client"], tmp_path)
    assert read == {
        "ip.src": RELAY_FAR,
        "dhcp.hops": "1",
        "dhcp.ip.relay": "10.1.0.2",
        "dhcp.ip.client": before["ip"],
    }
    (twice,) = [f for f in at_server.frames if dhcp_type(f.ether) == "request"]
    (read,) = tshark([twice.data], ["dhcp.hops", "dhcp.ip.relay", "ip.dst"], tmp_path)
    assert read == {"dhcp.hops": "2", "dhcp.ip.relay": "10.1.0.2", "ip.dst": SERVER}
    for passed in (at_server, beyond):
        (answer,) = [f for f in passed.frames if dhcp_type(f.ether) == "ack"]
        (read,) = tshark([answer.data], ["ip.dst", "dhcp.ip.relay"], tmp_path)
        assert read == {"ip.dst": "10.1.0.2", "dhcp.ip.relay": "10.1.0.2"}
    xid = int(outcome.data["xid"], 16)
    said = "\n".join(line for _, line in kea.seen)
    message = asked_of_kea(said, xid)[0]
    assert "msg_type=DHCPREQUEST" in message
    assert "type=082" in message
    assert any(f"tid={xid:#x}: lease {before['ip']} has been allocated" in line for _, line in kea.seen)
    (row,) = await bench.bindings("vm1")
    assert row["lease_end"] > before["lease_end"]
    assert row["confirmed"]
