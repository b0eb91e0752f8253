"""The adapter for a Linux router: what it says to `ip`, and what it makes of the answers."""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from retinue.southbound.routers import linux_router
from retinue.southbound.routers.linux_router import Router, RouterFailedError, Turn, number

A, B = "10.0.0.11", "10.0.0.12"
VM = "10.1.0.101/32"


@dataclass
class Kernel:
    """What `ip` knows: routes and next hops, and the router's own ways by server."""

    ways: dict[str, str] = field(default_factory=lambda: {A: "eth1", B: "eth2"})
    rows: dict[str, dict[str, object]] = field(default_factory=dict)
    hops: dict[int, str] = field(default_factory=dict)
    asked: list[tuple[str, ...]] = field(default_factory=list)
    broken: bool = False
    slow: bool = False

    def __call__(self, *words: str, lines: Sequence[str] | None = None) -> str:
        self.asked.append(words)
        if lines is not None:
            for line in lines:
                if self.slow:
                    raise subprocess.TimeoutExpired("ip", 4.0)
                if self.broken:
                    raise RouterFailedError("ip -batch -: no room")
                self._do(line.split())
            return ""
        match words[-3:]:
            case ("route", "get", server):
                if server not in self.ways:
                    raise RouterFailedError("Network is unreachable")
                return json.dumps([{"dst": server, "dev": self.ways[server]}])
            case (_, "proto", "220") if "nexthop" in words:
                return json.dumps([{"id": one} for one in self.hops])
            case (*_, "link", "show"):
                return "[]"
            case _:
                return json.dumps(list(self.rows.values()))

    def _do(self, words: list[str]) -> None:
        match words:
            case ["nexthop", "replace", "id", one, "via", _, "dev", port, *_]:
                self.hops[int(one)] = port
            case ["route", "replace", "blackhole", prefix, *_]:
                self.rows[prefix] = {"type": "blackhole", "dst": prefix, "metric": 220}
            case ["route", "replace", prefix, "nhid", one, *_]:
                assert int(one) in self.hops, "Nexthop id does not exist"
                self.rows[prefix] = {"dst": prefix, "nhid": int(one), "metric": 220}
            case ["route", "del", prefix, *_]:
                del self.rows[prefix]
            case _:
                raise AssertionError(words)

    def at(self, server: str) -> str:
        return self.hops[number(server)]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    found = Kernel()
    monkeypatch.setattr(linux_router, "ip", found)
    return found


def test_routes_are_put_and_deleted_and_told(kernel: Kernel) -> None:
    router = Router()
    assert router.change({VM: A, "10.1.0.0/24": None}, []) == {"routes": {VM: A, "10.1.0.0/24": None}}
    assert kernel.at(A) == "eth1"
    assert router.change({VM: B}, ["10.1.0.0/24", "10.9.0.0/24"]) == {"routes": {VM: B}}
    assert kernel.rows.keys() == {VM}


def test_a_way_that_was_not_put_is_not_taken_for_one(kernel: Kernel) -> None:
    """A's way has changed, and B has none: the change is refused, and A's VMs follow nevertheless."""
    router = Router()
    router.change({VM: A}, [])
    kernel.ways = {A: "eth9"}
    with pytest.raises(RouterFailedError, match=f"no way to server {B}"):
        router.change({VM: A, "10.1.0.102/32": B}, [])
    assert kernel.at(A) == "eth1"
    router.follow()
    assert kernel.at(A) == "eth9"


@pytest.mark.parametrize("how", ["broken", "slow"])
def test_after_what_failed_all_is_said_again(kernel: Kernel, how: str) -> None:
    router = Router()
    router.change({VM: A}, [])
    kernel.ways[A] = "eth9"
    setattr(kernel, how, True)
    if how == "broken":
        assert "no room" in router.change({VM: A}, [])["error"]
    else:
        with pytest.raises(subprocess.TimeoutExpired):
            router.change({VM: A}, [])
    setattr(kernel, how, False)
    assert kernel.at(A) == "eth1"
    router.follow()
    assert kernel.at(A) == "eth9"


def test_a_next_hop_that_has_gone_with_its_port_is_made_again(kernel: Kernel) -> None:
    router = Router()
    router.change({VM: A}, [])
    kernel.hops.clear()
    router.follow()
    assert kernel.at(A) == "eth1"


def test_the_table_is_read_once_however_many_prefixes_there_are(kernel: Kernel) -> None:
    router = Router()
    many = {f"10.1.{n // 250}.{1 + n % 250}/32": A for n in range(1000)}
    assert router.change(many, []) == {"routes": many}
    reads = [words for words in kernel.asked if "show" in words]
    assert len(reads) == 1


def test_a_route_that_is_by_no_next_hop_of_ours_is_told_as_none_of_ours(kernel: Kernel) -> None:
    """By a port alone, by a neighbour's IPv6 address, by a gateway: read, so that it can be put right."""
    rows: list[dict[str, object]] = [
        {"dst": VM, "dev": "eth1"},
        {"dst": VM, "via": {"family": "inet6", "host": "fe80::1"}, "dev": "eth1"},
        {"dst": VM, "gateway": A, "dev": "eth1"},
        {"type": "unreachable", "dst": VM},
    ]
    for row in rows:
        kernel.rows = {VM: row | {"metric": 220}}
        router = Router()
        assert router.look()["routes"] == {VM: "0.0.0.0"}
        assert not router.ways, "and no next hop is made for it"
    assert router.change({VM: A}, []) == {"routes": {VM: A}}


# ---- of several the last one writes ----


def test_whoever_was_started_last_has_the_turn(tmp_path: Path) -> None:
    first = Turn(str(tmp_path / "lock"))
    assert first.is_ours()
    second = Turn(str(tmp_path / "lock"))
    assert second.is_ours()
    assert not first.is_ours()


def test_nobody_begins_while_another_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even when that one was killed, and only the `ip` it had started goes on: that has the lock."""
    (tmp_path / "ip").write_text("#!/bin/sh\nexec ls -l /proc/self/fd\n")
    (tmp_path / "ip").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    path = tmp_path / "lock"
    with Turn(str(path)) as turn, path.open() as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert str(path) in linux_router.ip("-batch", "-", lines=[])
    fcntl.flock(turn.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(turn.file)


@pytest.fixture
def adapter(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """The program itself, with an `ip` of ours that knows nothing."""
    (tmp_path / "ip").write_text("#!/bin/sh\necho '[]'\n")
    (tmp_path / "ip").chmod(0o755)
    code = (
        "import sys; from retinue.southbound.routers import linux_router as adapter;"
        f"adapter.LOCK = '{tmp_path}/lock-{{}}'; adapter.LOOK_SECONDS = 3600; sys.exit(adapter.main())"
    )
    running: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        pipe, path = subprocess.PIPE, [*sys.path, ""]
        env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHONPATH": ":".join(path)}
        one = subprocess.Popen(
            [sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env
        )
        running.append(one)
        return one

    yield start
    for one in running:
        one.kill()
        one.communicate()


def say(adapter: subprocess.Popen[str], question: object) -> dict[str, object]:
    assert adapter.stdin is not None and adapter.stdout is not None
    adapter.stdin.write(json.dumps(question) + "\n")
    adapter.stdin.flush()
    line = adapter.stdout.readline()
    return json.loads(line) if line else {}


LOOK = {"ask": "look"}


def test_ways_are_looked_at_however_much_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A question is always there; each takes a tenth of a second."""
    followed: list[float] = []

    class Asked(Router):
        def follow(self) -> None:
            followed.append(now)

    now, questions = 0.0, [b'{"ask": "nothing"}\n'] * 35

    def read(_file: int, _size: int) -> bytes:
        nonlocal now
        now += 0.1
        return questions.pop() if questions else b""

    monkeypatch.setattr(linux_router, "Router", Asked)
    monkeypatch.setattr(linux_router, "LOCK", f"{tmp_path}/lock-{{}}")
    with monkeypatch.context() as patched:
        patched.setattr("select.select", lambda *_: ([0], [], []))
        patched.setattr("time.monotonic", lambda: now)
        patched.setattr("os.read", read)
        assert linux_router.main() == 0
    assert followed == pytest.approx([1.0, 2.0, 3.0], abs=0.25)
    assert len(capsys.readouterr().out.splitlines()) == 35


def test_an_adapter_that_another_one_has_followed_answers_nothing_more(
    adapter: Callable[[], subprocess.Popen[str]],
) -> None:
    first = adapter()
    assert "routes" in say(first, LOOK)
    second = adapter()
    assert "routes" in say(second, LOOK)
    assert say(first, {"ask": "change", "put": {VM: None}, "delete": []}) == {}
    assert first.wait() == 1
    assert first.stderr is not None
    assert "another adapter was started" in first.stderr.read()
    assert "routes" in say(second, LOOK)
