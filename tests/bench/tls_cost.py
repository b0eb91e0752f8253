"""What TLS costs on a real Open vSwitch and over REST: flow-mod to barrier, bundles, reports.

    python tests/bench/tls_cost.py [--rounds 2000]

As root; Open vSwitch runs in a folder of its own, everything over loopback. Prints a table.
"""

import argparse
import asyncio
import os
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import aiohttp
import structlog

from retinue.controller.api.access import Access
from retinue.controller.api.server import Api
from retinue.controller.app import Controller
from retinue.core.pipeline.entry import Change, Flow, Output
from retinue.southbound.openflow.server import OpenFlowServer, Session
from support.fabric.networks import fabric, vm_mac
from support.pki_files import Certificates

SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
DPID = 0xD1
BULK = 20_000


class Listener:
    """Waits for the switch; ignores what else it says."""

    def __init__(self) -> None:
        self.sessions: asyncio.Queue[Session] = asyncio.Queue()

    def connected(self, session: Session) -> None:
        self.sessions.put_nowait(session)

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


@contextmanager
def open_vswitch(folder: Path) -> Iterator[Any]:
    """A function that runs ovs-vsctl on an Open vSwitch which runs inside the context."""
    location = str(folder)
    env = os.environ | {"OVS_RUNDIR": location, "OVS_LOGDIR": location, "OVS_DBDIR": location}
    quiet = {"env": env, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(["ovsdb-tool", "create", f"{folder}/conf.db", SCHEMA], check=True, env=env)
    socket = f"{folder}/db.sock"
    started = []
    for words in (
        ["ovsdb-server", f"{folder}/conf.db", f"--remote=punix:{socket}"],
        ["ovs-vswitchd", f"unix:{socket}", "--enable-dummy"],
    ):
        control = [f"--unixctl={folder}/{words[0]}.ctl", "-vconsole:off"]
        started.append(subprocess.Popen([*words, *control], **quiet))  # type: ignore[call-overload]

    def vsctl(*words: str) -> None:
        subprocess.run(["ovs-vsctl", "--timeout=10", f"--db=unix:{socket}", *words], check=True, env=env)

    try:
        vsctl("--retry", "--no-wait", "init")
        yield vsctl
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(10)


async def openflow(vsctl: Any, pki: Certificates, tls: bool, rounds: int) -> dict[str, float]:
    listener = Listener()
    server = OpenFlowServer(listener, ssl=pki.server() if tls else None)
    port = await server.start("127.0.0.1", 0)
    scheme = "ssl" if tls else "tcp"
    vsctl(
        *("add-br", "bench", "--", "set", "bridge", "bench", "datapath_type=dummy", "fail-mode=secure"),
        *("protocols=OpenFlow14", f"other-config:datapath-id={DPID:016x}"),
        *("--", "set-controller", "bench", f"{scheme}:127.0.0.1:{port}"),
    )
    session = await listener.sessions.get()
    times = []
    for n in range(rounds + 100):
        flow = Flow(1, 1 + n % 1000, (), (Output(1),))
        begun = time.perf_counter()
        await session.apply(Change(add=(flow,)), 0.0)
        times.append(time.perf_counter() - begun)
    del times[:100]
    bulk = tuple(Flow(2, 1 + n, (), (Output(1),)) for n in range(BULK))
    begun = time.perf_counter()
    await session.apply(Change(add=bulk), 0.0)
    took = time.perf_counter() - begun
    vsctl("del-br", "bench")
    await server.stop()
    return {**quantiles("flow-mod to barrier", times), "entries a second in a bundle": BULK / took}


async def rest(pki: Certificates, tls: bool, rounds: int) -> dict[str, float]:
    controller = Controller(fabric())
    await controller.start()
    api = Api(controller, dict, Access(controller, open=not tls), pki.server() if tls else None)
    port = await api.start("127.0.0.1", 0)
    how: ssl.SSLContext | bool = pki.client("manager/bench") if tls else True
    url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    times, fresh = [], []
    async with aiohttp.ClientSession(url) as http:
        vm = {"id": "vm1", "mac": vm_mac(1), "server": "server1"}
        (await http.post("/v1/vms", json=vm, ssl=how)).release()
        for _ in range(rounds + 100):
            begun = time.perf_counter()
            body = {"event": "started", "server": "server1"}
            async with http.post("/v1/vms/vm1/events", json=body, ssl=how) as answer:
                await answer.read()
            times.append(time.perf_counter() - begun)
        del times[:100]
    for _ in range(100):
        begun = time.perf_counter()
        async with aiohttp.ClientSession(url) as http, http.get("/v1/vms", ssl=how) as answer:
            await answer.read()
        fresh.append(time.perf_counter() - begun)
    await api.stop()
    await controller.stop()
    return {**quantiles("report on a standing connection", times), **quantiles("on a new connection", fresh)}


def quantiles(what: str, times: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(times, n=100)
    return {f"{what}, median (us)": cuts[49] * 1e6, f"{what}, 99 % (us)": cuts[98] * 1e6}


async def main(rounds: int) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    with tempfile.TemporaryDirectory() as location:
        pki = Certificates(Path(location) / "pki")
        cert, key = pki.files("switch/bench")
        (Path(location) / "ovs").mkdir()
        with open_vswitch(Path(location) / "ovs") as vsctl:
            vsctl("set-ssl", str(key), str(cert), str(pki.authority.ca))
            switch = [await openflow(vsctl, pki, tls, rounds) for tls in (False, True)]
        reports = [await rest(pki, tls, rounds) for tls in (False, True)]
    print(f"{'':50} {'plain':>10} {'TLS':>10}")
    for plain, secured in (switch, reports):
        for what, figure in plain.items():
            print(f"{what:50} {figure:10,.0f} {secured[what]:10,.0f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What TLS costs.")
    parser.add_argument("--rounds", type=int, default=2000)
    asyncio.run(main(parser.parse_args().rounds))
