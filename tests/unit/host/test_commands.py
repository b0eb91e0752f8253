"""Programs are run to their end, and what keeps them from it is said with their name."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from retinue.agent.renewal import openflow_port
from retinue.agent.renewal.renewing import InjectionError
from retinue.host.commands import run, run_to_end
from retinue.host.errors import HostError
from support import virtual_time

FAILS = ["sh", "-c", "echo half; echo no such bridge >&2; exit 3"]
STAYS = ["sh", "-c", "exec sleep 3600"]


async def test_what_it_prints_is_the_answer() -> None:
    assert await run(["echo", "twelve"]) == "twelve\n"


async def test_one_that_fails_is_told_with_its_complaint() -> None:
    with pytest.raises(HostError, match=r"`sh -c .*` failed: no such bridge$"):
        await run(FAILS)


async def test_how_it_ended_can_be_looked_at() -> None:
    assert await run_to_end(FAILS, 60.0) == (3, "half\n", "no such bridge")


async def test_its_environment_can_be_given_and_it_has_nothing_to_read() -> None:
    program = ["/bin/sh", "-c", 'cat; echo "$WHERE"']
    assert await run_to_end(program, 60.0, {"WHERE": "here"}) == (0, "here\n", "")


async def test_what_is_no_text_is_no_error() -> None:
    assert await run(["printf", r"\377"]) == "\N{REPLACEMENT CHARACTER}"


async def test_one_that_is_not_there_is_named() -> None:
    with pytest.raises(HostError, match=r"^/nowhere/ip cannot be run: No such file or directory$"):
        await run(["/nowhere/ip", "link"])


async def test_one_that_does_not_end_is_ended() -> None:
    began = time.monotonic()
    with pytest.raises(HostError, match=r"`sh -c exec sleep 3600` did not end within 0\.05 s"):
        await run_to_end(STAYS, 0.05)
    assert time.monotonic() - began < 600.0


async def test_a_child_that_lives_on_holds_nobody_up(tmp_path: Path) -> None:
    child, began = tmp_path / "child", time.monotonic()
    program = ["sh", "-c", f"sleep 3600 & echo $! > {child}.new; mv {child}.new {child}; wait"]
    running = asyncio.create_task(run_to_end(program, 60.0))
    while not child.exists():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    virtual_time.pass_over(61)
    with pytest.raises(HostError, match="did not end"):
        await running
    assert time.monotonic() - began < 600.0
    os.kill(int(child.read_text()), signal.SIGKILL)
    await run(["true"])  # The loop sees the end of the child's output meanwhile.


async def test_who_injects_frames_has_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openflow_port, "LIMIT", 60.0)
    assert await openflow_port.run(FAILS) == (3, "half\n", "no such bridge")
    monkeypatch.setattr(openflow_port, "LIMIT", 0.05)
    with pytest.raises(InjectionError, match="did not end within"):
        await openflow_port.run(STAYS)
    with pytest.raises(InjectionError, match="/nowhere/tc cannot be run"):
        await openflow_port.run(["/nowhere/tc"])
