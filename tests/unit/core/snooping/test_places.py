"""Where a VM is only open, for its migration, it may not give back or change what it holds where it runs."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from retinue.core.migration import Migration, MigrationState, begin, placement, runs_at
from retinue.core.model import VM, Assignment, BindingKind, Origin
from retinue.core.packets import DHCP, ack, decline, nak, release, renewal, request
from retinue.core.snooping import (
    Bind,
    ClientMessage,
    Rejected,
    Release,
    ServerMessage,
    Snooper,
    ToServers,
    ToVM,
)
from support.fabric import networks

SERVER, ELSE = IPv4Address("10.1.0.2"), IPv4Address("10.1.0.77")
MAC, IP = networks.vm_mac(1), networks.vm_ip(1)
HELD = Assignment(
    IP, MAC, "vm1", BindingKind.DYNAMIC, Origin.CONTROLLER, 1600.0, SERVER, b"\0me", ((60, b"class"),)
)
MIGRATION = begin("migration-1", "vm1", "server1", "server2", 5.0)


@pytest.fixture
def snooper() -> Snooper:
    """vm1 runs at server1, and is open at server2."""
    net = networks.fabric()
    vm = networks.add_vm(net, 1, at=1, bound=False, ports_on=(2,))
    net.put_vm(replace(vm, also=frozenset({"server2"})))
    net.assign(HELD)
    return Snooper(net)


def said(dhcp: DHCP, edge: int) -> ClientMessage:
    return ClientMessage(f"edge{edge}", networks.vm_port(1), MAC, dhcp, runs_here=edge == 1)


@pytest.mark.parametrize("dhcp", [release(IP, MAC, 9, SERVER, b"\0me"), decline(MAC, 9, IP, SERVER, b"\0me")])
def test_only_where_it_runs_a_vm_gives_its_lease_back(snooper: Snooper, dhcp: DHCP) -> None:
    (rejected,) = snooper.client(said(dhcp, 2), 1000.0)
    assert isinstance(rejected, Rejected)
    assert rejected.spoofed, "the operator is told"
    assert "where vm1 does not run" in rejected.reason
    ended, to_servers = snooper.client(said(dhcp, 1), 1000.0)
    assert (type(ended), to_servers) == (Release, ToServers("vm1"))


def test_only_where_it_runs_a_vm_asks_for_another_address(snooper: Snooper) -> None:
    ask = request(MAC, 9, ELSE, SERVER, b"\0me")
    snooper.client(said(ask, 2), 1000.0)
    (rejected,) = snooper.server(ServerMessage("dhcp", ack(ask, ELSE, SERVER, 600)), 1000.1)
    assert isinstance(rejected, Rejected)
    snooper.client(said(ask, 1), 1000.2)
    replaced, bound, _ = snooper.server(ServerMessage("dhcp", ack(ask, ELSE, SERVER, 600)), 1000.3)
    assert replaced == Release(HELD, f"replaced by {ELSE}")
    assert isinstance(bound, Bind)


def test_a_nak_to_what_came_from_elsewhere_ends_nothing(snooper: Snooper) -> None:
    ask = renewal(IP, MAC, 9, b"\0other")
    snooper.client(said(ask, 2), 1000.0)
    assert [type(e) for e in snooper.server(ServerMessage("dhcp", nak(ask, SERVER)), 1000.1)] == [Rejected]


def test_questions_from_elsewhere_take_no_place_of_the_vms_own(snooper: Snooper) -> None:
    """Neither by their number, nor by being the same."""
    ask = request(MAC, 9, ELSE, SERVER, b"\0me")
    snooper.client(said(ask, 1), 1000.0)
    snooper.client(said(ask, 2), 1000.1)
    for xid in range(100, 120):
        snooper.client(said(renewal(IP, MAC, xid), 2), 1000.2)
    assert len(list(snooper.questions)) == 9
    effects = snooper.server(ServerMessage("dhcp", ack(ask, ELSE, SERVER, 600)), 1000.3)
    assert [type(effect) for effect in effects] == [Release, Bind, ToVM]


@pytest.mark.parametrize(("edge", "outcome"), [(1, [Bind, ToVM]), (2, [Rejected])])
def test_from_elsewhere_no_lease_is_added_to_one_that_is_held(
    snooper: Snooper, edge: int, outcome: list[type[object]]
) -> None:
    """Of another client of the guest, as it would be where the VM runs."""
    ask = request(MAC, 9, ELSE, SERVER, b"\0one more")
    snooper.client(said(ask, edge), 1000.0)
    effects = snooper.server(ServerMessage("dhcp", ack(ask, ELSE, SERVER, 600)), 1000.1)
    assert [type(effect) for effect in effects] == outcome


@pytest.mark.parametrize(("seconds", "end"), [(1, 1600.0), (900, 1900.1)])
def test_from_elsewhere_a_lease_is_only_made_longer(snooper: Snooper, seconds: float, end: float) -> None:
    """A short lease asked for there would be the end of it as well; nor does it change what the VM said."""
    ask = renewal(IP, MAC, 9).with_option(60, b"other").with_option(51, b"\0\0\0\1")
    snooper.client(said(ask, 2), 1000.0)
    bound, told = snooper.server(ServerMessage("dhcp", ack(ask, IP, SERVER, seconds)), 1000.1)
    assert isinstance(bound, Bind)
    assert bound.assignment == replace(HELD, lease_end=end)
    assert told == ToVM("vm1")


STOPPED = replace(MIGRATION, stopped_at=7.0)
RESUMED = replace(STOPPED, resumed_at=8.0)


@pytest.mark.parametrize(
    ("migration", "state", "where"),
    [
        (MIGRATION, MigrationState.PLANNED, "server1"),
        (MIGRATION, MigrationState.ADMITTING, "server1"),
        (MIGRATION, MigrationState.COPYING, "server1"),
        (MIGRATION, MigrationState.DIVERTED, "server1"),
        (STOPPED, MigrationState.DIVERTED, ""),
        (RESUMED, MigrationState.SWITCHING, "server2"),
        (replace(MIGRATION, resumed_at=8.0), MigrationState.SWITCHING, "server2"),
        (RESUMED, MigrationState.SWITCHED, "server2"),
        (RESUMED, MigrationState.DONE, "server2"),
        (STOPPED, MigrationState.ROLLING_BACK, "server1"),
        (STOPPED, MigrationState.UNDONE, "server1"),
    ],
)
def test_a_vm_runs_where_its_hypervisors_have_said(
    migration: Migration, state: MigrationState, where: str
) -> None:
    """Not where its traffic goes: that is the target's before the VM has left the source."""
    migration = replace(migration, state=state)
    vm = VM.with_one_nic("vm1", MAC, "server1")
    assert runs_at(placement(vm, migration), migration) == where


def test_without_a_migration_it_runs_where_it_is() -> None:
    assert runs_at(VM.with_one_nic("vm1", MAC, "server1"), None) == "server1"
