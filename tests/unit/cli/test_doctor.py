"""`retinue doctor`: each thing that is wrong is said, with a command that there is."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from retinue.cli.findings import Finding, Grade, Snapshot, examine
from retinue.cli.main import app
from retinue.controller.api.server import Api
from retinue.controller.app import Controller
from retinue.protocol.blocking import Client
from retinue.protocol.errors import RejectedError
from support.api_thread import serving
from support.fabric.networks import add_vm, fabric

NOW = 10_000.0


def controller() -> Controller:
    net = fabric()
    add_vm(net, 1, at=1)
    add_vm(net, 2, at=2)
    return Controller(net, clock=lambda: NOW)


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.delenv("RETINUE_URL", raising=False)
    with serving(controller, lambda served: Api(served, dict)) as port:
        yield f"http://127.0.0.1:{port}"


def sound() -> Snapshot:
    """Everything as it should be."""
    switch = {"role": "edge", "connected": True, "pending": 0, "rejected_ports": []}
    server = {"state": "matched", "agent": "listening", "fenced": False, "drained": False}
    server["agent_release"] = "0.2.0"
    vm = {"state": "running", "missing": [], "warnings": [], "power_reason": ""}
    return Snapshot(
        status={"version": "0.2.0", "left_out": [], "counters": {}, "entries_rejected": {}, "rejected": {}},
        switches=[{"id": "edge1", "server": "server1", **switch}, {"id": "leaf1", "server": "", **switch}],
        links=[{"lower": "leaf1:s1", "upper": "spine1:l1", "state": "well", "reason": "", "carries": True}],
        servers=[
            {"id": "server1", "vms": ["vm1"], **server},
            {"id": "server2", "vms": [], **server},
        ],
        vms=[{"id": "vm1", **vm}],
        removed=[],
        migrations=[],
        bindings=[{"vm": "vm1", "ip": "10.1.0.1", "confirmed": True}],
        spoof_attempts=[],
        renewals=[],
        images={"images": [{"name": "debian", "held": [{"here": True, "state": "held"}]}]},
        now=NOW,
    )


def with_first(part: str, **changed: Any) -> Snapshot:
    """With the first thing of its kind otherwise."""
    seen = sound()
    first, *others = getattr(seen, part)
    parts: dict[str, Any] = {part: [{**first, **changed}, *others]}
    return replace(seen, **parts)


def with_status(**changed: Any) -> Snapshot:
    return replace(sound(), status={**sound().status, **changed})


def undone(ago: float) -> Snapshot:
    row = {"id": "migration-1", "vm": "vm1", "target": "server2", "state": "undone", "waits_for": ""}
    return replace(
        sound(),
        migrations=[{**row, "reason": "it was cancelled", "steps": [{"state": "undone", "at": NOW - ago}]}],
    )


def waiting(reason: str) -> Snapshot:
    row = {"id": "migration-1", "vm": "vm1", "target": "server2", "state": "copying", "steps": []}
    return replace(sound(), migrations=[{**row, "waits_for": "the source's copy", "reason": reason}])


def spoofed(ago: float, vm: str = "vm1") -> Snapshot:
    row = {"switch": "edge1", "port": 7, "vm": vm, "claimed_mac": "02:00:00:00:00:99", "last": NOW - ago}
    return replace(sound(), spoof_attempts=[{**row, "claimed_ip": "10.1.0.9"}, {**row, "claimed_ip": ""}])


def renewed(*states: str) -> Snapshot:
    rows = [{"vm": "vm1", "ip": "10.1.0.1", "state": state, "reason": "said no"} for state in states]
    return replace(sound(), renewals=rows)


def with_manager(name: str, **how: Any) -> Snapshot:
    sound = {"state": "there", "reason": "", "since": NOW, "trouble": "", "troubled": None}
    return with_status(managers={name: {**sound, **how}})


CRITICAL, WARNING, NOTE = Grade.CRITICAL, Grade.WARNING, Grade.NOTE
WRONG: list[tuple[Snapshot, Grade, str, str]] = [
    (with_status(counters={"internal errors": 2}), CRITICAL, "controller", "2 internal errors"),
    (
        with_status(left_out=["link leaf1:s2 - spine2:l1"]),
        NOTE,
        "link leaf1:s2 - spine2:l1",
        "stands in the configuration file still",
    ),
    (
        with_manager("resources", state="away", reason="it hangs"),
        *(WARNING, "resources manager", "it is away: it hangs"),
    ),
    (
        with_manager("mobility", trouble="not believed: it names server9", troubled=NOW - 60),
        *(WARNING, "mobility manager", "has decided instead of it; not believed: it names server9"),
    ),
    (
        with_status(entries_rejected={"edge1": "it is full"}),
        *(
            CRITICAL,
            "switch edge1",
            "it has refused entries, what these are for does not work there: it is full",
        ),
    ),
    (
        with_status(certificates={"agent server2": NOW + 86400}),
        *(WARNING, "certificates", "of agent server2 end soon: renew them"),
    ),
    (
        with_status(certificates={"agent server2": NOW - 86400}),
        *(CRITICAL, "certificates", "of agent server2 ended, what breaks off"),
    ),
    (with_status(not_kept="No space left"), CRITICAL, "controller", "its database takes nothing, "),
    (
        with_status(rejected={"rest": {"tls": 3, "not_found": 9}, "openflow": {"identity": 1}}),
        *(WARNING, "controller", "since its start: 1 identity at openflow, 3 tls at rest"),
    ),
    (
        with_first("switches", connected=False),
        CRITICAL,
        "switch edge1",
        "the edge of server1, with vm1, is not",
    ),
    (with_first("switches", pending=4), WARNING, "switch edge1", "4 changes of entries are not confirmed"),
    (
        with_first("switches", rejected_ports=[{"port": "tap9", "vm": "vm9", "reason": "no such VM"}]),
        *(WARNING, "switch edge1", "port tap9 is not taken for vm9: no such VM"),
    ),
    (
        with_first("links", state="lost", reason="nothing comes in", carries=False),
        *(WARNING, "link leaf1:s1 - spine1:l1", "nothing comes in; traffic goes by others"),
    ),
    (
        with_first("links", state="no carrier", carries=True),
        *(CRITICAL, "link leaf1:s1 - spine1:l1", "no carrier; it is used, for there is no better way"),
    ),
    (
        with_first("links", state="returning", reason="nothing came in", carries=False),
        *(NOTE, "link leaf1:s1 - spine1:l1", "is used again soon; nothing came in before"),
    ),
    (with_first("servers", state="missing"), CRITICAL, "server server1", "not found at any leaf, with vm1"),
    (with_first("servers", state="missing", vms=[]), WARNING, "server server1", "not found at any leaf"),
    (
        with_first("servers", state="mismatch", given_at="leaf1:a", detected_at="leaf2:b"),
        *(WARNING, "server server1", "found at leaf2:b, not at leaf1:a"),
    ),
    (
        with_first("servers", id="", mac="02:00:00:00:00:77", state="unknown", detected_at="leaf1:x", vms=[]),
        *(WARNING, "machine 02:00:00:00:00:77", "at leaf1:x is a machine that nobody registered"),
    ),
    (with_first("servers", agent="away"), CRITICAL, "server server1", "vm1 there cannot migrate"),
    (with_first("servers", agent="away", vms=[]), WARNING, "server server1", "its agent is away"),
    (with_first("servers", fenced=True), CRITICAL, "server server1", "declared dead, with vm1 registered"),
    (with_first("servers", fenced=True, vms=[]), NOTE, "server server1", "declared dead: shut out"),
    (
        with_first("servers", agent_release="0.2.1"),
        *(WARNING, "server server1", "its agent is of release 0.2.1, the controller of 0.2.0: upgrade the"),
    ),
    (with_first("servers", drained=True), NOTE, "server server1", "drained: it takes no VM"),
    (
        with_first("servers", agent="away", vms=[f"vm{n}" for n in range(9)]),
        *(CRITICAL, "server server1", "9 VMs there cannot migrate"),
    ),
    (with_first("vms", state="crashed", power_reason="killed"), CRITICAL, "VM vm1", "by itself: killed"),
    (with_first("vms", missing=["no port"]), CRITICAL, "VM vm1", "running, but its network is not complete"),
    (with_first("vms", state="registered", missing=["no port"]), WARNING, "VM vm1", "complete: no port"),
    (with_first("vms", warnings=["in a pool"]), WARNING, "VM vm1", "in a pool"),
    (replace(sound(), removed=["vm8"]), WARNING, "VM vm8", "was removed, and its port still stands"),
    (undone(60), WARNING, "VM vm1", "to server2, was undone: it was cancelled"),
    (waiting("longer than it should"), WARNING, "migration-1", "vm1 to server2 waits: the source's copy"),
    (with_first("bindings", confirmed=False), WARNING, "VM vm1", "have not confirmed 10.1.0.1"),
    (renewed("acked", "silent"), WARNING, "VM vm1", "has not worked: no DHCP server answered"),
    (renewed("rejected"), WARNING, "VM vm1", "has not worked: said no"),
    (spoofed(60), WARNING, "VM vm1", "it has claimed 02:00:00:00:00:99, 10.1.0.9 at edge1:7"),
    (spoofed(60, vm=""), WARNING, "port edge1:7", "it has claimed"),
    (
        replace(sound(), images={"images": [{"name": "debian", "held": [{"here": False, "state": "held"}]}]}),
        *(WARNING, "image debian", "cannot be fetched"),
    ),
]
"""What is wrong, and how that is said."""


@pytest.mark.parametrize(
    ("seen", "grade", "about", "words"), WRONG, ids=[f"{row[2]}: {row[3]}" for row in WRONG]
)
def test_what_is_wrong_is_said_once_and_by_how_bad_it_is(
    seen: Snapshot, grade: Grade, about: str, words: str
) -> None:
    (found,) = examine(seen)
    assert (found.grade, found.about) == (grade, about)
    assert words in found.words


FINE = [
    sound(),
    with_first("vms", state="off", missing=["no port"]),
    undone(7200),
    spoofed(7200),
    renewed("silent", "acked"),
    waiting(""),
    with_status(rejected={"rest": {"not_found": 9}}),
]
"""Nothing to say: all is well, or long ago, or as it was wanted, or on its way."""


@pytest.mark.parametrize("seen", FINE)
def test_what_is_well_is_not_said(seen: Snapshot) -> None:
    assert examine(seen) == []


def test_a_controller_of_the_release_before_is_looked_at_too() -> None:
    """The command may have been upgraded before it: what that does not tell is no fault."""
    since = {"left_out"}
    before = {name: value for name, value in sound().status.items() if name not in since}
    assert examine(replace(sound(), status=before)) == []


def test_a_fenced_servers_switch_is_expected_to_be_away() -> None:
    seen = with_first("servers", fenced=True, vms=[])
    first, *others = seen.switches
    found = examine(replace(seen, switches=[{**first, "connected": False}, *others]))
    assert {finding.grade for finding in found} == {NOTE}


def test_the_worst_comes_first() -> None:
    seen = replace(with_status(entries_rejected={"edge1": "it is full"}), removed=["vm8"])
    first, *others = seen.servers
    found = examine(replace(seen, servers=[{**first, "drained": True}, *others]))
    assert [finding.grade for finding in found] == [CRITICAL, WARNING, NOTE]


def test_what_is_to_be_typed_next_is_a_command_that_there_is() -> None:
    def command_of(words: list[str]) -> Any:
        """The command, and what follows it."""
        group: Any = typer.main.get_command(app)
        for number, word in enumerate(words):
            if not hasattr(group, "commands"):
                return group, words[number:]
            group = group.commands[word]
        return group, []

    found = [finding for seen, *_ in WRONG for finding in examine(seen)]
    for finding in found:
        program, *words = finding.command.split()
        assert program == "retinue"
        command, rest = command_of(words)
        options = {option for parameter in command.params for option in parameter.opts}
        assert not hasattr(command, "commands"), finding
        assert {word for word in rest if word.startswith("--")} <= options, finding


# ---- the command ----


def run(*args: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["doctor", *args])
    return result.exit_code, result.output


def test_a_controller_that_is_alone_says_what_it_misses(url: str) -> None:
    code, said = run("--url", url)
    assert code == 2
    assert "CRITICAL  switch edge1: the edge of server1, with vm1, is not connected" in said
    assert "          $ retinue switch list" in said
    code, said = run("--url", url, "--json")
    found = json.loads(said)
    assert (code, found["state"]) == (2, "critical")
    assert found["findings"][0] == {
        "grade": "critical",
        "about": "switch spine1",
        "words": "the spine is not connected: it learns nothing new",
        "command": "retinue switch list",
    }


@pytest.mark.parametrize(
    ("findings", "code", "said", "state"),
    [
        ([], 0, "All is as it should be.\n", "ok"),
        ([Finding(NOTE, "a", "b", "")], 0, "note      a: b\nAll is as it should be.\n", "ok"),
        (
            [Finding(WARNING, "a", "b", "c")],
            1,
            "warning   a: b\n          $ c\n0 critical, 1 warnings\n",
            "warning",
        ),
    ],
)
def test_the_exit_code_is_for_monitoring(
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    findings: list[Finding],
    code: int,
    said: str,
    state: str,
) -> None:
    looked: Callable[[Snapshot], list[Finding]] = lambda _: findings  # noqa: E731
    monkeypatch.setattr("retinue.cli.doctor.examine", looked)
    assert run("--url", url) == (code, said)
    assert json.loads(run("--url", url, "--json")[1])["state"] == state


def test_a_controller_that_does_not_answer_is_critical_and_one_that_refuses_says_nothing(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = run("--url", "http://127.0.0.1:9")
    assert code == 2
    assert "CRITICAL  controller: no controller answers at" in said
    assert "VMs run on; none is bound, started or migrated until it is back" in said
    assert "$ systemctl status retinue-controller" in said

    def refused(*_: Any) -> Any:
        raise RejectedError("there is no such thing", "no_such_path", 404)

    monkeypatch.setattr(Client, "ask", refused)
    code, said = run("--url", url)
    assert code == 3


def test_what_the_interface_shows_is_what_is_looked_at(url: str, tmp_path: Path) -> None:
    """The rows above are made by hand: their fields are those of real answers."""
    from retinue.cli.doctor import snapshot

    seen, real = sound(), snapshot(Client(url), NOW)
    assert seen.status.keys() <= real.status.keys()
    for part in ("switches", "servers", "vms", "bindings"):
        assert getattr(seen, part)[0].keys() <= getattr(real, part)[0].keys(), part


def test_what_is_wrong_with_the_question_is_not_the_controllers(tmp_path: Path) -> None:
    """A certificate that is not there, no address: nobody was asked, and the controller may be well."""
    for argv in (
        ["--url", "ftp://127.0.0.1"],
        ["--url", "https://127.0.0.1:1", "--ca", str(tmp_path / "no.pem")],
    ):
        result = CliRunner().invoke(app, [*argv[2:], "doctor", *argv[:2]])
        assert result.exit_code == 3
        assert result.output.startswith("retinue: ") and "until it is back" not in result.output
