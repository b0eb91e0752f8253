"""A server is drained by its VMs' migrations, so many at once; the first that cannot be ends it."""

import json
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest

from retinue.cli.drain import Drain
from retinue.cli.errors import CliError
from retinue.protocol.blocking import Client
from retinue.protocol.errors import RejectedError
from retinue.protocol.routes import Route


class Controller(Client):
    """Migrates at once what it is asked to, in the order in which it was asked."""

    def __init__(self, **servers: list[str]) -> None:
        self.servers = servers
        self.marks: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self.undone: dict[str, str] = {}
        self.under_way: deque[dict[str, Any]] = deque()
        self.most = self.started = 0

    def last_event(self) -> int:
        return 7

    def ask(
        self, route: Route, id: str = "", *, body: Any = None, **query: str | int | None
    ) -> dict[str, Any]:
        match route:
            case Route.DRAIN_SERVER:
                self.marks[id] = "drained"
                return {"server": id, "drained": True, "vms": list(self.servers[id])}
            case Route.LIST_SERVERS:
                rows = [self._row(name) for name in self.servers]
                unknown = {"id": "", "mac": "02:00:00:00:00:99", "state": "unknown"}
                router = {"id": "router", "edge": "", "vms": [], "drained": False, "fenced": False}
                return {"servers": [*rows, router, unknown]}
            case _:
                assert route is Route.START_MIGRATION
                return self._start(body["vm"], body["target_server"])

    def _row(self, name: str) -> dict[str, Any]:
        marks = {mark: self.marks.get(name) == mark for mark in ("drained", "fenced")}
        return {"id": name, "edge": f"edge of {name}", "vms": self.servers[name], **marks}

    def _start(self, vm: str, target: str) -> dict[str, Any]:
        if vm in self.refused:
            raise RejectedError(self.refused[vm])
        self.started += 1
        migration = {
            "id": f"migration-{self.started}",
            "vm": vm,
            "target": target,
            "state": "planned",
            "reason": "",
        }
        self.servers[target].append(vm)
        self.under_way.append(migration)
        self.most = max(self.most, len(self.under_way))
        return migration

    def events(self, since: int | None = None, deadline: float | None = None) -> Iterator[dict[str, Any]]:
        assert since == 7
        yield {"type": "migration.step", "migration": {"id": "migration-99", "state": "done"}}
        while self.under_way:
            migration = self.under_way.popleft()
            yield {"type": "migration.step", "migration": {**migration, "state": "copying"}}
            reason = self.undone.get(migration["vm"], "")
            ended = {**migration, "state": "undone" if reason else "done", "reason": reason}
            yield {"type": "migration.step", "migration": ended}


@pytest.mark.parametrize("at_once", [1, 2, 16])
def test_all_go_so_many_at_once_each_to_the_emptiest(
    at_once: int, capsys: pytest.CaptureFixture[str]
) -> None:
    controller = Controller(a=["vm1", "vm2", "vm3"], b=["vm8", "vm9"], c=[], d=[])
    controller.marks["d"] = "fenced"
    Drain(controller, "a", at_once).run()
    assert controller.most == min(at_once, 3)
    assert {name: len(vms) for name, vms in controller.servers.items()} == {"a": 3, "b": 3, "c": 2, "d": 0}
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "1 of 3: vm1 is at c"
    assert said[-1] == "a is drained: 3 of 3 VMs have gone"


def test_as_json_each_migration_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    controller = Controller(a=["vm1"], b=[])
    Drain(controller, "a", 1, lambda row: print(json.dumps(row))).run()
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["vm"] == "vm1"


def test_an_empty_server_is_drained_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    Drain(Controller(a=[], b=[]), "a", 1).run()
    assert capsys.readouterr().out == "a is drained: 0 of 0 VMs have gone\n"


def test_the_first_that_cannot_go_ends_it_when_those_under_way_have_ended() -> None:
    controller = Controller(a=["vm1", "vm2", "vm3", "vm4"], b=[])
    controller.undone["vm1"] = "the target is gone"
    with pytest.raises(
        CliError, match=r"migration-1 of vm1 was undone: the target is gone; 1 of 4 VMs of a have gone"
    ):
        Drain(controller, "a", 2).run()
    assert controller.started == 2


def test_one_that_is_refused_ends_it() -> None:
    controller = Controller(a=["vm1", "vm2"], b=[])
    controller.refused["vm2"] = "VM vm2 is being migrated already"
    with pytest.raises(CliError, match="VM vm2 cannot be migrated: VM vm2 is being migrated already; 1 of 2"):
        Drain(controller, "a", 1).run()


def test_with_no_other_server_nothing_is_begun() -> None:
    controller = Controller(a=["vm1"], b=[])
    controller.marks["b"] = "fenced"
    with pytest.raises(CliError, match="there is no other server that takes VMs; 0 of 1"):
        Drain(controller, "a", 1).run()
