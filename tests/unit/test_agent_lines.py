"""Asking over a socket of this machine: an answer, or an error that names whom was asked."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from retinue.agent import lines
from retinue.agent.lines import RequestError, ask, serving


async def echo(line: bytes) -> dict[str, Any]:
    request = json.loads(line)
    return {"error": "there is no bridge"} if request["do"] == "fail" else {"heard": request}


async def test_what_is_asked_is_answered(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    async with serving(path, echo):
        assert await ask(path, "the agent", do="vms", vm={"id": "web"}) == {
            "heard": {"do": "vms", "vm": {"id": "web"}}
        }
    assert not path.exists()


async def test_an_answer_may_be_longer_than_a_request(tmp_path: Path) -> None:
    text = "x" * (2 * lines.LONGEST_REQUEST)

    async def long(_: bytes) -> dict[str, Any]:
        return {"text": text}

    async with serving(tmp_path / "a.sock", long):
        assert await ask(tmp_path / "a.sock", "the agent") == {"text": text}


async def test_what_cannot_be_done_is_said_with_the_name(tmp_path: Path) -> None:
    async with serving(tmp_path / "a.sock", echo):
        with pytest.raises(RequestError, match=r"^the agent of server1: there is no bridge$"):
            await ask(tmp_path / "a.sock", "the agent of server1", do="fail")


async def test_nobody_there_is_said_with_the_name(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"^the agent of server1 does not answer: .*No such file"):
        await ask(tmp_path / "a.sock", "the agent of server1", do="vms")


@pytest.mark.parametrize("said", [b"", b"nonsense\n", b"\xff\n", b'{"cut":'])
async def test_one_that_hangs_up_or_talks_nonsense_is_named(tmp_path: Path, said: bytes) -> None:
    async def odd(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(said)
        writer.close()

    async with await asyncio.start_unix_server(odd, tmp_path / "a.sock"):
        with pytest.raises(RequestError, match="the driver does not answer"):
            await ask(tmp_path / "a.sock", "the driver", do="vms")
