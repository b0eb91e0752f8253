"""Figure 8 of US 9,477,506: one domain with its mobility manager, and a VM proxy on each of three servers.

The manager is the controller, over fake switches; the proxies are agents, whose hypervisors are played here.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any

from retinue.core.migration import Migration
from retinue.core.model import VM, PortStatus
from retinue.core.placement import Reason, Wish
from retinue.protocol.migrations import Report
from retinue.protocol.mobility import ServerReport, VMSize
from retinue.southbound.ovsdb import BridgePort
from support.fabric.networks import GATEWAY_MAC, fabric, vm_ip, vm_mac, vm_port
from support.fabric.world import udp_frame
from support.fakes.session import FakeNetwork
from support.recent_events import recent

CLIENT = IPv4Address("198.51.100.9")
"""Whom the VM serves: behind the router at leaf2."""
PRESSED = Wish(Reason.COMPUTING, 6000, 5000, 60)
"""FIG. 9, 910: "the VM may require more computing power"."""
ALL = ("server1", "server2", "server3")


@dataclass
class Figure8:
    """vm1 is on the first server, which is busy."""

    fake: FakeNetwork
    now: float = 1000.0
    full: set[str] = field(default_factory=set)
    """Servers without room."""

    @property
    def manager(self) -> Any:
        return self.fake.controller.mobility

    async def proxies(self) -> None:
        """They answer match messages, each for its own server, until cancelled."""
        with contextlib.ExitStack() as stack:
            for server in ALL:
                stack.enter_context(self.fake.controller.context.agents.listening(server))
            async for event in self.fake.controller.events.listen(None, {"mobility.match"}):
                for server in event.data["servers"]:
                    self.manager.on_answer(event.data["match"], server, self.profile_of(server))

    def profile_of(self, server: str) -> ServerReport:
        """The "second VM service profile" of a match response: what that server has for the VM."""
        vms = [VMSize("vm1", 1024)] if server == "server1" else []
        memory, used = 512 if server in self.full else 8192, 9000 if vms else 1000
        return ServerReport(cpus=8, memory_mib=memory, cpu_used=used, vms=vms)

    async def plug(self, server: int) -> None:
        found = BridgePort(
            dpid=0x30 + server, bridge="br0", name="tap1", number=vm_port(1), status=PortStatus.UP,
            iface_id="vm1", attached_mac=vm_mac(1),
        )  # fmt: skip
        self.fake.controller.inventory.ports.changed([], [found])
        await self.fake.settle()

    async def request(self, wish: Wish = PRESSED) -> Migration:
        """920: the source's proxy asks; what follows until the destination is told."""
        self.full |= {"server3"}
        migration: Migration = await self.manager.migrate("vm1", wish, "server1")
        await self.plug(2)
        return migration

    async def says(self, migration: Migration, *reports: Report) -> None:
        for report in reports:
            self.now += 1
            by = ("server2",) if report in (Report.TARGET_OPENED, Report.RESUMED) else ("server1",)
            taken = self.fake.controller.orchestrator.reports
            taken.on_report(migration.id, report, self.now, "", by=by)
            await self.fake.settle()

    async def to_its_end(self, migration: Migration) -> None:
        await self.says(
            migration, *(Report.TARGET_OPENED, Report.COPY_STARTED, Report.CONVERGED),
            *(Report.STOPPED, Report.RESUMED, Report.SOURCE_FREED),
        )  # fmt: skip

    def from_client(self) -> set[str]:
        """The edges at which a packet of the client comes to the VM's port, by each way there is."""
        packet = udp_frame(self.fake.net.servers["router"].mac, GATEWAY_MAC, CLIENT, vm_ip(1))
        ways = self.fake.fabric.all_paths("leaf2", 91, packet)
        found = [{(s, p) for s, p, _ in way.arrivals} for way in ways]
        assert all(one == found[0] for one in found)
        return {switch for switch, number in found[0] if number == vm_port(1)}

    def locator(self) -> dict[str, Any]:
        shown: dict[str, Any] = self.fake.controller.entities.shown("vm1")["locator"]  # type: ignore[index]
        return shown

    def told(self, *kinds: str) -> list[str]:
        events = recent(self.fake.controller.events, "", 1000)
        return [event.type for event in events if event.type.startswith(kinds or ("mobility.",))]

    def event(self, kind: str) -> dict[str, Any]:
        return recent(self.fake.controller.events, kind, 1000)[-1].data


@contextlib.asynccontextmanager
async def figure_8() -> AsyncIterator[Figure8]:
    made: Figure8
    fake = FakeNetwork(fabric(), clock=lambda: made.now)
    made = Figure8(fake)
    await fake.start()
    fake.controller.inventory.register_vms(
        [VM.with_one_nic("vm1", vm_mac(1), "server1", addresses=(vm_ip(1),))]
    )
    await made.plug(1)
    for server in ALL:
        made.manager.on_report(server, made.profile_of(server))
    proxies = asyncio.create_task(made.proxies())
    await asyncio.sleep(0)
    try:
        yield made
    finally:
        proxies.cancel()
        await asyncio.gather(proxies, return_exceptions=True)
        await fake.stop()
