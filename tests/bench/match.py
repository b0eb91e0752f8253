"""What a match message costs: thousands of servers with 20 to 40 VMs each, whose agents all answer.

    PYTHONPATH=tests .venv/bin/python tests/bench/match.py [SERVERS] [VMS A SERVER]

The network is a model, its switches are away; the controller and its REST interface (in plain text) are real,
and the agents are a process that follows the event stream and answers once for each server. Each wish is one
that the margin refuses, so that no migration begins. Figures are of this machine as busy as it is now: the
load is printed beside them; seconds of a processor are the controller's own.
"""

import asyncio
import multiprocessing
import os
import statistics
import sys
import time
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

import msgspec

from retinue.controller.api.server import Api
from retinue.controller.app import Controller
from retinue.controller.migrations.requests import MigrationError
from retinue.core.model import VM, Link, Network, PortRef, Role, Server, Subnet, Switch
from retinue.core.placement import Reason, Wish
from retinue.protocol.errors import ErrorCode
from retinue.protocol.events import EventType
from retinue.protocol.mobility import AnswerBody, ServerReport, VMSize
from retinue.protocol.routes import Route
from retinue.security.listener import descriptors
from support.fabric.networks import GATEWAY_MAC

PER_LEAF = 40
MATCHES = 10
MEMORY_MIB, SERVER_MIB = 1024, 262_144
END = b"\n\n"


def network(servers: int, vms: int) -> Network:
    """`vms`: of each server."""
    net = Network(GATEWAY_MAC)
    net.add_subnet(Subnet("servers", IPv4Network("10.16.0.0/16"), IPv4Address("10.16.255.254")))
    net.add_subnet(Subnet("blue", IPv4Network("10.64.0.0/10"), IPv4Address("10.127.255.254")))
    net.add_switch(Switch("spine1", Role.SPINE, 0x100))
    for number in range(-(-servers // PER_LEAF)):
        net.add_switch(Switch(f"leaf{number}", Role.LEAF, 0x1000 + number))
        net.add_link(Link(PortRef(f"leaf{number}", "s1"), PortRef("spine1", f"l{number}")))
    for number in range(servers):
        net.add_switch(Switch(f"edge{number}", Role.EDGE, 0x10000 + number, uplink="up0"))
        at = PortRef(f"leaf{number // PER_LEAF}", f"p{number}")
        address = IPv4Address("10.16.0.1") + number
        net.put_server(Server(f"server{number}", _mac(2, number), address, edge=f"edge{number}", given_at=at))
        for k in range(number * vms, (number + 1) * vms):
            address = IPv4Address("10.64.1.0") + k
            net.put_vm(VM.with_one_nic(f"vm{k}", _mac(0x52, k), f"server{number}", addresses=(address,)))
    return net


def _mac(first: int, number: int) -> str:
    return f"{first:02x}:00:00:{number >> 16:02x}:{number >> 8 & 255:02x}:{number & 255:02x}"


def report(server: int, vms: int) -> ServerReport:
    """All servers are alike: none is better than the one where the VM is."""
    here = [VMSize(f"vm{k}", MEMORY_MIB) for k in range(server * vms, (server + 1) * vms)]
    return ServerReport(
        cpus=64, memory_mib=SERVER_MIB, memory_free_mib=SERVER_MIB // 2, cpu_used=2000, vms=here
    )


# ---- the agents: a process of their own ----


class Stream(asyncio.Protocol):
    """The event stream of one agent; it answers by a connection of its own, which it keeps."""

    def __init__(self, server: int, vms: int, port: int) -> None:
        self._server, self._port, self._rest = server, port, b""
        self._answers: asyncio.WriteTransport | None = None
        said = report(server, vms)
        self._report = msgspec.json.encode(said)
        self._answer = msgspec.json.encode(AnswerBody(f"server{server}", said))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        path = Route.FOLLOW_EVENTS.path(types=EventType.MATCH, server=f"server{self._server}")
        transport.write(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        *whole, self._rest = (self._rest + data).split(END)
        for event in whole:
            line = next((one for one in event.split(b"\n") if one.startswith(b"data:")), b"")
            found = msgspec.json.decode(line.removeprefix(b"data:") or b"{}")
            if found.get("type") == EventType.MATCH:
                self._post(Route.ANSWER_MATCH.path(found["match"]), self._answer)

    async def report(self) -> None:
        """As agents do every few seconds: so the connection is there when a match comes."""
        loop = asyncio.get_running_loop()
        self._answers, _ = await loop.create_connection(asyncio.Protocol, "127.0.0.1", self._port)
        self._post(Route.REPORT_PROFILE.path(f"server{self._server}"), self._report)

    def _post(self, path: str, body: bytes) -> None:
        assert self._answers is not None
        head = (
            f"POST {path} HTTP/1.1\r\nHost: bench\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._answers.write(head.encode() + body)


def agents(port: int, servers: int, vms: int) -> None:
    """Until this process is ended."""

    async def listen() -> None:
        loop = asyncio.get_running_loop()
        for server in range(servers):
            stream = Stream(server, vms, port)
            await loop.create_connection(lambda stream=stream: stream, "127.0.0.1", port)  # type: ignore[misc]
            await stream.report()
        await asyncio.Event().wait()

    descriptors.raise_limit()
    asyncio.run(listen())


# ---- the matches ----


@dataclass(frozen=True, slots=True)
class Matched:
    seconds: float
    """From the wish to the decision."""
    cpu: float
    """Of it, seconds of a processor that the controller used, until all answers had come."""
    silent: int
    """Agents that had not answered in time."""
    deciding: float
    """Seconds of a processor for the decision itself, without any message."""


async def matched(controller: Controller, vm: str, servers: int) -> Matched:
    bus, wish = controller.events, Wish(Reason.UTILISATION)
    answered = bus.listen(types={EventType.MATCH_ANSWER})
    silent = bus.listen(types={EventType.MATCH_SILENT})
    began, cpu = time.perf_counter(), time.process_time()
    try:
        await controller.mobility.migrate(vm, wish)
    except MigrationError as error:
        assert error.code is ErrorCode.NO_MATCH, error
    took, used = time.perf_counter() - began, time.process_time() - cpu
    mute = len(silent.at_once(servers))
    assert len(answered.at_once(servers)) == servers - mute
    answered.close()
    silent.close()
    presences = {one: controller.resources.presence(one) for one in controller.resources.candidates()}
    cpu = time.process_time()
    controller.resources.snapshot(vm, wish, presences)
    return Matched(took, used, mute, time.process_time() - cpu)


async def measure(servers: int, vms: int) -> list[Matched]:
    controller = Controller(network(servers, vms))
    controller.context.is_away = lambda switch: False  # type: ignore[method-assign]
    api = Api(controller, dict)
    port = await api.start("127.0.0.1", 0)
    process = multiprocessing.get_context("spawn").Process(target=agents, args=(port, servers, vms))
    process.start()
    try:
        while controller.resources.reported(f"server{servers - 1}") is None:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        return [await matched(controller, f"vm{k * vms}", servers) for k in range(MATCHES)]
    finally:
        process.terminate()
        process.join()
        controller.events.close()
        await api.stop()
        await controller.stop()


def main() -> None:
    servers, vms = (int(word) for word in [*sys.argv[1:], *("1000", "30")[len(sys.argv) - 1 :]])
    descriptors.raise_limit()
    found = asyncio.run(measure(servers, vms))
    took = [one.seconds for one in found]
    print(f"{servers} servers, {servers * vms} VMs, {MATCHES} matches; load {os.getloadavg()[0]:.1f}")
    print(f"from the wish to the decision: median {statistics.median(took):.2f} s, at most {max(took):.2f} s")
    print(f"seconds of a processor: {statistics.median(one.cpu for one in found):.2f}, of which for what is "
          f"known of the servers {statistics.median(one.deciding for one in found):.2f}")  # fmt: skip
    print(f"agents that were silent: {[one.silent for one in found]}")


if __name__ == "__main__":
    main()
