"""SIGHUP: certificates and tokens are read again, those of the doors for other domains, too."""

from collections.abc import AsyncIterator
from pathlib import Path
from unittest.mock import create_autospec

import pytest
from structlog.testing import capture_logs

from retinue.config_file import ConfigError
from retinue.controller.api.managers import ManagersLink
from retinue.controller.api.peer_door import Door
from retinue.controller.api.peers import Peers
from retinue.controller.authn.tls import TlsConfig
from retinue.controller.config_tables import DomainTable
from retinue.controller.domains.peer_client import PeerClient
from retinue.controller.doors import Doors
from retinue.controller.main import _reload
from retinue.protocol.domains import Said, Word
from retinue.protocol.errors import ControllerAwayError, RejectedError
from retinue.security.contexts import client_context, server_context
from support.fabric.domains import gateway_of
from support.fabric.two_controllers import TwoDomains, two_domains
from support.pki_files import Certificates

OWN = ("ca.pem", "controller.pem", "controller.key")
THEIRS = "domain-a.pem"


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Certificates]:
    """Of domains a and b, and those that take their places."""
    return {name: Certificates(tmp_path_factory.mktemp(name)) for name in ("a", "b", "new a", "new b")}


@pytest.fixture
async def domains() -> AsyncIterator[TwoDomains]:
    async with two_domains() as made:
        yield made


def put(folder: Path, own: Certificates, theirs: Certificates) -> None:
    """The files that domain b's controller has."""
    for name, file in zip(OWN, (own.authority.ca, *own.files("controller/c1")), strict=True):
        (folder / name).write_bytes(file.read_bytes())
    (folder / THEIRS).write_bytes(theirs.authority.ca.read_bytes())


async def speaks(url: str, believes: Certificates, shows: Certificates) -> None:
    """A controller speaks at a door: what it says is refused in words. Raises ControllerAwayError: it is not
    let in."""
    client = PeerClient(url, client_context(believes.authority.ca, *shows.files("controller/c1")))
    try:
        with pytest.raises(RejectedError, match="there is no migration"):
            await client.say("migration-9", Word(Said.ROLL_BACK))
    finally:
        await client.close()


async def test_doors_for_other_domains_are_reloaded(
    tmp_path: Path, domains: TwoDomains, authorities: dict[str, Certificates]
) -> None:
    """Our certificate is renewed under a new authority, and so is theirs: both doors go on, and a mistake
    changes nothing."""
    a, b, new_a, new_b = authorities.values()
    put(tmp_path, b, a)
    theirs = Door(
        "b",
        domains.controller("a").domains,
        server_context(new_b.authority.ca, *new_a.files("controller/c1")),
    )
    port = await theirs.start("127.0.0.1", 0)
    table = DomainTable(
        id="a", gateway=gateway_of("b"), tunnel="tun0", url=f"https://127.0.0.1:{port}",
        listen="127.0.0.1:0", ca=str(tmp_path / THEIRS),
    )  # fmt: skip
    ca, certificate, key = (tmp_path / name for name in OWN)
    peers = Peers([table], (ca, certificate, key), domains.controller("b").domains)
    url = f"https://127.0.0.1:{await peers.doors['a'].start('127.0.0.1', 0)}"
    to_a = domains.controller("b").domains.saying.doors["a"]
    try:
        await speaks(url, believes=b, shows=a)
        with pytest.raises(ControllerAwayError):
            await speaks(url, believes=new_b, shows=new_a)
        with pytest.raises(ControllerAwayError):
            await to_a.say("migration-9", Word(Said.OPENED))

        put(tmp_path, new_b, new_a)
        (tmp_path / THEIRS).write_text("nonsense")
        with pytest.raises(ConfigError, match=r"domain a: .*no certificate authority can be read"):
            peers.reload()
        await speaks(url, believes=b, shows=a)

        put(tmp_path, new_b, new_a)
        peers.reload()
        await speaks(url, believes=new_b, shows=new_a)
        with pytest.raises(RejectedError, match="there is no migration"):
            await to_a.say("migration-9", Word(Said.OPENED))
    finally:
        await peers.stop()
        await theirs.stop()


def test_what_was_reloaded_is_said_and_what_was_not() -> None:
    protected = create_autospec(TlsConfig, instance=True, tokens={})
    peers = create_autospec(Peers, instance=True, doors={"b": None})
    managers = create_autospec(ManagersLink, instance=True)
    opened = [create_autospec(Doors, instance=True, peers=peers, managers=managers)]
    with capture_logs() as said:
        _reload(protected, opened)
    assert [(line["event"], line["domains"]) for line in said] == [("controller.credentials_reloaded", ["b"])]
    opened[0].certificate_read.assert_called_once()
    protected.reload.side_effect = ConfigError("token.toml: no")
    peers.reload.side_effect = ConfigError("domain b: no")
    with capture_logs() as said:
        _reload(protected, opened)
    assert [(line["event"], line["reason"]) for line in said] == [
        ("controller.credentials_not_reloaded", "token.toml: no; domain b: no")
    ]
    assert opened[0].certificate_read.call_count == 2, "what was wrong may be a domain's alone"
