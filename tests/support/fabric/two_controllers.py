"""Two domains with a controller each, over fake switches, and agents that outlive them (far_agents.py)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from retinue.controller.app import Controller
from retinue.controller.errors import RequestError
from retinue.controller.migrations.requests import MigrationError
from retinue.core.migration import Migration, MigrationState
from retinue.core.migration.record import Far
from retinue.core.model import ModelError, PortStatus
from retinue.protocol.domains import (
    Heard,
    ImageAsked,
    ImageFound,
    Match,
    Names,
    NamesAsked,
    Offer,
    Prepare,
    Prepared,
    Removed,
    Word,
)
from retinue.protocol.errors import ControllerAwayError, RejectedError
from retinue.protocol.records import record
from retinue.southbound.ovsdb import BridgePort
from support.fabric.domains import TUNNEL, gateway_of, network, nic, other, port, server_of
from support.fabric.far_agents import MEMORY_MIB, VM_ID, Agents
from support.fakes.memory_store import MemoryStore
from support.fakes.session import FakeNetwork

T = TypeVar("T")

ASKED, DATABASE_OF = "asked", "database of "


class Line:
    """What is asked of one domain's controller, until that dies: then who has asked hears that it is away."""

    def __init__(self) -> None:
        self.there = asyncio.Event()
        self.there.set()
        self._asked: set[asyncio.Task[Any]] = set()

    async def ask(self, work: Coroutine[Any, Any, T]) -> T:
        """Raises ControllerAwayError. Who asks may end before: the work goes on."""
        if not self.there.is_set():
            work.close()
            raise ControllerAwayError("nobody answers")
        task = asyncio.ensure_future(work)
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait({task})
        if task.cancelled():
            raise ControllerAwayError("it hung up")
        return task.result()

    def hang_up(self) -> None:
        self.there.clear()
        for task in self._asked:
            task.cancel()


@dataclass
class InMemoryDoor:
    """The door of `to`, for domain `peer`: words go through JSON, as between two controllers."""

    peer: str
    to: Controller
    line: Line
    away: bool = False
    """The way there is cut."""
    said: list[str] = field(default_factory=list)
    answers: dict[str, MigrationState] = field(default_factory=dict)
    """By word: what it is answered, and is not heard."""

    async def match(self, wanted: Match) -> Offer:
        self._there("match")
        wanted = msgspec.json.decode(msgspec.json.encode(wanted), type=Match)
        with rejected():
            return await self.line.ask(self.to.domains.matching.offer(self.peer, wanted))

    async def prepare(self, wanted: Prepare) -> Prepared:
        self._there("prepare")
        wanted = msgspec.json.decode(msgspec.json.encode(wanted), type=Prepare)
        with rejected():
            return await self.line.ask(self.to.domains.hearing.prepare(self.peer, wanted))

    async def say(self, migration: str, word: Word) -> Heard:
        self._there(word.said)
        if word.said in self.answers:
            return Heard(self.answers[word.said])
        word = msgspec.json.decode(msgspec.json.encode(word), type=Word)
        with rejected():
            return await self.line.ask(self.to.domains.hearing.word(self.peer, migration, word, "192.0.2.1"))

    async def removed(self, guest: Removed) -> None:
        self._there("removed")
        with rejected():
            self.to.domains.hearing.removed(self.peer, guest)

    async def names(self, asked: NamesAsked) -> Names:
        self._there("names")
        with rejected():
            said = await self.line.ask(self.to.domains.names.answer(self.peer, asked))
        return msgspec.json.decode(msgspec.json.encode(said), type=Names)

    async def image(self, asked: ImageAsked) -> ImageFound:
        self._there("image")
        with rejected():
            said = self.to.domains.images.answer(self.peer, asked)
        return record(ImageFound, msgspec.json.decode(msgspec.json.encode(said)))

    def _there(self, said: str) -> None:
        if self.away or not self.line.there.is_set():
            raise ControllerAwayError("nobody answers")
        self.said.append(str(said))


@contextlib.contextmanager
def rejected() -> Iterator[None]:
    try:
        yield
    except (MigrationError, ModelError, RequestError) as error:
        raise RejectedError(str(error), getattr(error, "code", "")) from error


@dataclass
class TwoDomains:
    fakes: dict[str, FakeNetwork]
    doors: dict[str, InMemoryDoor]
    """By domain: where the other one speaks to it."""
    stores: dict[str, MemoryStore]
    agents: dict[str, Agents] = field(default_factory=dict)
    fails: str = ""
    """"before it converges": it is copied without end; "after diverting": the target's agent says that it has
    failed; "ends when it has stopped": it says no more; "away when it resumes": the source's controller is
    not there to hear it; "away when it closes": nor that, and its agent has the VM run when it is told
    to."""
    runs_at: str = server_of("a", 1)
    nics: tuple[int, ...] = (1,)
    """Numbers of the VM's NICs."""
    paused: bool = False
    """At the source, and not to go on there before the target says that it never will."""
    memory_mib: int = MEMORY_MIB
    """What its agent says that it has; 0: somebody else made it, and the agent does not know."""
    room: dict[str, int] = field(default_factory=dict)
    """By server: MiB of memory that it has, where that is not plenty."""
    dual: bool = False
    """With IPv6 beside IPv4."""
    dhcp: bool = False
    """With a DHCP server in domain a."""
    ports: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    """By domain and switch: the ports that it tells when it connects."""
    dead: set[str] = field(default_factory=set)
    """Domains whose controller is."""
    unread: set[str] = field(default_factory=set)
    """Edges whose databases a new controller has not read yet: it hears of no port of a VM."""

    def controller(self, domain: str) -> Controller:
        return self.fakes[domain].controller

    def migration(self, domain: str) -> Migration:
        return list(self.controller(domain).orchestrator.migrations.values())[-1]

    async def until(self, domain: str, *states: MigrationState) -> Migration:
        async with asyncio.timeout(20):
            migrations = self.controller(domain).orchestrator.migrations
            while not migrations or self.migration(domain).state not in states:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return self.migration(domain)

    # ---- orders ----

    def begin(self, to: str = "b", server: str = "") -> Migration:
        """The VM is to go to the other domain."""
        source = other(to)
        orchestrator = self.controller(source).orchestrator
        return orchestrator.start(VM_ID, target_server=gateway_of(source), far=Far(to, server))

    async def move(self, source: str, target: str, server: str) -> None:
        self.begin(target, server)
        await self.until(source, MigrationState.DONE)
        await self.until(target, MigrationState.DONE)
        await asyncio.sleep(0)

    # ---- ports ----

    def plug(self, domain: str, server: str, *numbers: int) -> None:
        """These NICs have ports there; none: the VM's."""
        found = {(server, number) for number in numbers or self.nics}
        self.agents[domain].plugged |= found
        self._ports_changed(domain, (), sorted(found))

    def unplug(self, domain: str, server: str) -> None:
        gone = {(server, number) for number in self.nics} & self.agents[domain].plugged
        self.agents[domain].plugged -= gone
        self._ports_changed(domain, sorted(gone), ())

    def _ports_changed(self, domain: str, *changed: Collection[tuple[str, int]]) -> None:
        """Those that went, and those that came; a controller that is dead hears of it when it is back."""
        if domain in self.dead:
            return
        heard = [
            [one for one in ports if self._edge_at(domain, one[0]) not in self.unread] for ports in changed
        ]
        went, came = ([port_at(self.fakes[domain], *one) for one in ports] for ports in heard)
        self.controller(domain).inventory.ports.changed(went, came)

    def _edge_at(self, domain: str, server: str) -> str:
        return self.fakes[domain].net.servers[server].edge

    async def agents_done(self) -> None:
        """What they were ordered is done."""
        for agents in self.agents.values():
            await agents.done()

    # ---- a controller dies ----

    async def kill(self, domain: str) -> None:
        """What it had under way is not finished, and whoever has asked it something gets no answer."""
        self.dead.add(domain)
        self.agents[domain].lose()
        self.doors[domain].line.hang_up()
        await self.controller(domain).stop()

    async def start_again(self, domain: str) -> None:
        """On the same database; switches and agents come back to it."""
        for what in await self.start_anew(domain):
            self.comes(domain, what)
        await self.fakes[domain].settle()

    async def start_anew(self, domain: str) -> list[str]:
        """On the same database, and nothing has come back yet, nor does it know of any port: what is to come
        (`comes`), in any order."""
        old = self.fakes[domain]
        fake = self.fakes[domain] = FakeNetwork(
            network(domain, 2, 1, dual=self.dual, dhcp=self.dhcp),
            old.controller.context.clock,
            self.stores[domain],
        )
        fake.fabric, fake.hosts, fake.confirms = old.fabric, old.hosts, old.confirms
        self.ports[domain] = {switch: dict(ports) for switch, ports in fake.net._numbers.items()}
        for switch in fake.net.switches:
            fake.net.set_ports(switch, {})
        fake.controller.restore(self.stores[domain].load())
        self._joined(domain)
        await fake.controller.start()
        fake.controller.orchestrator.resume_all()
        edges = [switch.id for switch in fake.net.switches.values() if switch.uplink]
        self.unread |= set(edges)
        self.dead.discard(domain)
        return [*fake.net.switches, *(f"{DATABASE_OF}{edge}" for edge in edges), ASKED]

    def comes(self, domain: str, what: str) -> None:
        """A switch, the database of an edge, or agents and the other domain's controller."""
        fake = self.fakes[domain]
        if what == ASKED:
            self.agents[domain].follow(fake.controller)
            self.doors[domain].line.there.set()
        elif what.startswith(DATABASE_OF):
            edge = fake.net.switches[what.removeprefix(DATABASE_OF)]
            self.unread.discard(edge.id)
            plugged = sorted(self.agents[domain].plugged)
            here = [port_at(fake, *one) for one in plugged if self._edge_at(domain, one[0]) == edge.id]
            fake.controller.inventory.ports.changed([], here)
            fake.controller.inventory.ports.edge_read([edge.dpid], [str(one.iface_id) for one in here])
        else:
            fake.connect(what, self.ports[domain][what])

    def _joined(self, domain: str) -> None:
        """It speaks to the other, and is spoken to."""
        controller, there = self.controller(domain), other(domain)
        self.doors[domain].to = controller
        controller.domains.saying.doors[there] = self.doors[there]


def port_at(fake: FakeNetwork, server: str, number: int) -> BridgePort:
    """Of NIC `number` of domain a there."""
    its = nic("a", number)
    return BridgePort(
        dpid=fake.net.switches[fake.net.servers[server].edge].dpid, bridge="br0", name=f"tap{number}",
        number=port(its), status=PortStatus.UP, iface_id=its.port_id, attached_mac=its.mac,
    )  # fmt: skip


@contextlib.asynccontextmanager
async def two_domains(*, dual: bool = False, dhcp: bool = False) -> AsyncIterator[TwoDomains]:
    """VM vm-a1 runs on server 1 of domain a, where it is to be registered."""
    clock = asyncio.get_running_loop().time
    stores = {domain: MemoryStore() for domain in "ab"}
    nets = {domain: network(domain, 2, 1, dual=dual, dhcp=dhcp) for domain in "ab"}
    fakes = {domain: FakeNetwork(net, clock, stores[domain]) for domain, net in nets.items()}
    doors = {domain: InMemoryDoor(other(domain), fake.controller, Line()) for domain, fake in fakes.items()}
    made = TwoDomains(fakes, doors, stores, dual=dual, dhcp=dhcp)
    for domain, fake in fakes.items():
        there = other(domain)

        def through(frame: bytes, there: str = there) -> None:
            fakes[there].send(f"{there}-edge3", TUNNEL, frame)

        fake.hosts[f"{domain}-edge3", TUNNEL] = through
        made._joined(domain)
        await fake.start()
    for domain, fake in fakes.items():
        made.agents[domain] = Agents(domain, made, doors[domain].line)
        made.agents[domain].follow(fake.controller)
    await asyncio.sleep(0)
    try:
        yield made
        for agents in made.agents.values():
            agents.raise_errors()
    finally:
        for domain in "ab":
            await made.agents[domain].close()
            await made.controller(domain).stop()


__all__ = ["MEMORY_MIB", "VM_ID", "InMemoryDoor", "TwoDomains", "gateway_of", "two_domains"]
