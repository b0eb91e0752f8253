"""The authority and what it issues, tokens, and what is rejected of both."""

import ssl
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from retinue.security import tokens
from retinue.security.authority import Authority, PkiError, holder
from retinue.security.contexts import TlsFilesError, client_context, server_context
from retinue.security.credentials import Credentials
from retinue.security.identity import Identity, IdentityError, PeerRole, identity_of, identity_of_uris
from retinue.security.tokens import TokenError, Tokens
from support.pki_files import Certificates


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "pki")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ---- issuing ----


def test_files_and_their_rights(authority: Authority) -> None:
    issued = authority.issue(PeerRole.SWITCH, "edge1")
    assert mode(authority.folder) == 0o700
    assert {p.name for p in authority.folder.iterdir()} == {
        "ca.pem", "ca.key", "switch-edge1.pem", "switch-edge1.key",
    }  # fmt: skip
    assert mode(authority.folder / "ca.key") == mode(issued.key) == 0o600


def test_openssl_agrees(authority: Authority) -> None:
    """An independent judge: chain, purposes and names as OpenSSL's own tool reads them."""
    controller = authority.issue(PeerRole.CONTROLLER, "c1", addresses=["192.0.2.1", "c1.example"])
    switch = authority.issue(PeerRole.SWITCH, "fabric", names=["leaf1", "spine1"])

    def openssl(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["openssl", *words], capture_output=True, text=True, check=False)

    verify = ("verify", "-x509_strict", "-CAfile", str(authority.ca))
    assert openssl(*verify, "-purpose", "sslserver", str(controller.file)).returncode == 0
    assert openssl(*verify, "-purpose", "sslclient", str(switch.file)).returncode == 0
    assert openssl(*verify, "-purpose", "sslserver", str(switch.file)).returncode != 0
    said = openssl("x509", "-in", str(switch.file), "-noout", "-ext", "subjectAltName").stdout
    assert "URI:urn:retinue:switch:leaf1, URI:urn:retinue:switch:spine1" in said
    said = openssl("x509", "-in", str(controller.file), "-noout", "-text").stdout
    assert "IP Address:192.0.2.1" in said and "DNS:c1.example" in said and "prime256v1" in said


def test_what_was_issued_is_found_again(authority: Authority) -> None:
    made = authority.issue(PeerRole.AGENT, "server1", days=30)
    assert Authority(authority.folder).issued() == [made]
    assert authority.get(PeerRole.AGENT, "server1") == made
    assert made.identity == Identity(PeerRole.AGENT, frozenset({"server1"}))
    assert timedelta(days=29) < made.not_after - datetime.now(UTC) < timedelta(days=31)


def test_renewing_keeps_everything_but_key_and_time(authority: Authority) -> None:
    old = authority.issue(
        PeerRole.CONTROLLER, "c1", names=["c1", "c2"], addresses=["192.0.2.1", "::1", "c1"], days=3
    )
    key = old.key.read_bytes()
    new = authority.renew(old)
    assert (new.file, new.identity) == (old.file, old.identity)
    assert set(new.addresses) == set(old.addresses) == {"192.0.2.1", "::1", "c1"}
    assert new.not_after > old.not_after and new.serial != old.serial and new.key.read_bytes() != key
    server_context(authority.ca, new.file, new.key)


@pytest.mark.parametrize(
    ("role", "name", "more", "said"),
    [
        ("switch", "no/slash", {}, "cannot be a name"),
        ("switch", "", {}, "cannot be a name"),
        ("switch", "e", {"names": ["a b"]}, "cannot be a name"),
        ("switch", "e", {"addresses": ["192.0.2.1"]}, "serves nobody"),
        ("controller", "c1", {}, "--address"),
        ("controller", "c1", {"addresses": ["a b"]}, "neither an IP address nor a host name"),
        ("manager", "m", {"days": 4000}, "the authority itself ends"),
        ("manager", "m", {"days": 0}, "the authority itself ends"),
    ],
)
def test_what_cannot_be_issued(
    authority: Authority, role: str, name: str, more: dict[str, object], said: str
) -> None:
    with pytest.raises(PkiError, match=said):
        authority.issue(PeerRole(role), name, **more)  # type: ignore[arg-type]
    assert {p.name for p in authority.folder.iterdir()} == {"ca.pem", "ca.key"}


def test_nothing_is_overwritten(authority: Authority) -> None:
    authority.issue(PeerRole.READER, "prometheus")
    with pytest.raises(PkiError, match="renew reader prometheus"):
        authority.issue(PeerRole.READER, "prometheus")
    with pytest.raises(PkiError, match="there is an authority"):
        Authority.create(authority.folder)


def test_damaged_folders_are_told(tmp_path: Path, authority: Authority) -> None:
    with pytest.raises(PkiError, match="`retinue pki init` makes"):
        Authority(tmp_path / "none")
    other = Authority.create(tmp_path / "other")
    (authority.folder / "ca.key").write_bytes((other.folder / "ca.key").read_bytes())
    with pytest.raises(PkiError, match="is not the key of"):
        authority.issue(PeerRole.READER, "x")
    (authority.folder / "ca.key").write_text("nonsense")
    with pytest.raises(PkiError, match="no private key"):
        authority.issue(PeerRole.READER, "x")
    (authority.folder / "odd.pem").write_text("nonsense")
    with pytest.raises(PkiError, match="is no certificate"):
        authority.issued()
    (authority.folder / "odd.pem").write_bytes(other.ca.read_bytes())
    with pytest.raises(PkiError, match="was not made by"):
        authority.issued()
    assert holder(other.ca)[0] is None


# ---- reading an identity ----


@pytest.mark.parametrize(
    ("uris", "said"),
    [
        ([], "names no party"),
        (["https://example.org/"], "names no party"),
        (["urn:retinue:king:arthur"], "unknown role"),
        (["urn:retinue:switch:a", "urn:retinue:manager:a"], "several roles"),
        (["urn:retinue:switch"], "cannot be a name"),
        (["urn:retinue:switch:a\n"], "cannot be a name"),
    ],
)
def test_certificates_that_say_nothing_usable(uris: list[str], said: str) -> None:
    with pytest.raises(IdentityError, match=said):
        identity_of_uris(uris)


def test_an_identity_comes_from_the_names_alone() -> None:
    names = (("DNS", "urn:retinue:manager:x"), ("URI", "urn:retinue:reader:x"), ("URI", "urn:other:y"))
    found = identity_of({"subject": ((("commonName", "manager"),),), "subjectAltName": names})
    assert found == Identity(PeerRole.READER, frozenset({"x"}))
    assert identity_of(None) is None and identity_of({}) is None


# ---- contexts and credentials ----


def test_files_that_do_not_fit_are_told(tmp_path: Path) -> None:
    made = Certificates(tmp_path / "a")
    ca, (cert, key), (_, foreign) = made.authority.ca, made.files("switch/a"), made.files("switch/b")
    with pytest.raises(TlsFilesError, match=r"no certificate and its key: .*mismatch"):
        server_context(ca, cert, foreign)
    with pytest.raises(TlsFilesError, match="there is no such file"):
        server_context(ca, cert, tmp_path / "none")
    (tmp_path / "bad").write_text("x")
    with pytest.raises(TlsFilesError, match="no certificate authority"):
        client_context(tmp_path / "bad")
    assert server_context(ca, cert, key).verify_mode is ssl.CERT_REQUIRED
    assert client_context(ca).check_hostname


def test_credentials_of_the_environment() -> None:
    given = Credentials(Path("/ca"), Path("/cert"), Path("/key"), "secret")
    assert Credentials.of_environment(given.environment) == given
    assert given.headers == {"Authorization": "Bearer secret"}
    assert Credentials.of_environment({}) == Credentials() and Credentials().headers == {}
    assert Credentials().ssl_for("http://h:1") is True


# ---- tokens ----


def write(path: Path, text: str, rights: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(rights)
    return path


def test_a_token_that_cannot_be_written_is_not_given_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "nowhere" / "tokens.toml", tmp_path / "file" / "tokens.toml"):
        with pytest.raises(TokenError, match=f"cannot write {place}: "):
            tokens.add(place, "ops", PeerRole.MANAGER, [])


def test_a_token_is_made_once_and_known_by_its_hash(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    first = tokens.add(file, "backup", PeerRole.READER, [])
    known = Tokens(file)
    second = tokens.add(file, "agent1", PeerRole.AGENT, ["server1"])
    assert mode(file) == 0o600 and first not in file.read_text()
    assert known.identity(first) == Identity(PeerRole.READER, frozenset({"backup"}))
    assert known.identity(second) is None
    known.reload()
    assert known.identity(second) == Identity(PeerRole.AGENT, frozenset({"server1"}))
    assert known.identity("") is None and known.identity("\udcff") is None
    with pytest.raises(TokenError, match="called backup already"):
        tokens.add(file, "backup", PeerRole.READER, [])


def test_a_plain_token(tmp_path: Path) -> None:
    text = '[[token]]\nname = "m"\nrole = "manager"\ntoken = "correct horse battery"\n'
    assert Tokens(write(tmp_path / "t", text)).identity("correct horse battery") is not None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[token]]\nname = "a"\nrole = "king"\ntoken = "xxxxxxxxxxxxxxxxxxxx"', "king"),
        ('[[token]]\nname = "a"\nrole = "reader"', "needs sha256 or token"),
        ('[[token]]\nname = "a"\nrole = "reader"\ntoken = "short"', "too short"),
        ('[[token]]\nname = "a"\nrole = "reader"\nsha256 = "AB"', "64 hexadecimal"),
        ('[[token]]\nname = "a"\nrole = "agent"\ntoken = "xxxxxxxxxxxxxxxxxxxx"', "has servers"),
        (2 * '[[token]]\nname = "a"\nrole = "reader"\ntoken = "xxxxxxxxxxxxxxxxxxxx"\n', "name of its own"),
        ("[[token", "t: "),
        ("colour = 1", "colour"),
    ],
)
def test_bad_token_files(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(TokenError, match=said):
        Tokens(write(tmp_path / "t", text))


def test_a_token_file_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    with pytest.raises(TokenError, match="chmod 600"):
        Tokens(write(tmp_path / "t", "", 0o640))
    with pytest.raises(TokenError, match="cannot read"):
        Tokens(tmp_path / "none")
