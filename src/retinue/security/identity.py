"""What a certificate says about its holder: a role, and the names it may speak for.

Each subject alternative name of type URI (RFC 5280, section 4.2.1.6) of the form

    urn:retinue:ROLE:NAME

is one name. A switch's names are switch ids, several where one vswitchd runs several bridges (Open vSwitch
has one certificate for all of them). An agent's names are server ids; all others' are whatever the operator
calls them. All names of a certificate have the same role. The common
name is for people: nothing is decided by it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from retinue.core.limits import ID, ID_IN_WORDS
from retinue.core.text import quoted

PREFIX = "urn:retinue:"


class PeerRole(StrEnum):
    """What the holder of a certificate or token is, and so what it may do."""

    CONTROLLER = "controller"
    """A controller; the only role that serves switches and REST clients."""
    SWITCH = "switch"
    """An Open vSwitch: its OpenFlow and OVSDB connections."""
    AGENT = "agent"
    """Beside a hypervisor: reads everything, reports what happens on its own servers."""
    MOBILITY = "mobility"
    """A mobility manager or resource manager that is a process of its own: serves controllers, and each
    other."""
    MANAGER = "manager"
    """Commands everything."""
    READER = "reader"
    """Reads everything, changes nothing."""


class IdentityError(ValueError):
    """A name or a certificate that cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A peer that has authenticated."""

    role: PeerRole
    names: frozenset[str]
    """What it may speak for: ids of switches (switch) or servers (agent)."""

    def __str__(self) -> str:
        return f"{self.role} {', '.join(sorted(self.names))}"


def check_name(name: str) -> str:
    """The name itself, if it can stand in a certificate. Raises IdentityError."""
    if not ID.fullmatch(name):
        raise IdentityError(f"{quoted(name)} cannot be a name in a certificate: {ID_IN_WORDS}")
    return name


def uri(role: PeerRole, name: str) -> str:
    return f"{PREFIX}{role}:{check_name(name)}"


def identity_of_uris(uris: list[str]) -> Identity:
    """Raises IdentityError when they name nobody, or parties of different roles."""
    ours = [text.removeprefix(PREFIX).partition(":") for text in uris if text.startswith(PREFIX)]
    if not ours:
        raise IdentityError(f"the certificate names no party (no {PREFIX}ROLE:NAME in it)")
    roles = {role for role, _, _ in ours}
    if len(roles) > 1:
        raise IdentityError(f"the certificate has several roles: {', '.join(sorted(roles))}")
    word = roles.pop()
    if word not in set(PeerRole):
        raise IdentityError(f"the certificate has an unknown role: {word!r}")
    return Identity(PeerRole(word), frozenset(check_name(name) for _, _, name in ours))


def identity_of(certificate: Mapping[str, Any] | None) -> Identity | None:
    """Who the peer is, by its verified certificate (ssl.SSLSocket.getpeercert); None: it showed none.

    Raises IdentityError for one that says nothing usable.
    """
    if not certificate:
        return None
    return identity_of_uris([value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"])
