"""The REST interface as a client sees it: JSON there and back, and the event stream as an iterator.

Built on the standard library's HTTP client, which imports in a few milliseconds: a command makes one or two
requests and ends.
"""

import json
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, RemoteDisconnected
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from retinue.cli.errors import CliError
from retinue.pki.contexts import TlsFilesError
from retinue.pki.credentials import Credentials

PORTS = {"http": 80, "https": 443}
REQUEST_SECONDS = 30.0
SILENCE_SECONDS = 45.0
"""Longest silence on the event stream: the controller sends a comment every 15 s when nothing happens."""


class ApiError(CliError):
    """The controller refused; the message is its own sentence."""


class UnreachableError(CliError):
    """No controller answers at the URL, or what answers is none."""


class DeadlineError(Exception):
    """The time given for waiting is over."""


def path_of(*parts: str, **query: str | int | None) -> str:
    """ "/v1/vms/vm%201" from its parts; parts of the query that are None are left out."""
    path = "/v1/" + "/".join(quote(part, safe="") for part in parts)
    given = {key: value for key, value in query.items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path


class Client:
    """Speaks to the controller at `url`. Every method raises ApiError or UnreachableError.

    It shows what `credentials` say; left out, what the environment says.
    """

    def __init__(self, url: str, credentials: Credentials | None = None) -> None:
        self.url = url.rstrip("/")
        try:
            parts = urlsplit(self.url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port, parts = None, None, urlsplit("")
        if parts.scheme not in PORTS or not host or parts.path:
            raise CliError(
                f"{url!r} is not a controller's address (expected https://HOST:PORT, as in "
                "https://192.0.2.1:8080, or http:// where it speaks plain text)"
            )
        self._host, self._port = host, port or PORTS[parts.scheme]
        shown = Credentials.of_environment() if credentials is None else credentials
        self._headers = shown.headers
        try:
            self._tls = shown.context() if parts.scheme == "https" else None
        except TlsFilesError as error:
            raise CliError(str(error)) from error

    def get(self, *parts: str, **query: str | int | None) -> dict[str, Any]:
        return self._request("GET", path_of(*parts, **query))

    def post(self, *parts: str, body: Any = None) -> dict[str, Any]:
        return self._request("POST", path_of(*parts), body)

    def delete(self, *parts: str) -> dict[str, Any]:
        return self._request("DELETE", path_of(*parts))

    def last_event(self) -> int:
        """Id of the latest event. Asked before something is done, nothing that follows can be missed."""
        return int(self.get("status")["last_event"])

    def events(self, since: int, deadline: float | None = None) -> Iterator[dict[str, Any]]:
        """Events after `since`, those that have been and then those that come, the stream's hello among them.

        `deadline` is by time.monotonic; DeadlineError when it is over. A controller drops a listener that is
        too slow: then the stream is taken up again after the last event seen.
        """
        while True:
            before = since
            for event in self._stream(since, deadline):
                if event["type"] != "hello":
                    since = event["id"]
                yield event
            if since == before:
                raise UnreachableError(f"the controller at {self.url} has ended the event stream")

    def _request(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        with closing(self._connect(REQUEST_SECONDS)) as connection:
            response = self._send(connection, method, path, body)
            try:
                data = response.read()
            except (OSError, HTTPException) as error:
                raise self._unreachable(error) from error
        return self._checked(response, data)

    def _stream(self, since: int, deadline: float | None) -> Iterator[dict[str, Any]]:
        with closing(self._connect(REQUEST_SECONDS)) as connection:
            wire: socket.socket = connection.sock
            response = self._send(connection, "GET", path_of("events", since=since))
            if response.status != 200:
                self._checked(response, response.read())
            while line := self._line(wire, response, deadline):
                if line.startswith(b"data: "):
                    yield json.loads(line[len(b"data: ") :])

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
            raise UnreachableError(
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
            raise UnreachableError(
                f"what answers at {self.url} is not a retinue controller: "
                f"it sent {response.status} without JSON"
            )
        if response.status >= 400:
            raise ApiError(str(value.get("error", f"{response.status} {response.reason}")))
        return value

    def _unreachable(self, error: Exception) -> UnreachableError:
        if isinstance(error, ssl.SSLCertVerificationError):
            return UnreachableError(
                f"the controller at {self.url} is not believed ({error.verify_message}): name the authority "
                "that made its certificate with --ca or RETINUE_CA"
            )
        if isinstance(error, RemoteDisconnected) and self._tls is None:
            return UnreachableError(
                f"what answers at {self.url} hung up without a word; perhaps it speaks https://"
            )
        hung_up = isinstance(error, RemoteDisconnected | ConnectionResetError | BrokenPipeError)
        if self._tls is not None and (hung_up or (isinstance(error, ssl.SSLError) and _is_alert(error))):
            return UnreachableError(
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
        return UnreachableError(
            f"no controller answers at {self.url} ({why}); is it running, and is the address right?"
        )


def _is_alert(error: ssl.SSLError) -> bool:
    """The other side said in the handshake that it does not take us."""
    return "ALERT" in (error.reason or "")


def _words(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")
