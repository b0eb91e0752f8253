"""The adapter of one router: a program that is started here, and asked by lines of JSON, one at a time.

What it prints on its standard error is logged. Everything that it says is from outside: it has a limit and
a grammar.
"""

import asyncio
import contextlib
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Annotated

import msgspec
import structlog

from retinue.patience import patience

log = structlog.get_logger()

LONGEST_LINE = 16 << 20
"""Bytes of an answer: some hundred thousand routes."""
MOST_SAID = 1000
"""Characters of its words that are repeated."""
ANSWER_SECONDS = 5.0
FIRST_ANSWER_SECONDS = 20.0
"""It may be reached by ssh."""


class RouterError(Exception):
    """The router does not do, or is not, what is asked of it."""


PortNumber = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]


class Answer(msgspec.Struct, frozen=True):
    routes: dict[str, str | None] = {}
    ports: dict[str, tuple[PortNumber, str, bool]] = {}
    """By name: number, MAC, and whether it has a link."""
    forwards: bool = False
    strict: list[str] = []
    """Ports that take only what comes by the way back to its source (RFC 3704, strict)."""
    error: str = ""


def answer_of(line: bytes) -> Answer:
    """Raises ValueError."""
    try:
        return msgspec.json.decode(line, type=Answer)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None
    except RecursionError as error:
        raise ValueError("nested too deep") from error


class RouterLink:
    """A running adapter."""

    def __init__(self, process: asyncio.subprocess.Process, router: str) -> None:
        self._process = process
        self._router = router
        self._lock = asyncio.Lock()
        self._words = asyncio.create_task(self._log_words(), name=f"words of the adapter of {router}")

    @classmethod
    async def start(cls, command: Sequence[str], router: str) -> "RouterLink":
        """Raises OSError where the program cannot be started."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, stderr=pipe, limit=LONGEST_LINE, start_new_session=True
        )
        return cls(process, router)

    async def look(self, seconds: float | None = None) -> Answer:
        """All that the router holds of ours, and its ports. Raises as `ask`."""
        return await self._ask({"ask": "look"}, seconds)

    async def change(
        self, put: Mapping[IPv4Network, IPv4Address | None], delete: Iterable[IPv4Network]
    ) -> Answer:
        """Put routes, delete others; what the router then holds of all these prefixes."""
        told = {str(prefix): None if hop is None else str(hop) for prefix, hop in put.items()}
        return await self._ask({"ask": "change", "put": told, "delete": [str(one) for one in delete]})

    async def _ask(self, question: Mapping[str, object], seconds: float | None = None) -> Answer:
        """Raises RouterError for what the adapter cannot do; ConnectionError when it is gone, TimeoutError
        when it does not answer, and ends it then: the next answer would be taken for this one."""
        limit = ANSWER_SECONDS if seconds is None else seconds
        async with self._lock:
            if not self.alive:
                raise ConnectionError(f"the adapter of router {self._router} has ended")
            try:
                async with patience(limit):
                    line = await self._say(msgspec.json.encode(question))
            except TimeoutError:
                self.end()
                raise TimeoutError(
                    f"the adapter of router {self._router} did not answer within {limit:.0f} s"
                ) from None
            except BaseException:
                self.end()
                raise
        try:
            found = answer_of(line)
        except ValueError as error:
            self.end()
            raise ConnectionError(
                f"the adapter of router {self._router} said what is no answer: {error}"
            ) from None
        if found.error:
            raise RouterError(f"router {self._router}: {found.error[:MOST_SAID]}")
        return found

    async def _say(self, question: bytes) -> bytes:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(question + b"\n")
            await self._process.stdin.drain()
            return await self._process.stdout.readuntil(b"\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError) as error:
            raise ConnectionError(f"the adapter of router {self._router} has ended: {error}") from None

    async def _log_words(self) -> None:
        assert self._process.stderr is not None
        while said := await self._process.stderr.read(MOST_SAID):
            text = said.decode(errors="replace").strip()
            log.warning("router.adapter_said", router=self._router, text=text)

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def closed(self) -> None:
        """Ended, and its words read."""
        self.end()
        await self._process.wait()
        self._words.cancel()
        await asyncio.gather(self._words, return_exceptions=True)
