"""What keeps a server from taking a VM, whatever speaks for it: each filter with have, need and words."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from retinue.core.placement.snapshot import Presence, ServerState, Snapshot


class Filter(StrEnum):
    """The closed list of reasons to refuse a server, in the order they are looked at."""

    ALREADY_THERE = "already there"
    NOT_NAMED = "not named"
    FENCED = "fenced"
    DRAINED = "drained"
    AWAY = "away"
    SILENT = "silent"
    NOT_ATTACHED = "not attached"
    VM_SIZE_UNKNOWN = "VM's size unknown"
    CAPACITY_UNKNOWN = "capacity unknown"
    MEMORY = "memory"
    FREE_MEMORY = "free memory"
    CPU = "cpu"
    DISK = "disk"
    BANDWIDTH = "bandwidth"
    APART = "apart"


@dataclass(frozen=True, slots=True)
class Check:
    """One filter's answer about one server. `have` and `need` are 0 where it is no matter of size."""

    filter: Filter
    ok: bool
    text: str = ""
    """Why not, for people; "" where it is ok."""
    have: int = 0
    need: int = 0


def checks(server: ServerState, snapshot: Snapshot) -> Iterator[Check]:
    """Every filter's answer, in order; who needs to know only whether one refuses stops at the first."""
    need, policy, name = snapshot.need, snapshot.policy, server.server
    yield _that(Filter.ALREADY_THERE, name != snapshot.source, "the VM is there already")
    named = snapshot.named in ("", name)
    yield _that(Filter.NOT_NAMED, named, f"{snapshot.named} was named")
    yield _that(Filter.FENCED, not server.fenced, "the operator has called it dead")
    yield _that(Filter.DRAINED, not server.drained, "the operator wants no VM there")
    here = server.presence is not Presence.AWAY
    yield _that(Filter.AWAY, here, "its agent or its switch is away")
    heard = server.presence is not Presence.SILENT
    waited = f"its agent has not answered within {snapshot.waited_ms} ms"
    yield _that(Filter.SILENT, heard, waited)
    yield _that(Filter.NOT_ATTACHED, server.attached, "it has not been found in the network")
    vm = need.vm
    size = f"nobody has said how much memory the VM has; `retinue name add {vm} --kind vm --memory MIB` does"
    yield _that(Filter.VM_SIZE_UNKNOWN, need.memory_mib > 0, size)
    known = server.memory_mib > 0 and server.cpus > 0
    yield _that(Filter.CAPACITY_UNKNOWN, known, "nobody has said how much memory and how many processors")
    yield from _memory(server, snapshot)
    room = server.cpus * policy.cpu_percent // 100 - server.promised_cpus
    yield _size(Filter.CPU, room, need.cpus, "processors that are not promised")
    if server.disk_free_mib is not None:
        yield _size(Filter.DISK, server.disk_free_mib, need.disk_mib, "MiB of disk free")
    if server.bandwidth_mbps > 0:
        free = server.bandwidth_mbps - server.bandwidth_used_mbps
        yield _size(Filter.BANDWIDTH, free, need.bandwidth_mbps, "Mbit/s free")
    apart = not need.apart or need.apart not in server.groups
    yield _that(Filter.APART, apart, f"a VM that must be apart from it ({need.apart}) is there")


def _memory(server: ServerState, snapshot: Snapshot) -> Iterator[Check]:
    """What is promised counts, not what is used: a guest may ask for all it was given, at any time.

    Where the operator over-commits, what is free now does not keep a VM away.
    """
    need, most = snapshot.need.memory_mib, snapshot.policy.memory_percent
    room = server.memory_mib * most // 100 - server.promised_mib
    if server.unknown_vms:
        text = f"nobody knows the memory of {server.unknown_vms} VMs there"
        yield Check(Filter.MEMORY, server.free_mib is not None and server.free_mib >= need, text, 0, need)
    else:
        yield _size(Filter.MEMORY, room, need, "MiB of memory that are not promised")
    if server.free_mib is not None and most <= 100:
        yield _size(Filter.FREE_MEMORY, server.free_mib, need, "MiB of memory free")


def _that(filter: Filter, ok: bool, text: str) -> Check:
    return Check(filter, ok, "" if ok else text)


def _size(filter: Filter, have: int, need: int, what: str) -> Check:
    ok = have >= need
    return Check(filter, ok, "" if ok else f"{max(have, 0)} {what}, and {need} are needed", have, need)
