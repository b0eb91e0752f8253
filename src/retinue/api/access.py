"""Who may ask for what: the client's certificate or bearer token, and the rights of its role.

    manager   everything
    agent     reads everything; reports and renews for VMs on its own servers, and for moves from and to them
    reader    reads everything

A token that is shown counts, and not the certificate beside it. Without TLS and without tokens, which only
the operator's own word can bring about (controller.protection), whoever asks is a manager.
"""

from collections.abc import Collection

import msgspec
from aiohttp import web

from retinue.controller.controller import Controller
from retinue.pki.identity import Identity, IdentityError, PeerRole, identity_of
from retinue.pki.tokens import Tokens

READING = frozenset({"GET", "HEAD"})
SCHEME = "bearer "


class NotAuthenticatedError(Exception):
    """Status 401: nobody has said, or proved, who asks."""


class NotAllowedError(Exception):
    """Status 403: who asks is known, and may not."""


class Access:
    def __init__(self, controller: Controller, tokens: Tokens | None = None, *, open: bool = True) -> None:
        """`open`: who shows nothing is a manager."""
        self._controller = controller
        self._tokens = tokens or Tokens()
        self._open = open

    async def check(self, request: web.Request) -> None:
        """Raises NotAuthenticatedError or NotAllowedError."""
        who = self._who(request)
        if who is None:
            return
        try:
            await self._allow(who, request)
        except NotAllowedError as error:
            self._controller.events.publish(
                "access.refused", listener="rest", peer=str(request.remote), reason=str(error)
            )
            raise

    def _who(self, request: web.Request) -> Identity | None:
        """None: whoever asks may do everything."""
        shown = request.headers.get("Authorization")
        if shown is not None:
            if not shown.lower().startswith(SCHEME):
                raise NotAuthenticatedError("the Authorization header must be: Bearer TOKEN")
            identity = self._tokens.identity(shown[len(SCHEME) :].strip())
            if identity is None and not self._open:
                raise NotAuthenticatedError("the token is not known")
            return identity
        transport = request.transport
        certificate = transport.get_extra_info("peercert") if transport is not None else None
        try:
            identity = identity_of(certificate)
        except IdentityError as error:
            raise NotAuthenticatedError(str(error)) from error
        if identity is None and not self._open:
            raise NotAuthenticatedError(
                "who asks? Show a certificate of the controller's authority, "
                "or a token (header Authorization: Bearer TOKEN)"
            )
        return identity

    async def _allow(self, who: Identity, request: web.Request) -> None:
        match who.role:
            case PeerRole.MANAGER:
                return
            case PeerRole.READER | PeerRole.AGENT if request.method in READING:
                return
            case PeerRole.AGENT:
                await self._agent(who, request)
            case _:
                raise NotAllowedError(f"{who} may not {request.method} {request.path}")

    async def _agent(self, who: Identity, request: web.Request) -> None:
        resource = request.match_info.route.resource
        servers = self._servers(resource.canonical if resource else "", request.match_info.get("id", ""))
        if servers is None:
            raise NotAllowedError(f"{who} may not {request.method} {request.path}: that is a manager's")
        if servers and not who.names & set(servers):
            raise NotAllowedError(f"{who} has no say in {request.path}, which is about {', '.join(servers)}")
        named = _server_named(await request.read())
        if named and named not in who.names:
            raise NotAllowedError(f"{who} cannot speak for {named}")

    def _servers(self, path: str, id: str) -> Collection[str] | None:
        """The servers a report is about; empty: there is no such thing; None: it is no report."""
        controller = self._controller
        match path:
            case "/v1/vms/{id}/events" | "/v1/vms/{id}/renewals":
                vm, move = controller.net.vms.get(id), controller.mover.of_vm(id)
                ends = (move.source, move.target) if move is not None else ()
                return sorted({vm.server, *vm.also, *ends}) if vm is not None else ()
            case "/v1/moves/{id}/events":
                known = controller.mover.moves.get(id)
                return (known.source, known.target) if known is not None else ()
            case "/v1/renewals/{id}/events":
                order = controller.renewals.orders.get(id)
                return (order.server,) if order is not None else ()
            case "/v1/servers/{id}/hypervisor-events" | "/v1/servers/{id}/counters":
                return (id,)
        return None


def _server_named(body: bytes) -> str:
    """The server a body names; "" if it names none, or is no JSON, which is for the handler to say."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    server = value.get("server") if isinstance(value, dict) else None
    return server if isinstance(server, str) else ""
