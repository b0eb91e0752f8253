"""The one client of the controller's REST interface for programs without an event loop: the commands.

JSON there and back, and the event stream as an iterator. Built on the standard library's HTTP client, which
imports in a few milliseconds: a command makes one or two requests and ends.
"""

import json
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, RemoteDisconnected
from typing import Any
from urllib.parse import urlsplit

from retinue.protocol import sse
from retinue.protocol.errors import ControllerAwayError, ControllerError, RejectedError
from retinue.protocol.routes import Route
from retinue.security.contexts import TlsFilesError
from retinue.security.credentials import Credentials

PORTS = {"http": 80, "https": 443}
REQUEST_SECONDS = 30.0
SILENCE_SECONDS = 45.0
"""Longest silence on the event stream: the controller sends a comment every 15 s when nothing happens."""


class DeadlineError(Exception):
    """The time given for waiting is over."""


class Client:
    """Speaks to the controller at `url`. Every method raises RejectedError or ControllerAwayError.

    The client authenticates by `credentials`; left out, by what the environment names.
    """

    def __init__(self, url: str, credentials: Credentials | None = None) -> None:
        self.url = url.rstrip("/")
        try:
            parts = urlsplit(self.url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port, parts = None, None, urlsplit("")
        if parts.scheme not in PORTS or not host or parts.path:
            raise ControllerError(
                f"{url!r} is not a controller's address (expected https://HOST:PORT, as in "
                "https://192.0.2.1:8080, or http:// where it speaks plain text)"
            )
        self._host, self._port = host, port or PORTS[parts.scheme]
        shown = Credentials.of_environment() if credentials is None else credentials
        self._headers = shown.headers
        try:
            self._tls = shown.context() if parts.scheme == "https" else None
        except TlsFilesError as error:
            raise ControllerError(str(error)) from error

    def ask(
        self, route: Route, id: str = "", *, body: Any = None, **query: str | int | None
    ) -> dict[str, Any]:
        """The answer to a request: for the thing with this id, where the route is about one."""
        with closing(self._connect(REQUEST_SECONDS)) as connection:
            response = self._send(connection, route.method, route.path(id, **query), body)
            try:
                data = response.read()
            except (OSError, HTTPException) as error:
                raise self._unreachable(error) from error
        return self._checked(response, data)

    def last_event(self) -> int:
        """Id of the latest event. Asked before something is done, nothing that follows can be missed."""
        return int(self.ask(Route.GET_STATUS)["last_event"])

    def events(self, since: int, deadline: float | None = None) -> Iterator[dict[str, Any]]:
        """Events after `since`, those that have been and then those that come, the stream's hello among them.

        `deadline` is by time.monotonic; DeadlineError when it is over. A controller drops a listener that is
        too slow: then the stream is taken up again after the last event seen.
        """
        from retinue.protocol.events import HELLO  # A command that follows no events need not wait for it.

        while True:
            before = since
            for event in self._stream(since, deadline):
                if event["type"] != HELLO:
                    since = event["id"]
                yield event
            if since == before:
                raise ControllerAwayError(f"the controller at {self.url} has ended the event stream")

    def _stream(self, since: int, deadline: float | None) -> Iterator[dict[str, Any]]:
        with closing(self._connect(REQUEST_SECONDS)) as connection:
            wire: socket.socket = connection.sock
            response = self._send(connection, "GET", Route.FOLLOW_EVENTS.path(since=since))
            if response.status != 200:
                self._checked(response, response.read())
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
        connection = (
            HTTPConnection(self._host, self._port, timeout=timeout)
            if self._tls is None
            else HTTPSConnection(self._host, self._port, timeout=timeout, context=self._tls)
        )
        try:
            connection.connect()
        except OSError as error:
            raise self._unreachable(error) from error
        return connection

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
        if response.status >= 400:
            message = str(value.get("error", f"{response.status} {response.reason}"))
            raise RejectedError(message, str(value.get("code", "")), response.status)
        return value

    def _unreachable(self, error: Exception) -> ControllerAwayError:
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
