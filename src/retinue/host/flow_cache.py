"""How far Open vSwitch's flow cache follows its tables: at both ends of a migration.

A switch confirms an entry when its tables have it. What it forwards by are the flows in the cache of its
datapath, and these follow the tables later: in a few milliseconds or, on a busy machine, in a hundred. Only
when no cached flow leads to the VM's port does nothing come there any more; and only when all of the cache
was looked at since does a switch that has dropped a VM's frames until now let them through.

The daemon of Open vSwitch is asked on its control socket (JSON-RPC 1.0; dpctl/dump-flows and revalidator/wait
in ovs-vswitchd(8)).
"""

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Collection, Mapping
from pathlib import Path

import structlog

from retinue.core.packets import EtherType
from retinue.host.errors import HostError
from retinue.host.packet_sockets import until_taken
from retinue.southbound.ovsdb import Connection, OvsdbError, ProtocolError

LIMIT = 1.0
"""Seconds the cache may take to follow: the VM's traffic waits at its target meanwhile."""
FOLLOW_LIMIT = 20.0
"""Seconds it may take before any of the VM's traffic is there: nothing waits meanwhile but the copy."""
LOOK = 0.001
STORAGE = f"eth_type({EtherType.FCOE:#06x})"
"""Flows of storage stay as long as the VM is there: once it is led to the target nothing new comes by them,
and what comes late is for the VM while it runs (core/pipeline/storage.py)."""
RUN_FOLDER = "/var/run/openvswitch"

log = structlog.get_logger()


class FlowCache:
    """The cache of this server's Open vSwitch; `folder` is where its daemon has its sockets."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or Path(os.environ.get("OVS_RUNDIR", RUN_FOLDER))

    async def until_bypassed(
        self, ports: Collection[str], copies_from: str = "", limit: float = LIMIT
    ) -> bool:
        """Return when no cached flow leads to any of these ports any more: True. False if nobody can tell.

        One for frames from the MAC `copies_from` does not count: they come when the VM is paused.
        Raises HostError when such a flow is still there after `limit` seconds.
        """
        flow = ""
        try:
            async with asyncio.timeout(limit), self._daemon() as daemon:
                async for found in _flows_to(ports, copies_from, daemon):
                    if not found:
                        return True
                    flow = found[0]
                    await asyncio.sleep(LOOK)
        except TimeoutError:
            if flow:
                raise HostError(
                    f"the switch follows its tables too late: {limit:g} s after they had changed it still "
                    f"handed out frames by {flow}"
                ) from None
            log.warning("flow_cache.not_answering", instead="a migration waits a fixed time")
            return False
        except (OvsdbError, ProtocolError, OSError) as error:
            log.warning("flow_cache.unreadable", error=str(error), instead="a migration waits a fixed time")
        return False

    async def given(self, ports: Collection[str], limit: float = LIMIT) -> Mapping[str, str] | None:
        """Each cached flow that leads to one of these ports, with the packets that have come by it; None if
        nobody can tell. A flow that has gone counts as another: what came by it last is not known."""
        try:
            async with asyncio.timeout(limit), self._daemon() as daemon:
                found = await anext(_flows_to(ports, "", daemon))
        except (TimeoutError, OvsdbError, ProtocolError, OSError) as error:
            log.warning("flow_cache.unreadable", error=str(error), instead="a migration waits a fixed time")
            return None
        counted = (flow.partition(", packets:") for flow in found)
        return {match: count.partition(",")[0] for match, _, count in counted}

    async def until_taken(self, ports: Collection[str]) -> None:
        """Return when the switch has taken all that has come in at these ports. Raises HostError."""
        await until_taken(ports)

    async def until_followed(self, limit: float = FOLLOW_LIMIT) -> None:
        """Return when all of the cache is as the tables are now, or where nobody can tell: that is logged.

        Raises HostError when it is not within `limit` seconds.
        """
        try:
            async with asyncio.timeout(limit), self._daemon() as daemon:
                await _asked(daemon, "revalidator/wait")
        except TimeoutError:
            raise HostError(
                f"the switch follows its tables too late: {limit:g} s after they had changed not all flows "
                f"in its cache were looked at"
            ) from None
        except (OvsdbError, ProtocolError, OSError) as error:
            log.warning("flow_cache.unreadable", error=str(error), instead="it is not waited for")

    @contextlib.asynccontextmanager
    async def _daemon(self) -> AsyncIterator[Connection]:
        pid = (self._folder / "ovs-vswitchd.pid").read_text().strip()
        reader, writer = await asyncio.open_unix_connection(self._folder / f"ovs-vswitchd.{pid}.ctl")
        daemon = Connection(reader, writer, "ovs-vswitchd", probe=None)
        try:
            yield daemon
        finally:
            daemon.close()


async def _flows_to(ports: Collection[str], copies_from: str, daemon: Connection) -> AsyncIterator[list[str]]:
    """At each look the cached flows that lead to one of the ports."""
    datapaths: list[tuple[str, ...]] = [()]  # The only one, as a rule: it need not be named.
    while True:
        try:
            cached = [await _asked(daemon, "dpctl/dump-flows", "--names", *name) for name in datapaths]
        except OvsdbError:
            if datapaths != [()]:
                raise
            datapaths = [(name,) for name in (await _asked(daemon, "dpctl/dump-dps")).split()]
            continue
        yield [flow for text in cached for flow in text.splitlines() if leads_to(ports, flow, copies_from)]


async def _asked(daemon: Connection, command: str, *words: str) -> str:
    answer = await daemon.call(command, words, None)
    if not isinstance(answer, str):
        raise ProtocolError(f"ovs-vswitchd answers {command} with {answer!r:.60}")
    return answer


def leads_to(ports: Collection[str], flow: str, copies_from: str = "") -> bool:
    """Whether a cached flow, as Open vSwitch writes it, hands frames of others to one of the ports."""
    match, _, actions = flow.partition("actions:")
    if _names(STORAGE, match):
        return False
    if copies_from and f"eth(src={copies_from}," in match:
        return False
    return any(_names(port, actions) and not _names(f"in_port({port})", match) for port in ports)


def _names(what: str, text: str) -> bool:
    return what in text and re.search(rf"(?<![\w.-]){re.escape(what)}(?![\w.-])", text) is not None


__all__ = ["FlowCache", "leads_to"]
