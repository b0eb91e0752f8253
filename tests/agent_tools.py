"""The agent as a test runs it: on a server of the lab, by its command."""

import json
import sys
from dataclasses import dataclass

from lab_tools import Bench, Json
from retinue.lab.commands import Commands, popen_in


@dataclass(frozen=True)
class Outcome:
    code: int
    data: Json
    """What it printed; {} if nothing."""
    words: str
    """What it said on standard error."""


async def agent(lab: Commands, node: str, *arguments: str) -> Outcome:
    """`retinue agent ARGUMENTS --json` on a node."""
    argv = [sys.executable, "-P", "-m", "retinue.cli.main", "agent", *arguments, "--json"]
    process = await popen_in(lab)(node, argv)
    out, err = await process.communicate(b"")
    assert process.returncode is not None
    return Outcome(process.returncode, json.loads(out) if out else {}, err.decode())


async def renew(bench: Bench, node: str, vm: str, *more: str) -> Outcome:
    """Renew with the lab's controller, at the edge switch of that server."""
    url = bench.topology.controller_url
    return await agent(bench.lab, node, "renew", "--vm", vm, "--url", url, *more)
