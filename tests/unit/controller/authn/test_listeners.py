"""Every listener over real sockets: who is let in with which certificate or token, and how rejections
count."""

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from retinue.config_file import ConfigError
from retinue.controller.api.access import Access
from retinue.controller.api.server import Api
from retinue.controller.app import Controller
from retinue.controller.authn.switch_authz import SwitchAuthorization
from retinue.controller.authn.tls import protection
from retinue.controller.config import load
from retinue.controller.switches.port_watcher import PortWatch
from retinue.security import tokens
from retinue.security.identity import IdentityError, PeerRole
from retinue.security.tokens import Tokens
from retinue.southbound.openflow.server import OpenFlowServer
from retinue.southbound.ovsdb import OvsdbListener
from support.fabric.networks import add_vm, assignment, fabric, vm_mac
from support.fakes.openflow_peer import OpenFlowPeer as Switch
from support.fakes.ovsdb_peer import OvsdbPeer as Database
from support.pki_files import Certificates
from support.recent_events import recent

EDGE1, EDGE2, LEAF1 = 0x31, 0x32, 0x11
LOOK = 0.01


@pytest.fixture
async def controller() -> AsyncIterator[Controller]:
    made = Controller(fabric())
    await made.start()
    yield made
    await made.stop()


def context_of(pki: Certificates, strangers: Certificates, who: str | None) -> ssl.SSLContext:
    """What a peer shows: "" nothing, "other ROLE/NAME" a certificate of another authority."""
    if who is not None and who.startswith("other "):
        made = pki.client(None)
        made.load_cert_chain(*strangers.files(who.removeprefix("other ")))
        return made
    return pki.client(who or None)


async def until(what: Callable[[], bool]) -> None:
    """Return when it is so; for what a counter alone tells."""
    async with asyncio.timeout(60):
        while not what():  # noqa: ASYNC110
            await asyncio.sleep(LOOK)


async def leave(peer: Switch, task: "asyncio.Task[None]") -> None:
    """Hang up, whatever the controller is about to say."""
    peer.writer.close()
    await asyncio.gather(task, return_exceptions=True)


def rejections(controller: Controller) -> list[tuple[str, str]]:
    return [(e.data["listener"], e.data["reason"]) for e in recent(controller.events, "access.rejected")]


# ---- OpenFlow ----


@pytest.fixture
async def switches(controller: Controller, pki: Certificates) -> AsyncIterator[tuple[OpenFlowServer, int]]:
    admission = SwitchAuthorization(controller.net, controller.events)
    server = OpenFlowServer(controller, hello_timeout=60.0, ssl=pki.server(), admits=admission.switch)
    yield server, await server.start("127.0.0.1", 0)
    await server.stop()


async def until_ended(server: OpenFlowServer, port: int, dpid: int, how: Any) -> None:
    """Play a switch until the controller ends the connection, or the handshake fails."""
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        peer, task = await Switch.join(port, dpid, ssl=how)
        await asyncio.gather(task, return_exceptions=True)
        peer.writer.close()
    await until(lambda: bool(server.rejected))


@pytest.mark.parametrize(
    ("who", "dpid", "kind", "told"),
    [
        (None, EDGE1, "tls", ""),
        ("other switch/edge1", EDGE1, "tls", ""),
        ("manager/boss", EDGE1, "identity", "manager boss, which is no switch"),
        ("agent/server1", EDGE1, "identity", "agent server1, which is no switch"),
        ("controller/c1", EDGE1, "identity", "controller c1, which is no switch"),
        ("switch/edge2", EDGE1, "identity", "is for switch edge2; datapath id 0x31 is switch edge1"),
        ("switch/leaf1+spine1", EDGE1, "identity", "is for switch leaf1, spine1; datapath id 0x31"),
        ("switch/edge1", 0xBAD, "identity", "datapath id 0xbad is no switch of the configuration"),
    ],
)
async def test_a_switch_that_is_not_whom_it_says_is_rejected(
    switches: tuple[OpenFlowServer, int],
    controller: Controller,
    pki: Certificates,
    strangers: Certificates,
    who: str | None,
    dpid: int,
    kind: str,
    told: str,
) -> None:
    server, port = switches
    good, task = await Switch.join(port, EDGE2, ssl=pki.client("switch/edge2"))
    await until(lambda: EDGE2 in server.sessions)
    await until_ended(server, port, dpid, context_of(pki, strangers, who))
    assert dict(server.rejected) == {kind: 1}
    assert set(server.sessions) == {EDGE2} and not task.done()
    assert len(rejections(controller)) == bool(told)
    if told:
        assert rejections(controller)[0][0] == "openflow" and told in rejections(controller)[0][1]
    await leave(good, task)


async def test_plain_openflow_is_rejected(switches: tuple[OpenFlowServer, int]) -> None:
    server, port = switches
    await until_ended(server, port, EDGE1, None)
    assert dict(server.rejected) == {"tls": 1} and not server.sessions


async def test_a_switch_whose_id_nobody_has_configured_is_told_as_unknown(
    switches: tuple[OpenFlowServer, int], controller: Controller, pki: Certificates
) -> None:
    server, port = switches
    _, task = await Switch.join(port, 0xBAD, ssl=pki.client("switch/edge99"))
    await asyncio.gather(task, return_exceptions=True)
    assert [e.data["dpid"] for e in recent(controller.events, "switch.unknown")] == ["0xbad"]
    assert not server.rejected


async def test_several_switches_may_share_a_certificate(
    switches: tuple[OpenFlowServer, int], pki: Certificates
) -> None:
    server, port = switches
    fabric = pki.client("switch/leaf1+spine1")
    joined = [await Switch.join(port, dpid, ssl=fabric) for dpid in (LEAF1, 0x51)]
    await until(lambda: len(server.sessions) >= 2)
    assert not server.rejected
    for peer, task in joined:
        await leave(peer, task)


async def test_a_hello_that_comes_with_the_handshake_is_not_lost(
    switches: tuple[OpenFlowServer, int], pki: Certificates
) -> None:
    """A TLS 1.3 client's first message may share a packet with the end of its handshake."""
    _, port = switches
    to_peer, from_peer = ssl.MemoryBIO(), ssl.MemoryBIO()
    wire = pki.client("switch/edge1").wrap_bio(to_peer, from_peer, server_hostname="127.0.0.1")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while True:
        try:
            wire.do_handshake()
            break
        except ssl.SSLWantReadError:
            writer.write(from_peer.read())
            to_peer.write(await reader.read(65536))
    wire.write(bytes.fromhex("0500000800000001"))
    writer.write(from_peer.read())  # the end of the handshake, and HELLO
    said = b""
    async with asyncio.timeout(60):
        while len(said) < 8 + 12 + 8:  # HELLO, SET_CONFIG, FEATURES_REQUEST
            to_peer.write(await reader.read(65536))
            with contextlib.suppress(ssl.SSLWantReadError):
                while record := wire.read(65536):
                    said += record
    writer.close()


# ---- OVSDB ----


class Databases:
    def __init__(self, controller: Controller, pki: Certificates) -> None:
        self.told: list[Any] = []
        admission = SwitchAuthorization(controller.net, controller.events)
        watch = PortWatch(
            lambda went, came: self.told.append((went, came)),
            lambda dpids, vms: self.told.append((dpids, vms)),
            admission.database,
        )
        self.listener = OvsdbListener(
            watch.follow,
            pki.server(),
            proof_timeout=60.0,
            may_dial=lambda certificate, peer: admission.database(certificate, (), peer),
        )


@pytest.fixture
async def databases(controller: Controller, pki: Certificates) -> AsyncIterator[tuple[Databases, int]]:
    made = Databases(controller, pki)
    yield made, await made.listener.start("127.0.0.1", 0)
    await made.listener.stop()


@pytest.mark.parametrize(
    "who", ["reader/grafana", "agent/server1", "manager/boss", "controller/c1", "mobility/m1"]
)
async def test_nothing_is_read_of_who_brings_no_database(
    databases: tuple[Databases, int],
    controller: Controller,
    pki: Certificates,
    who: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, port = databases
    fed: list[bytes] = []

    def feed(_: object, data: bytes) -> list[bytes]:
        fed.append(data)
        return []

    monkeypatch.setattr("retinue.southbound.ovsdb.wire.Framer.feed", feed)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=pki.client(who))
    with contextlib.suppress(ConnectionError):
        writer.write(b'{"a":{"b":' + b"{" * 65_536 + b"}" * 65_536)
        await Database(reader, writer).gone()
    await until(lambda: bool(made.listener.rejected))
    assert dict(made.listener.rejected) == {"identity": 1} and not fed
    assert rejections(controller)[0][0] == "ovsdb" and who.partition("/")[2] in rejections(controller)[0][1]


SCHEMA = {
    "tables": {
        "Open_vSwitch": {
            "columns": {
                "bridges": {"type": {"key": "uuid", "min": 0, "max": "unlimited"}},
                "ovs_version": {"type": "string"},
            }
        },
        "Bridge": {
            "columns": {
                "name": {"type": "string"},
                "datapath_id": {"type": "string"},
                "ports": {"type": {"key": "uuid", "min": 0, "max": "unlimited"}},
            }
        },
        "Port": {
            "columns": {
                "name": {"type": "string"},
                "interfaces": {"type": {"key": "uuid", "min": 0, "max": "unlimited"}},
                "tag": {"type": {"key": "integer", "min": 0, "max": 1}},
                "trunks": {"type": {"key": "integer", "min": 0, "max": 4096}},
            }
        },
        "Interface": {
            "columns": {
                **{name: {"type": "string"} for name in ("name", "link_state", "admin_state")},
                "ofport": {"type": {"key": "integer", "min": 0, "max": 1}},
                "external_ids": {"type": {"key": "string", "value": "string", "min": 0, "max": "unlimited"}},
            }
        },
    }
}


def bridge(n: int, dpid: int) -> dict[str, Any]:
    uuid = f"{n:08x}-0000-0000-0000-000000000000"
    return {"Bridge": {uuid: {"initial": {"name": f"br{n}", "datapath_id": f"{dpid:016x}"}}}}


async def play(peer: Database, *dpids: int) -> None:
    """Be a database with bridges of these datapath ids."""
    rows: dict[str, Any] = {"Bridge": {}}
    for n, dpid in enumerate(dpids):
        rows["Bridge"] |= bridge(n, dpid)["Bridge"]
    await peer.answer("list_dbs", ["Open_vSwitch"])
    await peer.answer("get_schema", SCHEMA)
    await peer.answer("monitor_cond_since", [False, "0" * 8, rows])


async def dial(port: int, how: Any) -> Database:
    return Database(*await asyncio.open_connection("127.0.0.1", port, ssl=how))


@pytest.mark.parametrize(
    ("who", "dpids", "kind", "told"),
    [
        (None, (), "tls", ""),
        ("other switch/edge1", (), "tls", ""),
        ("manager/boss", (), "identity", "manager boss, which is no switch"),
        ("switch/edge1", (EDGE2,), "identity", "is for switch edge1, the database has edge2"),
        ("switch/edge1", (EDGE1, EDGE2), "identity", "is for switch edge1, the database has edge2"),
    ],
)
async def test_a_database_of_other_switches_is_rejected(
    databases: tuple[Databases, int],
    controller: Controller,
    pki: Certificates,
    strangers: Certificates,
    who: str | None,
    dpids: tuple[int, ...],
    kind: str,
    told: str,
) -> None:
    made, port = databases
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        peer = await dial(port, context_of(pki, strangers, who))
        with contextlib.suppress(ConnectionError):
            await play(peer, *dpids)
        await peer.gone()
    await until(lambda: bool(made.listener.rejected))
    assert dict(made.listener.rejected) == {kind: 1}
    assert made.told == [], "something of it was believed"
    assert len(rejections(controller)) == bool(told)
    if told:
        assert rejections(controller)[0][0] == "ovsdb" and told in rejections(controller)[0][1]


async def test_a_database_may_have_bridges_that_are_no_switch_of_ours_but_none_of_others(
    databases: tuple[Databases, int], controller: Controller, pki: Certificates
) -> None:
    made, port = databases
    peer = await dial(port, pki.client("switch/edge1"))
    await play(peer, EDGE1, 0xABC)
    await until(lambda: bool(made.told))
    assert made.told == [([EDGE1, 0xABC], [])]
    peer.send({"method": "update3", "params": ["Open_vSwitch", "1", _inserted(bridge(9, EDGE2))], "id": None})
    await peer.gone()
    await until(lambda: bool(made.listener.rejected))
    assert dict(made.listener.rejected) == {"identity": 1}
    assert "the database has edge2" in rejections(controller)[0][1]


async def test_a_switchs_newer_database_is_followed_and_the_older_one_ends(
    databases: tuple[Databases, int], pki: Certificates
) -> None:
    """As with OpenFlow: the older one, if it still lives, comes back and is read anew."""
    made, port = databases
    older = await dial(port, pki.client("switch/edge1"))
    await play(older, EDGE1)
    await until(lambda: len(made.told) == 1)
    newer = await dial(port, pki.client("switch/edge1"))
    await play(newer, EDGE1)
    await older.gone()
    await until(lambda: len(made.told) == 2)
    again = await dial(port, pki.client("switch/edge1"))
    await play(again, EDGE1)
    await newer.gone()
    await until(lambda: len(made.told) == 3)
    assert not made.listener.rejected


def _inserted(update: dict[str, Any]) -> dict[str, Any]:
    return {t: {uuid: {"insert": row["initial"]} for uuid, row in rows.items()} for t, rows in update.items()}


# ---- REST ----


class Rest:
    def __init__(self, api: Api, url: str, issued: dict[str, str]) -> None:
        self.api, self.url, self.issued = api, url, issued

    async def ask(
        self, method: str, path: str, how: Any = None, body: object = None, token: str | None = None
    ) -> tuple[int, dict[str, Any]]:
        headers = {} if token is None else {"Authorization": f"Bearer {self.issued.get(token, token)}"}
        async with aiohttp.ClientSession(headers=headers) as http:
            data = None if body is None else json.dumps(body)
            async with http.request(method, self.url + path, ssl=how or True, data=data) as answer:
                if path == "/metrics":
                    return answer.status, {}
                return answer.status, await answer.json()


@pytest.fixture
async def rest(controller: Controller, pki: Certificates, tmp_path: Path) -> AsyncIterator[Rest]:
    file = tmp_path / "tokens.toml"
    issued = {
        "ops": tokens.add(file, "ops", PeerRole.MANAGER, []),
        "graphs": tokens.add(file, "graphs", PeerRole.READER, []),
        "agent2": tokens.add(file, "agent2", PeerRole.AGENT, ["server2"]),
    }
    api = Api(
        controller, dict, Access(controller, Tokens(file), open=False), pki.server(certificate_needed=False)
    )
    port = await api.start("127.0.0.1", 0)
    yield Rest(api, f"https://127.0.0.1:{port}", issued)
    await api.stop()


VM = {"id": "vm1", "mac": vm_mac(1), "server": "server1"}
STARTED = {"event": "started", "server": "server1"}


@pytest.mark.parametrize(("who", "token"), [("manager/boss", None), (None, "ops"), ("reader/grafana", "ops")])
async def test_a_manager_does_everything(
    rest: Rest, pki: Certificates, who: str | None, token: str | None
) -> None:
    how = pki.client(who)
    assert (await rest.ask("POST", "/v1/vms", how, VM, token))[0] == 201
    assert (await rest.ask("POST", "/v1/vms/vm1/events", how, STARTED, token))[0] == 200
    assert (await rest.ask("DELETE", "/v1/vms/vm1", how, token=token))[0] == 200
    assert not rest.api.rejected


async def test_when_a_certificate_that_was_shown_ends_is_known(
    rest: Rest, pki: Certificates, controller: Controller
) -> None:
    assert (await rest.ask("GET", "/v1/status", pki.client("agent/server1")))[0] == 200
    assert (await rest.ask("GET", "/v1/status", pki.client(None), token="ops"))[0] == 200
    assert list(controller.context.certificates.soon(time.time())) == [], "it is good for long"
    in_ten_years = time.time() + 10 * 365 * 86400
    assert list(controller.context.certificates.soon(in_ten_years)) == ["agent server1"]


@pytest.mark.parametrize(("who", "token"), [("reader/grafana", None), (None, "graphs")])
async def test_a_reader_reads_and_changes_nothing(
    rest: Rest, pki: Certificates, controller: Controller, who: str | None, token: str | None
) -> None:
    how = pki.client(who)
    for path in ("/v1/status", "/v1/vms", "/v1/flows", "/metrics"):
        assert (await rest.ask("GET", path, how, token=token))[0] == 200
    asked = {"at": "edge1:LOCAL", "to": "10.0.0.12"}
    assert (await rest.ask("POST", "/v1/traces", how, asked, token))[0] == 200, "which changes nothing"
    for method, path in (("POST", "/v1/vms"), ("DELETE", "/v1/vms/vm1"), ("POST", "/v1/vms/vm1/events")):
        status, answer = await rest.ask(method, path, how, VM, token)
        assert status == 403 and f"reader {token or 'grafana'} may not {method} {path}" in answer["error"]
    assert dict(rest.api.rejected) == {"not_allowed": 3}
    assert len(rejections(controller)) == 3 and not controller.net.vms


@pytest.mark.parametrize(("who", "token"), [("agent/server2", None), (None, "agent2")])
async def test_an_agent_speaks_for_its_own_servers_only(
    rest: Rest, pki: Certificates, controller: Controller, who: str | None, token: str | None
) -> None:
    boss, how = pki.client("manager/boss"), pki.client(who)
    both = [VM, {"id": "vm2", "mac": vm_mac(2), "server": "server2"}]
    assert (await rest.ask("POST", "/v1/vms", boss, both))[0] == 201

    async def say(path: str, event: str, server: str = "", **more: object) -> tuple[int, str]:
        body = {"event": event, "server": server, **more}
        status, answer = await rest.ask("POST", path, how, body, token)
        return status, answer.get("error", "")

    assert (await say("/v1/vms/vm2/events", "started", "server2"))[0] == 200
    status, said = await say("/v1/vms/vm1/events", "started", "server1")
    assert status == 403 and "is about server1" in said
    assert (await say("/v1/vms/vm2/events", "started", "server1"))[0] == 403, "for another server"
    assert (await say("/v1/vms/none/events", "started", "server2"))[0] == 409, "the handler's own rejection"
    for method, path, body in (
        ("POST", "/v1/vms", {**VM, "id": "vm9"}),
        ("DELETE", "/v1/vms/vm2", None),
        ("POST", "/v1/migrations", {"vm": "vm2", "target_server": "server1"}),
        ("POST", "/v1/servers", {"id": "s", "mac": "02:00:00:00:00:77"}),
    ):
        assert (await rest.ask(method, path, how, body, token))[0] == 403, path
    assert (await rest.ask("GET", "/v1/vms", how, token=token))[0] == 200
    seen = {"vm": "vm2", "kind": "started", "at": 5.0}
    assert (await rest.ask("POST", "/v1/servers/server2/hypervisor-events", how, seen, token))[0] == 200
    assert (await rest.ask("POST", "/v1/servers/server1/hypervisor-events", how, seen, token))[0] == 403
    counts = {"since": 5.0, "rejected": {"tls": 1}}
    assert (await rest.ask("POST", "/v1/servers/server2/counters", how, counts, token))[0] == 200
    assert (await rest.ask("POST", "/v1/servers/server1/counters", how, counts, token))[0] == 403
    assert controller.agent_rejections.totals() == {"server2": {"tls": 1}}
    assert (await rest.ask("POST", "/v1/vms/vm1/renewals", how, {"agent": True}, token))[0] == 403
    status, answer = await rest.ask("POST", "/v1/vms/vm2/renewals", how, {"agent": True}, token)
    assert status == 409 and "is not authorized" not in answer["error"], (
        "the handler's own: nothing is leased"
    )
    assert (await rest.ask("POST", "/v1/vms/vm2/renewals", how, {"server": "server1"}, token))[0] == 403

    # vm1 comes here; and then a VM moves between others.
    assert (await rest.ask("POST", "/v1/migrations", boss, {"vm": "vm1", "target_server": "server2"}))[
        0
    ] == 201
    assert (await say("/v1/migrations/migration-1/events", "target_opened"))[0] == 200
    assert (await say("/v1/migrations/migration-1/events", "failed", reason="test"))[0] == 200
    registered = {"id": "vm3", "mac": vm_mac(3), "server": "server1"}
    assert (await rest.ask("POST", "/v1/vms", boss, registered))[0] == 201
    assert (await rest.ask("POST", "/v1/migrations", boss, {"vm": "vm3", "target_server": "server3"}))[
        0
    ] == 201
    status, said = await say("/v1/migrations/migration-2/events", "target_opened")
    assert status == 403 and "is about server1, server3" in said
    assert (await say("/v1/migrations/migration-2/cancel", "x"))[0] == 403
    assert controller.orchestrator.migrations["migration-2"].state == "matched"


@pytest.mark.parametrize(("who", "token"), [("agent/server2", None), (None, "agent2")])
async def test_the_end_of_a_move_where_the_vm_runs_speaks_for_it(
    rest: Rest, pki: Certificates, controller: Controller, who: str | None, token: str | None
) -> None:
    """The other has to do with it, too: that is not enough."""
    boss, how = pki.client("manager/boss"), pki.client(who)
    registered = [
        {"id": f"vm{n}", "mac": vm_mac(n), "server": f"server{at}"} for n, at in ((1, 1), (2, 2), (3, 3))
    ]
    assert (await rest.ask("POST", "/v1/vms", boss, registered))[0] == 201
    paths = ["/v1/vms/{}/events", "/v1/vms/{}/renewals"]

    async def may_speak(vm: str) -> list[bool]:
        said: list[dict[str, object]] = [{"event": "started", "server": "server2"}, {"server": "server2"}]
        answers = [
            await rest.ask("POST", path.format(vm), how, body, token)
            for path, body in zip(paths, said, strict=True)
        ]
        return [status != 403 for status, _ in answers]

    assert [await may_speak(f"vm{n}") for n in (1, 2, 3)] == [[False] * 2, [True] * 2, [False] * 2]
    for vm, target in (("vm1", "server2"), ("vm2", "server1"), ("vm3", "server1")):
        body = {"vm": vm, "target_server": target}
        assert (await rest.ask("POST", "/v1/migrations", boss, body))[0] == 201
        assert controller.orchestrator.of_vm(vm) is not None
    assert controller.net.vms["vm1"].also == frozenset(), "not admitted yet"
    assert [await may_speak(f"vm{n}") for n in (1, 2, 3)] == [[False] * 2, [True] * 2, [False] * 2]
    # Its traffic is delivered at the target; it has not been said that it runs there.
    controller.net.put_vm(replace(controller.net.vms["vm2"], server="server1"))
    assert await may_speak("vm2") == [True] * 2
    controller.net.put_vm(replace(controller.net.vms["vm1"], server="server2"))
    assert await may_speak("vm1") == [False, True]


@pytest.mark.parametrize(("who", "token"), [("agent/server2", None), (None, "agent2")])
async def test_an_agent_tells_of_its_own_renewals(
    rest: Rest, pki: Certificates, controller: Controller, who: str | None, token: str | None
) -> None:
    how, ids = pki.client(who), {}
    for number in (1, 2):
        add_vm(controller.net, number, at=number, bound=False)
        controller.net.assign(replace(assignment(number), server=IPv4Address("10.1.0.2")))
        ids[number] = controller.renewals.renew(f"vm{number}").id
    body = {"event": "silent", "reason": "no answer"}

    async def tells(id: str) -> tuple[int, str]:
        status, answer = await rest.ask("POST", f"/v1/renewals/{id}/events", how, body, token)
        return status, answer.get("error", "")

    assert (await tells(ids[2]))[0] == 200
    assert controller.renewals.orders[ids[2]].reason == "no answer"
    status, said = await tells(ids[1])
    assert status == 403 and "is about server1" in said
    assert not controller.renewals.orders[ids[1]].state.ended
    status, said = await tells("renewal-9")
    assert status == 409 and "renewal-9" in said, "the handler's own rejection"


@pytest.mark.parametrize(
    "body", [b'{"event": "\xff"}', b"{", b"[" * 60_000, b"", b'["server1"]', b'{"server": 7}']
)
async def test_a_body_that_cannot_be_read_is_the_handlers_to_refuse(
    rest: Rest, pki: Certificates, controller: Controller, body: bytes
) -> None:
    boss, how = pki.client("manager/boss"), pki.client("agent/server2")
    registered = {"id": "vm2", "mac": vm_mac(2), "server": "server2"}
    assert (await rest.ask("POST", "/v1/vms", boss, registered))[0] == 201
    url = f"{rest.url}/v1/vms/vm2/events"
    async with aiohttp.ClientSession() as http, http.post(url, ssl=how, data=body) as answer:
        assert answer.status == 400
        assert ("it is not UTF-8" in await answer.text()) == (b"\xff" in body)


@pytest.mark.parametrize(("open", "status"), [(True, 200), (False, 401)])
async def test_a_token_where_there_are_none_is_nobodys(
    controller: Controller, open: bool, status: int
) -> None:
    api = Api(controller, dict, Access(controller, open=open))
    port = await api.start("127.0.0.1", 0)
    try:
        url, shown = f"http://127.0.0.1:{port}/v1/status", {"Authorization": "Bearer something"}
        async with aiohttp.ClientSession() as http, http.get(url, headers=shown) as answer:
            assert answer.status == status
    finally:
        await api.stop()


async def test_a_certificate_that_names_nobody_is_nobodys(
    rest: Rest, pki: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(certificate: object) -> None:
        raise IdentityError("the certificate names no role")

    monkeypatch.setattr("retinue.controller.api.access.identity_of", nobody)
    status, answer = await rest.ask("GET", "/v1/status", pki.client("manager/boss"))
    assert status == 401 and "the certificate names no role" in answer["error"]


async def test_who_is_not_known_is_turned_away(rest: Rest, pki: Certificates, controller: Controller) -> None:
    nobody = pki.client(None)
    for token, said in (
        (None, "who asks?"),
        ("wrong" * 9, "the token is not known"),
        ("", "must be: Bearer TOKEN"),
    ):
        status, answer = await rest.ask("GET", "/v1/status", nobody, token=token)
        assert status == 401 and said in answer["error"]
    status, answer = await rest.ask("GET", "/v1/status", pki.client("manager/boss"), token="wrong")
    assert status == 401, "a wrong token is not mended by a certificate"
    for role in ("switch/edge1", "controller/c1"):
        assert (await rest.ask("GET", "/v1/status", pki.client(role)))[0] == 403
    async with aiohttp.ClientSession() as http:
        basic = {"Authorization": "Basic b3BzOm9wcw=="}
        async with http.get(f"{rest.url}/v1/status", ssl=nobody, headers=basic) as answer_:
            assert answer_.status == 401 and answer_.headers["WWW-Authenticate"].startswith("Bearer")
    assert dict(rest.api.rejected) == {"not_authenticated": 5, "not_allowed": 2}


async def test_a_bad_certificate_and_plain_text_do_not_get_through_the_handshake(
    rest: Rest, pki: Certificates, strangers: Certificates
) -> None:
    with pytest.raises(aiohttp.ClientError):
        await rest.ask("POST", "/v1/vms", context_of(pki, strangers, "other manager/boss"), VM, "ops")
    plain = Rest(rest.api, rest.url.replace("https:", "http:"), {})
    with pytest.raises(aiohttp.ClientError):
        await plain.ask("POST", "/v1/vms", body=VM)
    await until(lambda: rest.api.rejected["tls"] >= 2)
    assert dict(rest.api.rejected) == {"tls": 2}
    assert (await rest.ask("GET", "/v1/status", pki.client("reader/r")))[0] == 200


async def test_a_client_refuses_a_controller_of_another_authority_or_address(
    rest: Rest, pki: Certificates, strangers: Certificates
) -> None:
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await rest.ask("GET", "/v1/status", strangers.client(None))
    elsewhere = pki.client("manager/boss")
    with pytest.raises(aiohttp.ClientConnectorCertificateError, match="not valid for"):
        async with aiohttp.ClientSession() as http:
            await http.get(f"{rest.url}/v1/status", ssl=elsewhere, server_hostname="other.example")


async def test_one_connection_serves_many_requests(rest: Rest, pki: Certificates) -> None:
    """A standing connection stays: no handshake for each report."""
    made: list[object] = []
    trace = aiohttp.TraceConfig()

    async def created(*_: object) -> None:
        made.append(1)

    trace.on_connection_create_end.append(created)
    async with aiohttp.ClientSession(trace_configs=[trace]) as http:
        for _ in range(5):
            async with http.get(f"{rest.url}/v1/vms", ssl=pki.client("manager/boss")) as answer:
                assert answer.status == 200
    how = pki.client("manager/boss")
    made.clear()
    async with aiohttp.ClientSession(trace_configs=[trace]) as http:
        for _ in range(5):
            async with http.get(f"{rest.url}/v1/vms", ssl=how) as answer:
                await answer.read()
    assert len(made) == 1


# ---- the configuration ----

FABRIC = 'gateway_mac = "00:00:de:ad:be:ef"\n'


def test_without_tls_the_operator_must_say_plain_text_by_name(tmp_path: Path) -> None:
    file = tmp_path / "controller.toml"
    file.write_text(FABRIC)
    with pytest.raises(ConfigError, match=r"openflow and ovsdb and rest would be open.*retinue pki init"):
        load(file)
    file.write_text(FABRIC + '[listen]\nplaintext = ["rest"]\n')
    with pytest.raises(ConfigError, match=r'plaintext = \["openflow","ovsdb"\]'):
        load(file)
    file.write_text(FABRIC + '[listen]\nplaintext = ["everything"]\n')
    with pytest.raises(ConfigError, match="everything"):
        load(file)
    file.write_text(FABRIC + '[listen]\nplaintext = ["openflow", "ovsdb", "rest"]\n')
    guard = protection(load(file))
    assert not guard.contexts and guard.rest_is_open


@pytest.mark.parametrize("listener", ["openflow", "ovsdb", "rest"])
def test_an_address_to_listen_at_is_checked_when_the_file_is_read(tmp_path: Path, listener: str) -> None:
    file = tmp_path / "controller.toml"
    file.write_text(FABRIC + f'[listen]\n{listener} = "192.0.2.1"\n')
    with pytest.raises(ConfigError, match=f"{file}: listen.{listener}: '192.0.2.1' is not HOST:PORT"):
        load(file)


def test_files_are_looked_for_beside_the_configuration(tmp_path: Path) -> None:
    pki = Certificates(tmp_path / "pki")
    pki.files("controller/c1"), pki.files("switch/edge1")
    text = FABRIC + '[tls]\nca = "pki/ca.pem"\ncertificate = "pki/{0}.pem"\nkey = "pki/{0}.key"\n'
    file = tmp_path / "controller.toml"
    file.write_text(text.format("controller-c1"))
    guard = protection(load(file))
    assert set(guard.contexts) == {"openflow", "ovsdb", "rest"} and not guard.rest_is_open
    assert {c.verify_mode for c in guard.contexts.values()} == {ssl.CERT_REQUIRED}
    file.write_text(text.format("switch-edge1"))
    with pytest.raises(ConfigError, match="is a switch's certificate"):
        protection(load(file))
    file.write_text(text.format("none"))
    with pytest.raises(ConfigError, match="there is no such file"):
        protection(load(file))


def test_tokens_let_clients_without_a_certificate_through_the_handshake_and_are_read_again(
    tmp_path: Path,
) -> None:
    pki = Certificates(tmp_path / "pki")
    pki.files("controller/c1")
    first = tokens.add(tmp_path / "tokens.toml", "one", PeerRole.READER, [])
    file = tmp_path / "controller.toml"
    file.write_text(
        f'{FABRIC}[tls]\nca = "pki/ca.pem"\ncertificate = "pki/controller-c1.pem"\n'
        'key = "pki/controller-c1.key"\n[rest]\ntokens = "tokens.toml"\n'
    )
    guard = protection(load(file))
    assert guard.contexts["rest"].verify_mode is ssl.CERT_OPTIONAL
    assert guard.contexts["openflow"].verify_mode is ssl.CERT_REQUIRED
    second = tokens.add(tmp_path / "tokens.toml", "two", PeerRole.READER, [])
    pki.authority.renew(pki.authority.get(PeerRole.CONTROLLER, "c1"))
    guard.reload()
    assert guard.tokens.identity(first) and guard.tokens.identity(second)
    (tmp_path / "tokens.toml").write_text("nonsense")
    with pytest.raises(ConfigError):
        guard.reload()
    assert guard.tokens.identity(first)


async def test_a_renewed_certificate_is_shown_after_a_reload(controller: Controller, tmp_path: Path) -> None:
    pki = Certificates(tmp_path / "pki")
    pki.files("controller/c1")
    file = tmp_path / "controller.toml"
    file.write_text(
        f'{FABRIC}[tls]\nca = "pki/ca.pem"\ncertificate = "pki/controller-c1.pem"\n'
        'key = "pki/controller-c1.key"\n'
    )
    guard = protection(load(file))
    api = Api(controller, dict, Access(controller, open=False), guard.contexts["rest"])
    port = await api.start("127.0.0.1", 0)

    async def serial() -> str:
        how = pki.client("manager/boss")
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=how)
        shown: str = writer.get_extra_info("peercert")["serialNumber"]
        writer.close()
        return shown

    before = await serial()
    pki.authority.renew(pki.authority.get(PeerRole.CONTROLLER, "c1"), days=900)
    assert await serial() == before
    first = guard.ends
    guard.reload()
    assert await serial() != before
    assert first is not None and guard.ends is not None and guard.ends > first, "said of it, too"
    await api.stop()
