"""What the demonstration speaks to inside a lab: the controller, the VM driver, programs on the nodes."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import aiohttp

from retinue.agent import lines
from retinue.agent.lines import RequestError
from retinue.lab.errors import LabError
from retinue.lab.processes import in_node
from retinue.pki.credentials import Credentials

ANSWER_LIMIT = 10.0
LONGEST_LINE = 1 << 22
T = TypeVar("T")


async def popen(node: str, argv: Sequence[str]) -> asyncio.subprocess.Process:
    """commands.Popen, for a process that is in the sandbox itself."""
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*in_node(node, argv), stdin=pipe, stdout=pipe, stderr=pipe)


class Manager:
    """The controller's REST interface, as a manager of VMs uses it. Everything raises LabError.

    It shows what the environment says, in a lab the certificate of the lab's manager.
    """

    def __init__(self, url: str) -> None:
        connector = aiohttp.TCPConnector(ssl=Credentials.of_environment().ssl_for(url))
        self._session = aiohttp.ClientSession(url, connector=connector)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def get(self, path: str) -> dict[str, Any]:
        return await self._ask("GET", path)

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return await self._ask("POST", path, json=body)

    async def last_event(self) -> int:
        return int((await self.get("/v1/status"))["last_event"])

    async def until(
        self,
        since: int,
        look: Callable[[dict[str, Any]], Awaitable[T | None]],
        what: str,
        seconds: float = 60,
    ) -> T:
        """Give `look` each event after `since` until it finds something; that. `what` is for the error."""
        try:
            async with asyncio.timeout(seconds), contextlib.aclosing(self._events(since)) as events:
                async for event in events:
                    found = await look(event)
                    if found is not None:
                        return found
        except TimeoutError:
            raise LabError(f"{what}: not within {seconds:.0f} s") from None
        raise LabError(f"{what}: the controller has ended the event stream")

    async def _events(self, since: int) -> AsyncGenerator[dict[str, Any], None]:
        limits = aiohttp.ClientTimeout(total=None, sock_connect=ANSWER_LIMIT)
        query = {"since": str(since)}
        try:
            async with self._session.get(
                "/v1/events", params=query, timeout=limits, read_bufsize=LONGEST_LINE
            ) as response:
                async for line in response.content:
                    if line.startswith(b"data: "):
                        yield json.loads(line.removeprefix(b"data: "))
        except (aiohttp.ClientError, OSError) as error:
            raise LabError(f"the controller's event stream: {error}") from error

    async def _ask(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        limits = aiohttp.ClientTimeout(total=ANSWER_LIMIT)
        try:
            async with self._session.request(method, path, timeout=limits, **more) as response:
                answer: dict[str, Any] = await response.json()
                if response.status >= 400:
                    raise LabError(f"{method} {path}: {answer.get('error', response.status)}")
                return answer
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise LabError(f"{method} {path}: {error or type(error).__name__}") from error


class Driver:
    """The VM driver's socket (vmdriver)."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def ask(self, **request: Any) -> dict[str, Any]:
        """Raises LabError when it cannot be done."""
        try:
            return await lines.ask(self._path, "the VM driver", **request)
        except RequestError as error:
            raise LabError(str(error)) from error

    async def in_guest(self, vm: str, command: str) -> tuple[int, str]:
        """Run a command in a guest; its exit code and output. Raises LabError when the guest is silent."""
        answer = await self.ask(do="guest", vm=vm, command=command)
        return answer["code"], answer["output"]
