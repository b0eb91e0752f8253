"""A VM that asks by DHCP in vain is told of; nothing else tells that a pool is used up."""

from collections.abc import AsyncIterator

import pytest

from retinue.controller.api import views
from retinue.controller.leases.unanswered import STILL, Unanswered
from retinue.core.packets import MessageType, discover
from support.fabric.dhcp_lab import DhcpLab, dhcp_lab
from support.fabric.networks import vm_mac


@pytest.fixture
async def lab() -> AsyncIterator[DhcpLab]:
    found = await dhcp_lab()
    yield found
    await found.fake.stop()


def warnings(lab: DhcpLab, vm: str = "vm1") -> list[str]:
    found: list[str] = views.vm(lab.controller, lab.controller.net.vms[vm])["warnings"]
    return found


async def asks(lab: DhcpLab, times: int, *, every: float = 5.0) -> None:
    for xid in range(times):
        await lab.say(1, discover(vm_mac(1), xid))
        lab.now += every


async def test_a_vm_whom_nobody_answers_is_told_of_until_somebody_does(lab: DhcpLab) -> None:
    await lab.add(1)
    lab.says = lambda _: None
    await asks(lab, 2)
    assert warnings(lab) == [], "one or two may get lost"
    await asks(lab, 2)
    (said,) = warnings(lab)
    assert said.startswith("it has asked by DHCP 4 times in 15 s and got no answer: ")
    lab.says = None
    await lab.boot(1)
    assert warnings(lab) == []


async def test_one_that_has_given_up_is_not_told_of_for_ever(lab: DhcpLab) -> None:
    await lab.add(1)
    lab.says = lambda _: None
    await asks(lab, 4)
    assert len(warnings(lab)) == 1
    lab.now += 300
    assert warnings(lab) == []
    await asks(lab, 1)
    assert warnings(lab) == [], "it begins anew"


async def test_a_guest_in_a_hurry_is_not_told_of_at_once(lab: DhcpLab) -> None:
    await lab.add(1)
    lab.says = lambda _: None
    await asks(lab, 5, every=0.1)
    assert warnings(lab) == []


async def test_vms_that_are_removed_are_not_remembered(lab: DhcpLab) -> None:
    await lab.add(1)
    lab.says = lambda _: None
    await asks(lab, 4)
    await lab.controller.inventory.remove_vm("vm1")
    await lab.add(1)
    assert warnings(lab) == [], "another of its name"


def test_only_who_has_asked_lately_is_remembered() -> None:
    """Many VMs that come, ask in vain and go: a controller runs for years."""
    unanswered = Unanswered()
    for second in range(2000):
        unanswered.asked(f"vm{second}", MessageType.DISCOVER, float(second))
        unanswered.asked("always", MessageType.DISCOVER, float(second))
    assert len(unanswered._asked) == STILL + 2
    assert unanswered.doubt("always", 2000.0)
