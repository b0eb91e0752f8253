"""The demonstration itself, run inside the lab's sandbox, where the controller and all nodes are reached.

    python -m retinue_lab.demo.inside DIRECTORY

Writes a JSON object a line: {"say": text} for each step as it is done, at the end {"report": ...}, or
{"error": sentence}.
"""

import asyncio
import json
import sys
from collections.abc import Sequence
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import msgspec

from retinue import __version__
from retinue.core.migration import MigrationState
from retinue.host.taps import tap_name
from retinue.protocol.events import EventType
from retinue.protocol.routes import Route
from retinue.protocol.vms import VMState
from retinue_lab import baseline
from retinue_lab.baseline import Bound
from retinue_lab.demo.report import (
    BaselineFigures,
    DemoReport,
    MigrationFigures,
    SpoofingFigures,
    TrafficFigures,
)
from retinue_lab.demo.spoofing import EACH, MarkWatch, Party, honest_frame, sending, spoofed_frames
from retinue_lab.errors import LabError
from retinue_lab.measure.capture import CaptureError, SilentPorts, WatchedPort
from retinue_lab.measure.figures import Record, Traffic
from retinue_lab.measure.traffic_process import TrafficError, TrafficProcess
from retinue_lab.network.vm_driver import SOCKET
from retinue_lab.processes import state
from retinue_lab.processes.processes import popen
from retinue_lab.processes.state import Directory
from retinue_lab.sandbox.clients import Driver, Manager
from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology.topology import CLIENT, DHCP, ROUTER, UPLINK

VM, SPOOFER = "vm1", "vm2"
MACS = {VM: "52:54:00:00:00:01", SPOOFER: "52:54:00:00:00:02"}
STARTS = {VM: "server1", SPOOFER: "server2"}
TOUR = ("server2", "server3")
"""Where the VM moves, one after the other: each is on another leaf than the one before."""
BASELINE_TARGET = "server2"
PPS = 1000
CALM = 1.0
"""Seconds of undisturbed traffic before and after each migration."""
REPORT_LIMIT = 60.0
"""Seconds in which spoofed frames must be reported."""
LONGEST_RUN = 60.0
"""Seconds; a run of traffic is ended when its move is over."""


def say(text: str) -> None:
    print(json.dumps({"say": text}), flush=True)


class Demonstration:
    """Boots VMs, migrates one under traffic, lets the other spoof; then the same on plain switches."""

    def __init__(self, lab: LabHandle, manager: Manager) -> None:
        self.lab = lab
        self.topology = lab.topology
        self.manager = manager
        self.driver = Driver(lab.directory / SOCKET)
        self.addresses: dict[str, str] = {}

    async def run(self) -> DemoReport:
        versions = (await asyncio.to_thread(self.lab.status)).versions
        await self.boot()
        watch = SilentPorts(popen, self.silent_ports())
        await watch.start()
        moves = [await self.move(target) for target in TOUR]
        noise = {port: found for port, found in (await watch.stop()).items() if found.count}
        spoofing = await self.spoof()
        baseline_figures = await self.baseline()
        return DemoReport(
            schema=1,
            versions={"retinue": __version__, **versions},
            moves=moves,
            spoofing=spoofing,
            flooded_frames=sum(found.count for found in noise.values()),
            baseline=baseline_figures,
            flooded={port: str(found) for port, found in noise.items()},
        )

    # ---- the VMs ----

    async def boot(self) -> None:
        places = ", ".join(f"{vm} on {server}" for vm, server in STARTS.items())
        say(f"Starting {places}; they ask for addresses by DHCP")
        since = await self.manager.last_event()
        for vm, server in STARTS.items():
            await self.manager.post(Route.REGISTER_VMS.path(), {"id": vm, "mac": MACS[vm], "server": server})
        for vm in STARTS:
            self.addresses[vm] = await self.manager.until(
                since, partial(self._address, vm), f"{vm} has an address"
            )
        for vm in STARTS:  # The first reply comes when the guest serves; what was sent before does not count.
            warm_up = await TrafficProcess.start(
                popen, CLIENT, self.addresses[vm], pps=50, seconds=30, tcp_rate=0
            )
            await warm_up.flowing(30)
            await warm_up.finish(early=True)
        await self.show_bindings()

    async def _address(self, vm: str, _: dict[str, Any]) -> str | None:
        shown = await self.manager.get(Route.GET_VM.path(vm))
        return shown["holds"][0] if shown["holds"] and shown["state"] == VMState.RUNNING else None

    async def bindings(self, vm: str = "") -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = (await self.manager.get(Route.LIST_BINDINGS.path()))["bindings"]
        return [row for row in rows if vm in ("", row["vm"])]

    async def show_bindings(self) -> None:
        say("The binding table:")
        for row in await self.bindings():
            say(
                f"  {row['vm']}  {row['ip']}  {row['mac']}  {row['kind']}  {row['switch']} port {row['port']}"
            )

    # ---- the migrations ----

    def silent_ports(self, *, plain: bool = False) -> list[WatchedPort]:
        """Where nothing may arrive, while the VM moves, but frames for the machine that is there.

        On `plain` switches frames for a VM have the VM's own MAC as far as its server, and the router has the
        gateway's.
        """
        parts = self.topology
        at_server = frozenset(MACS.values() if plain else ())
        at_router = frozenset({parts.gateway_mac} if plain else ())
        found = [WatchedPort(s.id, UPLINK, at_server | {s.mac}) for s in parts.server]
        if parts.dhcp is not None:
            found.append(WatchedPort(DHCP, "eth0", frozenset({parts.dhcp.mac})))
        if parts.router is not None:
            found.append(WatchedPort(ROUTER, "eth0", at_router | {parts.router.mac}))
        return [*found, WatchedPort(STARTS[SPOOFER], tap_name(SPOOFER), frozenset({MACS[SPOOFER]}), "out")]

    async def traffic(self) -> TrafficProcess:
        """Started, flowing, and calm for a while."""
        run = await TrafficProcess.start(popen, CLIENT, self.addresses[VM], pps=PPS, seconds=LONGEST_RUN)
        await run.flowing()
        await asyncio.sleep(CALM)
        return run

    async def move(self, target: str) -> MigrationFigures:
        run = await self.traffic()
        since = await self.manager.last_event()
        ordered = await self.manager.post(Route.START_MIGRATION.path(), {"vm": VM, "target_server": target})
        id, source = ordered["id"], ordered["source"]
        say(f"Moving {VM} from {source} to {target} under {PPS} requests a second and a TCP connection")

        async def ended(event: dict[str, Any]) -> str | None:
            if event["type"] != EventType.MIGRATION_STEP or event["migration"]["id"] != id:
                return None
            now: str = event["migration"]["state"]
            return now if MigrationState(now).ended else None

        state_at_end = await self.manager.until(since, ended, f"{id} has ended")
        await asyncio.sleep(CALM)
        traffic, record = await run.finish(early=True)
        move = await self.manager.get(Route.GET_MIGRATION.path(id))
        if state_at_end != MigrationState.DONE:
            raise LabError(f"{id} of {VM} to {target} was undone: {move['reason']}")
        figures, steps = move["figures"], move["steps"]
        found = MigrationFigures(
            vm=VM,
            source=source,
            target=target,
            system="retinue",
            traffic=figures_of(traffic, record, move["resumed_at"]),
            guest_pause_ms=(move["resumed_at"] - move["stopped_at"]) * 1000,
            total_ms=(steps[-1]["at"] - steps[0]["at"]) * 1000,
            flow_mods=figures["flow_mods"],
            packet_ins=figures["packet_ins"],
            control_ms=figures["control_ms"],
            bindings_before=figures["bindings_before"],
            bindings_after=await self.bindings(VM),
            switch=next(s.edge for s in self.topology.server if s.id == target),
            port=await baseline.port_number(target, VM),
        )
        say(
            f"  {traffic.lost} of {traffic.sent} requests lost, {found.traffic.lost_after_resume} of them "
            f"after {VM} was resumed; its downtime was {found.guest_pause_ms:.0f} ms"
        )
        return found

    # ---- spoofing ----

    async def spoof(self) -> SpoofingFigures:
        parts = self.topology
        assert parts.client is not None
        client = parts.client.address
        spoofer, victim = (Party(MACS[vm], IPv4Address(self.addresses[vm])) for vm in (SPOOFER, VM))
        frames = spoofed_frames(spoofer, victim, parts.gateway_mac, client)
        tried = EACH * len(frames)
        say(f"{SPOOFER} sends {tried} frames in {VM}'s name: its IP, its MAC, its ARP")
        victims_tap = WatchedPort(TOUR[-1], tap_name(VM), direction="out")
        hosts = [WatchedPort(node, "eth0") for node in (CLIENT, DHCP, ROUTER)]
        watch = MarkWatch(popen, [*hosts, victims_tap])
        await watch.start()
        since, before = await self.manager.last_event(), await self._reported()
        command = sending(frames, honest_frame(spoofer, parts.gateway_mac, client))
        code, output = await self.driver.in_guest(SPOOFER, command)
        if code:
            raise LabError(f"{SPOOFER} could not send: {output.strip()}")
        await watch.until_honest()

        async def all_reported(_: dict[str, Any]) -> int | None:
            now = await self._reported() - before
            return now if now >= tried else None

        try:
            await self.manager.until(since, all_reported, "spoofed frames are reported", REPORT_LIMIT)
        except LabError as error:
            say(f"  {error}")
        await watch.stop()
        return SpoofingFigures(tried, watch.spoofed, await self._reported() - before)

    async def _reported(self) -> int:
        return int((await self.manager.get(Route.GET_VM.path(SPOOFER)))["spoof_attempts"])

    # ---- the baseline ----

    async def baseline(self) -> BaselineFigures:
        source, target = TOUR[-1], BASELINE_TARGET
        say("Baseline: the controller ends; learning switches with static port security instead")
        places = {**STARTS, VM: source}
        bound = {vm: Bound(places[vm], vm, MACS[vm], self.addresses[vm]) for vm in STARTS}
        await baseline.make_plain(self.lab, bound.values())
        watch = SilentPorts(popen, self.silent_ports(plain=True))
        await watch.start()
        run = await self.traffic()
        say(f"{VM} answers there too; moving it from {source} to {target} under the same traffic")
        moved = await self.driver.ask(do="migrate", vm=VM, target=target)
        await asyncio.sleep(2 * CALM)
        say("  waiting until the TCP connection is given up")
        traffic, record = await run.finish(early=True)
        noise = await watch.stop()
        figures = figures_of(traffic, record, moved["resumed_at"])
        cut_off = 0 < figures.sent_after_resume == figures.lost_after_resume
        say(f"  {figures.lost_after_resume} of {figures.sent_after_resume} requests after the migration lost")
        restored = await self.restore_by_hand(Bound(target, VM, MACS[VM], self.addresses[VM]))
        return BaselineFigures(
            system="static-port-security",
            cut_off=cut_off,
            traffic=figures,
            source=source,
            target=target,
            guest_pause_ms=(moved["resumed_at"] - moved["stopped_at"]) * 1000,
            flooded_frames=sum(found.count for found in noise.values()),
            restored_by_hand=restored,
        )

    async def restore_by_hand(self, row: Bound) -> bool:
        """True when the VM cannot reach its gateway, and can once its binding is written at its new place."""
        gateway = self.topology.subnet_of(IPv4Address(row.ip)).gateway
        ping = f"ping -c 3 -W 1 {gateway}"
        cut_off, _ = await self.driver.in_guest(row.vm, ping)
        await baseline.bind(row)
        restored, _ = await self.driver.in_guest(row.vm, ping)
        return cut_off != 0 and restored == 0


def figures_of(traffic: Traffic, record: Record, resumed_at: float) -> TrafficFigures:
    return TrafficFigures(
        pps=traffic.pps,
        sent=traffic.sent,
        received=traffic.received,
        lost=traffic.lost,
        lost_after_resume=record.lost_after(resumed_at),
        duplicated=traffic.duplicated,
        reordered=traffic.reordered,
        longest_gap_ms=traffic.longest_gap_ms,
        tcp_survived=bool(traffic.tcp_survived),
        sent_after_resume=sum(at > resumed_at * 1e9 for at in record.sent),
    )


async def demonstrate(where: Directory) -> DemoReport:
    settings = state.decode_settings(where.settings.read_bytes())
    lab = LabHandle(settings.name, where.path, 1, settings.topology)
    async with Manager(lab.topology.controller_url) as manager:
        return await Demonstration(lab, manager).run()


def main(arguments: Sequence[str]) -> int:
    try:
        report = asyncio.run(demonstrate(Directory(Path(arguments[0]))))
    except (LabError, TrafficError, CaptureError) as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return 1
    print(json.dumps({"report": msgspec.to_builtins(report)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
