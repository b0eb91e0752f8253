"""Which switches a certificate may speak for.

A certificate of role switch names switch ids. Its holder may be one of those, by datapath id, in
its OpenFlow session, and its database may report those and no other of our switches. Bridges that are no
switch of ours, on the same host, are nobody's business.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from retinue.controller.events import EventBus
from retinue.core.model import Network
from retinue.protocol.events import EventType
from retinue.security.identity import Identity, IdentityError, PeerRole, identity_of


class SwitchAuthorization:
    """Judges connections over TLS. What it rejects it publishes as an event "access.rejected"."""

    def __init__(
        self, net: Network, events: EventBus, saw: Callable[[Identity, Mapping[str, Any]], None] | None = None
    ) -> None:
        """`saw` is told of each certificate that is accepted."""
        self._ids = net.by_dpid
        self._events = events
        self._saw = saw or (lambda identity, certificate: None)

    def switch(self, certificate: Mapping[str, Any] | None, dpid: int, peer: str) -> str:
        """Why the holder may not be the switch with this datapath id; "" when it may."""
        try:
            identity = _switch(certificate)
        except IdentityError as error:
            return self._reject("openflow", peer, str(error))
        id = self._ids.get(dpid)
        if id is not None and id in identity.names:
            self._saw(identity, certificate or {})
            return ""
        if id is None and any(name not in self._ids.values() for name in identity.names):
            return ""  # A switch the configuration does not have yet: published as unknown, not as rejected.
        claimed = f"switch {id}" if id is not None else "no switch of the configuration"
        return self._reject(
            "openflow", peer, f"the certificate is for {identity}; datapath id {dpid:#x} is {claimed}"
        )

    def database(self, certificate: Mapping[str, Any] | None, dpids: Collection[int], peer: str) -> str:
        """Why the holder's database may not have bridges with these datapath ids; "" when it may."""
        try:
            identity = _switch(certificate)
        except IdentityError as error:
            return self._reject("ovsdb", peer, str(error))
        self._saw(identity, certificate or {})
        others = {self._ids[dpid] for dpid in dpids if dpid in self._ids} - identity.names
        if not others:
            return ""
        return self._reject(
            "ovsdb", peer, f"the certificate is for {identity}, the database has {', '.join(sorted(others))}"
        )

    def _reject(self, listener: str, peer: str, reason: str) -> str:
        source = (listener, peer.rpartition(":")[0])
        self._events.tell(source, EventType.ACCESS_REJECTED, listener=listener, peer=peer, reason=reason)
        return reason


def anybody(certificate: Mapping[str, Any] | None, claimed: object, peer: str) -> str:
    """Where a listener speaks in plain text, there is nothing to judge by."""
    return ""


def _switch(certificate: Mapping[str, Any] | None) -> Identity:
    identity = identity_of(certificate)
    if identity is None:
        raise IdentityError("no certificate")
    if identity.role is not PeerRole.SWITCH:
        raise IdentityError(f"the certificate is for {identity}, which is no switch")
    return identity
