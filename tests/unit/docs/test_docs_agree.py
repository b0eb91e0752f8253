"""Names, tables and states that a page repeats are those of the code."""

import ast
import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import get_args

import pytest

from retinue.cli.move import WAITS_FOR
from retinue.controller import events
from retinue.controller.api.metrics import exposition
from retinue.controller.api.routes import events as stream
from retinue.controller.app import Controller
from retinue.controller.counters import FAMILIES, Count
from retinue.core.limits import LARGEST_BODY
from retinue.core.migration.copying import LEAST_LIMIT, MOST_LIMIT
from retinue.core.migration.events import PlacementChange
from retinue.core.migration.presence import Presence
from retinue.core.migration.record import LIMITS, MigrationState
from retinue.core.migration.states import NEXT
from retinue.core.pipeline.cookies import SENT_UP_BY
from retinue.core.snooping.spoofing import MAX_ROWS, SpoofingKind
from retinue.protocol.errors import ErrorCode
from retinue.protocol.events import FIELDS
from retinue.protocol.hypervisor_events import EventKind
from retinue.protocol.migrations import Order, Report
from retinue.protocol.routes import Right, Route
from retinue.protocol.vms import VMState
from retinue.security.listener.rejections import Rejection
from retinue_lab.demo import report
from support.fabric.networks import fabric
from support.pages import PAGES, ROOT, section, table, text, ticked

SRC = ROOT / "src" / "retinue"
API, ARCHITECTURE, OPERATORS = "docs/api.md", "docs/architecture.md", "docs/operators.md"


def enums(values: type[StrEnum]) -> set[str]:
    return {str(value) for value in values}


# ---- migrations ----


def steps_of(state: MigrationState) -> list[tuple[str, list[str]]]:
    """The proofs a state waits for, with the effects each has, that its row must name."""
    if state is MigrationState.ROLLING_BACK:
        return [("Confirmed", []), ("RolledBack", [])]
    after = list(MigrationState)[list(MigrationState).index(state) + 1]
    found = []
    for (before, proof), (then, effects) in NEXT.items():
        if before is state and then is after:
            name = "Confirmed" if isinstance(proof, PlacementChange) else proof.__name__
            found.append((name, [type(effect).__name__ for effect in effects]))
    return found


def test_the_table_of_a_migrations_states_is_the_state_machines() -> None:
    rows = table(ARCHITECTURE, "Migrations")
    assert [row["state"] for row in rows] == [str(state) for state in MigrationState]
    for row, state in zip(rows, MigrationState, strict=True):
        if state.ended:
            assert not any(cell for name, cell in row.items() if name != "state")
            continue
        proofs = [proof for proof, _ in steps_of(state)]
        effects = list(dict.fromkeys(effect for _, effects in steps_of(state) for effect in effects))
        assert ticked(row["the event"]) == proofs, f"{state} waits for {proofs}"
        assert ticked(row["effects when it comes"]) == effects, f"{state} is followed by {effects}"
        assert row["at most"].startswith(f"{LIMITS[state]:.0f} s"), f"{state} may last {LIMITS[state]} s"
        assert (row["undone when late"] == "no") != state.may_undo


def test_what_switches_confirm_is_named_as_the_code_does() -> None:
    named = " ".join(row["the event"] for row in table(ARCHITECTURE, "Migrations"))
    for change in set(PlacementChange) - {
        PlacementChange.FORWARDED,
        PlacementChange.COPIED,
        PlacementChange.RETURNED,
    }:
        assert f"`Confirmed` {change}" in named


def test_an_agent_gives_a_copy_up_sooner_than_the_controller_does() -> None:
    least, most = LEAST_LIMIT, MOST_LIMIT
    assert least < most < LIMITS[MigrationState.COPYING]
    said = " ".join(section(ARCHITECTURE, "Migrations").split())
    assert (
        f"the copy of a VM's memory after {least:.0f} to {most:.0f} s, by its size, and report `failed`"
        in said
    )


def test_what_an_agent_has_of_a_vm_is_named_as_the_code_does() -> None:
    named = [word for word in ticked(section(ARCHITECTURE, "Agents")) if word.isalpha() and word[0].isupper()]
    assert named == [presence.__name__ for presence in get_args(Presence)]


def test_orders_and_reports_of_a_migration_are_those_of_the_protocol() -> None:
    rows = table(API, "The hypervisor's side of a migration")
    assert {word for row in rows for word in ticked(row["order"]) if "." in word} == enums(Order)
    reports = {word for row in rows for word in ticked(row["then report"])}
    assert reports - {"at", "memory_at", "migration.memory_at", "reason"} == enums(Report)


def test_what_libvirt_does_is_reported_in_the_words_of_the_protocol() -> None:
    rows = table("docs/libvirt.md", "Reports")
    assert {word for row in rows for word in ticked(row["kind"])} == enums(EventKind)


# ---- events ----


def test_the_table_of_events_has_every_type_with_its_fields() -> None:
    fields: dict[str, set[str]] = {}
    for row in table(API, "GET /v1/events"):
        for type_ in ticked(row["type"]):
            fields.setdefault(type_, set()).update(ticked(row["data"]))
    assert fields == {str(type_): set(names) for type_, names in FIELDS.items()}


def test_how_many_events_are_kept_and_how_far_a_listener_may_fall_behind() -> None:
    said = " ".join(section(API, "GET /v1/events").split())
    assert f"the last {events.RING:,} are kept" in said
    assert f"falls {events.QUEUE:,} events behind" in said
    assert f"A comment comes every {stream.HEARTBEAT:.0f} s" in said


# ---- REST ----


def routes() -> set[tuple[str, str]]:
    return {(route.method, route.template) for route in Route}


def test_every_route_has_its_place_on_a_page_and_no_other() -> None:
    page = text(API) + text("docs/renewal.md") + text("docs/libvirt.md")
    headings = re.findall(r"^### (.*)$", text(API), re.MULTILINE)
    said = [*headings, *ticked(page)]
    route = re.compile(r"(GET|POST|PUT|PATCH|DELETE) (/[\w/{}.-]+)")
    shown = {pair for words in said for pair in route.findall(words)}
    assert shown == routes()


def test_the_table_of_codes_has_every_code() -> None:
    rows = table(API, "The manager's interface", 1)
    assert [word for row in rows for word in ticked(row["code"])] == [str(code) for code in ErrorCode]


def test_what_an_agent_may_post_is_listed() -> None:
    (row,) = (row for row in table(API, "Authentication") if row["role"] == "agent")
    reports = {route.template for route in Route if route.right not in (Right.READ, Right.MANAGE)}
    assert {word for word in ticked(row["may"]) if word.startswith("/")} == reports


@pytest.mark.parametrize("page", PAGES)
def test_every_path_that_a_page_uses_is_a_route(page: str) -> None:
    known = [re.sub(r"\{\w+\}", r"[^/ ]+", route) for _, route in routes()]
    used = set(re.findall(r"(?<![\w.])/v1/[\w/{}.-]*[\w}]", text(page)))
    if page == "CHANGELOG.md":
        used -= {"/v1/moves", "/v1/forgeries"}  # It says that they are no more.
    for path in used:
        assert any(re.fullmatch(route, path) for route in known), f"{page} uses {path}, which is no route"


def test_the_largest_body_is_said() -> None:
    assert f"larger than {LARGEST_BODY >> 20} MiB" in text(API)


def test_metrics_are_those_that_prometheus_reads() -> None:
    shown = exposition(Controller(fabric(), clock=lambda: 1000.0), {}).decode()
    names = re.findall(r"^# TYPE (\w+)", shown, re.MULTILINE)
    assert [word for row in table(OPERATORS, "Metrics") for word in ticked(row["metric"])] == names


def test_the_states_of_a_vm_are_those_of_the_protocol() -> None:
    (row,) = (row for row in table(API, "POST /v1/vms") if row["field"] == "`state`")
    assert set(ticked(row["meaning"])) == enums(VMState)


# ---- what operators are shown ----


def _nodes() -> Iterator[ast.AST]:
    for path in sorted((SRC / "controller").rglob("*.py")):
        yield from ast.walk(ast.parse(path.read_text()))


def _words(node: ast.expr) -> list[str]:
    match node:
        case ast.Constant(value=str(word)):
            return [word]
        case ast.JoinedStr(values=values):
            return [
                "".join(
                    "*" if isinstance(v, ast.FormattedValue) else str(getattr(v, "value", "")) for v in values
                )
            ]
        case ast.IfExp(body=one, orelse=other):
            return [*_words(one), *_words(other)]
        case _:
            return []


def test_every_counter_is_in_the_table() -> None:
    for node in _nodes():
        if isinstance(node, ast.Subscript) and "counters" in ast.unparse(node.value):
            assert not _words(node.slice), f"{_words(node.slice)} is counted, and has no name in counters.py"
    counted = {*enums(Count), *(family.format("*") for family in FAMILIES)}
    page = {word for row in table(OPERATORS, "Counters") for word in ticked(row["counter"])}
    for word in counted:
        pattern = re.escape(word).replace(r"\*", "[A-Za-z0-9]+")
        assert any(re.fullmatch(pattern, shown) for shown in page), f"the counter {word} is not in the table"
    for shown in page:
        said = {re.escape(word).replace(r"\*", "[A-Za-z0-9]+") for word in counted}
        assert any(re.fullmatch(word, shown) for word in said), f"nobody counts {shown}"


def test_the_reasons_of_packet_ins_are_those_of_entries() -> None:
    (row,) = (row for row in table(OPERATORS, "Counters") if "`packet-ins REASON`" in row["counter"])
    sent = set(SENT_UP_BY)
    assert set(ticked(row[""])) == {reason.name.lower() for reason in sent}


def test_the_kinds_of_spoofing_are_in_the_tables() -> None:
    assert {row["kind"] for row in table(OPERATORS, "Spoofing attempts")} == enums(SpoofingKind)
    said = section(API, "GET /v1/spoof-attempts")
    (listed,) = re.findall(r"`kind`: ([\w, -]+)\.", said)
    assert set(listed.split(", ")) == enums(SpoofingKind)
    assert f"{MAX_ROWS:,} rows" in " ".join(text(OPERATORS).split())
    assert f"log has {MAX_ROWS:,} rows" in " ".join(text("docs/security.md").split())


def test_the_reasons_for_which_connections_are_rejected_are_in_the_tables() -> None:
    controller = [word for row in table(OPERATORS, "What is rejected") for word in ticked(row["reasons"])]
    agents = [word for row in table(OPERATORS, "What is rejected", 1) for word in ticked(row["reason"])]
    assert {*controller, *agents} - {"listen"} == enums(Rejection)


# ---- the demonstration ----


def test_the_rows_of_the_demonstration_are_those_of_the_readme() -> None:
    shown = [name for row in table("README.md", "What the demo shows") for name in row["row"].split(", ")]
    assert shown == list(report.ROWS)


def test_the_checks_of_the_demonstration_are_those_of_the_readme() -> None:
    (lines,) = (
        node
        for node in ast.walk(ast.parse(Path(report.__file__).read_text()))
        if isinstance(node, ast.FunctionDef) and node.name == "_lines"
    )
    made = [node.value for node in ast.walk(lines) if isinstance(node, ast.Yield)]
    names = [ast.literal_eval(line.elts[1]) for line in made if isinstance(line, ast.Tuple)]
    assert [row["check"] for row in table("README.md", "What the demo shows", 1)] == names


def test_a_migration_that_pages_show_is_drawn_as_the_command_draws_it() -> None:
    shown = set()
    for page in ("README.md", "docs/tutorial.md"):
        for state, words in re.findall(r"^ +\d+\.\d{3} s  (\w+) +waits for (.*)$", text(page), re.MULTILINE):
            assert WAITS_FOR[state] == words, f"{page}: {state}"
            shown.add(state)
    assert shown == set(MigrationState) - {"done", "rolling back", "undone"}
