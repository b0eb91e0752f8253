"""The demonstration itself, run inside the lab's sandbox, where the controller and all nodes are reached.

    python -m retinue.lab.demo_inside DIRECTORY

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
from retinue.hypervisor.taps import tap_name
from retinue.lab import control, state
from retinue.lab.capture import CaptureError, Port, SilentPorts
from retinue.lab.control import Bound
from retinue.lab.demo_forgery import (
    EACH,
    MarkWatch,
    Party,
    forged_frames,
    honest_frame,
    sending,
)
from retinue.lab.demo_report import ControlFigures, ForgeryFigures, MoveFigures, Report, TrafficFigures
from retinue.lab.demo_wire import Driver, Manager, popen
from retinue.lab.errors import LabError
from retinue.lab.measure import Record, Traffic
from retinue.lab.sandbox import LabHandle
from retinue.lab.state import Directory
from retinue.lab.topology import CLIENT, DHCP, ROUTER, UPLINK
from retinue.lab.traffic_process import TrafficError, TrafficProcess
from retinue.lab.vmdriver import SOCKET

VM, FORGER = "vm1", "vm2"
MACS = {VM: "52:54:00:00:00:01", FORGER: "52:54:00:00:00:02"}
STARTS = {VM: "server1", FORGER: "server2"}
TOUR = ("server2", "server3")
"""Where the VM moves, one after the other: each is on another leaf than the one before."""
CONTROL_TARGET = "server2"
PPS = 1000
CALM = 1.0
"""Seconds of undisturbed traffic before and after each move."""
REPORT_LIMIT = 5.0
"""Seconds in which forgeries must be reported."""
LONGEST_RUN = 60.0
"""Seconds; a run of traffic is ended when its move is over."""


def say(text: str) -> None:
    print(json.dumps({"say": text}), flush=True)


class Demonstration:
    def __init__(self, lab: LabHandle, manager: Manager) -> None:
        self.lab = lab
        self.topology = lab.topology
        self.manager = manager
        self.driver = Driver(lab.directory / SOCKET)
        self.addresses: dict[str, str] = {}

    async def run(self) -> Report:
        versions = (await asyncio.to_thread(self.lab.status)).versions
        await self.boot()
        watch = SilentPorts(popen, self.silent_ports())
        await watch.start()
        moves = [await self.move(target) for target in TOUR]
        noise = {port: found for port, found in (await watch.stop()).items() if found.count}
        forgery = await self.forge()
        control = await self.control()
        return Report(
            schema=1,
            versions={"retinue": __version__, **versions},
            moves=moves,
            forgery=forgery,
            flooded_frames=sum(found.count for found in noise.values()),
            control=control,
            flooded={port: str(found) for port, found in noise.items()},
        )

    # ---- the VMs ----

    async def boot(self) -> None:
        places = ", ".join(f"{vm} on {server}" for vm, server in STARTS.items())
        say(f"Starting {places}; they ask for addresses by DHCP")
        since = await self.manager.last_event()
        for vm, server in STARTS.items():
            await self.manager.post("/v1/vms", {"id": vm, "mac": MACS[vm], "server": server})
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
        shown = await self.manager.get(f"/v1/vms/{vm}")
        return shown["holds"][0] if shown["holds"] and shown["state"] == "running" else None

    async def bindings(self, vm: str = "") -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = (await self.manager.get("/v1/bindings"))["bindings"]
        return [row for row in rows if vm in ("", row["vm"])]

    async def show_bindings(self) -> None:
        say("The binding table:")
        for row in await self.bindings():
            say(
                f"  {row['vm']}  {row['ip']}  {row['mac']}  {row['kind']}  {row['switch']} port {row['port']}"
            )

    # ---- the moves ----

    def silent_ports(self, *, plain: bool = False) -> list[Port]:
        """Where nothing may arrive, while the VM moves, but frames for the machine that is there.

        On `plain` switches frames for a VM have the VM's own MAC as far as its server, and the router has the
        gateway's.
        """
        parts = self.topology
        at_server = frozenset(MACS.values() if plain else ())
        at_router = frozenset({parts.gateway_mac} if plain else ())
        found = [Port(s.id, UPLINK, at_server | {s.mac}) for s in parts.server]
        if parts.dhcp is not None:
            found.append(Port(DHCP, "eth0", frozenset({parts.dhcp.mac})))
        if parts.router is not None:
            found.append(Port(ROUTER, "eth0", at_router | {parts.router.mac}))
        return [*found, Port(STARTS[FORGER], tap_name(FORGER), frozenset({MACS[FORGER]}), "out")]

    async def traffic(self) -> TrafficProcess:
        """Started, flowing, and calm for a while."""
        run = await TrafficProcess.start(popen, CLIENT, self.addresses[VM], pps=PPS, seconds=LONGEST_RUN)
        await run.flowing()
        await asyncio.sleep(CALM)
        return run

    async def move(self, target: str) -> MoveFigures:
        run = await self.traffic()
        since = await self.manager.last_event()
        ordered = await self.manager.post("/v1/moves", {"vm": VM, "target_server": target})
        id, source = ordered["id"], ordered["source"]
        say(f"Moving {VM} from {source} to {target} under {PPS} requests a second and a TCP connection")

        async def ended(event: dict[str, Any]) -> str | None:
            if event["type"] != "move.step" or event["move"]["id"] != id:
                return None
            now: str = event["move"]["state"]
            return now if now in ("done", "undone") else None

        state_at_end = await self.manager.until(since, ended, f"{id} has ended")
        await asyncio.sleep(CALM)
        traffic, record = await run.finish(early=True)
        move = await self.manager.get(f"/v1/moves/{id}")
        if state_at_end != "done":
            raise LabError(f"{id} of {VM} to {target} was undone: {move['reason']}")
        figures, steps = move["figures"], move["steps"]
        found = MoveFigures(
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
            port=await control.port_number(target, VM),
        )
        say(
            f"  {traffic.lost} of {traffic.sent} requests lost, {found.traffic.lost_after_resume} of them "
            f"after {VM} ran on; it stood still for {found.guest_pause_ms:.0f} ms"
        )
        return found

    # ---- forgery ----

    async def forge(self) -> ForgeryFigures:
        parts = self.topology
        assert parts.client is not None
        client = parts.client.address
        forger, victim = (Party(MACS[vm], IPv4Address(self.addresses[vm])) for vm in (FORGER, VM))
        frames = forged_frames(forger, victim, parts.gateway_mac, client)
        tried = EACH * len(frames)
        say(f"{FORGER} sends {tried} frames in {VM}'s name: its IP, its MAC, its ARP")
        victims_tap = Port(TOUR[-1], tap_name(VM), direction="out")
        hosts = [Port(node, "eth0") for node in (CLIENT, DHCP, ROUTER)]
        watch = MarkWatch(popen, [*hosts, victims_tap])
        await watch.start()
        since, before = await self.manager.last_event(), await self._reported()
        command = sending(frames, honest_frame(forger, parts.gateway_mac, client))
        code, said = await self.driver.in_guest(FORGER, command)
        if code:
            raise LabError(f"{FORGER} could not send: {said.strip()}")
        await watch.until_honest()

        async def all_reported(_: dict[str, Any]) -> int | None:
            now = await self._reported() - before
            return now if now >= tried else None

        try:
            await self.manager.until(since, all_reported, "forgeries are reported", REPORT_LIMIT)
        except LabError as error:
            say(f"  {error}")
        await watch.stop()
        return ForgeryFigures(tried, watch.forged, await self._reported() - before)

    async def _reported(self) -> int:
        return int((await self.manager.get(f"/v1/vms/{FORGER}"))["forgeries"])

    # ---- the control ----

    async def control(self) -> ControlFigures:
        source, target = TOUR[-1], CONTROL_TARGET
        say("Control: the controller ends; learning switches with static port security instead")
        places = {**STARTS, VM: source}
        bound = {vm: Bound(places[vm], vm, MACS[vm], self.addresses[vm]) for vm in STARTS}
        await control.make_plain(self.lab, bound.values())
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
        say(f"  {figures.lost_after_resume} of {figures.sent_after_resume} requests after the move lost")
        restored = await self.restore_by_hand(Bound(target, VM, MACS[VM], self.addresses[VM]))
        return ControlFigures(
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
        """True when the VM cannot reach its gateway, and can once its binding stands at its new place."""
        gateway = self.topology.subnet_of(IPv4Address(row.ip)).gateway
        ping = f"ping -c 3 -W 1 {gateway}"
        cut_off, _ = await self.driver.in_guest(row.vm, ping)
        await control.bind(row)
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


async def demonstrate(where: Directory) -> Report:
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
