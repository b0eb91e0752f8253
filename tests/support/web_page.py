"""The real REST interface with its page, of a controller whose switches are fakes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import aiohttp

from retinue.controller.api.access import Access
from retinue.controller.api.server import Api
from retinue.controller.app import Controller
from retinue.core.model import VM, Network, PortStatus
from retinue.protocol.vms import VMReport
from retinue.security.tokens import Tokens
from retinue.southbound.ovsdb import BridgePort
from support.fabric.networks import vm_ip, vm_mac, vm_port
from support.fakes.session import FakeNetwork

TOKENS = {"manager": "the-manager-s-own-token", "reader": "the-reader-s-own-token"}


@dataclass
class Served:
    """vm1 runs at server1, and has its port at server2, too; a manager and a reader have tokens."""

    fake: FakeNetwork
    url: str

    @property
    def controller(self) -> Controller:
        return self.fake.controller

    def page_for(self, role: str) -> str:
        """The page's address for who has this role's token."""
        return f"{self.url}/#token={TOKENS[role]}"

    async def report(self, event: str, **more: object) -> None:
        """What an agent at the right end reports of migration-1."""
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKENS['manager']}"}) as http:
            path = f"{self.url}/v1/migrations/migration-1/events"
            async with http.post(path, json={"event": event, **more}) as answer:
                assert answer.status == 200, await answer.text()
        await self.fake.settle()

    async def post(self, path: str, body: object) -> None:
        """As a manager, below /v1; the switches confirm it."""
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKENS['manager']}"}) as http:
            asked = asyncio.ensure_future(http.post(f"{self.url}/v1/{path}", json=body))
            while not asked.done():
                await self.fake.settle()
                await asyncio.sleep(0)
            async with await asked as answer:
                assert answer.status < 300, await answer.text()

    async def goes(self, downtime: float = 0.012) -> None:
        """Both ends report until the VM has resumed at the target."""
        for event in ("target_opened", "copy_started", "converged"):
            await self.report(event)
        await self.report("stopped", at=1000.0)
        await self.report("resumed", at=1000.0 + downtime)


@asynccontextmanager
async def serving(net: Network, folder: Path) -> AsyncIterator[Served]:
    file = folder / "tokens.toml"
    file.touch(0o600)
    file.write_text(
        "".join(
            f'[[token]]\nname = "{role}-1"\nrole = "{role}"\ntoken = "{text}"\n'
            for role, text in TOKENS.items()
        )
    )
    fake = FakeNetwork(net, None)
    await fake.start()
    controller = fake.controller
    address = vm_ip(1)
    assert isinstance(address, IPv4Address)
    controller.inventory.register_vms([VM.with_one_nic("vm1", vm_mac(1), "server1", addresses=(address,))])
    for edge in (1, 2):
        controller.inventory.ports.changed([], [_port(1, edge)])
    await fake.settle()
    controller.inventory.power.on_report("vm1", VMReport.STARTED, "server1")
    await fake.settle()
    api = Api(controller, dict, Access(controller, Tokens(file), open=False))
    yield Served(fake, f"http://127.0.0.1:{await api.start('127.0.0.1', 0)}")
    controller.events.close()
    await api.stop()
    await fake.stop()


def _port(vm: int, edge: int) -> BridgePort:
    return BridgePort(
        dpid=0x30 + edge, bridge="br0", name=f"tap{vm}", number=vm_port(vm), status=PortStatus.UP,
        iface_id=f"vm{vm}", attached_mac=vm_mac(vm),
    )  # fmt: skip
