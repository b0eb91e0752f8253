"""What is not as it should be, from what the controller shows: pure, every check a function of its answers.

A finding is a sentence for somebody who was woken by it, and the command that shows more or mends it. Its
grade says whether that can wait.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any

from retinue.protocol.releases import is_newer
from retinue.protocol.status import INTERNAL_ERRORS

RECENTLY = 3600.0
"""Seconds: what lies further back is history."""
MOST_NAMED = 5
"""Things that one sentence names; of more it says how many."""

Shown = Mapping[str, Any]


class Grade(IntEnum):
    """How bad it is, in the order of the exit codes that monitoring programs know."""

    NOTE = 0
    """As somebody wanted it; said, so that nobody forgets."""
    WARNING = 1
    """Traffic goes on as it is; something new may not work, or a fault more would cost something."""
    CRITICAL = 2
    """VMs are without network, or will be, or what must hold does not."""


@dataclass(frozen=True)
class Finding:
    grade: Grade
    about: str
    """What it is about: "server server2"."""
    words: str
    command: str
    """What to type next; "": there is nothing to be done here."""


@dataclass(frozen=True)
class Snapshot:
    """Answers of the controller, of one moment. `now`: seconds since the epoch."""

    status: Shown
    switches: Sequence[Shown]
    links: Sequence[Shown]
    servers: Sequence[Shown]
    vms: Sequence[Shown]
    removed: Sequence[str]
    """VMs that were removed, and of which something is still at a server."""
    migrations: Sequence[Shown]
    bindings: Sequence[Shown]
    spoof_attempts: Sequence[Shown]
    renewals: Sequence[Shown]
    images: Shown
    now: float


def examine(seen: Snapshot) -> list[Finding]:
    """All that is found, the worst first."""
    found = [finding for check in CHECKS for finding in check(seen)]
    return sorted(found, key=lambda finding: -finding.grade)


# ---- the controller itself ----


def _faults(seen: Snapshot) -> Iterator[Finding]:
    counters: Mapping[str, int] = seen.status["counters"]
    if errors := counters.get(INTERNAL_ERRORS, 0):
        words = f"{errors} internal errors since its start: faults of this program, each in its log"
        yield Finding(Grade.CRITICAL, "controller", words, "retinue events --since 0 --type controller.error")
    for left_out in seen.status.get("left_out", ()):
        words = "was removed by request, and stands in the configuration file still: remove it there, too"
        yield Finding(Grade.NOTE, left_out, words, "retinue controller status")
    if why := seen.status.get("not_kept", ""):
        words = f"its database takes nothing, what is changed now is lost with it (is its disk full?): {why}"
        yield Finding(Grade.CRITICAL, "controller", words, "retinue controller status")
    for switch, said in seen.status["entries_rejected"].items():
        words = f"it has refused entries, what these are for does not work there: {said}"
        yield Finding(Grade.CRITICAL, f"switch {switch}", words, f"retinue switch audit {switch}")
    ends: Mapping[str, float] = seen.status.get("certificates", {})
    for grade, those, words in (
        (
            Grade.CRITICAL,
            {w for w in ends if ends[w] < seen.now},
            "ended, what breaks off is not let in again",
        ),
        (
            Grade.WARNING,
            {w for w in ends if ends[w] >= seen.now},
            "end soon: renew them, and bring them there",
        ),
    ):
        if those:
            first = min(those, key=lambda who: (ends[who], who))
            day = f"{datetime.fromtimestamp(ends[first], UTC):%Y-%m-%d}"
            whose = f"of {_listed(sorted(those))} {words}; the first on {day}"
            yield Finding(grade, "certificates", whose, "retinue pki renew")
    turned_away = {
        f"{kind} at {listener}": count
        for listener, kinds in seen.status["rejected"].items()
        for kind, count in kinds.items()
        if kind in ("tls", "identity", "crowded")
    }
    if turned_away:
        words = f"peers were turned away since its start: {_counted(turned_away)}"
        yield Finding(Grade.WARNING, "controller", words, "retinue controller status")


def _managers(seen: Snapshot) -> Iterator[Finding]:
    """Those that are processes of their own; without them the controller decides by itself."""
    for name, one in seen.status.get("managers", {}).items():
        about = f"{name} manager"
        if one["state"] == "away":
            words = f"it is away: {one['reason']}"
            yield Finding(Grade.WARNING, about, words, "retinue controller status")
        if one["troubled"] is not None and seen.now - one["troubled"] < RECENTLY:
            words = f"within the last hour the controller has decided instead of it; {one['trouble']}"
            yield Finding(Grade.WARNING, about, words, "retinue events --since 0 --type mobility.manager")


# ---- switches and servers ----


def _switches(seen: Snapshot) -> Iterator[Finding]:
    vms_at = {server["id"]: server.get("vms", []) for server in seen.servers}
    fenced = {server["id"] for server in seen.servers if server.get("fenced")}
    for switch in seen.switches:
        about = f"switch {switch['id']}"
        if not switch["connected"]:
            vms = vms_at.get(switch["server"], [])
            whose = f"of {switch['server']}, with {_named(vms)}, " if vms else ""
            words = f"the {switch['role']} {whose}is not connected: it learns nothing new"
            grade = Grade.NOTE if switch["server"] in fenced else Grade.CRITICAL
            yield Finding(grade, about, words, "retinue switch list")
        elif switch["pending"]:
            words = f"{switch['pending']} changes of entries are not confirmed yet"
            yield Finding(Grade.WARNING, about, words, f"retinue switch audit {switch['id']}")
        for port in switch["rejected_ports"]:
            words = f"port {port['port']} is not taken for {port['vm']}: {port['reason']}"
            yield Finding(Grade.WARNING, about, words, f"retinue vm show {port['vm']}")


def _links(seen: Snapshot) -> Iterator[Finding]:
    for link in seen.links:
        if link["state"] not in ("lost", "returning", "no carrier"):
            continue
        about, why = f"link {link['lower']} - {link['upper']}", link["reason"] or "no carrier"
        if link["state"] == "returning":
            words = f"loses no frames any more, and is used again soon; {why} before"
            yield Finding(Grade.NOTE, about, words, "retinue link list")
        elif link["carries"]:
            words = f"{why}; it is used, for there is no better way"
            yield Finding(Grade.CRITICAL, about, words, "retinue link list")
        else:
            words = f"{why}; traffic goes by others"
            yield Finding(Grade.WARNING, about, words, "retinue link list")


def _servers(seen: Snapshot) -> Iterator[Finding]:
    for server in seen.servers:
        if server["state"] == "unknown":
            words = f"at {server['detected_at']} is a machine that nobody registered"
            yield Finding(Grade.WARNING, f"machine {server['mac']}", words, "retinue server list")
            continue
        about, vms = f"server {server['id']}", server.get("vms", [])
        if server.get("fenced"):
            if vms:
                words = f"declared dead, with {_named(vms)} registered there: they can be started elsewhere"
                again = f"retinue vm add {vms[0]} --server SERVER"
                yield Finding(Grade.CRITICAL, about, words, again)
            else:
                words = "declared dead: shut out until somebody says that it is back"
                yield Finding(Grade.NOTE, about, words, f"retinue server unfence {server['id']}")
            continue
        if server["state"] == "missing":
            words = f"not found at any leaf, with {_named(vms)}" if vms else "not found at any leaf"
            yield Finding(
                Grade.CRITICAL if vms else Grade.WARNING, about, words, f"retinue server show {server['id']}"
            )
        elif server["state"] == "mismatch":
            words = f"found at {server['detected_at']}, not at {server['given_at']} as was said"
            yield Finding(Grade.WARNING, about, words, "retinue server list")
        if server.get("agent") == "away":
            words = (
                f"its agent is away: {_named(vms)} there cannot migrate, and nobody sees one end"
                if vms
                else "its agent is away: it takes no VM"
            )
            yield Finding(
                Grade.CRITICAL if vms else Grade.WARNING, about, words, f"retinue server show {server['id']}"
            )
        if server.get("drained"):
            words = "drained: it takes no VM"
            yield Finding(Grade.NOTE, about, words, f"retinue server undrain {server['id']}")


def _releases(seen: Snapshot) -> Iterator[Finding]:
    """In an upgrade controllers go first: an older one leaves out what newer agents say besides."""
    ours = seen.status["version"]
    for server in seen.servers:
        theirs = server.get("agent_release", "")
        if is_newer(theirs, ours):
            words = f"its agent is of release {theirs}, the controller of {ours}: upgrade the controller"
            yield Finding(Grade.WARNING, f"server {server['id']}", words, "retinue controller status")


# ---- VMs and their network ----


def _vms(seen: Snapshot) -> Iterator[Finding]:
    for vm in seen.vms:
        about, show = f"VM {vm['id']}", f"retinue vm show {vm['id']}"
        if vm["state"] == "crashed":
            words = f"ended by itself: {vm.get('power_reason') or 'nobody knows why'}"
            yield Finding(Grade.CRITICAL, about, words, f"retinue vm start {vm['id']}")
        elif vm["state"] != "off" and vm["missing"]:
            grade = Grade.CRITICAL if vm["state"] == "running" else Grade.WARNING
            words = f"{vm['state']}, but its network is not complete: {'; '.join(vm['missing'])}"
            yield Finding(grade, about, words, show)
        for warning in vm["warnings"]:
            yield Finding(Grade.WARNING, about, warning, show)
    for id in seen.removed:
        words = "was removed, and its port still stands: it goes when the agent of its server is there"
        yield Finding(Grade.WARNING, f"VM {id}", words, "retinue server list")


def _migrations(seen: Snapshot) -> Iterator[Finding]:
    last: dict[str, Shown] = {}
    for migration in seen.migrations:
        last[migration["vm"]] = migration
        if migration["waits_for"]:
            words = f"{migration['vm']} to {migration['target']} waits: {migration['waits_for']}"
            show = f"retinue move show {migration['id']} --follow"
            # A migration always waits for something; longer than it should is said as the reason.
            if migration["reason"]:
                yield Finding(Grade.WARNING, migration["id"], f"{words} ({migration['reason']})", show)
    for vm, migration in last.items():
        if migration["state"] == "undone" and seen.now - migration["steps"][-1]["at"] < RECENTLY:
            words = f"its last migration, to {migration['target']}, was undone: {migration['reason']}"
            yield Finding(Grade.WARNING, f"VM {vm}", words, f"retinue move show {migration['id']}")


def _bindings(seen: Snapshot) -> Iterator[Finding]:
    unconfirmed: dict[str, list[str]] = {}
    for row in seen.bindings:
        if not row["confirmed"]:
            unconfirmed.setdefault(row["vm"], []).append(row["ip"])
    for vm, addresses in unconfirmed.items():
        words = f"switches have not confirmed {_listed(addresses)}"
        yield Finding(Grade.WARNING, f"VM {vm}", words, f"retinue flow list --vm {vm}")


def _renewals(seen: Snapshot) -> Iterator[Finding]:
    last = {renewal["vm"]: renewal for renewal in seen.renewals}
    for vm, renewal in last.items():
        if renewal["state"] in ("rejected", "silent", "failed"):
            why = {"silent": "no DHCP server answered"}.get(renewal["state"], renewal["reason"])
            words = f"the renewal of {renewal['ip']} on its behalf has not worked: {why}"
            yield Finding(Grade.WARNING, f"VM {vm}", words, f"retinue binding list --vm {vm}")


def _spoofing(seen: Snapshot) -> Iterator[Finding]:
    at_port: dict[tuple[str, int], list[Shown]] = {}
    for row in seen.spoof_attempts:
        if seen.now - row["last"] < RECENTLY:
            at_port.setdefault((row["switch"], row["port"]), []).append(row)
    for (switch, port), rows in at_port.items():
        last = max(rows, key=lambda row: row["last"])
        claims = _listed(sorted({row["claimed_ip"] or row["claimed_mac"] for row in rows}))
        words = f"within the last hour it has claimed {claims} at {switch}:{port}; all of it was dropped"
        whose = f"VM {last['vm']}" if last["vm"] else f"port {switch}:{port}"
        command = "retinue binding spoofing" + (f" --vm {last['vm']}" if last["vm"] else "")
        yield Finding(Grade.WARNING, whose, words, command)


def _images(seen: Snapshot) -> Iterator[Finding]:
    for image in seen.images["images"]:
        if not any(held["here"] and held["state"] == "held" for held in image["held"]):
            words = "no server that is there holds all of it: it cannot be fetched"
            yield Finding(
                Grade.WARNING, f"image {image['name']}", words, f"retinue image show {image['name']}"
            )


Check = Callable[[Snapshot], Iterable[Finding]]
CHECKS: tuple[Check, ...] = (
    _faults,
    _managers,
    _switches,
    _links,
    _servers,
    _releases,
    _vms,
    _migrations,
    _bindings,
    _renewals,
    _spoofing,
    _images,
)


# ---- words ----


def _named(vms: list[str]) -> str:
    """ "vm1", "vm1, vm2", "12 VMs"."""
    return f"{len(vms)} VMs" if len(vms) > MOST_NAMED else ", ".join(vms)


def _listed(things: list[str]) -> str:
    more = len(things) - MOST_NAMED
    return ", ".join(things[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
