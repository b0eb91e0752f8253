"""What must hold in a laboratory once a fault is over, whatever it was. Each violation is a sentence."""

from collections.abc import Iterator, Sequence

from retinue.protocol.errors import ControllerError
from retinue.protocol.status import INTERNAL_ERRORS
from retinue_lab.topology.topology import CLIENT
from support.lab.frames import packet
from support.lab.migrating import qemus_of
from support.lab.tools import LabBench, eventually, mac_of

SETTLING = 180.0
"""Seconds for a migration to end, and for what a fault has left to be put right: where others have most of
the machine, a copy takes more than a minute."""
GATEWAY = "00:00:de:ad:be:ef"
FORGED = "forged by chaos"


async def settle(bench: LabBench, vms: Sequence[str]) -> list[str]:
    """Wait until nothing is under way any more; what did not come to its end."""

    async def quiet() -> bool:
        try:
            status = await bench.get("status")
            migrations = (await bench.get("migrations"))["migrations"]
            switches = (await bench.get("switches"))["switches"]
            states = [(await bench.vm(vm))["state"] for vm in vms]
        except ControllerError:
            return False
        under_way = [m["id"] for m in migrations if m["state"] not in ("done", "undone")]
        connected = all(switch["connected"] for switch in switches)
        settled = all(state in ("running", "crashed") for state in states)
        return not under_way and not status["pending"] and connected and settled

    try:
        await eventually(quiet, SETTLING)
    except AssertionError:
        return [f"not settled in {SETTLING:g} s: {await _what_is_under_way(bench, vms)}"]
    return []


async def answers(bench: LabBench, vm: str) -> list[str]:
    """Wait until the guest of a VM that was started anew is up; what did not come to its end."""
    address = await bench.address(vm)

    async def pinged() -> bool:
        said = await bench.run(CLIENT, "sh", "-c", f"ping -c 1 -W 3 {address} || true")
        return " 1 received" in said

    try:
        await eventually(pinged, SETTLING)
    except AssertionError:
        return [f"{vm} was started, and does not answer"]
    return []


async def _what_is_under_way(bench: LabBench, vms: Sequence[str]) -> str:
    try:
        migrations = (await bench.get("migrations"))["migrations"]
        found = [f"{m['id']} {m['state']} {m['reason']}" for m in migrations]
        found = [one for one in found if " done" not in one and " undone" not in one]
        away = [s["id"] for s in (await bench.get("switches"))["switches"] if not s["connected"]]
        states = {vm: (await bench.vm(vm))["state"] for vm in vms}
        pending = (await bench.get("status"))["pending"]
    except ControllerError as error:
        return str(error)
    return f"migrations {found}, switches away {away}, VMs {states}, pending {pending}"


async def violations(bench: LabBench, vms: Sequence[str], died: Sequence[str]) -> list[str]:
    """Of all that must hold. `died`: VMs whose QEMU the fault has ended."""
    found = [
        *await _places(bench, vms, died),
        *await _bindings(bench, vms),
        *await _left_over(bench, vms),
        *await _switches(bench),
        *await _forgeries(bench, [vm for vm in vms if vm not in died]),
        *await _reached(bench, [vm for vm in vms if vm not in died]),
    ]
    errors = (await bench.get("status"))["counters"].get(INTERNAL_ERRORS, 0)
    return [*found, *([f"{errors} internal errors"] if errors else [])]


async def _places(bench: LabBench, vms: Sequence[str], died: Sequence[str]) -> list[str]:
    """Each VM runs at one place, which is the one that the controller says."""
    found = []
    for vm in vms:
        said, real = await bench.vm(vm), await bench.machines(vm)
        wanted = [] if said["state"] == "crashed" and vm in died else [said["server"]]
        if real != wanted:
            found.append(f"{vm} is {said['state']} at {said['server']}, and runs at {real}")
        if said["state"] != "running" and vm not in died:
            found.append(f"{vm} is {said['state']}, and nobody has ended it")
    return found


async def _bindings(bench: LabBench, vms: Sequence[str]) -> list[str]:
    """Each address has one row, at the switch of its VM's server."""
    found = []
    for vm in vms:
        said, rows = await bench.vm(vm), await bench.bindings(vm)
        if len({row["ip"] for row in rows}) != len(rows):
            found.append(f"{vm} has several bindings of one address: {rows}")
        wrong = [row for row in rows if row["switch"] != said["switch"] or row["port"] != said["port"]]
        if wrong:
            found.append(f"{vm} is at {said['switch']} port {said['port']}, and is bound at {wrong}")
    return found


async def _left_over(bench: LabBench, vms: Sequence[str]) -> list[str]:
    """No server has a port, a tap or a QEMU of a VM that is elsewhere."""
    found = []
    places = {vm: (await bench.vm(vm))["server"] for vm in vms}
    for server in (one.id for one in bench.topology.server):
        here = {f"tap-{vm}" for vm, place in places.items() if place == server}
        ports = set((await bench.run(server, "ovs-vsctl", "list-ports", "br0")).split())
        links = await bench.run(server, "ip", "-brief", "link", "show", "type", "tun")
        taps = {line.split()[0] for line in links.splitlines() if line}
        for what, names in (("ports", ports), ("taps", taps)):
            if extra := {name for name in names if name.startswith("tap-")} - here:
                found.append(f"{server} has {what} {sorted(extra)} that are nobody's there")
        if len(qemus_of(bench, server)) > len(here):
            found.append(f"{server} has notes of {len(qemus_of(bench, server))} QEMUs, of {sorted(here)}")
    return found


async def _switches(bench: LabBench) -> list[str]:
    """Each holds what it should, by its own tables.

    A switch that stood still has begun late to count a lease's time: that the first reading mends.
    """
    found = []
    for switch in bench.topology.switches:
        try:
            first = await bench.post(f"switches/{switch.id}/audit")
            audit = await bench.post(f"switches/{switch.id}/audit") if first["changed"] else first
        except ControllerError as error:
            found.append(f"{switch.id} cannot be read: {error}")
            continue
        differing = {"missing": first["missing"], "foreign": first["foreign"], "changed": audit["changed"]}
        if any(differing.values()):
            found.append(f"{switch.id} differed: {differing}")
    return found


async def _forgeries(bench: LabBench, vms: Sequence[str]) -> list[str]:
    """What one VM sends in another's name comes to nobody."""
    if len(vms) < 2:
        return []
    forger, victim = vms[0], vms[1]
    outside = "203.0.113.9"
    frame = packet(mac_of(forger), GATEWAY, await bench.address(victim), outside, text=FORGED)
    honest = packet(mac_of(forger), GATEWAY, await bench.address(forger), outside, text="honest")
    async with bench.capture(CLIENT, "eth0", "in") as capture:
        await bench.send(forger, frame, times=5)
        await bench.send(forger, honest)
        try:
            await capture.until(lambda one: b"honest" in one.data)
        except AssertionError:
            return [f"an honest packet of {forger} did not come out of the fabric"]
        came = len(capture.those(lambda one: FORGED.encode() in one.data))
    return [f"{came} forged packets of {forger} came out"] if came else []


async def _reached(bench: LabBench, vms: Sequence[str]) -> list[str]:
    """Each VM is reached from outside, and by each other."""

    def pairs() -> Iterator[tuple[str, str]]:
        yield from ((CLIENT, vm) for vm in vms)
        yield from ((one, other) for one in vms for other in vms if one != other)

    found = []
    for one, other in pairs():
        address = await bench.address(other)
        if one == CLIENT:
            said = await bench.run(CLIENT, "sh", "-c", f"ping -c 3 -i 0.2 -W 3 {address} || true")
            reached = " 3 received" in said
        else:
            reached = await bench.ping(one, address)
        if not reached:
            found.append(f"{one} does not reach {other}")
    return found
