"""A running laboratory as a test sees it: its REST interface and events, its guests, programs on its nodes.

A test runs on the host, the lab's networks are inside its sandbox. A doorman, a small program in the sandbox,
makes sockets there and hands them out, so that the test's own code can speak to anything inside.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any
from urllib.parse import urlencode

import aiohttp
import pytest

from retinue.protocol.client import ControllerClient
from retinue.protocol.errors import ControllerAwayError
from retinue.security.identity import PeerRole
from retinue_lab.measure.figures import Record, Traffic
from retinue_lab.measure.traffic_process import TrafficProcess
from retinue_lab.network import credentials
from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology.topology import CONTROLLER, DHCP, OPENFLOW_PORT, SANDBOX, Topology
from support.lab import still_threads
from support.lab.losses import lost_spans, overtaken, overtaken_requests
from support.lab.programs import popen_in
from support.lab.watch import Capture, Lines

Json = dict[str, Any]
Picks = Callable[[Json], bool]
"""Says of an event whether it is a wanted one."""
PATIENCE = 120.0
"""Longest wait, in seconds, for something that takes well under a second on an idle machine."""
BOOT_PATIENCE = 120.0

FOUND_LATE = ("old_way_in_use", "mark_not_come", "too_many_marks", "not_drained", "not_quiet", "unreadable")
"""In the logs of controller and agents: what was on its way was waited for no longer."""

_DOORMAN = """
import array, socket, sys
door = socket.socket(fileno=int(sys.argv[1]))
while door.recv(16):
    with socket.socket() as made:
        door.sendmsg([b"here"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [made.fileno()]))])
"""

_ASK_KEA = """
import socket, sys
with socket.socket(socket.AF_UNIX) as wire:
    wire.connect("/run/retinue/dhcp/kea.sock")
    wire.sendall(sys.stdin.buffer.read())
    wire.shutdown(socket.SHUT_WR)
    sys.stdout.write(wire.makefile().read())
"""


def long(*values: Any) -> Any:
    """A set of a test's parameters that is tried in `make test-long` only: another is in `make test`."""
    return pytest.param(*values, marks=pytest.mark.long)


class Doorman:
    """Makes TCP sockets that belong to the sandbox's network, until `close`."""

    def __init__(self, lab: LabHandle) -> None:
        self._door, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        argv = [sys.executable, "-I", "-S", "-c", _DOORMAN, str(inside.fileno())]
        with inside:
            self._process = lab.popen(SANDBOX, argv, pass_fds=[inside.fileno()])

    def socket(self) -> socket.socket:
        self._door.send(b"tcp")
        _, descriptors, _, _ = socket.recv_fds(self._door, 16, 1)
        return socket.socket(fileno=descriptors[0])

    def close(self) -> None:
        self._door.close()
        self._process.wait(PATIENCE)


class Events:
    """The controller's event stream since it was opened (see `Bench.events`). What came is in `seen`."""

    def __init__(self, stream: AsyncGenerator[Json, None]) -> None:
        self.seen: list[Json] = []
        self._stream = stream
        self._arrived = asyncio.Condition()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        with contextlib.suppress(ControllerAwayError):
            async for event in self._stream:
                async with self._arrived:
                    self.seen.append(event)
                    self._arrived.notify_all()

    async def until(
        self,
        kind: str,
        where: Picks = lambda event: True,
        *,
        after: Json | None = None,
        timeout: float = PATIENCE,
    ) -> Json:
        """The first event of that type that fits, among those seen and those to come; `after` another one."""

        def found() -> Json | None:
            later = 0 if after is None else self.seen.index(after) + 1
            return next((e for e in self.seen[later:] if e["type"] == kind and where(e)), None)

        try:
            async with asyncio.timeout(timeout), self._arrived:
                await self._arrived.wait_for(found)
        except TimeoutError:
            raise AssertionError(
                f"no such {kind} in {timeout:g} s, but: {[e['type'] for e in self.seen]}"
            ) from None
        event = found()
        assert event is not None
        return event

    def of(self, kind: str) -> list[Json]:
        """Those of a type that have come."""
        return [event for event in self.seen if event["type"] == kind]

    async def close(self) -> None:
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self._stream.aclose()


class Echoes:
    """Echo traffic under way (see `Bench.traffic`)."""

    def __init__(self, process: TrafficProcess) -> None:
        self._process = process
        self._ended: tuple[Traffic, Record] | None = None

    async def flowing(self) -> None:
        await self._process.flowing()

    async def end(self) -> tuple[Traffic, Record]:
        """End it; its figures, and every time stamp."""
        if self._ended is None:
            self._ended = await self._process.finish(early=True)
        return self._ended


class LabBench:
    """One lab, for one test: everything asynchronous here belongs to the test's own event loop."""

    def __init__(self, lab: LabHandle, doorman: Doorman) -> None:
        self.lab = lab
        self.topology: Topology = lab.topology
        self.doorman = doorman
        manager = credentials.manager(lab.directory)
        self.tls = manager.context()
        """For connections of a manager to the controller."""
        connector = aiohttp.TCPConnector(
            socket_factory=lambda _: doorman.socket(), force_close=True, ssl=self.tls
        )
        self._client = ControllerClient(lab.topology.controller_url, manager, connector)

    async def aclose(self) -> None:
        await self._client.close()

    def tls_of(self, role: PeerRole, label: str) -> ssl.SSLContext:
        """For connections of one who holds this certificate of the lab's."""
        return credentials.of(self.lab.directory, role, label).context()

    # ---- the controller ----

    async def request(self, method: str, path: str, body: Any = None, **query: str) -> Json:
        """Raises RejectedError for an answer that is an error."""
        found = f"/v1/{path}" + (f"?{urlencode(query)}" if query else "")
        return await self._client.request(method, found, body)

    async def get(self, path: str, **query: str) -> Json:
        return await self.request("GET", path, **query)

    async def post(self, path: str, body: Any = None) -> Json:
        return await self.request("POST", path, body)

    async def put(self, path: str, body: Any) -> Json:
        return await self.request("PUT", path, body)

    async def vm(self, id: str) -> Json:
        return await self.get(f"vms/{id}")

    async def address(self, vm: str) -> str:
        """The one IP address a VM holds."""
        (address,) = (await self.vm(vm))["holds"]
        return str(address)

    async def bindings(self, vm: str | None = None) -> list[Json]:
        query = {} if vm is None else {"vm": vm}
        return list((await self.get("bindings", **query))["bindings"])

    async def server(self, id: str) -> Json:
        return next(row for row in (await self.get("servers"))["servers"] if row["id"] == id)

    async def switch(self, id: str) -> Json:
        return next(row for row in (await self.get("switches"))["switches"] if row["id"] == id)

    @contextlib.asynccontextmanager
    async def events(self, since: int | None = None) -> AsyncIterator[Events]:
        """The events from now on, or those after the one with that id."""
        last = (await self.get("status"))["last_event"] if since is None else since
        stream = Events(self._client.all_events(last))
        try:
            yield stream
        finally:
            await stream.close()

    async def migration(self, vm: str, **wanted: str | float) -> Json:
        """Start a migration and return it when it has ended as `done`."""
        async with self.events() as events:
            id = (await self.post("migrations", {"vm": vm, **wanted}))["id"]
            ended = await events.until(
                "migration.step",
                lambda e: e["migration"]["id"] == id and e["migration"]["state"] in ("done", "undone"),
            )
        assert ended["migration"]["state"] == "done", ended["migration"]["reason"]
        return await self.get(f"migrations/{id}")

    # ---- guests ----

    async def guest(self, vm: str, command: str, *, check: bool = True, timeout: float = PATIENCE) -> str:
        """Run shell text as root in a guest; what it printed. With `check` it must end well."""
        answer = await self._driver(do="guest", vm=vm, command=command, timeout=timeout)
        assert "error" not in answer, answer
        assert not check or answer["code"] == 0, f"{vm}: {command}: {answer}"
        return str(answer["output"])

    async def send(self, vm: str, *frames: str, times: int = 1) -> None:
        """Let a guest send frames, given in hexadecimal, as they are."""
        await self.guest(vm, f"sendraw -c {times} {' '.join(frames)}")

    async def ping(self, vm: str, to: str) -> bool:
        """True when one echo comes back."""
        said = await self.guest(vm, f"ping -c 1 -W 5 {to}", check=False)
        return " 1 packets received" in said

    async def answering(self, vm: str, *to: str) -> list[str]:
        """From which of these an echo comes back; all are asked at once, for none is waited for alone."""
        one = "(ping -c 1 -W 5 {0} | grep -q ' 1 packets received' && echo {0}) &"
        said = await self.guest(vm, " ".join(one.format(address) for address in to) + " wait")
        return sorted(said.split())

    async def console(self, vm: str) -> str:
        """What a guest has written on its console."""
        return str((await self._driver(do="serial", vm=vm)).get("text", ""))

    async def machines(self, vm: str) -> list[str]:
        """The servers on which this VM has a QEMU, by the VM driver."""
        rows = (await self._driver(do="vms"))["vms"]
        locations: Json = next((row["locations"] for row in rows if row["id"] == vm), {})
        return [server for server, location in locations.items() if location["machine"]]

    async def _driver(self, **request: Any) -> Json:
        path = self.lab.directory / "vmdriver.sock"
        reader, writer = await asyncio.open_unix_connection(path, limit=16 << 20)
        try:
            writer.write(json.dumps(request).encode() + b"\n")
            answer: Json = json.loads(await reader.readline())
            return answer
        finally:
            writer.close()

    # ---- programs on nodes ----

    async def run(self, node: str, *argv: str, text: str = "") -> str:
        """What a program printed; it must end well."""
        process = await popen_in(self.lab)(node, argv)
        out, err = await process.communicate(text.encode())
        assert process.returncode == 0, f"{argv} on {node}: {err.decode()}"
        return out.decode()

    async def cli(self, *argv: str, fails: bool | None = False) -> str:
        """What `retinue ...` prints, for this lab, its complaint included where it `fails`; None: or not."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "retinue.cli.main", *argv),
            env=cli_environment(self.lab),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        if fails is not None:
            assert (process.returncode != 0) == fails, f"retinue {' '.join(argv)}: {err.decode()}"
        return out.decode() + (err.decode() if fails is not False else "")

    def bridge(self, switch: str) -> tuple[str, str]:
        """The node of a switch and its name there."""
        found = next(s for s in self.topology.switches if s.id == switch)
        return found.node, found.bridge

    async def flows(self, switch: str, *having: str) -> list[str]:
        """The entries a real switch holds, as ovs-ofctl writes them, that have all these texts."""
        node, bridge = self.bridge(switch)
        said = await self.run(node, "ovs-ofctl", "-O", "OpenFlow14", "dump-flows", bridge)
        lines = [line.strip() for line in said.splitlines() if "table=" in line]
        return [line for line in lines if all(text in line for text in having)]

    async def all_flows(self, but: str = "") -> dict[str, list[str]]:
        """The entries of every switch but one."""
        switches = [switch.id for switch in self.topology.switches if switch.id != but]
        return dict(zip(switches, await asyncio.gather(*map(self.flows, switches)), strict=True))

    @contextlib.asynccontextmanager
    async def flow_changes(self, switch: str) -> AsyncIterator[Lines]:
        """What changes in a real switch's tables, as `ovs-ofctl monitor` writes it."""
        node, bridge = self.bridge(switch)
        # What stands is written to standard output, what changes to standard error.
        monitor = f"exec stdbuf -oL ovs-ofctl -O OpenFlow14 monitor {bridge} watch: 2>&1"
        async with self.lines(node, "sh", "-c", monitor) as lines:
            await lines.until("event=INITIAL")
            yield lines

    @contextlib.asynccontextmanager
    async def lines(self, node: str, *argv: str) -> AsyncIterator[Lines]:
        watch = Lines(await popen_in(self.lab)(node, argv))
        try:
            yield watch
        finally:
            await watch.close()

    @contextlib.asynccontextmanager
    async def capture(self, node: str, interface: str, direction: str = "inout") -> AsyncIterator[Capture]:
        """Frames at an interface: "in" those it takes in, "out" those it gives out (as a tap to its VM)."""
        watch = await Capture.start(popen_in(self.lab), node, interface, direction)
        try:
            yield watch
        finally:
            await watch.close()

    @contextlib.asynccontextmanager
    async def flow_caches_lag(self, *daemons: str) -> AsyncIterator[None]:
        """These Open vSwitches go on by the flows they have cached, whatever their tables say."""
        async with contextlib.AsyncExitStack() as still:
            for name in daemons:
                found = next(d for d in self.lab.daemons() if d.name == name and d.running)
                argv = [sys.executable, "-I", "-S", still_threads.__file__, str(found.pid), "revalidator"]
                lines = await still.enter_async_context(self.lines(SANDBOX, *argv))
                await lines.until("still")
            yield

    @contextlib.asynccontextmanager
    async def traffic(self, to: str, *, node: str = "client", pps: int = 200) -> AsyncIterator[Echoes]:
        """Echo traffic from a node to a guest inside the context, flowing when that is entered."""
        echoes = Echoes(
            await TrafficProcess.start(popen_in(self.lab), node, to, pps=pps, seconds=120, tcp_rate=0)
        )
        try:
            await echoes.flowing()
            yield echoes
        finally:
            await echoes.end()

    async def unharmed(self, traffic: Echoes, *, in_order: bool = False) -> Traffic:
        """End the traffic; none was lost or doubled, nor overtaken if it is to be `in_order`. Else it is told
        when, in the story of the migrations, and which way; and what the controller and agents found late."""
        figures, record = await traffic.end()
        if figures.lost or figures.duplicated or (in_order and figures.reordered):
            migrations = (await self.get("migrations"))["migrations"]
            said = [str(figures), *story(record, migrations), *self._found_late()]
            for node in sorted({switch.node for switch in self.topology.switches}):
                counts = await self.run(node, "ovs-appctl", "dpif-netdev/pmd-stats-show")
                said += [f"{node}: {line.strip()}" for line in counts.splitlines() if "failed upcall" in line]
            raise AssertionError("\n".join(said))
        return figures

    def _found_late(self) -> list[str]:
        """Lines of the logs that say that somebody did not wait any longer for what was on its way."""
        logs = sorted((self.lab.directory / "logs").glob("*.log"))
        told = ((log.stem, line) for log in logs for line in log.read_text(errors="replace").splitlines())
        return [f"{name}: {line}" for name, line in told if any(word in line for word in FOUND_LATE)]

    @contextlib.asynccontextmanager
    async def captures(self, *locations: tuple[str, str, str]) -> AsyncIterator[list[Capture]]:
        """Several at once: (node, interface, direction)."""
        async with contextlib.AsyncExitStack() as open:
            opened = (open.enter_async_context(self.capture(*location)) for location in locations)
            yield await asyncio.gather(*opened)

    async def kea(self, command: str, arguments: Json | None = None) -> Json:
        """A command to the DHCP server's control socket; its arguments' part of the answer."""
        body = {"command": command} | ({} if arguments is None else {"arguments": arguments})
        said = await self.run(DHCP, sys.executable, "-I", "-S", "-c", _ASK_KEA, text=json.dumps(body))
        answer: Json = json.loads(said)
        assert answer["result"] == 0, answer
        return dict(answer.get("arguments", {}))

    # ---- daemons ----

    def kill(self, daemon: str, number: int = signal.SIGKILL) -> None:
        found = next(d for d in self.lab.daemons() if d.name == daemon and d.running)
        self.lab.kill(found.pid, number)
        if number == signal.SIGKILL:
            self.lab.request(do="wait", pid=found.pid)

    async def restart_controller(self) -> dict[str, int]:
        """Start it again and wait for all switches (Open vSwitch 3.1 may pause 8 s between its attempts).

        Returns how many flow entries each switch was sent.
        """
        self.lab.start_controller()
        async with self.events(since=0) as events:
            return {switch.id: await self.connected(events, switch.id) for switch in self.topology.switches}

    async def connected(self, events: Events, switch: str) -> int:
        """Wait for the event that a switch has connected; how many flow entries it was sent."""
        event = await events.until("switch.connected", lambda e: bool(e["switch"] == switch))
        return int(event["flow_mods"])

    async def dial(
        self, port: int = OPENFLOW_PORT, tls: ssl.SSLContext | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A TCP connection to a port of the controller, or with `tls` one whose handshake is through."""
        wire = self.doorman.socket()
        wire.setblocking(False)
        address = str(self.topology.management_addresses[CONTROLLER].ip)
        await asyncio.get_running_loop().sock_connect(wire, (address, port))
        return await asyncio.open_connection(
            sock=wire, ssl=tls, server_hostname=address if tls is not None else None
        )


def story(record: Record, migrations: list[Json]) -> list[str]:
    """When each lost or overtaken request was sent: after which step of which migration."""
    steps = [(0.0, "the beginning")]
    for migration in migrations:
        steps += [(step["at"], f"{migration['id']} was {step['state']}") for step in migration["steps"]]
        steps += [
            (migration[at], f"{migration['id']} {at}")
            for at in ("stopped_at", "resumed_at")
            if migration.get(at)
        ]
    there = overtaken_requests(record)
    harmed = [(first, last, f"{number} lost") for first, last, number in lost_spans(record)]
    harmed += [
        (at, at, f"1 overtaken as a {'request' if at in there else 'reply'}")
        for at in sorted({*overtaken(record), *there})
    ]
    told = []
    for first, last, harm in harmed:
        at, step = max(known for known in steps if known[0] <= first)
        told.append(
            f"{harm}, sent from {(first - at) * 1000:.1f} to {(last - at) * 1000:.1f} ms after {step}"
        )
    return told


def cli_environment(lab: LabHandle) -> dict[str, str]:
    """In which `retinue` finds this lab."""
    vm = {key: text for key, text in os.environ.items() if not key.startswith("RETINUE_")}
    return {**vm, "RETINUE_LAB_DIR": str(lab.directory.parent), "RETINUE_LAB": lab.name}


def mac_of(vm: str) -> str:
    """The MAC address the tests give a VM: "vm2" has 52:54:00:00:00:02."""
    return f"52:54:00:00:00:{int(vm.removeprefix('vm')):02x}"


def at(vm: str, server: str, *addresses: str) -> Json:
    """A VM as the manager registers it."""
    return {"id": vm, "mac": mac_of(vm), "server": server, "addresses": list(addresses)}


async def eventually(
    what: Callable[[], Coroutine[Any, Any, bool]], timeout: float = PATIENCE, *, every: float = 0.05
) -> None:
    """Ask again until it is so; for what no event tells of."""
    end = time.monotonic() + timeout
    while not await what():
        assert time.monotonic() < end, f"not within {timeout:g} s"
        await asyncio.sleep(every)
