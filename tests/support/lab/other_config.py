"""The laboratory's controller with another configuration, for a while."""

import contextlib
import sys
from collections.abc import AsyncIterator, Callable

from retinue.protocol.errors import ControllerError
from retinue_lab.topology.topology import CONTROLLER
from support.lab.tools import LabBench, eventually

NAME = "other-controller"


@contextlib.asynccontextmanager
async def controller_with(bench: LabBench, change: Callable[[str], str]) -> AsyncIterator[None]:
    """It runs with what `change` makes of its configuration file, on the same database, inside the context.

    All switches are connected when it is entered, and when it is left.
    """
    config = bench.lab.directory / "controller.toml"
    other = bench.lab.directory / f"{NAME}.toml"
    other.write_text(change(config.read_text()))
    bench.kill(CONTROLLER)
    program = [sys.executable, "-m", "retinue.cli.main", "controller", "run", "--config", str(other)]
    database = ["--database", str(bench.lab.directory / "controller.db")]
    bench.lab.spawn(bench.topology.controller, [*program, *database], log=NAME)
    try:
        await eventually(lambda: all_connected(bench))
        yield
    finally:
        bench.kill(NAME)
        bench.lab.start_controller()
        await eventually(lambda: all_connected(bench))


async def all_connected(bench: LabBench) -> bool:
    try:
        switches = (await bench.get("switches"))["switches"]
    except ControllerError:
        return False
    return all(one["connected"] for one in switches)
