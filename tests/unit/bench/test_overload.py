"""A controller that has too little of a processor while all come back: slow, it says so, and ends right."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from bench.scale.plan import Plan
from bench.scale.run import Bench, Effort
from retinue.protocol.routes import Route

STOPPED, GOES_ON = 6.0, 1.5
"""Seconds, by turns: longer than any switch is given to answer."""


@asynccontextmanager
async def starved(pid: int) -> AsyncIterator[None]:
    """Meanwhile the process has a fifth of a processor, in pieces that are far apart."""

    async def stop_and_go() -> None:
        while True:
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(STOPPED)
            os.kill(pid, signal.SIGCONT)
            await asyncio.sleep(GOES_ON)

    starving = asyncio.create_task(stop_and_go())
    try:
        yield
    finally:
        starving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starving
        os.kill(pid, signal.SIGCONT)


async def gauges(bench: Bench) -> dict[str, float]:
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"http://127.0.0.1:{bench._rest}{Route.GET_METRICS.path()}") as answer,
    ):
        text = await answer.text()
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.labels
    }


@pytest.mark.long
async def test_when_all_come_back_at_once_a_starved_controller_cuts_nobody_off(tmp_path: Path) -> None:
    bench = Bench(Plan(40, 200), Effort(limit=600.0), tmp_path, lambda line: None)
    fakes = bench._switches
    try:
        await bench._attach()
        await bench._build()
        await bench.daemon.stop()
        while any(one.transport for one in fakes.all.values()) or any(one.connection for one in bench._edges):  # noqa: ASYNC110
            await asyncio.sleep(0)
        lost, mods = fakes.losses, fakes.flow_mods
        async with asyncio.timeout(600):
            await bench.daemon.start(bench._rest)
            async with starved(bench.daemon.pid):
                await bench._listen()
                await bench._in_step()
            found = await gauges(bench)
        assert fakes.losses == lost, "each has come once, and stayed"
        assert fakes.flow_mods == mods, "they have all that they should"
        assert found["retinue_late_seconds_total"] > STOPPED / 2
        assert found["retinue_agents_away"] == 0
        assert found["retinue_entries_pending"] == 0
        assert found["retinue_vms"] == 200
    finally:
        fakes.up = False
        await bench._client.close()
        await bench.daemon.stop()
