"""Mobility managers of two domains and one resource manager for both, as processes beside the controllers."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from retinue.protocol.errors import ErrorCode, RejectedError
from retinue.security.authority import Authority
from retinue.security.identity import PeerRole
from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology import topology_file
from support.lab.migrating import reaches
from support.lab.other_config import controller_with
from support.lab.start import boot, lab_of
from support.lab.tools import Doorman, Events, Json, LabBench, eventually

pytestmark = [pytest.mark.lab, pytest.mark.alone, pytest.mark.long]

ADDRESS = "10.1.0.50"
MOBILITY, RESOURCES_OF_A, RESOURCES_OF_B = 8090, 8091, 8092
DAYS = 2
SMALL, LARGE = 64, 8192
"""MiB of a server; the VM has 128."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHandle]:
    with lab_of(tmp_path_factory.mktemp("labs"), topology_file.load("domains")) as handle:
        nic = {"mac": "52:54:00:00:00:01", "addresses": [ADDRESS]}
        boot(handle, [{"id": "vm1", "server": "server1", "nics": [nic]}])
        yield handle


@pytest.fixture
async def there(lab: LabHandle, doorman: Doorman) -> AsyncIterator[LabBench]:
    """Domain b."""
    made = LabBench(lab.beside(), doorman)
    yield made
    await made.aclose()


def node_of(bench: LabBench) -> tuple[str, str]:
    """Where a domain's controller is, and its address."""
    node = bench.topology.controller
    return node, str(bench.topology.management_addresses[node].ip)


def tls(bench: LabBench, label: str) -> str:
    """The table, of a certificate that is made for this."""
    pki = bench.lab.directory / "pki"
    made = Authority(pki).issue(PeerRole.MOBILITY, label, addresses=[node_of(bench)[1]], days=DAYS)
    return f'[tls]\nca = "{pki / "ca.pem"}"\ncertificate = "{made.file}"\nkey = "{made.key}"\n'


def start(bench: LabBench, noun: str, name: str, config: str) -> None:
    file = bench.lab.directory / f"{name}.toml"
    file.write_text(config)
    program = [sys.executable, "-m", "retinue.cli.main", noun, "run", "--config", str(file)]
    bench.lab.spawn(node_of(bench)[0], program, log=name)


def resource_config(bench: LabBench, there: LabBench) -> str:
    ports = ((bench, RESOURCES_OF_A, "b"), (there, RESOURCES_OF_B, "a"))
    return tls(bench, "resources") + "".join(
        f'[[domain]]\nid = "{one.topology.domain}"\nlisten = "{node_of(bench)[1]}:{port}"\n'
        f'ca = "{one.lab.directory / "pki" / "ca.pem"}"\noffers_to = ["{other}"]\n'
        for one, port, other in ports
    )


def named(
    bench: LabBench, mobility: LabBench, port: int, other: str, authorities: Path
) -> Callable[[str], str]:
    """The controller's configuration with its managers, and the other domain asked in matches."""
    table = (
        f'\n[managers]\nmobility = "https://{node_of(mobility)[1]}:{MOBILITY}"\n'
        f'resources = "https://{node_of(bench)[1]}:{port}"\nca = "{authorities}"\ndomains = ["{other}"]\n'
    )
    return lambda config: config.replace("[[domain]]", "[[domain]]\nmatch = true") + table


async def are_there(events: Events) -> None:
    await events.until("mobility.manager", lambda e: bool(e["manager"] == "resources"))
    await events.until("mobility.manager", lambda e: bool(e["manager"] == "mobility"))
    assert all(event["state"] == "there" for event in events.of("mobility.manager"))


async def sized(bench: LabBench, **mib: int) -> None:
    """What servers have is said by the operator."""
    profiles = {name: {"memory_mib": size, "cpus": 4} for name, size in mib.items()}
    rows = [{"name": name, "kind": "server", "profile": profile} for name, profile in profiles.items()]
    await bench.post("entities", rows)


async def goes(bench: LabBench) -> Json:
    """Wherever is best, as soon as there is room somewhere: agents tell a new controller what servers have in
    their next report. The decision, when the migration is done."""
    begun: list[str] = []

    async def begins() -> bool:
        try:
            begun.append((await bench.post("migrations", {"vm": "vm1"}))["id"])
        except RejectedError as error:
            assert error.code == ErrorCode.NO_MATCH, error
        return bool(begun)

    async with bench.events() as events:
        await eventually(begins)
        decision = await events.until("mobility.decision", lambda e: bool(e["server"]))
        print(begun[0], "to", decision["server"], "decided by", decision["by"])
        await reaches(events, begun[0], "done")
        return decision


async def ended(*benches: LabBench) -> None:
    async def none_under_way() -> bool:
        found = [one for bench in benches for one in (await bench.get("migrations"))["migrations"]]
        return all(one["state"] in ("done", "undone") for one in found)

    await eventually(none_under_way)


async def test_two_domains_are_served_and_lose_nothing_while_a_manager_is_silent(
    bench: LabBench, there: LabBench, tmp_path: Path
) -> None:
    """The resource manager offers a's VM a server of b, where it goes under traffic. While the resource
    manager hangs b's controller decides by itself, and says so; killed and started anew it is told everything
    again, and the VM comes home by its decision."""
    authorities = tmp_path / "both.pem"
    authorities.write_text("".join((one.lab.directory / "pki/ca.pem").read_text() for one in (bench, there)))
    config = resource_config(bench, there)
    start(bench, "resource", "resources", config)
    for one, port in ((bench, RESOURCES_OF_A), (there, RESOURCES_OF_B)):
        asks = f'listen = "{node_of(one)[1]}:{MOBILITY}"\nresources = "https://{node_of(bench)[1]}:{port}"\n'
        asks += f'resources_ca = "{bench.lab.directory / "pki/ca.pem"}"\n'
        start(one, "mobility", "mobility", asks + tls(one, "mobility"))
    async with contextlib.AsyncExitStack() as stack:
        for one, port, other in ((bench, RESOURCES_OF_A, "b"), (there, RESOURCES_OF_B, "a")):
            change = named(bench, one, port, other, authorities)
            await stack.enter_async_context(controller_with(one, change))
            await are_there(await stack.enter_async_context(one.events(since=0)))
        await sized(bench, server1=LARGE, server2=SMALL)
        await sized(there, server3=SMALL, server4=LARGE)
        events = await stack.enter_async_context(there.events())
        traffic = await stack.enter_async_context(bench.traffic(ADDRESS, pps=200))

        decision = await goes(bench)
        assert (decision["server"], decision["by"]) == ("b/server4", "mobility")
        await ended(bench, there)

        bench.kill("resources", signal.SIGSTOP)
        await events.until("mobility.manager", lambda e: e["state"] == "away")
        await sized(there, server3=LARGE)
        await sized(bench, server1=SMALL)
        decision = await goes(there)
        assert (decision["server"], decision["by"]) == ("server3", "controller")

        bench.kill("resources", signal.SIGKILL)
        start(bench, "resource", "resources", config)
        back = await events.until("mobility.manager", lambda e: e["state"] == "there")
        assert back["manager"] == "resources"
        await sized(there, server4=SMALL)
        await sized(bench, server1=LARGE)
        decision = await goes(there)
        assert (decision["server"], decision["by"]) == ("a/server1", "mobility")
        await ended(bench, there)

        figures = await bench.unharmed(traffic)
        print(figures)
        assert figures.sent > 400
    for one, name in ((bench, "resources"), (bench, "mobility"), (there, "mobility")):
        one.kill(name)
    await asyncio.sleep(0)
