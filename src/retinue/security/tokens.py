"""Bearer tokens for the REST interface (RFC 6750): a file with a name, a role and a hash for each.

    [[token]]
    name = "backup job"
    role = "reader"
    sha256 = "9f86d081..."       # of the token; `retinue pki token` writes it

    [[token]]
    name = "server1"
    role = "agent"
    servers = ["server1"]
    token = "..."                # or the token itself

A token made here has 256 random bits, so a plain hash of it cannot be searched through. The file must be its
owner's alone (0600): who can write it can give itself a token.
"""

import hashlib
import re
import secrets
from pathlib import Path
from typing import Literal

import msgspec

from retinue.config_file import ConfigError, ConfigTable, read
from retinue.security.identity import Identity, PeerRole
from retinue.security.key_files import write

SHORTEST = 20
"""Characters of a token that is written in the file as it is."""
SHA256 = re.compile(r"[0-9a-f]{64}")


class TokenError(Exception):
    """The file cannot be used; the message names it and the reason."""


class _Token(ConfigTable, frozen=True):
    name: str
    role: Literal["manager", "agent", "reader"]
    servers: list[str] = []
    sha256: str = ""
    token: str = ""


class _File(ConfigTable, frozen=True):
    token: list[_Token] = []


class Tokens:
    """The tokens of a file that are accepted; without a file none."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._identities: dict[bytes, Identity] = {}
        self.reload()

    def __len__(self) -> int:
        return len(self._identities)

    def reload(self) -> None:
        """Read the file again. When that raises TokenError, the tokens known before stay valid."""
        if self._path is not None:
            self._identities = _read(self._path)

    def identity(self, token: str) -> Identity | None:
        """The holder's identity; None for a token that is not known."""
        return self._identities.get(_digest(token))


def add(path: Path, name: str, role: PeerRole, servers: list[str]) -> str:
    """Make a token, write its hash into the file (made if it is not there); the token. Raises TokenError."""
    if path.exists() and name in _names(path):
        raise TokenError(f"{path} has a token called {name} already")
    token = secrets.token_urlsafe(32)
    fields = {"name": name, "role": role.value, "sha256": _digest(token).hex()}
    lines = ["[[token]]", *(f"{key} = {_toml(value)}" for key, value in fields.items())]
    if servers:
        lines.append(f"servers = {_toml(servers)}")
    try:
        text = path.read_text() + "\n" if path.exists() else ""
        write(path, (text + "\n".join(lines) + "\n").encode(), 0o600, check=_read)
    except OSError as error:
        raise TokenError(f"cannot write {path}: {error.strerror}") from error
    return token


def _names(path: Path) -> list[str]:
    return [token.name for token in _parse(path).token]


def _parse(path: Path) -> _File:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise TokenError(f"cannot read the tokens {path}: {error.strerror}") from error
    if mode & 0o077:
        raise TokenError(f"others can read or write the tokens {path}: `chmod 600 {path}`")
    try:
        return read(path, _File)
    except ConfigError as error:
        raise TokenError(str(error)) from error


def _read(path: Path) -> dict[bytes, Identity]:
    found: dict[bytes, Identity] = {}
    names: set[str] = set()
    for token in _parse(path).token:
        where = f"{path}: token {token.name!r}"
        if not token.name or token.name in names:
            raise TokenError(f"{where}: each needs a name of its own")
        if bool(token.sha256) == bool(token.token):
            raise TokenError(f"{where} needs sha256 or token, and not both")
        if token.sha256 and not SHA256.fullmatch(token.sha256):
            raise TokenError(f"{where}: sha256 is 64 hexadecimal digits, in lower case")
        if token.token and len(token.token) < SHORTEST:
            raise TokenError(f"{where} is too short: at least {SHORTEST} characters")
        if (token.role == "agent") != bool(token.servers):
            raise TokenError(f"{where}: an agent, and only an agent, has servers")
        digest = bytes.fromhex(token.sha256) if token.sha256 else _digest(token.token)
        if digest in found:
            raise TokenError(f"{where} is another's token too")
        names.add(token.name)
        found[digest] = Identity(PeerRole(token.role), frozenset(token.servers or [token.name]))
    return found


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()


def _toml(value: str | list[str]) -> str:
    """JSON of text and of lists of it is TOML too."""
    return msgspec.json.encode(value).decode()
