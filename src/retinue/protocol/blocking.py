"""The one client of the controller's REST interface for programs without an event loop: the commands.

JSON there and back, and the event stream as an iterator. Built on the standard library's HTTP client, which
imports in a few milliseconds: a command makes one or two requests and ends.
"""

import contextlib
import json
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, RemoteDisconnected
from typing import Any
from urllib.parse import urlsplit

from retinue.protocol import sse
from retinue.protocol.addresses import urls_of
from retinue.protocol.errors import (
    ControllerAwayError,
    ControllerError,
    ErrorCode,
    NotServedError,
    RejectedError,
)
from retinue.protocol.routes import Route
from retinue.security.contexts import TlsFilesError
from retinue.security.credentials import Credentials

PORTS = {"http": 80, "https": 443}
REQUEST_SECONDS = 30.0
CONNECT_SECONDS = 5.0
"""For the connection to one of several controllers: one that is stopped takes it, and says nothing."""
READ_SECONDS = 10.0
"""For one of several controllers to answer a request that only reads: then the next is asked."""
SILENCE_SECONDS = 45.0
"""Longest silence on the event stream: the controller sends a comment every 5 s when nothing happens."""


class DeadlineError(Exception):
    """The time given for waiting is over."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a controller is."""

    url: str
    host: str
    port: int
    secret: bool
    """By TLS."""


def _place(url: str) -> _Place:
    """Raises ControllerError."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme not in PORTS or not host or parts.path:
        raise ControllerError(
            f"{url!r} is not a controller's address (expected https://HOST:PORT, as in "
            "https://192.0.2.1:8080, or http:// where it speaks plain text; several with commas between them)"
        )
    return _Place(url, host, port or PORTS[parts.scheme], parts.scheme == "https")


class Client:
    """Speaks to the controller at `url`; of several, with commas between them, to the active one: the one
    that answered last is asked, then the next. Every method raises RejectedError or ControllerAwayError.

    The client authenticates by `credentials`; left out, by what the environment names.
    """

    def __init__(
        self, url: str, credentials: Credentials | None = None, seconds: float = REQUEST_SECONDS
    ) -> None:
        """`seconds`: for the answer to a request."""
        self._seconds = seconds
        self._places = [_place(one) for one in urls_of(url)]
        self._shown = Credentials.of_environment() if credentials is None else credentials
        self._headers = self._shown.headers
        secret = any(place.secret for place in self._places)
        try:
            self._tls = self._shown.context() if secret else None
        except TlsFilesError as error:
            raise ControllerError(str(error)) from error

    @property
    def url(self) -> str:
        """The controller that is asked."""
        return self._places[0].url

    def each(self) -> list["Client"]:
        """A client of each of the controllers alone, in the order of their addresses."""
        urls = sorted(place.url for place in self._places)
        return [Client(url, self._shown, CONNECT_SECONDS) for url in urls]

    def ask(
        self, route: Route, id: str = "", *, body: Any = None, **query: str | int | None
    ) -> dict[str, Any]:
        """The answer to a request: for the thing with this id, where the route is about one. Of several
        controllers' the first that serves it; what one may have done is not asked of another."""
        reads = route.method == "GET"
        for _ in self._places[1:]:
            with contextlib.suppress(ControllerAwayError if reads else NotServedError):
                return self._ask(route, id, body, query)
        return self._ask(route, id, body, query)

    def _ask(self, route: Route, id: str, body: Any, query: Mapping[str, str | int | None]) -> dict[str, Any]:
        several = route.method == "GET" and len(self._places) > 1
        with closing(self._connect(READ_SECONDS if several else self._seconds)) as connection:
            response = self._send(connection, route.method, route.path(id, **query), body)
            try:
                data = response.read()
            except (OSError, HTTPException) as error:
                raise self._unreachable(error) from error
        return self._checked(response, data)

    def text(self, route: Route) -> str:
        """What a route answers that is not JSON."""
        with closing(self._connect(REQUEST_SECONDS)) as connection:
            response = self._send(connection, route.method, route.path())
            try:
                data = response.read()
            except (OSError, HTTPException) as error:
                raise self._unreachable(error) from error
        if response.status != 200:
            self._checked(response, data)
        return data.decode(errors="replace")

    def last_event(self) -> int:
        """Id of the latest event. Asked before something is done, nothing that follows can be missed."""
        return int(self.ask(Route.GET_STATUS)["last_event"])

    def events(self, since: int, deadline: float | None = None) -> Iterator[dict[str, Any]]:
        """Events after `since`, those that have been and then those that come, the stream's hello among them.

        `deadline` is by time.monotonic; DeadlineError when it is over. A controller drops a listener that is
        too slow: then the stream is taken up again after the last event seen.
        """
        from retinue.protocol.events import HELLO  # A command that follows no events need not wait for it.

        tries = len(self._places)
        while True:
            before = since
            try:
                for event in self._stream(since, deadline):
                    if event["type"] != HELLO:
                        since = event["id"]
                    yield event
            except NotServedError:
                tries -= 1
                if not tries:
                    raise
                continue
            tries = len(self._places)
            if since == before:
                raise ControllerAwayError(f"the controller at {self.url} has ended the event stream")

    def _stream(self, since: int, deadline: float | None) -> Iterator[dict[str, Any]]:
        with closing(self._connect(REQUEST_SECONDS)) as connection:
            wire: socket.socket = connection.sock
            response = self._send(connection, "GET", Route.FOLLOW_EVENTS.path(since=since))
            if response.status != 200:
                self._checked(response, response.read())
                return
            parser = sse.Parser()
            while line := self._line(wire, response, deadline):
                if (event := parser.line(line)) is not None:
                    yield json.loads(event.data)

    def _line(self, wire: socket.socket, response: HTTPResponse, deadline: float | None) -> bytes:
        """The next line of the stream; empty when the stream has ended."""
        left = SILENCE_SECONDS if deadline is None else deadline - time.monotonic()
        if left <= 0:
            raise DeadlineError
        wire.settimeout(min(left, SILENCE_SECONDS))
        try:
            return response.readline()
        except TimeoutError:
            if left <= SILENCE_SECONDS and deadline is not None:
                raise DeadlineError from None
            raise ControllerAwayError(
                f"the controller at {self.url} has been silent for {SILENCE_SECONDS:.0f} s"
            ) from None
        except (OSError, HTTPException):
            return b""

    def _connect(self, timeout: float) -> HTTPConnection:
        place = self._places[0]
        first = timeout if len(self._places) == 1 else CONNECT_SECONDS
        connection = (
            HTTPSConnection(place.host, place.port, timeout=first, context=self._tls)
            if place.secret
            else HTTPConnection(place.host, place.port, timeout=first)
        )
        try:
            connection.connect()
        except OSError as error:
            raise NotServedError(str(self._unreachable(error))) from error
        connection.sock.settimeout(timeout)
        return connection

    def _ask_another(self) -> None:
        """The one that was asked is not to be asked next."""
        self._places = [*self._places[1:], self._places[0]]

    def _send(self, connection: HTTPConnection, method: str, path: str, body: Any = None) -> HTTPResponse:
        data = None if body is None else json.dumps(body).encode()
        headers = self._headers | ({} if data is None else {"Content-Type": "application/json"})
        try:
            connection.request(method, path, data, headers)
            return connection.getresponse()
        except (OSError, HTTPException) as error:
            raise self._unreachable(error) from error

    def _checked(self, response: HTTPResponse, data: bytes) -> dict[str, Any]:
        try:
            value = json.loads(data)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ControllerAwayError(
                f"what answers at {self.url} is not a retinue controller: "
                f"it sent {response.status} without JSON"
            )
        if value.get("code") == ErrorCode.STANDBY:
            self._ask_another()
            raise NotServedError(str(value.get("error", "")))
        if response.status >= 400:
            message = str(value.get("error", f"{response.status} {response.reason}"))
            raise RejectedError(message, str(value.get("code", "")), response.status)
        return value

    def _unreachable(self, error: Exception) -> ControllerAwayError:
        """And the next time another is asked."""
        away = self._away(error)
        self._ask_another()
        return away

    def _away(self, error: Exception) -> ControllerAwayError:
        if isinstance(error, ssl.SSLCertVerificationError):
            return ControllerAwayError(
                f"the controller at {self.url} is not trusted ({error.verify_message}): name the authority "
                "that made its certificate with --ca or RETINUE_CA"
            )
        if isinstance(error, RemoteDisconnected) and self._tls is None:
            return ControllerAwayError(
                f"what answers at {self.url} hung up without a word; perhaps it speaks https://"
            )
        hung_up = isinstance(error, RemoteDisconnected | ConnectionResetError | BrokenPipeError)
        if self._tls is not None and (hung_up or (isinstance(error, ssl.SSLError) and _is_alert(error))):
            return ControllerAwayError(
                f"the controller at {self.url} hung up on us: show a certificate of its authority, with "
                "--cert and --key or RETINUE_CERT and RETINUE_KEY, or a token"
            )
        if isinstance(error, ssl.SSLError):
            why = _words(error)
        elif isinstance(error, TimeoutError):
            why = "no answer in time"
        elif isinstance(error, OSError) and error.strerror:
            why = error.strerror
        else:
            why = str(error) or type(error).__name__
        return ControllerAwayError(
            f"no controller answers at {self.url} ({why}); is it running, and is the address right?"
        )


def _is_alert(error: ssl.SSLError) -> bool:
    """The other side rejected us in the handshake."""
    return "ALERT" in (error.reason or "")


def _words(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")
