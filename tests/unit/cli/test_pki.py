"""`retinue pki`, and a controller that is reached over TLS: from the command's words to the rejection's."""

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from retinue.agent.migration.peer import secured
from retinue.cli import connection as reach
from retinue.cli.main import app
from retinue.controller.api.access import Access
from retinue.controller.api.server import Api
from retinue.controller.app import Controller
from retinue.host.errors import HostError
from retinue.security.authority import Authority, Issued
from retinue.security.credentials import Credentials
from retinue.security.identity import PeerRole
from retinue.security.tokens import Tokens
from support.api_thread import serving
from support.fabric.networks import fabric
from support.pki_files import Certificates


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("URL", "LAB", "CA", "CERT", "KEY", "TOKEN"):
        monkeypatch.setenv(f"RETINUE_{name}", "")  # so that what a command sets is taken back
    monkeypatch.delenv(reach.INSIDE, raising=False)
    monkeypatch.setenv("RETINUE_LAB_DIR", str(tmp_path / "labs"))
    monkeypatch.setenv("RETINUE_PKI", str(tmp_path / "pki"))


def run(*args: str) -> Result:
    return CliRunner().invoke(app, args)


def good(*args: str) -> str:
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result.stdout


def bad(*args: str) -> str:
    result = run(*args)
    assert result.exit_code == 1, result.output
    assert result.stdout == "" and "Traceback" not in result.stderr
    return result.stderr


# ---- retinue pki ----


def test_from_an_authority_to_a_list(tmp_path: Path) -> None:
    assert "no certificate" in bad("pki", "list") and "`retinue pki init`" in bad("pki", "list")
    assert f"authority retinue is in {tmp_path / 'pki'}" in good("pki", "init")
    assert "there is an authority" in bad("pki", "init")
    assert "Nothing was issued" in good("pki", "list")
    good("pki", "issue", "controller", "c1", "--address", "192.0.2.1", "--address", "c1.example")
    good("pki", "issue", "switch", "rack7", "--for", "leaf1", "--for", "spine1")
    made = json.loads(good("pki", "issue", "agent", "server1", "--days", "10", "--json"))["certificates"]
    assert stat.S_IMODE(Path(made[0]["key"]).stat().st_mode) == 0o600
    rows = [line.split() for line in good("pki", "list").splitlines()]
    assert [row[:2] for row in rows[1:]] == [["agent", "server1"], ["controller", "c1"], ["switch", "rack7"]]
    shown = json.loads(good("pki", "show", "switch", "rack7", "--json"))
    assert shown["for"] == ["leaf1", "spine1"] and shown["state"] == "good"
    assert "leaf1, spine1" in good("pki", "show", "switch", "rack7")
    assert "no certificate" in bad("pki", "show", "switch", "edge9")


def test_what_ends_soon_is_renewed() -> None:
    good("pki", "init")
    good("pki", "issue", "reader", "long")
    good("pki", "issue", "reader", "short", "--days", "10")
    old = json.loads(good("pki", "show", "reader", "short", "--json"))
    assert old["state"] == "ends soon"
    renewed = json.loads(good("pki", "renew", "--json"))["certificates"]
    assert [one["name"] for one in renewed] == ["short"] and renewed[0]["serial"] != old["serial"]
    assert "Nothing ends within 60 days" in good("pki", "renew")
    assert "renewed reader long" in good("pki", "renew", "reader", "long")


def test_words_that_do_not_fit() -> None:
    good("pki", "init")
    for args, said in (
        (("issue", "king", "arthur"), "'king' is no role"),
        (("renew", "reader"), "ROLE and NAME, or neither"),
    ):
        result = run("pki", *args)
        assert result.exit_code == 2 and said in result.stderr
    assert "--address" in bad("pki", "issue", "controller", "c1")
    assert "cannot be a name" in bad("pki", "issue", "switch", "a b")


def test_an_agent_without_an_address_is_told_what_it_cannot() -> None:
    good("pki", "init")
    result = run("pki", "issue", "agent", "server1", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["certificates"][0]["addresses"] == []
    assert "server1 has no --address" in result.stderr and "no VM can be brought" in result.stderr
    for args in (("agent", "server2", "--address", "10.0.0.12"), ("switch", "edge1"), ("manager", "anna")):
        assert run("pki", "issue", *args).stderr == ""


async def test_what_that_agent_cannot_and_can(tmp_path: Path) -> None:
    """Any address makes a certificate one for serving; which address it is, no agent looks at."""
    authority = Authority.create(tmp_path / "made")
    without, elsewhere = (
        authority.issue(PeerRole.AGENT, "server1"),
        authority.issue(PeerRole.AGENT, "server2", addresses=["192.0.2.77"]),
    )

    async def brings(source: Issued, target: Issued) -> None:
        here, there = (
            secured(one.label, Credentials(authority.ca, one.file, one.key)) for one in (source, target)
        )
        await there.start("127.0.0.1")
        there.expect("migration-1", source.label)
        try:
            channel = await here.connect(there.address, "migration-1", target.label)
            await channel.close()
        finally:
            await there.close()

    await brings(without, elsewhere)
    with pytest.raises(HostError, match="cannot be reached"):
        await brings(elsewhere, without)


def test_a_token(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    word = good("pki", "token", "agent", "a1", "--server", "server1", "--file", str(file)).strip()
    assert Tokens(file).identity(word) is not None
    assert "an agent, and only an agent" in bad("pki", "token", "agent", "a2", "--file", str(file))
    assert "called a1 already" in bad("pki", "token", "reader", "a1", "--file", str(file))


# ---- a controller over TLS ----


@pytest.fixture
def token(tmp_path: Path) -> str:
    return good("pki", "token", "reader", "me", "--file", str(tmp_path / "tokens.toml")).strip()


@pytest.fixture
def real(pki: Certificates, tmp_path: Path, token: str) -> Iterator[str]:
    """The URL of a real interface that takes certificates and tokens."""

    def api(controller: Controller) -> Api:
        access = Access(controller, Tokens(tmp_path / "tokens.toml"), open=False)
        return Api(controller, dict, access, pki.server(certificate_needed=False))

    with serving(lambda: Controller(fabric()), api) as port:
        yield f"https://127.0.0.1:{port}"


def options(pki: Certificates, party: str) -> list[str]:
    cert, key = pki.files(party)
    return ["--ca", str(pki.authority.ca), "--cert", str(cert), "--key", str(key)]


def test_a_certificate_by_option_and_by_environment(
    real: str, pki: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    boss = options(pki, "manager/boss")
    assert json.loads(good(*boss, "vm", "list", "--url", real, "--json"))["vms"] == []
    for name, value in zip(("CA", "CERT", "KEY"), boss[1::2], strict=True):
        monkeypatch.setenv(f"RETINUE_{name}", value)
    good("vm", "add", "vm1", "--server", "server1", "--url", real)
    assert [vm["id"] for vm in json.loads(good("vm", "list", "--url", real, "--json"))["vms"]] == ["vm1"]


def test_a_token_by_file_and_by_environment(
    real: str, pki: Certificates, token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").write_text(f"{token}\n")
    ca = ("--ca", str(pki.authority.ca))
    good(*ca, "--token-file", str(tmp_path / "mine"), "vm", "list", "--url", real)
    monkeypatch.setenv("RETINUE_TOKEN", token)
    good(*ca, "vm", "list", "--url", real)
    assert "reader me may not POST" in bad(*ca, "vm", "add", "vm1", "--server", "server1", "--url", real)
    assert "cannot read the token" in bad("--token-file", str(tmp_path / "none"), "vm", "list")


def test_rejections_say_what_to_do(real: str, pki: Certificates, tmp_path: Path) -> None:
    assert "is not trusted" in (said := bad("vm", "list", "--url", real)) and "--ca" in said
    ca = ("--ca", str(pki.authority.ca))
    assert "who asks?" in bad(*ca, "vm", "list", "--url", real)
    assert "perhaps it speaks https" in bad("vm", "list", "--url", real.replace("https:", "http:"))
    other = Certificates(tmp_path / "other")
    cert, key = other.files("manager/boss")
    said = bad(*ca, "--cert", str(cert), "--key", str(key), "vm", "list", "--url", real)
    assert "hung up on us" in said and "--cert" in said
    assert "no such file" in bad("--ca", str(tmp_path / "none"), "vm", "list", "--url", real)


# ---- controller check ----


def test_check_looks_at_the_certificates(tmp_path: Path, pki: Certificates) -> None:
    cert, key = pki.files("controller/c1")
    file = tmp_path / "controller.toml"
    text = 'gateway_mac = "00:00:de:ad:be:ef"\n'
    file.write_text(text)
    assert "would be open to whoever connects" in bad("controller", "check", "--config", str(file))
    file.write_text(f'{text}[tls]\nca = "{pki.authority.ca}"\ncertificate = "{cert}"\nkey = "{key}"\n')
    said = good("controller", "check", "--config", str(file))
    assert "certificate is good until" in said and "plain text" not in said
    file.write_text(f'{text}[tls]\nca = "{pki.authority.ca}"\ncertificate = "{key}"\nkey = "{key}"\n')
    assert "no certificate" in bad("controller", "check", "--config", str(file))
    file.write_text(f'{text}[listen]\nplaintext = ["openflow", "ovsdb", "rest"]\n')
    said = good("controller", "check", "--config", str(file))
    assert "plaintext listeners: openflow, ovsdb, rest" in said
