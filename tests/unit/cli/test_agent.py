"""`retinue agent renew`: what it asks for, what it says, and its exit code."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import pytest
import structlog
from typer.testing import CliRunner, Result

from retinue.agent.renewal import service
from retinue.agent.renewal.renewing import InjectionError
from retinue.agent.renewal.standalone import at_tap as standalone
from retinue.cli.main import app
from retinue.core.lease_renewal import Lease, Renewal, RenewalState
from retinue.protocol import client
from retinue.protocol.errors import RejectedError
from retinue.protocol.records import record
from retinue.protocol.renewals import RenewalOrder
from retinue.security.identity import PeerRole
from support.site import make

ALONE = [
    *("--standalone", "--vm", "vm1", "--mac", "52:54:00:00:00:01", "--ip", "10.1.0.100"),
    *("--server", "10.1.0.2", "--port", "tap-vm1"),
]
ORDER: dict[str, Any] = {
    "id": "renewal-1", "vm": "vm1", "server": "server1", "switch": "edge1", "port": "tap-vm1",
    "port_number": 5, "ip": "10.1.0.100", "mac": "52:54:00:00:00:01", "xid": 77,
    "dhcp_server": "10.1.0.2", "client_id": "", "next_hop": "00:00:de:ad:be:ef", "state": "ordered",
    "ordered_at": 1.0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def run(*args: str) -> Result:
    return CliRunner().invoke(app, ["agent", "renew", *args])


class Alone:
    """Stands in for the renewal at a tap."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.end: dict[str, Any] = {"state": RenewalState.ACKED, "lease_seconds": 600.0}
        self.error = ""
        self.asked: list[tuple[Lease, str, str]] = []
        monkeypatch.setattr(standalone, "renew_at_tap", self.renew)

    async def renew(self, lease: Lease, xid: int, tap: str, bridge: str = "") -> Renewal:
        self.asked.append((lease, tap, bridge))
        if self.error:
            raise InjectionError(self.error)
        return Renewal(lease, xid, 0.0, sent=1, **self.end)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Alone:
    return Alone(monkeypatch)


def test_alone_it_renews_what_it_is_told(alone: Alone) -> None:
    lease_of = ("--server-mac", "02-00-00-00-00-D1", "--client-id", "01:52:54", "--option", "60=75:64")
    done = run(*ALONE, *lease_of, "--option", "12=", "--bridge", "br0")
    assert done.exit_code == 0, done.output
    assert "10.1.0.100 is renewed for 600 s" in done.stdout
    ((lease, tap, bridge),) = alone.asked
    assert (tap, bridge) == ("tap-vm1", "br0")
    assert (lease.next_hop, lease.client_id) == ("02:00:00:00:00:d1", b"\x01\x52\x54")
    assert lease.options == ((60, b"ud"), (12, b""))


def test_without_a_servers_mac_it_is_broadcast(alone: Alone) -> None:
    assert run(*ALONE).exit_code == 0
    assert alone.asked[0][0].next_hop == "ff:ff:ff:ff:ff:ff"


def test_a_rejection_is_exit_code_1_and_its_words(alone: Alone) -> None:
    alone.end = {"state": RenewalState.REJECTED, "reason": "rejected by DHCP server 10.1.0.2"}
    done = run(*ALONE)
    assert done.exit_code == 1
    assert "is not renewed: rejected by DHCP server 10.1.0.2" in done.stderr
    data = json.loads(run(*ALONE, "--json").stdout)
    assert (data["state"], data["lease_seconds"], data["vm"]) == ("rejected", None, "vm1")


def test_a_port_that_cannot_be_used_is_named(alone: Alone) -> None:
    alone.error = "interface tap-vm1 has no carrier"
    done = run(*ALONE)
    assert done.exit_code == 1
    assert "tap-vm1 has no carrier" in done.output


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--standalone", "--vm", "vm1", "--port", "t"], "--mac, --ip, --server"),
        ([*ALONE, "--server-mac", "gateway"], "not a MAC address"),
        ([*ALONE, "--client-id", "me"], "not hexadecimal"),
        ([*ALONE, "--option", "60=x"], "CODE=HEX"),
        ([*ALONE, "--option", "54=0a010002"], "not an option that a client adds"),
        ([*ALONE, "--option", "255="], "not an option that a client adds"),
        (["--vm", "vm1", "--option", "60=75"], "only with --standalone"),
        ([*ALONE, "--ip", "10.1.0"], "10.1.0"),
        (["--vm", "vm1", "--ip", "10.1.0.100"], "the controller knows the lease"),
    ],
)
def test_wrong_options_are_rejected_before_anything_is_sent(
    alone: Alone, args: list[str], words: str
) -> None:
    done = run(*args)
    assert done.exit_code == 2
    assert words in " ".join(done.output.split())
    assert alone.asked == []


def test_a_qmp_socket_that_is_not_there_is_named(alone: Alone, tmp_path: Path) -> None:
    done = run(*ALONE, "--qmp", str(tmp_path / "none"))
    assert done.exit_code == 1
    assert "QMP socket" in done.output
    assert alone.asked == []


@pytest.mark.parametrize(("state", "code"), [("acked", 0), ("silent", 1)])
def test_with_a_controller_it_orders_and_carries_out(
    monkeypatch: pytest.MonkeyPatch, state: str, code: int
) -> None:
    asked: list[str] = []

    class Fake:
        def __init__(self, url: str) -> None:
            asked.append(url)

        async def renew(self, vm: str, server: str = "") -> RenewalOrder:
            asked.append(vm)
            if vm == "vm9":
                raise RejectedError("there is no VM vm9")
            return record(RenewalOrder, ORDER)

        async def __aenter__(self) -> Self:
            return self

        async def __aexit__(self, *_: object) -> None:
            asked.append("closed")

    async def carried_out(order: RenewalOrder, port: Any, _: Any) -> RenewalOrder:
        asked.append(order.id)
        return record(RenewalOrder, {**ORDER, "state": state, "lease_seconds": 600.0, "reason": "no answer"})

    monkeypatch.setattr(client, "ControllerClient", Fake)
    monkeypatch.setattr(service, "carry_out", carried_out)
    done = run("--vm", "vm1", "--url", "http://192.0.2.1:8080", "--json")
    assert done.exit_code == code, done.output
    assert json.loads(done.stdout)["state"] == state
    assert asked == ["http://192.0.2.1:8080", "vm1", "renewal-1", "closed"]
    done = run("--vm", "vm9", "--url", "http://192.0.2.1:8080")
    assert done.exit_code == 1
    assert "there is no VM vm9" in done.output


def test_a_configuration_is_checked_with_its_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path)
    config = tmp_path / "machines/server1/agent.toml"
    done = CliRunner().invoke(app, ["agent", "check", "--config", str(config)])
    assert done.exit_code == 0
    assert (
        "server server1, controller at https://192.0.2.10:8080; it listens at 192.0.2.11:7800" in done.output
    )
    good = config.read_text()
    config.write_text(f'{good}\n[[domain]]\nid = "b"\nca = "domain-b.pem"\nlisten = "192.0.2.11:7801"\n')
    done = CliRunner().invoke(app, ["agent", "check", "--config", str(config)])
    assert done.exit_code != 0 and "domain-b.pem: there is no such file" in done.output
    config.write_text(good.replace('"agent.', '"switch.'))
    done = CliRunner().invoke(app, ["agent", "check", "--config", str(config)])
    assert done.exit_code != 0 and "switch.pem is a switch's certificate" in done.output
    config.write_text(good)
    ends = datetime.now(UTC) - timedelta(days=1)
    with monkeypatch.context() as patch:
        patch.setattr("retinue.security.authority.holder", lambda path: (PeerRole.AGENT, ends))
        done = CliRunner().invoke(app, ["agent", "check", "--config", str(config)])
    assert done.exit_code != 0 and f"agent.pem ended on {ends:%Y-%m-%d}" in done.output
    (config.parent / "agent.pem").write_text("")
    done = CliRunner().invoke(app, ["agent", "check", "--config", str(config)])
    assert done.exit_code != 0 and "agent.pem" in done.output
    config.write_text("of_yesterday = 1\n")
    done = CliRunner().invoke(app, ["agent", "check", "--config", str(config)])
    assert done.exit_code != 0 and "agent.toml" in done.output
