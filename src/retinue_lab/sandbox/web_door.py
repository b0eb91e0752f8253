"""The way from a browser on the host to the controller in a lab: HTTP at a port of the host's, passed on.

    python -m retinue_lab.sandbox.web_door DESCRIPTOR URL      (inside the sandbox)

The descriptor is a socket that the host listens with: it stays the host's, whoever accepts from it. So one
process reaches both networks. What comes is passed on with the certificate of the lab's manager, if it
shows the token that this process has made, and printed in an address for the browser. The page's own files
need none.
"""

import asyncio
import contextlib
import hmac
import re
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence

import aiohttp
from aiohttp import web
from yarl import URL

from retinue.core.limits import LARGEST_BODY
from retinue.security.credentials import Credentials
from retinue_lab.errors import LabError
from retinue_lab.sandbox.inside import RunningLab
from retinue_lab.topology.topology import SANDBOX

PORT = 8090
"""The one that is tried first."""
_FILES = re.compile(r"/(web/[a-z_]+\.[a-z]+)?")
_ASKED = ("Content-Type", "If-None-Match", "Last-Event-ID")
"""Headers of a request that are passed on. Whose page asks (Origin) is not: a stranger's has no token."""
_NOT_ANSWERED = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}
)
"""Headers of an answer that are for one connection alone."""


# ---- on the host ----


def listening(port: int | None = None) -> socket.socket:
    """A socket that listens on the host's loopback, at this port; None: at PORT, or at any if that is taken.

    Raises LabError.
    """
    for wanted in (PORT, 0) if port is None else (port,):
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind(("127.0.0.1", wanted))
            made.listen()
        except OSError as error:
            made.close()
            reason = error.strerror
        else:
            return made
    raise LabError(f"cannot listen at 127.0.0.1:{port}: {reason}; choose another port with --port")


def argv(listens: socket.socket, url: str) -> list[str]:
    """What to run in the sandbox, with the socket's descriptor inherited."""
    return [sys.executable, "-P", "-m", __name__, str(listens.fileno()), url]


@contextlib.contextmanager
def open_door(lab: RunningLab, url: str, port: int | None = None) -> Iterator[str]:
    """The page's address, inside the context, of the lab whose controller has this URL. Raises LabError."""
    with (
        listening(port) as listens,
        # In a session of its own: an interrupt from the terminal is ours; it ends with the lab.
        lab.popen(
            SANDBOX,
            argv(listens, url),
            pass_fds=[listens.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            address = process.stdout.readline().decode().strip()
            if not address:
                raise LabError("the way to the web page did not open")
            yield address
        finally:
            process.terminate()


# ---- in the sandbox ----


class Door:
    """Passes requests on to the controller at `url`, if they show `token`."""

    def __init__(self, url: str, credentials: Credentials, token: str) -> None:
        """Raises TlsFilesError."""
        self._url = url.rstrip("/")
        self._token = token.encode()
        self._client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=credentials.ssl_for(url), limit=0),
            timeout=aiohttp.ClientTimeout(total=None, connect=10),
            headers=credentials.headers,
            auto_decompress=False,
        )

    async def serve(self, listens: socket.socket, until: asyncio.Event) -> None:
        runner = web.ServerRunner(web.Server(self.answer), shutdown_timeout=0.5)
        await runner.setup()
        await web.SockSite(runner, listens).start()
        try:
            await until.wait()
        finally:
            await runner.cleanup()
            await self._client.close()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if not self._may(request):
            return web.json_response(
                {
                    "error": "this is not the address that `retinue lab web` has printed",
                    "code": "not_authenticated",
                },
                status=401,
            )
        if (request.content_length or 0) > LARGEST_BODY:
            raise web.HTTPRequestEntityTooLarge(LARGEST_BODY, request.content_length or 0)
        try:
            return await self._passed_on(request)
        except aiohttp.ClientError:
            return web.json_response({"error": "the controller does not answer", "code": ""}, status=502)

    def _may(self, request: web.BaseRequest) -> bool:
        """A path is taken as it stands: nothing in it leads from a file of the page's to something else."""
        if request.method in ("GET", "HEAD") and _FILES.fullmatch(request.raw_path):
            return True
        shown = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        return hmac.compare_digest(shown.encode(errors="surrogateescape"), self._token)

    async def _passed_on(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = {name: request.headers[name] for name in _ASKED if name in request.headers}
        # As it came: a URL that was put right could be another one.
        url = URL(f"{self._url}{request.raw_path}", encoded=True)
        body = await request.read() if request.can_read_body else None
        async with self._client.request(
            request.method, url, headers=headers, data=body, allow_redirects=False
        ) as answer:
            kept = [(n, v) for n, v in answer.headers.items() if n.lower() not in _NOT_ANSWERED]
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            with contextlib.suppress(ConnectionError):
                async for part in answer.content.iter_any():
                    await response.write(part)
                await response.write_eof()
            return response


async def _main(words: Sequence[str]) -> None:
    listens, url = socket.socket(fileno=int(words[0])), words[1]
    token = secrets.token_urlsafe(32)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    door = Door(url, Credentials.of_environment(), token)
    host, port = listens.getsockname()
    print(f"http://{host}:{port}/#token={token}", flush=True)
    await door.serve(listens, ended)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1:]))
