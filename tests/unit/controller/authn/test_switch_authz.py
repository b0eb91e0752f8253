"""Which switch the holder of a certificate may be, case by case."""

import pytest

from retinue.controller.authn.switch_authz import SwitchAuthorization
from retinue.controller.events import EventBus
from retinue.security.identity import PeerRole, uri
from support.fabric.networks import fabric

EDGE1, NOBODYS = fabric().switches["edge1"].dpid, 0x999


def certificate(*names: str, role: PeerRole = PeerRole.SWITCH) -> dict[str, object]:
    return {"subjectAltName": tuple(("URI", uri(role, name)) for name in names)}


@pytest.mark.parametrize(
    ("names", "dpid", "said"),
    [
        (("edge1",), EDGE1, ""),
        (("edge1", "edge2"), EDGE1, ""),
        (("edge2",), EDGE1, "the certificate is for switch edge2"),
        (("new",), EDGE1, "the certificate is for switch new"),
        (("edge2", "new"), EDGE1, "is switch edge1"),
        (("new",), NOBODYS, ""),
        (("edge1", "new"), NOBODYS, ""),
        (("edge1",), NOBODYS, "is no switch of the configuration"),
    ],
)
def test_a_switch_is_one_that_its_certificate_names(names: tuple[str, ...], dpid: int, said: str) -> None:
    events = EventBus(lambda: 1.0)
    found = SwitchAuthorization(fabric(), events).switch(certificate(*names), dpid, "192.0.2.1:5")
    assert (said in found, bool(found)) == (True, bool(said))
    assert (events.last_id == 1) == bool(said), "what is rejected is told"


def test_an_agent_is_no_switch_and_nobody_is_neither() -> None:
    rules = SwitchAuthorization(fabric(), EventBus(lambda: 1.0))
    agent = certificate("edge1", role=PeerRole.AGENT)
    for shown, said in ((agent, "which is no switch"), (None, "no certificate")):
        assert said in rules.switch(shown, EDGE1, "192.0.2.1:5")
        assert said in rules.database(shown, [EDGE1], "192.0.2.1:5")


def test_a_database_has_its_own_switches_only() -> None:
    rules = SwitchAuthorization(fabric(), EventBus(lambda: 1.0))
    assert rules.database(certificate("edge1"), [EDGE1, NOBODYS], "192.0.2.1:5") == ""
    assert "the database has edge1" in rules.database(certificate("edge2"), [EDGE1], "192.0.2.1:5")
