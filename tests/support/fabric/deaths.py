"""One of two domains' controllers dies at some word between them; and what must hold meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address

from retinue.core.migration import Migration
from retinue.core.model import NIC, VM
from retinue.core.packets import ARP, ArpOp, Ethernet, arp_request, build_udp4, parse, parse_arp
from support.fabric.domains import GATEWAY_MACS, nic, port, server_of
from support.fabric.two_controllers import InMemoryDoor, TwoDomains

FORTH = ("prepare", "opened", "copy_started", "converged", "diverted", "stopped", "resumed", "source_freed")
"""Words of a move that nothing disturbs."""
IN_THE_END = 120.0
"""Seconds after which nothing changes any more."""


class Killer:
    """Kills a controller just before a word of theirs is heard, or just after, before it is answered."""

    def __init__(
        self, domains: TwoDomains, dies: str, word: str, when: str, comes_back: Callable[[], Awaitable[None]]
    ) -> None:
        self.domains, self.dies, self.word, self.when = domains, dies, word, when
        self.comes_back = comes_back
        self.done = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        for door in domains.doors.values():
            self._watch(door)

    def _watch(self, door: InMemoryDoor) -> None:
        there = door._there

        def watched(said: str) -> None:
            comes_somewhere(self.domains)
            if said == self.word and self.when == "before" and self._task is None:
                self._kill()
            there(said)
            if said == self.word and self.when == "after" and self._task is None:
                asyncio.get_running_loop().call_later(0.001, self._kill)

        door._there = watched  # type: ignore[method-assign]

    def _kill(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._die())

    async def _die(self) -> None:
        try:
            await self.domains.kill(self.dies)
            comes_somewhere(self.domains)
            await self.comes_back()
        finally:
            self.done.set()

    async def until_back(self) -> None:
        """Raises what went wrong meanwhile."""
        await self.done.wait()
        assert self._task is not None
        await self._task


async def settled(domains: TwoDomains) -> None:
    """The VM runs at home, and so does its client."""
    a = domains.controller("a")
    for number in (1, 2):
        vm = VM(f"vm-a{number}", (nic("a", number),), server_of("a", number), memory_mib=128)
        a.inventory.register_vms([vm])
        domains.plug("a", server_of("a", number), number)
    await domains.fakes["a"].settle()
    comes_somewhere(domains)


async def ended(domains: TwoDomains) -> None:
    """For both."""
    async with asyncio.timeout(IN_THE_END):
        while not all(m.state.ended for m in migrations(domains)) or domains.paused:  # noqa: ASYNC110
            await asyncio.sleep(1.0)
    for fake in domains.fakes.values():
        await fake.settle()


def migrations(domains: TwoDomains) -> list[Migration]:
    return [m for domain in "ab" for m in domains.controller(domain).orchestrator.migrations.values()]


# ---- what must hold ----


def arrivals(domains: TwoDomains) -> set[str]:
    """The servers at which a packet of a client in domain a comes to the VM, to each once."""
    its, client = nic("a", 1), nic("a", 2)
    came = _sent(domains, server_of("a", 2), client, its)
    found = [switch.replace("edge", "server") for switch, number in came if number == port(its)]
    assert len(set(found)) == len(found), f"doubled: {found}"
    return set(found)


def comes_somewhere(domains: TwoDomains) -> None:
    assert arrivals(domains) <= {server_of(domain, 1) for domain in "ab"}
    assert arrivals(domains), "lost"


def is_served(domains: TwoDomains, began_at: str) -> None:
    """What is sent to the VM comes to it, or to where it waits for it; and where it runs, it is heard by its
    client, and its switch tells it a gateway. `began_at`: where it ran before it moved."""
    came = arrivals(domains)
    has_port = {
        server for agents in domains.agents.values() for server, number in agents.plugged if number == 1
    }
    assert came & has_port, f"lost: it came to {came}, the VM has ports at {has_port}"
    assert domains.runs_at in came or domains.runs_at == began_at, f"it runs at {domains.runs_at}: {came}"
    if domains.paused:
        return
    its, client = nic("a", 1), nic("a", 2)
    heard = _sent(domains, domains.runs_at, its, client)
    assert heard == [("a-edge2", port(client))], f"from {domains.runs_at}: {heard}"
    switch, (own,) = domains.runs_at.replace("server", "edge"), its.addresses
    gateway = domains.fakes["a"].net.subnets["blue"].gateway
    assert isinstance(own, IPv4Address)
    assert isinstance(gateway, IPv4Address)
    domain = domains.runs_at[0]
    delivery = domains.fakes[domain].fabric.send(switch, port(its), arp_request(its.mac, own, gateway))
    answers = [parse_arp(parse(frame).payload) for at, _, frame in delivery.arrivals if at == switch]
    assert answers == [ARP(ArpOp.REPLY, GATEWAY_MACS[domain], gateway, its.mac, own)], delivery


def _sent(domains: TwoDomains, server: str, sender: NIC, to: NIC) -> list[tuple[str, int]]:
    """Where it comes out."""
    (src,), (dst,) = sender.addresses, to.addresses
    assert isinstance(src, IPv4Address)
    assert isinstance(dst, IPv4Address)
    domain, packet = server[0], build_udp4(src, dst, 4000, 7, b"hi")
    frame = Ethernet(GATEWAY_MACS[domain], sender.mac, 0x0800, packet).build()
    for fake in domains.fakes.values():
        fake.heard.clear()
    domains.fakes[domain].send(server.replace("server", "edge"), port(sender), frame)
    came = [one for fake in domains.fakes.values() for one in fake.heard]
    # The tunnel's ends are hosts of the fake fabrics.
    return [(switch, number) for switch, number, _ in came if not switch.endswith("edge3")]
