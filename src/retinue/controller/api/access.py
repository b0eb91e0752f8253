"""Who may ask for what: the client's certificate or bearer token, and the right that the route asks for.

A token that is shown counts, and not the certificate beside it. Without TLS and without tokens, which only
the operator's own configuration can bring about (controller/authn/tls.py), whoever asks is a manager.
protocol/routes.py has the right of every route.
"""

from collections.abc import Callable, Collection, Mapping

from aiohttp import web

from retinue.controller.app import Controller
from retinue.controller.migrations.words import speaks_for_the_vm
from retinue.core.limits import LARGEST_BODY, LARGEST_REPORT
from retinue.core.text import quoted
from retinue.protocol.routes import Right, Route
from retinue.security.identity import Identity, IdentityError, PeerRole, identity_of
from retinue.security.tokens import Tokens

SCHEME = "bearer "
READING = frozenset({"GET", "HEAD"})
_SPEAKS_FOR = web.RequestKey("_SPEAKS_FOR", Identity)
"""Where a request keeps the identity of its sender, unless that is a manager."""

_WHO = web.RequestKey("_WHO", Identity)
"""Where it keeps it in any case."""

_ROUTES: Mapping[tuple[str, str], Route] = {(route.method, route.template): route for route in Route}


class NotAuthenticatedError(Exception):
    """Status 401: the client has not authenticated."""


class NotAllowedError(Exception):
    """Status 403: the client is known, and may not do this."""


class Access:
    """Decides for each request whether its sender may make it."""

    def __init__(self, controller: Controller, tokens: Tokens | None = None, *, open: bool = True) -> None:
        """`open`: who shows nothing is a manager."""
        self._controller = controller
        self._tokens = tokens or Tokens()
        self._open = open
        self._servers_of: Mapping[Right, Callable[[str], Collection[str]]] = {
            Right.REPORT_VM: self._where_it_runs,
            Right.ASK_TO_MIGRATE: self._where_it_runs,
            Right.ANSWER_MATCH: lambda id: self._controller.mobility.asked(id),
            Right.RENEW: self._where_it_may_be_renewed,
            Right.REPORT_MIGRATION: self._of_migration,
            Right.REPORT_RENEWAL: self._of_renewal,
            Right.REPORT_SERVER: lambda id: (id,),
        }
        """By right: the servers whose agents have it about the thing with this id; none where there is no
        such thing, which is for the handler to say."""

    def check(self, request: web.Request) -> None:
        """Raises NotAuthenticatedError or NotAllowedError."""
        _not_by_another_page(request)
        who = self._who(request)
        if who is None:
            return
        request[_WHO] = who
        self._allow(who, request)

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
        if identity is not None:
            self._controller.context.certificates.saw(identity, certificate or {})
        if identity is None and not self._open:
            raise NotAuthenticatedError(
                "who asks? Show a certificate of the controller's authority, "
                "or a token (header Authorization: Bearer TOKEN)"
            )
        return identity

    def _allow(self, who: Identity, request: web.Request) -> None:
        if who.role is PeerRole.MANAGER:
            return
        request[_SPEAKS_FOR] = who
        right = right_of(request)
        if right is Right.READ and who.role in (PeerRole.READER, PeerRole.AGENT):
            _follows_for_itself(who, request)
            return
        servers_of = self._servers_of.get(right)
        if who.role is not PeerRole.AGENT:
            raise NotAllowedError(f"{who} may not {request.method} {request.path}")
        if servers_of is None:
            raise NotAllowedError(f"{who} may not {request.method} {request.path}: that is a manager's")
        servers = servers_of(request.match_info.get("id", ""))
        if servers and not who.names & set(servers):
            raise NotAllowedError(
                f"{who} is not authorized for {request.path}, which is about {', '.join(servers)}"
            )

    # ---- whose agents may report ----

    def _where_it_runs(self, id: str) -> Collection[str]:
        vm, migration = self._controller.net.vms.get(id), self._controller.orchestrator.of_vm(id)
        if vm is None:
            return ()
        return (vm.server if migration is None else speaks_for_the_vm(migration),)

    def _where_it_may_be_renewed(self, id: str) -> Collection[str]:
        vm = self._controller.net.vms.get(id)
        return sorted({vm.server, *self._where_it_runs(id)}) if vm is not None else ()

    def _of_migration(self, id: str) -> Collection[str]:
        migration = self._controller.orchestrator.migrations.get(id)
        return (migration.source, migration.target) if migration is not None else ()

    def _of_renewal(self, id: str) -> Collection[str]:
        order = self._controller.renewals.orders.get(id)
        return (order.server,) if order is not None else ()


def right_of(request: web.Request) -> Right:
    """What a request needs. A path that is none may be read by everybody, who is told that it is none."""
    resource = request.match_info.route.resource
    method = "GET" if request.method in READING else request.method
    route = _ROUTES.get((method, resource.canonical if resource is not None else ""))
    if route is None:
        return Right.READ if method == "GET" else Right.MANAGE
    return route.right


def largest_body(request: web.Request) -> int:
    """Bytes: managers register VMs in bulk, agents report one thing at a time."""
    return LARGEST_BODY if request.get(_SPEAKS_FOR) is None else LARGEST_REPORT


def manager_of(request: web.Request) -> str:
    """The manager who sent a request, in words; "" where managers need not show who they are."""
    who: Identity | None = request.get(_WHO)
    return "" if who is None else str(who)


def shown_to_page(request: web.Request) -> dict[str, object]:
    """Who the sender of a request is, and whether it may change things."""
    who: Identity | None = request.get(_WHO)
    return {"name": "" if who is None else str(who), "manages": who is None or who.role is PeerRole.MANAGER}


def speaks_for(request: web.Request, server: str) -> Collection[str] | None:
    """The servers for which a request's sender speaks; None: a manager, who speaks for all.

    `server` is the one that its body names, "" where it names none. Raises NotAllowedError.
    """
    who: Identity | None = request.get(_SPEAKS_FOR)
    if who is not None and server and server not in who.names:
        raise NotAllowedError(f"{who} cannot speak for {server}")
    if server:
        return (server,)
    return None if who is None else sorted(who.names)


def _not_by_another_page(request: web.Request) -> None:
    """A browser shows its user's certificate for whatever page has it ask; it says whose page that is. Raises
    NotAllowedError."""
    origin = request.headers.get("Origin")
    if origin is None or request.method in READING:
        return
    if origin.partition("://")[2] != request.host:
        raise NotAllowedError(f"a page of {quoted(origin)} may not {request.method} {request.path} here")


def _follows_for_itself(who: Identity, request: web.Request) -> None:
    """That the agent of a server listens, only that agent can say. Raises NotAllowedError."""
    server = request.query.get("server", "")
    itself = who.role is PeerRole.AGENT and server in who.names
    if request.path == Route.FOLLOW_EVENTS.path() and server and not itself:
        raise NotAllowedError(f"{who} cannot speak for {server}")
