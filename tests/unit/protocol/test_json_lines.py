"""Asking over a socket of this machine: an answer, or an error that names whom was asked."""

import asyncio
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from retinue.protocol import json_lines
from retinue.protocol.json_lines import RequestError, ask, ask_blocking, serving


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


async def test_a_path_that_is_too_long_for_a_socket_leads_there_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 200)
    folder.mkdir()
    path = folder / "a.sock"
    async with serving(path, echo):
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert await ask(path, "the agent", do="vms") == {"heard": {"do": "vms"}}
        asked = asyncio.to_thread(ask_blocking, path, "the agent", 5, do="vms")
        assert await asked == {"heard": {"do": "vms"}}
    assert not path.exists()
    with pytest.raises(OSError, match="a socket's path has 107 bytes at most"):
        async with serving(folder / ("y" * 120), echo):
            pass


async def test_an_answer_may_be_longer_than_a_request(tmp_path: Path) -> None:
    text = "x" * (2 * json_lines.LONGEST_REQUEST)

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


NO_OBJECTS = (b"null\n", b"7\n", b'["error"]\n', b'{"rows":' + b"[" * 100_000 + b"\n")


@pytest.mark.parametrize("said", [b"", b"nonsense\n", b"\xff\n", b'{"cut":', *NO_OBJECTS])
async def test_one_that_hangs_up_or_talks_nonsense_is_named(tmp_path: Path, said: bytes) -> None:
    async def odd(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(said)
        writer.close()

    async with await asyncio.start_unix_server(odd, tmp_path / "a.sock"):
        with pytest.raises(RequestError, match="the driver does not answer"):
            await ask(tmp_path / "a.sock", "the driver", do="vms")


async def test_a_program_without_an_event_loop_is_answered_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"

    async def blocking(**request: Any) -> Any:
        return await asyncio.to_thread(ask_blocking, path, "lab x", 60, **request)

    with pytest.raises(RequestError, match=r"^lab x does not answer: .*No such file"):
        await blocking(do="vms")
    async with serving(path, echo):
        assert await blocking(do="vms") == {"heard": {"do": "vms"}}
        with pytest.raises(RequestError, match=r"^lab x: there is no bridge$"):
            await blocking(do="fail")


async def test_a_program_that_hangs_up_is_told_from_one_that_answers(tmp_path: Path) -> None:
    async def gone(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.close()

    async with await asyncio.start_unix_server(gone, tmp_path / "a.sock"):
        with pytest.raises(RequestError, match="lab x does not answer: the connection has ended"):
            await asyncio.to_thread(ask_blocking, tmp_path / "a.sock", "lab x", 60, do="vms")


async def test_the_socket_is_for_its_user_alone_whatever_the_mask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        async with serving(tmp_path / "a.sock", echo):
            assert stat.S_IMODE((tmp_path / "a.sock").stat().st_mode) == 0o600
            assert os.umask(0) == 0, "and the mask is as it was"
    finally:
        os.umask(before)
