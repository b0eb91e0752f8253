"""Clients for work inside a lab (demonstration, comparison): of the controller, and of the VM driver."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

from retinue.protocol import json_lines
from retinue.protocol.client import ControllerClient
from retinue.protocol.errors import ControllerError
from retinue.protocol.json_lines import RequestError
from retinue.security.credentials import Credentials
from retinue_lab.errors import LabError

T = TypeVar("T")


class Manager:
    """The controller, as a manager of VMs inside the lab uses it. Every method raises LabError.

    It authenticates by what the environment names: in a lab the certificate of the lab's manager.
    """

    def __init__(self, url: str, credentials: Credentials | None = None) -> None:
        """`credentials`: instead of those that the environment names."""
        self._client = ControllerClient(url, credentials)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._client.close()

    async def get(self, path: str) -> dict[str, Any]:
        """`path` as Route.path makes it."""
        with _lab_errors(f"GET {path}"):
            return await self._client.get(path)

    async def post(self, path: str, body: Any) -> dict[str, Any]:
        with _lab_errors(f"POST {path}"):
            return await self._client.post(path, body)

    async def patch(self, path: str, body: Any) -> dict[str, Any]:
        with _lab_errors(f"PATCH {path}"):
            return await self._client.request("PATCH", path, body)

    async def last_event(self) -> int:
        with _lab_errors("the controller's status"):
            return await self._client.last_event()

    async def until(
        self,
        since: int,
        look: Callable[[dict[str, Any]], Awaitable[T | None]],
        what: str,
        seconds: float = 60,
    ) -> T:
        """Give `look` each event after `since` until it finds something; that. `what` is for the error."""
        try:
            with _lab_errors("the controller's event stream"):
                async with (
                    asyncio.timeout(seconds),
                    contextlib.aclosing(self._client.all_events(since)) as events,
                ):
                    async for event in events:
                        found = await look(event)
                        if found is not None:
                            return found
        except TimeoutError:
            raise LabError(f"{what}: not within {seconds:.0f} s") from None
        raise LabError(f"{what}: the controller has ended the event stream")


@contextlib.contextmanager
def _lab_errors(what: str) -> Iterator[None]:
    """What the controller rejects, or that it is away, as the lab's own error."""
    try:
        yield
    except ControllerError as error:
        raise LabError(f"{what}: {error}") from error


class Driver:
    """Asks the VM driver (network.vm_driver) over its socket at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def ask(self, **request: Any) -> dict[str, Any]:
        """Raises LabError when it cannot be done."""
        try:
            return await json_lines.ask(self._path, "the VM driver", **request)
        except RequestError as error:
            raise LabError(str(error)) from error

    async def in_guest(self, vm: str, command: str) -> tuple[int, str]:
        """Run a command in a guest; its exit code and output. Raises LabError when the guest is silent."""
        answer = await self.ask(do="guest", vm=vm, command=command)
        return answer["code"], answer["output"]
