"""A VM with storage in another domain: it stays logged in with the forwarder at its home, and is served."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

import pytest

from retinue.controller.migrations.requests import MigrationError
from retinue.core.migration import MigrationState as S
from retinue.core.model import VM, ModelError, PortRef, Server, Service
from retinue.core.packets import parse
from retinue.core.packets.fip import Descriptor
from retinue.core.snooping.fip_rules import SILENCE_SECONDS
from retinue.protocol.domains import Guest, GuestLogin, GuestNIC
from support.fabric.domains import TUNNEL, nic, port, server_of
from support.fabric.storage import (
    FORWARDER_MAC,
    advertisement,
    answers,
    asks,
    clears,
    keep_alive,
    solicitation,
    storage_frame,
)
from support.fabric.storage_domains import FORWARDER_AT, add_storage, granted
from support.fabric.two_controllers import VM_ID, TwoDomains, two_domains
from support.recent_events import recent
from support.virtual_time import run

NIC1, OWN = nic("a", 1), granted(1)
AT_HOME, AWAY = ("a-edge1", port(NIC1)), ("b-edge2", port(NIC1))


@dataclass
class San:
    """VM vm-a1 is logged in with domain a's forwarder."""

    world: TwoDomains

    async def boot(self, *, goes: bool = True) -> None:
        for domain in "ab":
            net = self.world.controller(domain).net
            add_storage(net, domain)
            if not goes:
                for id, peer in net.peers.items():
                    net.peers[id] = replace(peer, storage=False)
            await self.world.controller(domain).context.install(net.everything())
        a = self.world.controller("a")
        a.inventory.register_vms([VM(VM_ID, (NIC1,), server_of("a", 1), memory_mib=128)])
        self.world.plug("a", server_of("a", 1))
        await self.settle()
        await self.logs_in(AT_HOME)

    async def logs_in(
        self, at: tuple[str, int], kind: Descriptor = Descriptor.FLOGI, exchange: int = 1
    ) -> None:
        await self.says(asks(1, kind, exchange), at)
        mac = "" if kind is Descriptor.FLOGI else granted(0x21)
        await self.forwarder_says(answers(1, kind, exchange, mac=mac))

    async def says(self, frame: bytes, at: tuple[str, int] = AWAY) -> list[bytes]:
        """What comes out at the forwarder."""
        self.world.fakes["a"].heard.clear()
        self.world.fakes[at[0][0]].send(*at, frame)
        await self.settle()
        return [came for *where, came in self.world.fakes["a"].heard if tuple(where) == FORWARDER_AT]

    async def forwarder_says(self, frame: bytes) -> list[tuple[str, int, bytes]]:
        """What comes out, but for the ends of the tunnel."""
        for fake in self.world.fakes.values():
            fake.heard.clear()
        self.world.fakes["a"].send(*FORWARDER_AT, frame)
        await self.settle()
        came = [one for fake in self.world.fakes.values() for one in fake.heard]
        return [one for one in came if not one[0].endswith("edge3")]

    async def settle(self) -> None:
        for domain in "abab":
            await self.world.fakes[domain].settle()

    def logins(self, domain: str) -> set[str]:
        return set(self.world.controller(domain).net.fc_logins)

    async def is_served(self, at: tuple[str, int] = AWAY) -> None:
        """Frames go both ways as they are, and come once."""
        sent = storage_frame(OWN, FORWARDER_MAC)
        assert await self.says(sent, at) == [sent]
        brought = storage_frame(FORWARDER_MAC, OWN)
        assert await self.forwarder_says(brought) == [(*at, brought)]


def told(story: Callable[[San], Coroutine[Any, Any, None]], *, away: bool = True, goes: bool = True) -> None:
    """In virtual time, with the VM in domain b."""

    async def run_it() -> None:
        async with two_domains() as world:
            san = San(world)
            await san.boot(goes=goes)
            if away:
                await world.move("a", "b", server_of("b", 2))
                await san.settle()
            await story(san)

    run(run_it())


def test_a_login_goes_along_and_comes_home_and_is_served_everywhere() -> None:
    async def story(san: San) -> None:
        await san.is_served(AT_HOME)
        await san.world.move("a", "b", server_of("b", 2))
        await san.settle()
        (login,) = san.world.controller("b").net.fc_logins.values()
        assert (login.mac, login.forwarder, login.forwarder_mac) == (OWN, "to-a", FORWARDER_MAC)
        await san.is_served()
        b = san.world.controller("b")
        b.orchestrator.start(VM_ID, target_server=server_of("b", 1))
        await san.world.until("b", S.DONE)
        await san.settle()
        await san.is_served(("b-edge1", port(NIC1)))
        await san.world.move("b", "a", server_of("a", 2))
        await san.settle()
        assert not san.logins("b")
        assert san.logins("a") == {OWN}
        await san.is_served(("a-edge2", port(NIC1)))

    told(story, away=False)


def test_it_is_kept_alive_through_the_tunnel() -> None:
    """By what its node says and by what its port says; a node that is silent is logged out in both."""

    async def story(san: San) -> None:
        clocks = [san.world.controller(domain) for domain in "ab"]
        for frame in (keep_alive(1), keep_alive(1, of_port=True)):
            assert await san.says(frame) == [frame]
        before = {c.fip._heard[NIC1.mac] for c in clocks}
        assert len(before) == 1
        for controller in clocks:
            controller.fip._heard[NIC1.mac] -= SILENCE_SECONDS
            controller.fip.look()
        await san.settle()
        assert not san.logins("a")
        assert not san.logins("b")

    told(story)


def test_it_finds_the_forwarder_from_away_and_logs_in_anew() -> None:
    """As after a reboot there: discovery, FLOGI, FDISC; an advertisement to all comes to it alone."""

    async def story(san: San) -> None:
        assert await san.says(solicitation(1)) == [solicitation(1)]
        (advertised,) = await san.forwarder_says(advertisement())
        assert advertised[:2] == AWAY
        assert parse(advertised[2]).dst == NIC1.mac
        await san.forwarder_says(clears(1))
        assert not san.logins("a") and not san.logins("b")
        await san.logs_in(AWAY)
        await san.logs_in(AWAY, Descriptor.FDISC, 2)
        assert san.logins("a") == san.logins("b") == {OWN, granted(0x21)}
        await san.is_served()

    told(story)


def test_a_logout_ends_it_in_both() -> None:
    async def story(san: San) -> None:
        await san.says(asks(1, Descriptor.LOGO, 3))
        await san.forwarder_says(answers(1, Descriptor.LOGO, 3))
        assert not san.logins("a") and not san.logins("b")
        assert not await san.says(storage_frame(OWN, FORWARDER_MAC))

    told(story)


def test_a_guest_that_is_removed_is_logged_in_nowhere() -> None:
    async def story(san: San) -> None:
        await san.world.controller("b").inventory.remove_vm(VM_ID)
        await san.settle()
        assert not san.logins("a") and not san.logins("b")

    told(story)


@pytest.mark.parametrize("dies", ["a", "b"])
def test_a_controller_that_was_started_anew_knows_it(dies: str) -> None:
    async def story(san: San) -> None:
        stored = san.world.stores[dies].load().fc_logins
        assert [(one.mac, one.forwarder_mac) for one in stored] == [
            (OWN, FORWARDER_MAC if dies == "b" else "")
        ]

    told(story)


def test_of_its_own_vms_a_domain_hears_no_forwarder_by_the_tunnel() -> None:
    """And a guest hears none of where it is; nor does a grant count that nobody has asked for."""

    async def story(san: San) -> None:
        b = san.world.controller("b")
        own = nic("b", 3)
        b.inventory.register_vms([VM("vm-b3", (own,), server_of("b", 1))])
        await san.settle()
        unasked = answers(1, exchange=9)
        other = replace(parse(unasked), dst=own.mac).build()
        for frame in (unasked, other):
            san.world.fakes["b"].send("b-edge3", TUNNEL, frame)
            await san.settle()
        assert san.logins("b") == {OWN}
        reasons = [event.data["reason"] for event in recent(b.events, "frame.rejected", 9)]
        assert reasons == ["nobody has asked for this"], reasons

    told(story)


def test_a_guest_hears_no_forwarder_where_it_is() -> None:
    """What that says to it, or to all, and what it sends to its port."""

    async def story(san: San) -> None:
        b, at, mac = san.world.controller("b"), ("b-leaf1", 107), "02:00:00:00:0f:02"
        b.net.set_ports(at[0], {**b.net._numbers[at[0]], "fcf": at[1]})
        own = Server("fcf2", mac, services=frozenset({Service.FORWARDER}), given_at=PortRef(at[0], "fcf"))
        b.net.put_server(own)
        await b.context.install(b.net.everything())
        await san.says(keep_alive(1))  # To who is heard, words to all would come.
        san.world.fakes["b"].heard.clear()
        for frame in (clears(1, src=mac), advertisement(src=mac), storage_frame(mac, OWN)):
            san.world.fakes["b"].send(*at, frame)
            await san.settle()
        assert not [one for one in san.world.fakes["b"].heard if one[:2] == AWAY]
        assert san.logins("b") == {OWN}
        await san.is_served()

    told(story)


def test_where_storage_does_not_go_between_the_domains_the_vm_stays() -> None:
    async def story(san: San) -> None:
        with pytest.raises(
            MigrationError, match="is logged in for storage, which does not go to that domain"
        ):
            san.world.begin("b", server_of("b", 2))
        await san.is_served(AT_HOME)

    told(story, away=False, goes=False)


def test_where_the_other_domain_takes_no_storage_the_vm_stays() -> None:
    async def story(san: San) -> None:
        net = san.world.controller("b").net
        net.peers["a"] = replace(net.peers["a"], storage=False)
        san.world.begin("b", server_of("b", 2))
        undone = await san.world.until("a", S.UNDONE)
        assert "storage of domain a does not come here" in undone.reason
        await san.settle()
        assert not net.vms
        await san.is_served(AT_HOME)

    told(story, away=False)


def test_while_it_is_copied_it_says_nothing_where_it_is_to_go() -> None:
    """However long that takes: its login is there when it comes, and ends there if it is silent then."""

    async def story(san: San) -> None:
        san.world.fails = "before it converges"
        san.world.begin("b", server_of("b", 2))
        await san.world.until("b", S.COPYING)
        fip = san.world.controller("b").fip
        for _ in range(2):
            fip.look()
            fip._heard[NIC1.mac] -= SILENCE_SECONDS
        fip.look()
        assert san.logins("b") == {OWN}

    told(story, away=False)


def test_of_a_guest_that_has_gone_home_no_login_is_kept() -> None:
    """It would be there again, of whoever has come back without it, after the next start."""

    async def story(san: San) -> None:
        await san.world.move("b", "a", server_of("a", 2))
        await san.settle()
        left = san.world.stores["b"].load()
        assert not left.vms
        assert not left.fc_logins

    told(story)


def test_a_guest_that_was_left_over_has_the_logins_with_which_it_comes_anew() -> None:
    """As where its home's controller was started anew while the place was being booked."""

    async def story(san: San) -> None:
        hearing = san.world.controller("b").domains.hearing
        for mac in (granted(0x21), OWN):
            its = GuestNIC(
                NIC1.mac, NIC1.port_id, [str(ip) for ip in NIC1.addresses],
                logins=[GuestLogin(mac, FORWARDER_MAC)],
            )  # fmt: skip
            guest = Guest(VM_ID, [its], is_home=False)
            hearing._take_in(hearing.may_come("a", guest), guest)
        assert san.logins("b") == {OWN}
        assert [one.mac for one in san.world.stores["b"].load().fc_logins] == [OWN]

    told(story, away=False)


def test_on_its_way_to_where_storage_does_not_go_nobody_logs_in() -> None:
    """One that is logged in would have stayed."""

    async def story(san: San) -> None:
        await san.says(asks(1, Descriptor.LOGO, 3), AT_HOME)
        await san.forwarder_says(answers(1, Descriptor.LOGO, 3))
        san.world.fails = "before it converges"
        san.world.begin("b", server_of("b", 2))
        await san.world.until("a", S.COPYING)
        await san.logs_in(AT_HOME)
        assert not san.logins("a")

    told(story, away=False, goes=False)


def test_nobody_who_comes_later_has_the_mac_of_a_guests_forwarder() -> None:
    """Its frames would go there, and the guest would lose its disks."""

    async def story(san: San) -> None:
        b = san.world.controller("b")
        for what, mac in (("forwarder", FORWARDER_MAC), ("port of storage", OWN)):
            with pytest.raises(ModelError, match=f"is that of the {what} of VM {VM_ID}"):
                await b.inventory.put_servers([Server("server9", mac, None)])
            with pytest.raises(ModelError, match=f"is that of the {what} of VM {VM_ID}"):
                own = replace(nic("b", 3), mac=mac)
                b.inventory.register_vms([VM("vm-b3", (own,), server_of("b", 1))])
        await san.is_served()

    told(story)
