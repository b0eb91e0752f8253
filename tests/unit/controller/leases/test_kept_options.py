"""Who speaks for a VM says what the VM has said: its options are kept with the lease, and repeated."""

from dataclasses import replace

import pytest

from retinue.agent.renewal.service import lease_of
from retinue.controller.state import EndedLease
from retinue.controller.store.rows import read_row, to_row
from retinue.core.lease_renewal import request_frame
from retinue.core.model import Assignment
from retinue.core.packets import (
    DHCP,
    OPTIONS_BYTES,
    Options,
    kept_options,
    parse_dhcp_frame,
    renewal,
    request,
)
from retinue.protocol.renewals import Order, RenewalOrder
from support.fabric.dhcp_lab import SERVER, DhcpLab, dhcp_lab
from support.fabric.networks import vm_ip, vm_mac

SAID: Options = (
    (61, b"\x01RTNU01"), (55, bytes([1, 3, 6, 12, 15])), (60, b"udhcp 1.35.0"), (12, b"vm1"),
    (81, b"\0\0\0vm1.example"), (77, b"\x04user"), (93, b"\0\x07"), (57, b"\x02\x40"), (43, b"\x01\x02xy"),
)  # fmt: skip
OWN = {50, 52, 53, 54, 57, 80, 82}
"""What belongs to one message, not to the client."""


def repeated(said: Options) -> dict[int, bytes]:
    return {code: value for code, value in said if code not in OWN}


def on_behalf(said: dict[int, bytes]) -> dict[int, bytes]:
    """As a renewal has it, which asks for a little more."""
    asked = said.get(55, b"")
    return {**said, 53: b"\x03", 55: asked + bytes(code for code in (51, 6, 44) if code not in asked)}


async def booted(lab: DhcpLab) -> None:
    await lab.add(1)
    await lab.boot(1, 0, 7, *SAID)
    assert vm_ip(1) in lab.fake.net.assignments


def renewal_of(order: Order) -> DHCP:
    """What the agent sends for an order."""
    assert isinstance(order, RenewalOrder)
    return parse_dhcp_frame(request_frame(lease_of(order), order.xid))[2]


async def test_a_renewal_on_the_vms_behalf_says_what_the_vm_said() -> None:
    """Then the server judges as it did: by class, architecture and names; and keeps the host name."""
    lab = await dhcp_lab()
    await booted(lab)
    acquired = lab.served[-1][2]
    asks = renewal_of(lab.controller.renewals.renew("vm1"))
    assert dict(asks.options) == on_behalf(repeated(acquired.options))
    assert repeated(acquired.options) == repeated(SAID)
    await lab.fake.stop()


async def test_the_vms_own_renewal_says_anew_what_is_repeated() -> None:
    lab = await dhcp_lab()
    await booted(lab)
    own = renewal(vm_ip(1), vm_mac(1), 8, b"\x01RTNU01").with_option(12, b"renamed")
    await lab.say(1, own, vm_ip(1), SERVER)
    asks = renewal_of(lab.controller.renewals.renew("vm1"))
    assert dict(asks.options) == on_behalf({61: b"\x01RTNU01", 12: b"renamed"})
    await lab.fake.stop()


async def test_the_agents_own_renewal_changes_nothing_of_it() -> None:
    """Nor does one by an agent that does not know of options."""
    lab = await dhcp_lab()
    await booted(lab)
    before = lab.fake.net.assignments[vm_ip(1)]
    lab.now += 60
    ordered = lab.controller.renewals.renew("vm1")
    assert isinstance(ordered, RenewalOrder)
    order = replace(ordered, options="")
    await lab.send(1, request_frame(lease_of(order), order.xid))
    after = lab.fake.net.assignments[vm_ip(1)]
    assert after == replace(before, lease_end=lab.now + 600)
    await lab.fake.stop()


@pytest.mark.parametrize("kind", ["Assignment", "EndedLease"])
async def test_they_survive_a_restart_and_the_end_of_the_lease(kind: str) -> None:
    lab = await dhcp_lab()
    await booted(lab)
    held = lab.fake.net.assignments[vm_ip(1)]
    value: Assignment | EndedLease = held if kind == "Assignment" else EndedLease(held)
    assert read_row(kind, to_row(value)) == value
    assert dict(held.options) | {61: held.client_id} == repeated(SAID)
    if kind == "EndedLease":
        lab.now += 601
        await lab.controller.dhcp.expire()
        assert not lab.fake.net.assignments
        asks = renewal_of(lab.controller.renewals.renew("vm1"))
        assert dict(asks.options) == on_behalf(repeated(SAID))
    await lab.fake.stop()


def test_what_is_kept_is_limited() -> None:
    """A renewal must fit into one frame; what is too much is left out, and the rest kept."""
    asked = request(vm_mac(1), 7, vm_ip(1), SERVER)
    for code in range(100, 110):
        asked = asked.with_option(code, bytes(200))
    asked = asked.with_option(12, b"vm1")
    kept = kept_options(asked)
    assert [code for code, _ in kept] == [100, 101, 102, 103, 104, 12]
    assert sum(2 + len(value) for _, value in kept) <= OPTIONS_BYTES
