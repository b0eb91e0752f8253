"""The demonstration's pure parts: the report's JSON, what counts as not met, the table, the forged frames."""

import json
from ipaddress import IPv4Address
from typing import Any

import msgspec
import pytest

from retinue.core.packets import parse, parse_arp, parse_udp4
from retinue.core.pipeline.meters import VMMeter
from retinue_lab import baseline
from retinue_lab.demo import report as demo_report
from retinue_lab.demo import run
from retinue_lab.demo.inside import figures_of
from retinue_lab.demo.report import (
    BaselineFigures,
    DemoReport,
    MigrationFigures,
    SpoofingFigures,
    TrafficFigures,
)
from retinue_lab.demo.spoofing import EACH, HONEST, SPOOFED, Party, honest_frame, sending, spoofed_frames
from retinue_lab.errors import LabError
from retinue_lab.measure.figures import Arrival, Record, StreamMessage, analyse
from retinue_lab.topology import topology_file

IP = "10.1.0.100"


def binding(switch: str, port: int, ip: str = IP) -> dict[str, Any]:
    return {"ip": ip, "mac": "52:54:00:00:00:01", "vm": "vm1", "switch": switch, "port": port}


def traffic(**changed: Any) -> TrafficFigures:
    well = TrafficFigures(
        pps=1000, sent=3000, received=3000, lost=0, lost_after_resume=0, duplicated=0, reordered=0,
        longest_gap_ms=9.5, tcp_survived=True, sent_after_resume=1000,
    )  # fmt: skip
    return msgspec.structs.replace(well, **changed)


def move(source: str, target: str, edge: str, port: int, **changed: Any) -> MigrationFigures:
    well = MigrationFigures(
        vm="vm1", source=source, target=target, system="retinue", traffic=traffic(), guest_pause_ms=6.0,
        total_ms=400.0, flow_mods=34, packet_ins=0, control_ms=4.5, bindings_before=[binding("edge9", 2)],
        bindings_after=[binding(edge, port)], switch=edge, port=port,
    )  # fmt: skip
    return msgspec.structs.replace(well, **changed)


def report(**changed: Any) -> DemoReport:
    cut_off = traffic(received=1000, lost=2000, lost_after_resume=1000, tcp_survived=False)
    well = DemoReport(
        schema=1,
        versions={"retinue": "1", "openvswitch": "2", "qemu": "3", "kea": "4"},
        moves=[move("server1", "server2", "edge2", 3), move("server2", "server3", "edge3", 2)],
        spoofing=SpoofingFigures(60, 0, 60),
        flooded_frames=0,
        baseline=BaselineFigures(
            "static-port-security", True, cut_off, "server3", "server2", 5.0, 40, True
        ),
    )  # fmt: skip
    return msgspec.structs.replace(well, **changed)


def with_move(**changed: Any) -> DemoReport:
    return report(moves=[msgspec.structs.replace(report().moves[0], **changed)])


def with_baseline(**changed: Any) -> DemoReport:
    return report(baseline=msgspec.structs.replace(report().baseline, **changed))


# ---- the JSON ----


def test_the_json_has_the_keys_that_were_agreed() -> None:
    found = json.loads(demo_report.encode(report()))
    assert found["schema"] == 1
    assert set(found) >= {"versions", "moves", "forgery", "flooded_frames", "control"}
    assert set(found["versions"]) == {"retinue", "openvswitch", "qemu", "kea"}
    first = found["moves"][0]
    assert (first["vm"], first["from"], first["to"], first["system"]) == (
        "vm1",
        "server1",
        "server2",
        "retinue",
    )
    assert set(first) >= {
        *("traffic", "guest_pause_ms", "total_ms", "flow_mods", "packet_ins", "control_ms"),
        *("bindings_before", "bindings_after"),
    }
    figures = {
        *("pps", "sent", "received", "lost", "lost_after_resume", "duplicated", "reordered"),
        *("longest_gap_ms", "tcp_survived"),
    }
    assert set(first["traffic"]) >= figures
    assert found["forgery"] == {"tried": 60, "delivered": 0, "reported": 60}
    assert found["control"]["system"] == "static-port-security"
    assert found["control"]["cut_off"] is True
    assert set(found["control"]["traffic"]) >= figures


def test_the_json_is_read_back_as_it_was() -> None:
    assert demo_report.decode(demo_report.encode(report())) == report()
    with pytest.raises(msgspec.ValidationError):
        demo_report.decode(b'{"schema": 2}')


# ---- what it must show ----


def test_a_good_run_meets_everything() -> None:
    assert demo_report.unmet(report()) == []


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            with_move(traffic=traffic(lost=2, lost_after_resume=1)),
            "2 of 3000 requests were not answered, 1",
        ),
        (with_move(traffic=traffic(lost=1)), "1 of 3000 requests were not answered, 0"),
        (with_move(traffic=traffic(duplicated=1)), "1 requests were answered twice"),
        (with_move(traffic=traffic(reordered=3)), "3 out of order"),
        (with_move(traffic=traffic(tcp_survived=False)), "TCP connection broke"),
        (with_move(bindings_after=[]), f"{IP} has 0 bindings"),
        (with_move(bindings_after=[binding("edge2", 3)] * 2), f"{IP} has 2 bindings"),
        (with_move(bindings_after=[binding("edge1", 3)]), "bound to edge1 port 3"),
        (with_move(bindings_after=[binding("edge2", 4)]), "the VM is at edge2 port 3"),
        (with_move(bindings_before=[], bindings_after=[]), "no binding before"),
        (report(moves=[]), "no migration"),
        (report(spoofing=SpoofingFigures(60, 1, 60)), "1 of 60 spoofed frames were delivered"),
        (report(spoofing=SpoofingFigures(60, 0, 59)), "59 of 60 spoofed frames were reported"),
        (report(spoofing=SpoofingFigures(0, 0, 0)), "0 of 0 spoofed frames were reported"),
        (
            report(flooded_frames=2, flooded={"dhcp:eth0": "2 x ARP"}),
            "2 frames were flooded (dhcp:eth0: 2 x ARP)",
        ),
        (with_baseline(cut_off=False), "still reached"),
        (with_baseline(restored_by_hand=False), "something else cut it off"),
        (with_baseline(flooded_frames=0), "the watch is blind"),
    ],
)
def test_each_expectation_can_fail_and_is_named(made: DemoReport, said: str) -> None:
    assert any(said in text for text in demo_report.unmet(made)), demo_report.unmet(made)
    assert said in " ".join(demo_report.table(made, width=400).split())


def test_figures_are_counted_from_the_moment_the_vm_ran_on() -> None:
    """Ten requests a millisecond apart; the VM runs on between the sixth and the seventh; three are lost."""
    sent = [1_000_000_000 + n * 1_000_000 for n in range(10)]
    arrivals = [Arrival(n, sent[n] + 500_000, n) for n in range(10) if n not in (4, 5, 8)]
    record = Record(1000, sent, arrivals, [StreamMessage(1, 2)])
    found = figures_of(analyse(record), record, resumed_at=1.0055)
    assert (found.sent, found.received, found.lost) == (10, 7, 3)
    assert (found.sent_after_resume, found.lost_after_resume) == (4, 1)
    assert found.tcp_survived


# ---- the table ----


def test_the_table_says_everything_in_80_columns() -> None:
    shown = demo_report.table(report(), width=80)
    assert max(map(len, shown.splitlines())) <= 80
    words = " ".join(shown.split())
    for text in (
        *("server1 to server2", "server2 to server3", "plain switches", "edge2 port 3", "edge3 port 2"),
        *("4.5 ms", "34", "held", "broke", "60 were reported as vm2's", "Everything is as expected."),
    ):
        assert text in words
    assert "\x1b" not in shown
    assert "\x1b" in demo_report.table(report(), colour=True)


def test_the_table_shows_what_failed() -> None:
    shown = demo_report.table(report(spoofing=SpoofingFigures(60, 3, 60)))
    assert "Not as expected:" in shown
    assert "Everything is as expected" not in shown
    (line,) = (line for line in shown.splitlines() if "FAIL" in line)
    assert "spoofing" in line


# ---- the forged frames ----

SPOOFER = Party("52:54:00:00:00:02", IPv4Address("10.1.0.101"))
VICTIM = Party("52:54:00:00:00:01", IPv4Address(IP))
GATEWAY = "00:00:de:ad:be:ef"
CLIENT = IPv4Address("203.0.113.9")


def test_each_forged_frame_lies_in_its_own_way() -> None:
    ip, mac, arp = map(parse, spoofed_frames(SPOOFER, VICTIM, GATEWAY, CLIENT))
    assert (ip.src, parse_udp4(ip.payload).src) == (SPOOFER.mac, VICTIM.ip)
    assert (mac.src, parse_udp4(mac.payload).src) == (VICTIM.mac, VICTIM.ip)
    claim = parse_arp(arp.payload)
    assert (arp.src, claim.sha, claim.spa) == (SPOOFER.mac, SPOOFER.mac, VICTIM.ip)
    for frame in spoofed_frames(SPOOFER, VICTIM, GATEWAY, CLIENT):
        assert SPOOFED in frame
        assert HONEST not in frame
    honest = parse(honest_frame(SPOOFER, GATEWAY, CLIENT))
    assert (honest.src, parse_udp4(honest.payload).src) == (SPOOFER.mac, SPOOFER.ip)


def test_all_spoofed_frames_fit_the_meter_that_reports_them() -> None:
    assert len(spoofed_frames(SPOOFER, VICTIM, GATEWAY, CLIENT)) * EACH <= VMMeter.SPOOFING.rate


def test_the_honest_frame_goes_last() -> None:
    command = sending([b"\x01", b"\x02"], b"\x03")
    assert command == f"sendraw -c {EACH} 01 02 && sendraw 03"


# ---- the control ----


def test_plain_switches_make_no_loop_and_trust_no_vm() -> None:
    network = topology_file.load()
    flows = {bridge.id: baseline.plain_flows(network, bridge) for bridge in network.switches}
    assert flows["spine2"] == ["priority=0,actions=drop"]
    for learning in ("spine1", "leaf1", "leaf2"):
        assert flows[learning] == ["priority=0,actions=NORMAL"]
    assert flows["edge1"][-1] == "priority=0,actions=drop"
    assert {flow.split(",")[1] for flow in flows["edge1"][:-1]} == {"in_port=up0", "in_port=LOCAL"}


# ---- the host's side ----


def test_an_output_that_cannot_be_written_is_told_before_the_work(tmp_path: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LabError, match="cannot write"):
        run.run(tmp_path / "file" / "demo.json", False, lambda text: pytest.fail(text))
