"""Who may speak to a controller, and to an agent: a real Open vSwitch and clients that are not whom they say.

Each is rejected, counted, and told where it makes sense; switches, traffic and bindings do not notice.
"""

import asyncio
import contextlib
import json
import ssl
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import aiohttp
import pytest

from retinue.agent.mobility import REPORT_SECONDS
from retinue.hypervisor import Channel, ChannelError
from retinue.security.authority import Authority
from retinue.security.credentials import Credentials
from retinue.security.identity import PeerRole
from retinue_lab.network import credentials
from retinue_lab.network.agents import AGENT_PORT
from retinue_lab.topology.topology import CONTROLLER, OPENFLOW_PORT, OVSDB_PORT, REST_PORT, SANDBOX
from support.lab.health import undisturbed
from support.lab.migrating import reaches
from support.lab.tools import Json, LabBench, at, eventually, long, mac_of

pytestmark = pytest.mark.lab

VMS = [at("vm1", "server1"), at("vm2", "server2")]
NODE = "client"
"""Where the intruder's switch runs: the management network is all it needs."""
SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
EDGE1 = 0x31


async def rejected(bench: LabBench) -> dict[str, Counter[str]]:
    return {door: Counter(kinds) for door, kinds in (await bench.get("status"))["rejected"].items()}


@dataclass(frozen=True)
class Intruder:
    """A real Open vSwitch of nobody's, with a bridge that has edge1's datapath id and a port for vm2."""

    bench: LabBench
    folder: Path

    async def vsctl(self, *words: str) -> str:
        return await self.bench.run(
            NODE, "ovs-vsctl", "--timeout=10", f"--db=unix:{self.folder}/db.sock", *words
        )

    async def show(self, own: Credentials | None) -> None:
        """Show this certificate; None: none at all, and no TLS."""
        if own is None:
            await self.vsctl("del-ssl")
        else:
            await self.vsctl("set-ssl", str(own.key), str(own.certificate), str(own.ca))

    async def dial(self, scheme: str) -> None:
        address = self.bench.topology.management_addresses[CONTROLLER].ip
        await self.vsctl(
            *("set-controller", "br0", f"{scheme}:{address}:{OPENFLOW_PORT}"),
            *("--", "set-manager", f"{scheme}:{address}:{OVSDB_PORT}"),
            *("--", "set", "controller", "br0", "connection_mode=out-of-band", "max_backoff=1000"),
        )

    async def hang_up(self) -> None:
        await self.vsctl("del-controller", "br0", "--", "del-manager")


@pytest.fixture
async def intruder(bench: LabBench, tmp_path: Path) -> AsyncIterator[Intruder]:
    folder = tmp_path
    env = {"OVS_RUNDIR": str(folder), "OVS_DBDIR": str(folder), "OVS_LOGDIR": str(folder)}
    await bench.run(NODE, "ovsdb-tool", "create", f"{folder}/conf.db", SCHEMA)
    made = Intruder(bench, folder)
    started: list[int] = []

    def start(*argv: str) -> None:
        program = (*argv, f"--log-file={folder}/{argv[0]}.log", f"--unixctl={folder}/{argv[0]}.ctl")
        started.append(bench.lab.spawn(NODE, [*program, "-vconsole:off"], env=env)["pid"])

    ssl_from = [f"--{key}=db:Open_vSwitch,SSL,{column}" for key, column in (
        ("private-key", "private_key"), ("certificate", "certificate"), ("ca-cert", "ca_cert"),
    )]  # fmt: skip
    start(
        *("ovsdb-server", f"{folder}/conf.db", f"--remote=punix:{folder}/db.sock"),
        *("--remote=db:Open_vSwitch,Open_vSwitch,manager_options", *ssl_from),
    )
    await eventually(lambda: exists(folder / "db.sock"))
    await made.vsctl("--no-wait", "init")
    start("ovs-vswitchd", f"unix:{folder}/db.sock")
    await made.vsctl(
        *("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev", "fail-mode=secure"),
        *("protocols=OpenFlow14", f"other_config:datapath-id={EDGE1:016x}"),
        *("--", "add-port", "br0", "p1", "--", "set", "interface", "p1", "type=internal"),
        *("external_ids:iface-id=vm2", f'external_ids:attached-mac="{mac_of("vm2")}"'),
    )
    try:
        yield made
    finally:
        await made.vsctl("del-br", "br0")
        for pid in reversed(started):
            bench.lab.kill(pid)


async def exists(path: Path) -> bool:
    return path.exists()


def holders(bench: LabBench, strangers: Path) -> dict[str, tuple[Credentials | None, str, str]]:
    """By what an intruder shows: the certificate, how it dials, and the kind of rejection.

    A database that dials in plain text may wait to be asked, which over TLS nobody does: it is `silent` then.
    """
    lab = bench.lab.directory
    theirs = Authority.create(strangers)
    spoofed = theirs.issue(PeerRole.SWITCH, "edge1")
    ca = credentials.folder(lab) / "ca.pem"
    return {
        "plain text": (None, "tcp", "tls"),
        "another authority's": (Credentials(ca, spoofed.file, spoofed.key), "ssl", "tls"),
        "another switch's": (credentials.switch(lab, "server3"), "ssl", "identity"),
        "an agent's": (credentials.agent(lab, "server1"), "ssl", "identity"),
        "a manager's": (credentials.manager(lab), "ssl", "identity"),
    }


@pytest.mark.parametrize(
    "shown",
    ["plain text", long("another authority's"), "another switch's", long("an agent's"), long("a manager's")],
)
async def test_a_real_switch_that_is_not_whom_it_says_is_rejected(
    bench: LabBench, intruder: Intruder, tmp_path_factory: pytest.TempPathFactory, shown: str
) -> None:
    """It claims to be edge1 and to have vm2's port, by OpenFlow and by OVSDB."""
    own, scheme, kind = holders(bench, tmp_path_factory.mktemp("strangers") / "pki")[shown]
    before = await rejected(bench)
    reasons = {"identity"} if kind == "identity" else {"tls", "timeout"}
    port = (await bench.vm("vm2"))["port"]

    async def counted(door: str) -> bool:
        new = (await rejected(bench))[door] - before[door]
        return sum(new[reason] for reason in reasons) >= (2 if kind == "identity" else 1)

    async with undisturbed(bench), bench.events() as events:
        await intruder.show(own)
        await intruder.dial(scheme)
        await eventually(lambda: counted("openflow"))
        await eventually(lambda: counted("ovsdb"))
        await intruder.hang_up()
    after = await rejected(bench)
    told = Counter(e["listener"] for e in events.of("access.rejected"))
    if kind == "identity":
        assert told["openflow"] >= 2 and told["ovsdb"] >= 2, told
        assert all("edge1" in e["reason"] or "no switch" in e["reason"] for e in events.of("access.rejected"))
    else:
        assert not told
    for door in ("openflow", "ovsdb"):
        assert set(after[door] - before[door]) <= reasons | {"closed"}, "rejected for what it showed"
    now = await bench.vm("vm2")
    assert (now["switch"], now["port"]) == ("edge2", port)
    assert (
        not events.of("vm.mismatch") and not events.of("switch.connected") and not events.of("port.removed")
    )


async def test_a_real_switch_refuses_a_controller_without_a_controllers_certificate(
    bench: LabBench, intruder: Intruder, tmp_path: Path
) -> None:
    """The other half of mutual: a switch's certificate serves nobody, and neither does a stranger's."""
    lab = bench.lab.directory
    theirs = Authority.create(tmp_path / "strangers")
    spoofed = theirs.issue(PeerRole.CONTROLLER, "c1", addresses=["127.0.0.1"])
    other = credentials.switch(lab, "server3")
    await intruder.show(credentials.switch(lab, "server1"))
    for port, cert, key in ((7001, spoofed.file, spoofed.key), (7002, other.certificate, other.key)):
        words = ["s_server", "-accept", str(port), "-cert", str(cert), "-key", str(key), "-quiet"]
        served = bench.lab.spawn(NODE, ["openssl", *words])
        await intruder.vsctl("set-controller", "br0", f"ssl:127.0.0.1:{port}")
        await eventually(partial(says, intruder.folder / "ovs-vswitchd.log", port))
        connected = await intruder.vsctl("--bare", "--columns=is_connected", "list", "controller")
        assert connected.strip() == "false"
        bench.lab.kill(served["pid"])


async def says(log: Path, port: int) -> bool:
    """Whether Open vSwitch's log tells that the certificate shown at this port was not believed."""
    lines = log.read_text().splitlines()
    after = next((n for n, line in enumerate(lines) if f"ssl:127.0.0.1:{port}: connecting" in line), None)
    return after is not None and any("certificate verify" in line for line in lines[after:])


# ---- REST ----


@contextlib.asynccontextmanager
async def client(bench: LabBench, tls: ssl.SSLContext | None) -> AsyncIterator[aiohttp.ClientSession]:
    """Of one with this context; None: plain http."""
    url = bench.topology.controller_url
    connector = aiohttp.TCPConnector(
        socket_factory=lambda _: bench.doorman.socket(), force_close=True, ssl=tls or True
    )
    base = url if tls is not None else url.replace("https:", "http:")
    async with aiohttp.ClientSession(base, connector=connector) as made:
        yield made


async def ask(
    made: aiohttp.ClientSession, method: str, path: str, body: Json | None = None
) -> tuple[int, str]:
    async with made.request(method, path, json=body) as reply:
        return reply.status, str((await reply.json()).get("error", ""))


async def test_rest_takes_nobody_without_a_certificate_of_its_own(bench: LabBench, tmp_path: Path) -> None:
    theirs = Authority.create(tmp_path / "pki").issue(PeerRole.MANAGER, "boss")
    lab = bench.lab.directory
    ca = credentials.folder(lab) / "ca.pem"
    strangers = (None, Credentials(ca).context(), Credentials(ca, theirs.file, theirs.key).context())
    before = await rejected(bench)
    async with undisturbed(bench):
        for tls in strangers:
            async with client(bench, tls) as made:
                with pytest.raises((aiohttp.ClientError, OSError)):
                    await ask(made, "POST", "/v1/vms", {"id": "x", "mac": mac_of("vm9"), "server": "server1"})
    assert (await rejected(bench))["rest"] - before["rest"] == Counter({"tls": len(strangers)})
    assert [vm["id"] for vm in (await bench.get("vms"))["vms"]] == ["vm1", "vm2"]


async def test_a_switch_and_a_controller_command_nothing(bench: LabBench) -> None:
    before = await rejected(bench)
    holders_ = ((PeerRole.SWITCH, "server1"), (PeerRole.CONTROLLER, CONTROLLER))
    async with undisturbed(bench):
        for role, label in holders_:
            async with client(bench, bench.tls_of(role, label)) as made:
                status, said = await ask(made, "GET", "/v1/status")
                assert status == 403 and "may not GET /v1/status" in said
    assert (await rejected(bench))["rest"] - before["rest"] == Counter({"not_allowed": len(holders_)})


async def test_an_agent_has_no_say_about_other_servers(bench: LabBench) -> None:
    """The agent of server1 reads, and reports about server1; about vm2 on server2 it is not believed."""
    before = await rejected(bench)
    stopped = {"event": "stopped", "server": "server2"}
    async with undisturbed(bench), bench.events() as events:
        async with client(bench, bench.tls_of(PeerRole.AGENT, "server1")) as made:
            assert (await ask(made, "GET", "/v1/vms"))[0] == 200
            for path, body in (
                ("/v1/vms/vm2/events", stopped),
                ("/v1/vms/vm1/events", stopped),
                ("/v1/vms", {"id": "vm9", "mac": mac_of("vm9"), "server": "server1"}),
                ("/v1/migrations", {"vm": "vm2", "target_server": "server1"}),
            ):
                status, said = await ask(made, "POST", path, body)
                assert status == 403 and "agent server1" in said, path
            assert (await ask(made, "DELETE", "/v1/vms/vm1"))[0] == 403
            started = {"event": "started", "server": "server1"}
            assert (await ask(made, "POST", "/v1/vms/vm1/events", started))[0] == 200
        rejection = await events.until("access.rejected")
        assert rejection["listener"] == "rest" and "agent server1" in rejection["reason"]
    assert (await rejected(bench))["rest"] - before["rest"] == Counter({"not_allowed": 5})
    assert not events.of("vm.stopped")


async def test_a_flood_of_strangers_does_not_disturb(bench: LabBench) -> None:
    """A hundred at once at each port, half of them silent in the middle of a handshake."""
    hello = bytes.fromhex("160301012c010001280303") + bytes(40)

    async def stranger(port: int, data: bytes) -> None:
        reader, writer = await bench.dial(port)
        with contextlib.suppress(ConnectionError):
            writer.write(data)
            await reader.read()
        writer.close()

    before = await rejected(bench)
    ports = (OPENFLOW_PORT, OVSDB_PORT, REST_PORT)
    async with undisturbed(bench):
        await asyncio.gather(
            *(stranger(port, data) for port in ports for data in (hello, b"x" * 500) for _ in range(50))
        )
    after = await rejected(bench)
    for door in ("openflow", "ovsdb", "rest"):
        assert (after[door] - before[door]).total() == 100, after[door] - before[door]


# ---- an agent's door, where VMs' memory is brought ----


async def test_whom_an_agent_refuses_the_operator_sees(bench: LabBench, tmp_path: Path) -> None:
    """Five knock at the agent of server2, and say that they bring a migration."""
    lab = bench.lab.directory
    ca = credentials.folder(lab) / "ca.pem"
    theirs = Authority.create(tmp_path / "strangers").issue(
        PeerRole.AGENT, "server1", addresses=["127.0.0.1"]
    )
    own = bench.tls_of(PeerRole.AGENT, "server3")
    knocking = (
        *(None, Credentials(ca).context(), Credentials(ca, theirs.file, theirs.key).context()),
        *(credentials.manager(lab).context(), own),
    )
    wanted = {"identity": 1, "not_expected": 1, "tls": 3}

    async def told() -> bool:
        by_agents: Json = (await bench.get("status"))["rejected_by_agents"]
        assert set(by_agents) <= {"server2"}, by_agents
        return by_agents.get("server2") == wanted

    async with undisturbed(bench):
        for tls in knocking:
            await knock(bench, "server2", tls)
        await eventually(told)
    shown = await bench.cli("controller", "status")
    (line,) = (line for line in shown.splitlines() if line.startswith("rejected by agents"))
    assert line.split(maxsplit=3)[3] == "server2: identity 1, server2: not_expected 1, server2: tls 3"
    assert [vm["server"] for vm in (await bench.get("vms"))["vms"]] == ["server1", "server2"]


async def knock(bench: LabBench, server: str, tls: ssl.SSLContext | None) -> None:
    """Say to an agent that we bring a migration, until it has hung up."""
    if tls is not None:
        tls.check_hostname = False
    wire = bench.doorman.socket()
    wire.setblocking(False)
    address = str(bench.topology.management_addresses[server].ip)
    await asyncio.get_running_loop().sock_connect(wire, (address, AGENT_PORT))
    name = address if tls is not None else None
    channel = Channel(*await asyncio.open_connection(sock=wire, ssl=tls, server_hostname=name))
    with pytest.raises(ChannelError):
        await channel.send_message("migration", migration="migration-1", source="server1")
        await channel.receive()
    await channel.close()


# ---- the three connections: of the manager, of an agent and of a switch to the controller ----

MANAGER = "manager"
"""A machine of its own on the management network."""
CABLE = f"mgmt-{MANAGER}"


@contextlib.asynccontextmanager
async def managers_machine(bench: LabBench) -> AsyncIterator[None]:
    topology = bench.topology
    taken = topology.management_addresses.values()
    prefix = topology.management.prefix
    free = next(ip for ip in prefix.hosts() if ip not in {address.ip for address in taken})
    inside = f"ip netns exec {MANAGER}"
    made = f"""
        ip netns add {MANAGER}
        ip link add {CABLE} type veth peer name mgmt0 netns {MANAGER}
        {inside} ip address add {free}/{prefix.prefixlen} dev mgmt0
        {inside} ip link set mgmt0 up
        ip link set {CABLE} master {topology.management_bridge} up
    """
    await bench.run(SANDBOX, "sh", "-ec", made)
    try:
        yield
    finally:
        await bench.run(SANDBOX, "ip", "netns", "del", MANAGER)


async def manager(bench: LabBench, *argv: str) -> str:
    """What `retinue` says on the manager's machine, or complains of."""
    shown = credentials.manager(bench.lab.directory).environment
    variables = [f"{name}={value}" for name, value in shown.items()]
    program = [sys.executable, "-P", "-m", "retinue.cli.main", *argv, "--url", bench.topology.controller_url]
    said = ("sh", "-c", '"$@" 2>&1 || true', "sh", "env", *variables, *program)
    return await bench.run(SANDBOX, "ip", "netns", "exec", MANAGER, *said)


@contextlib.asynccontextmanager
async def cut(bench: LabBench, server: str, *ports: int) -> AsyncIterator[None]:
    """Nothing passes between a server and these ports of the controller, either way."""
    ends = [(server, CONTROLLER, "dport"), (CONTROLLER, server, "sport")]
    rules = [
        (node, f"to {bench.topology.management_addresses[other].ip}/32 ipproto tcp {which} {port} blackhole")
        for node, other, which in ends
        for port in ports
    ]
    for node, rule in rules:
        await bench.run(node, "ip", "rule", "add", "pref", "5", *rule.split())
    try:
        yield
    finally:
        for node, rule in rules:
            await bench.run(node, "ip", "rule", "del", "pref", "5", *rule.split())


@pytest.mark.long
async def test_each_of_the_three_connections_is_cut_by_itself_and_no_vm_notices(bench: LabBench) -> None:
    """And when it is whole again, the manager has a VM migrated to the server whose connections were cut."""
    address = await bench.address("vm1")
    async with managers_machine(bench), bench.events() as events, bench.traffic(address) as traffic:
        # The manager's, in the middle of the migration that it has begun.
        said = json.loads(await manager(bench, "move", "start", "vm2", "--to", "server3", "--json"))
        await bench.run(SANDBOX, "ip", "link", "set", CABLE, "down")
        assert bench.topology.controller_url in await manager(bench, "vm", "list")
        await reaches(events, said["id"], "done")
        assert "access.rejected" not in {event["type"] for event in events.seen}
        await bench.run(SANDBOX, "ip", "link", "set", CABLE, "up")

        async def sees_it() -> bool:
            shown = await manager(bench, "move", "show", said["id"], "--json")
            return '"state": "done"' in shown

        await eventually(sees_it)

        # An agent's: the switch beside it is told what there is to tell.
        async with cut(bench, "server1", REST_PORT):
            await eventually(lambda: has_fallen_silent(bench, "server1"))
            assert (await bench.switch("edge1"))["connected"]
            await manager(bench, "vm", "nic", "set", "vm1", "--rate", "100000")
            assert await bench.flows("edge1", "meter:")
            await manager(bench, "vm", "nic", "set", "vm1", "--rate", "0")

        # A switch's, and its database's: the agent beside it reports.
        async with cut(bench, "server1", OPENFLOW_PORT, OVSDB_PORT):
            await events.until("switch.disconnected", lambda e: e["switch"] == "edge1")
            await eventually(lambda: speaks(bench, "server1"))
            refused = await manager(bench, "move", "start", "vm2", "--to", "server1")
            assert "switch edge1 of server server1 is not connected" in refused
        await events.until("switch.connected", lambda e: e["switch"] == "edge1")
        await manager(bench, "move", "start", "vm2", "--to", "server1", "--wait")
        assert await bench.machines("vm2") == ["server1"]
        await manager(bench, "move", "start", "vm2", "--to", "server2", "--wait")
        await bench.unharmed(traffic)


async def silence(bench: LabBench, server: str) -> float:
    """How old the last report of a server's agent is, in seconds."""
    return float((await bench.get(f"entities/{server}"))["measured"]["age_seconds"])


async def has_fallen_silent(bench: LabBench, server: str) -> bool:
    return await silence(bench, server) > 2 * REPORT_SECONDS


async def speaks(bench: LabBench, server: str) -> bool:
    return await silence(bench, server) < REPORT_SECONDS


# ---- who has the key; last, for it does disturb ----


async def test_the_right_certificate_is_what_it_takes(bench: LabBench, intruder: Intruder) -> None:
    """So it was the certificate, and nothing else: with edge1's own the same switch is let in.

    Whoever has a switch's key is that switch; the newer connection is kept.
    """
    async with bench.events() as events:
        await intruder.vsctl("clear", "interface", "p1", "external_ids")
        await intruder.show(credentials.switch(bench.lab.directory, "server1"))
        before = await rejected(bench)
        await intruder.dial("ssl")
        client = str(bench.topology.management_addresses[NODE].ip)
        await events.until(
            "switch.connected", lambda e: e["switch"] == "edge1" and e["peer"].startswith(client)
        )
        await intruder.hang_up()
        own = str(bench.topology.management_addresses["server1"].ip)
        await events.until("switch.connected", lambda e: e["switch"] == "edge1" and e["peer"].startswith(own))
        assert (await rejected(bench))["openflow"] == before["openflow"]
    await eventually(lambda: answers(bench))


async def answers(bench: LabBench) -> bool:
    return " 1 received" in await bench.run(
        "client", "sh", "-c", f"ping -c 1 -W 1 {await bench.address('vm1')}; :"
    )
