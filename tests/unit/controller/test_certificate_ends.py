"""Certificates that end soon are told of, before a connection breaks and no other comes."""

import ssl

import pytest

from retinue.controller import certificate_ends
from retinue.controller.certificate_ends import MOST, SOON, CertificateEnds
from retinue.core.limits import MOST_SWITCHES
from retinue.security.identity import Identity, PeerRole
from support.fabric.networks import fabric

NOW = ssl.cert_time_to_seconds("Dec  1 12:00:00 2026 GMT")
SOON_OVER, LONG_YET = {"notAfter": "Dec  9 12:00:00 2026 GMT"}, {"notAfter": "Dec  9 12:00:00 2027 GMT"}


def agent(name: str = "server1") -> Identity:
    return Identity(PeerRole.AGENT, frozenset({name}))


def test_one_that_ends_soon_is_told_of_until_it_is_renewed() -> None:
    ends = CertificateEnds(fabric())
    ends.saw(agent(), LONG_YET)
    assert ends.soon(NOW) == {}
    ends.saw(agent(), SOON_OVER)
    assert ends.soon(NOW) == {"agent server1": NOW + 8 * 86400}
    assert ends.soon(NOW + 9 * 86400) == {"agent server1": NOW + 8 * 86400}, "more so when it has ended"
    ends.saw(agent(), LONG_YET)
    assert ends.soon(NOW) == {}


def test_the_controllers_own_is_one_of_them() -> None:
    ends = CertificateEnds(fabric())
    ends.own(NOW + SOON - 1)
    assert ends.soon(NOW) == {"controller": NOW + SOON - 1}
    ends.own(NOW + SOON + 1)
    assert ends.soon(NOW) == {}
    ends.own(None)
    assert ends.soon(NOW) == {}


def test_nobody_is_told_of_servers_and_switches_that_are_no_more() -> None:
    net = fabric()
    ends = CertificateEnds(net)
    for identity in (agent("server9"), Identity(PeerRole.SWITCH, frozenset({"leaf9"}))):
        ends.saw(identity, SOON_OVER)
    assert ends.soon(NOW) == {}
    ends.saw(Identity(PeerRole.SWITCH, frozenset({"leaf9", "leaf1"})), SOON_OVER)
    assert list(ends.soon(NOW)) == ["switch leaf1, leaf9"]


def test_a_colleague_who_has_gone_is_not_told_of_for_ever() -> None:
    """Nobody can renew that certificate, or would: the alert is to end by itself."""
    ends = CertificateEnds(fabric())
    for identity in (agent(), Identity(PeerRole.MANAGER, frozenset({"ann"}))):
        ends.saw(identity, SOON_OVER)
    assert list(ends.soon(NOW + 37 * 86400)) == ["agent server1", "manager ann"]
    assert list(ends.soon(NOW + 39 * 86400)) == ["agent server1"], "a server needs one"


def test_no_more_are_remembered_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST > 2 * MOST_SWITCHES, "each switch at a server has an agent beside it"
    monkeypatch.setattr(certificate_ends, "MOST", 20)
    ends = CertificateEnds(fabric())
    for number in range(25):
        if number < 15:
            ends.saw(agent(), SOON_OVER)
        ends.saw(Identity(PeerRole.MANAGER, frozenset({f"m{number}"})), SOON_OVER)
    found = ends.soon(NOW)
    assert len(found) == 20
    assert "agent server1" in found, "it was here first, and for long"
