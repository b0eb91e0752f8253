"""Room booked for VMs that are to come: when it counts, and when it has ended."""

from dataclasses import replace

from retinue.core.placement.bookings import Booking, BookingEnd, by_server, ended
from retinue.core.placement.facts import ServerFacts

WEB = Booking("web", "server2", 512, 2, 300.0)
DB = Booking("db", "server2", 1024, 4, 400.0)


def test_it_ends_when_its_vm_is_there_and_else_in_time() -> None:
    assert ended([WEB, DB], {}, 299.9) == []
    assert ended([WEB, DB], {}, 300.0) == [(WEB, BookingEnd.TIMED_OUT)]
    assert ended([WEB], {"web": ("server1",)}, 1.0) == [], "it is elsewhere"
    assert ended([WEB], {"web": ("server1", "server2")}, 1.0) == [(WEB, BookingEnd.ARRIVED)]
    assert ended([WEB], {"web": ("server2",)}, 500.0) == [(WEB, BookingEnd.ARRIVED)], "late, but there"
    assert ended([WEB], {"db": ("server2",)}, 1.0) == []


def test_it_counts_for_everybody_but_the_vm_itself() -> None:
    both = [WEB, DB, replace(WEB, vm="x", server="server3")]
    found = by_server(both)
    assert found == {"server2": (("web", 512, 2), ("db", 1024, 4)), "server3": (("x", 512, 2),)}
    facts = ServerFacts("server2", booked=found["server2"])
    assert facts.state_for("").promised_mib == 1536
    assert facts.state_for("web").promised_mib == 1024
