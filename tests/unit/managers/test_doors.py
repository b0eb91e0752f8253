"""The managers' doors over TLS: who is let in, and of which domain whoever is let in speaks; their files."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import msgspec
import pytest
from typer.testing import CliRunner

from retinue.cli.main import app
from retinue.config_file import ConfigError
from retinue.controller.api.access import Access
from retinue.controller.api.server import Api
from retinue.controller.app import Controller
from retinue.controller.config import load
from retinue.controller.mobility import managers as client_side
from retinue.controller.mobility.managers import ManagerClients
from retinue.core.placement import Policy
from retinue.managers.config import load_mobility, load_resource
from retinue.managers.door import ManagerDoor
from retinue.managers.resources import Resources
from retinue.protocol.errors import ControllerAwayError, RejectedError
from retinue.protocol.managers import Filling, policy_said
from retinue.security.contexts import client_context, server_context
from retinue.security.identity import PeerRole
from support.fabric.networks import fabric
from support.pki_files import Certificates

ALL = Filling("run-1", 0, policy_said(Policy()), whole=True)


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Certificates]:
    return {name: Certificates(tmp_path_factory.mktemp(name)) for name in "ab"}


@contextlib.asynccontextmanager
async def doors(authorities: dict[str, Certificates]) -> AsyncIterator[tuple[Resources, dict[str, int]]]:
    """Of a resource manager with a certificate of domain a, for both domains; and their ports."""
    resources = Resources({"a": [], "b": []}, asyncio.get_running_loop().time)
    own = authorities["a"].files("mobility/r1")
    ports: dict[str, int] = {}
    async with contextlib.AsyncExitStack() as stack:
        for domain, authority in authorities.items():
            context = server_context(authority.authority.ca, *own)
            door = ManagerDoor(f"domain {domain}", resources.said_by(domain), context)
            ports[domain] = await door.start("127.0.0.1", 0)
            stack.push_async_callback(door.stop)
        yield resources, ports


async def fill(port: int, believes: Certificates, shows: Certificates, party: str) -> None:
    url = f"https://127.0.0.1:{port}"
    client = ManagerClients(url, url, client_context(believes.authority.ca, *shows.files(party)))
    try:
        await client.fill(ALL)
    finally:
        await client.close()


async def test_each_controller_speaks_of_its_own_domain_and_of_no_other(
    authorities: dict[str, Certificates],
) -> None:
    a, b = authorities["a"], authorities["b"]
    async with doors(authorities) as (resources, ports):
        await fill(ports["b"], a, b, "controller/c1")
        assert (resources.holdings["a"].whole, resources.holdings["b"].whole) == (False, True)
        with pytest.raises(ControllerAwayError):
            await fill(ports["a"], a, b, "controller/c1")
        assert not resources.holdings["a"].whole


OTHERS = ["agent/server1", "switch/edge1", "manager/anna", "reader/bob", "mobility/m1"]


@pytest.mark.parametrize("party", OTHERS)
async def test_nobody_else_speaks_there(authorities: dict[str, Certificates], party: str) -> None:
    async with doors(authorities) as (resources, ports):
        with pytest.raises(RejectedError, match="a controller of domain a says this, not"):
            await fill(ports["a"], authorities["a"], authorities["a"], party)
        assert not resources.holdings["a"].whole


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "vms"), ("POST", "vms"), ("POST", "servers/server1/profile")]
)
async def test_a_managers_certificate_says_and_reads_nothing_by_rest(
    authorities: dict[str, Certificates], method: str, path: str
) -> None:
    pki, controller = authorities["a"], Controller(fabric(), clock=lambda: 1000.0)
    access = Access(controller, open=False)
    api = Api(controller, dict, access, ssl=pki.server(certificate_needed=False))
    url = f"https://127.0.0.1:{await api.start('127.0.0.1', 0)}/v1/{path}"
    try:
        shows = aiohttp.TCPConnector(ssl=pki.client("mobility/m1"))
        async with aiohttp.ClientSession(connector=shows) as http, http.request(method, url, json={}) as said:
            assert (said.status, "mobility m1 may not" in await said.text()) == (403, True)
    finally:
        await api.stop()


async def test_what_is_no_record_is_refused_and_counted(authorities: dict[str, Certificates]) -> None:
    a = authorities["a"]
    async with doors(authorities) as (resources, ports):
        url = f"https://127.0.0.1:{ports['a']}"
        client = ManagerClients(url, url, client_context(a.authority.ca, *a.files("controller/c1")))
        for body in ({}, {"instance": "../x", "number": 0}, {"number": -1}, ["x"]):
            with pytest.raises(RejectedError, match="cannot be used"):
                await client._resources.request("POST", "/managers/v1/fillings", body)
        await client.close()
        assert not resources.holdings["a"].whole


async def test_one_that_hangs_costs_the_limit(
    authorities: dict[str, Certificates], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the connection, and never answers."""
    monkeypatch.setattr(client_side, "FILL_LIMIT", 0.2)
    a = authorities["a"]
    context = server_context(a.authority.ca, *a.files("mobility/r1"))
    silent = await asyncio.start_server(lambda *_: asyncio.sleep(60), "127.0.0.1", 0, ssl=context)
    try:
        with pytest.raises(ControllerAwayError, match=r"the resource manager at https.* cannot be reached"):
            await fill(silent.sockets[0].getsockname()[1], a, a, "controller/c1")
    finally:
        silent.close()


TLS = '[tls]\nca = "ca.pem"\ncertificate = "m.pem"\nkey = "m.key"\n'
DOOR = '[[domain]]\nid = "a"\nlisten = "127.0.0.1:8091"\nca = "a.pem"\n'
OF_B = DOOR.replace('"a"', '"b"').replace("8091", "8092").replace("a.pem", "b.pem")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f"domain = []\n{TLS}", "name the domains that it serves"),
        (TLS + DOOR + DOOR, "domain 'a' is given twice"),
        (TLS + DOOR.replace('"a"', '"../a"'), "is no name"),
        (TLS + DOOR + DOOR.replace('"a"', '"b"'), "domain b: ca: it is domain a's, too"),
        (TLS + DOOR + OF_B.replace("b.pem", "copy.pem"), "domain b: ca: it is domain a's, too"),
        (TLS + DOOR.replace(":8091", ""), "listen"),
        (TLS + DOOR + 'offers_to = ["c"]\n', "'c' is not served here"),
        (DOOR, "tls"),
    ],
)
def test_a_mistake_in_the_resource_managers_file_is_said(tmp_path: Path, text: str, why: str) -> None:
    for name, authority in {"a": "A", "b": "B", "copy": "A"}.items():
        (tmp_path / f"{name}.pem").write_text(authority)
    file = tmp_path / "resources.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=why):
        load_resource(file)
    file.write_text(TLS + DOOR + OF_B)
    assert [one.id for one in load_resource(file).domain] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f'listen = "127.0.0.1"\nresources = "https://192.0.2.6:8091"\n{TLS}', "listen"),
        (f'listen = "127.0.0.1:1"\nresources = "http://192.0.2.6:8091"\n{TLS}', "no https://HOST:PORT"),
    ],
)
def test_a_mistake_in_the_mobility_managers_file_is_said(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "mobility.toml").write_text(text)
    with pytest.raises(ConfigError, match=why):
        load_mobility(tmp_path / "mobility.toml")


CONTROLLER = 'gateway_mac = "02:00:00:00:00:fe"\n[tls]\nca = "ca.pem"\ncertificate = "c.pem"\nkey = "c.key"\n'
BOTH = '[managers]\nmobility = "https://192.0.2.5:8090"\nresources = "https://192.0.2.6:8091"\n'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (CONTROLLER + '[managers]\nmobility = "https://192.0.2.5:8090"\n', "both managers are needed"),
        (CONTROLLER + BOTH + 'domains = ["b"]\n', "there is no .*domain.* 'b'"),
        (
            'gateway_mac = "02:00:00:00:00:fe"\n[listen]\nplaintext = ["openflow", "ovsdb", "rest"]\n' + BOTH,
            r"add the table \[tls\]",
        ),
    ],
)
def test_a_mistake_in_the_controllers_table_is_said(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "controller.toml").write_text(text)
    with pytest.raises(ConfigError, match=why):
        load(tmp_path / "controller.toml")
    (tmp_path / "controller.toml").write_text(CONTROLLER + BOTH + 'ca = "m.pem"\n')
    assert load(tmp_path / "controller.toml").managers.ca == str(tmp_path / "m.pem")


async def test_who_has_a_certificate_for_that_host_and_is_no_manager_is_told_nothing(
    authorities: dict[str, Certificates],
) -> None:
    """Such as an agent beside it, which listens where the manager did."""
    a, heard = authorities["a"], bytearray()

    async def listens(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            heard.extend(await reader.read(1))
        writer.close()

    for party, told in (("agent/server1", False), ("controller/c1", False), ("mobility/r1", True)):
        heard.clear()
        context = server_context(a.authority.ca, *a.files(party))
        server = await asyncio.start_server(listens, "127.0.0.1", 0, ssl=context)
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        expects = client_context(a.authority.ca, *a.files("controller/c1"), role=PeerRole.MOBILITY)
        client = ManagerClients(url, url, expects)
        why = "cannot be reached" if told else f"who answers is {party.replace('/', ' ')}, no mobility"
        with pytest.raises(ControllerAwayError, match=why):
            await client.fill(ALL)
        await client.close()
        server.close()
        await server.wait_closed()
        assert bool(heard) is told, party


async def test_what_a_newer_controller_says_besides_is_left_out(
    authorities: dict[str, Certificates],
) -> None:
    """In any record of it, however deep; what an older one must have is asked for all the same."""
    a = authorities["a"]
    async with doors(authorities) as (resources, ports):
        url = f"https://127.0.0.1:{ports['a']}"
        client = ManagerClients(url, url, client_context(a.authority.ca, *a.files("controller/c1")))
        body = msgspec.to_builtins(ALL)
        hosted = [{"need": {"vm": "vm1", "memory_mib": 64, "colour": "blue"}, "lives": True, "x": [1]}]
        body |= {"servers": [{"server": "server1", "cpus": 4, "sockets": 2, "hosted": hosted}], "new": {}}
        body["policy"] |= {"greener": True}
        await client._resources.request("POST", "/managers/v1/fillings", body)
        assert resources.holdings["a"].servers["server1"].cpus == 4
        with pytest.raises(RejectedError, match="cannot be used"):
            await client._resources.request("POST", "/managers/v1/fillings", {**body, "number": "one"})
        await client.close()


def test_a_managers_files_are_checked_without_running_it(
    authorities: dict[str, Certificates], tmp_path: Path
) -> None:
    a, b = authorities["a"], authorities["b"]
    certificate, key = a.files("mobility/r1")
    tls = f'[tls]\nca = "{a.authority.ca}"\ncertificate = "{certificate}"\nkey = "{key}"\n'
    at = 'listen = "127.0.0.1:8090"\nresources = "https://127.0.0.1:8091"\n'
    doors = DOOR.replace("a.pem", str(a.authority.ca)) + OF_B.replace("b.pem", str(b.authority.ca))
    file = tmp_path / "file.toml"

    def check(noun: str, text: str) -> tuple[int, str]:
        file.write_text(text)
        done = CliRunner().invoke(app, [noun, "check", "--config", str(file)])
        return done.exit_code, done.output

    assert check("mobility", at + tls) == (
        0,
        f"{file} is good: it listens at 127.0.0.1:8090, the resource manager is at https://127.0.0.1:8091\n",
    )
    assert check("resource", tls + doors) == (
        0,
        f"{file} is good: domains a at 127.0.0.1:8091, b at 127.0.0.1:8092\n",
    )
    agents = tls.replace(str(certificate), str(a.files("agent/server1")[0]))
    for noun, text, why in (
        ("mobility", at + agents, "is a certificate of role agent"),
        ("resource", agents + doors, "is a certificate of role agent"),
        ("mobility", at + tls.replace(str(key), "none.key"), "there is no such file"),
        ("resource", tls + doors.replace(str(b.authority.ca), str(key)), "no certificate authority"),
        ("mobility", tls, "listen"),
    ):
        code, said = check(noun, text)
        assert code == 1 and why in said, said
