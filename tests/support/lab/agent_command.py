"""The agent as a test runs it: on a server of the lab, by its command; and whoever has its certificate."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import aiohttp

from retinue.security.identity import PeerRole
from support.lab.programs import Commands, popen_in
from support.lab.tools import Json, LabBench


@dataclass(frozen=True)
class Outcome:
    code: int
    data: Json
    """What it printed; {} if nothing."""
    words: str
    """What it said on standard error."""


async def agent(
    lab: Commands, node: str, *arguments: str, said: Callable[[str], None] = lambda line: None
) -> Outcome:
    """`retinue agent ARGUMENTS --json` on a node; `said` hears each line of its standard error at once."""
    argv = [sys.executable, "-P", "-m", "retinue.cli.main", "agent", *arguments, "--json"]
    process = await popen_in(lab)(node, argv)
    assert process.stdin and process.stdout and process.stderr
    process.stdin.close()
    words: list[str] = []

    async def hear(lines: asyncio.StreamReader) -> None:
        async for line in lines:
            words.append(line.decode())
            said(words[-1])

    out, _ = await asyncio.gather(process.stdout.read(), hear(process.stderr))
    return Outcome(await process.wait(), json.loads(out) if out else {}, "".join(words))


async def renew(bench: LabBench, node: str, vm: str, *more: str) -> Outcome:
    """Renew with the lab's controller, at the edge switch of that server."""
    url = bench.topology.controller_url
    return await agent(bench.lab, node, "renew", "--vm", vm, "--url", url, *more)


@contextlib.asynccontextmanager
async def as_agent(bench: LabBench, server: str) -> AsyncIterator[aiohttp.ClientSession]:
    """Speaks to the controller with the certificate of a server's agent."""
    connector = aiohttp.TCPConnector(
        socket_factory=lambda _: bench.doorman.socket(), ssl=bench.tls_of(PeerRole.AGENT, server)
    )
    async with aiohttp.ClientSession(bench.topology.controller_url, connector=connector) as agent:
        yield agent
