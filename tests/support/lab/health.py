"""Whether a lab notices what a test does to it."""

import contextlib
import re
from collections.abc import AsyncIterator

from retinue.protocol.status import INTERNAL_ERRORS
from support.lab.tools import Json, LabBench


@contextlib.asynccontextmanager
async def undisturbed(bench: LabBench) -> AsyncIterator[None]:
    """What happens inside must not be noticed: no echo is lost, no switch goes, nothing fails."""
    before = await health(bench)
    async with bench.traffic(await bench.address("vm1")) as traffic, bench.events() as events:
        yield
        await calm(bench)
        figures, _ = await traffic.end()
        after = await health(bench)
    assert (figures.lost, figures.duplicated) == (0, 0), figures
    assert figures.sent > 100
    assert events.of("switch.disconnected") == []
    assert after == before


def strip(flows: list[str]) -> set[str]:
    """Entries without what changes by itself: age, counters, what is left of a lease."""
    passing = r"(duration|n_packets|n_bytes|hard_timeout)=[^ ,]*,? ?"
    return {re.sub(passing, "", flow) for flow in flows}


async def calm(bench: LabBench) -> None:
    """A second in which everything is answered."""
    address = await bench.address("vm1")
    said = await bench.run("client", "ping", "-c", "6", "-i", "0.2", "-W", "5", address)
    assert " 6 received" in said


async def health(bench: LabBench) -> Json:
    status = await bench.get("status")
    switches = (await bench.get("switches"))["switches"]
    return {
        "peers": {switch["id"]: switch["peer"] for switch in switches},
        "connected": all(switch["connected"] for switch in switches),
        "pending": status["pending"],
        "rejected": status["entries_rejected"],
        "internal errors": status["counters"].get(INTERNAL_ERRORS, 0),
        "bindings": [(row["vm"], row["ip"], row["switch"]) for row in await bench.bindings()],
    }
