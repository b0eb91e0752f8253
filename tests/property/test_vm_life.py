"""A VM's life, whatever its manager and its guest do, and whoever is killed meanwhile.

Whatever happens: no VM runs at two servers; what is to be off is off, what is to run runs where it is
registered, what was removed runs nowhere and has left no port, and everybody knows.
"""

import asyncio
import contextlib
from dataclasses import dataclass

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from retinue.controller.errors import RequestError
from retinue.core.model import VM, ModelError, Power, Restart
from retinue.protocol.vms import VMState
from support.agents.life_world import SERVERS, Lives
from support.examples import examples
from support.fabric.networks import vm_mac
from support.virtual_time import run

MANAGER = ("start", "stop", "hard stop", "reboot", "reset", "remove", "register server1", "register server2")
GUEST = ("power off", "crash", "deaf", "heeds")
FAULTS = ("agent", "controller", "both", "cut", "port", "stuck port", "stuck machine")


@dataclass(frozen=True)
class Happening:
    what: str
    after: float = 0.0
    """Seconds since the one before."""
    takes: float = 1.0
    """How long whoever is killed or cut off is away."""


def histories() -> st.SearchStrategy[list[Happening]]:
    seconds = st.sampled_from((0.0, 0.01, 0.03, 0.1, 1.0, 30.0))
    whats = st.sampled_from((*MANAGER, *GUEST, *FAULTS))
    return st.lists(st.builds(Happening, whats, seconds, seconds), max_size=8)


@settings(
    deadline=None, max_examples=examples(25), derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(histories(), st.sampled_from(Restart))
@example([Happening("power off", 1.0), Happening("controller", 1.0), Happening("agent")], Restart.NEVER)
@example([Happening("agent", 1.0, 30.0), Happening("power off", 0.0)], Restart.NEVER)
@example([Happening("agent", 1.0, 30.0), Happening("remove", 0.0)], Restart.NEVER)
@example([Happening("stuck port", 1.0), Happening("remove"), Happening("register server2")], Restart.NEVER)
def test_a_vm_lives_as_it_should_whatever_happens(history: list[Happening], restart: Restart) -> None:
    with capture_logs() as logs:
        run(play(history, restart))
    assert [entry for entry in logs if entry.get("exc_info")] == []


async def play(history: list[Happening], restart: Restart) -> None:
    lives = Lives()
    try:
        await lives.controller_begins()
        for agent in lives.agents.values():
            await agent.begin()
        register(lives, "server1", restart)
        away: list[asyncio.Task[None]] = []
        for happening in history:
            await asyncio.sleep(happening.after)
            await come(lives, happening, restart, away)
        await asyncio.gather(*away)
        await asyncio.sleep(90)
        check(lives)
    except AssertionError as error:
        error.add_note("\n".join(lives.world.log))
        raise
    finally:
        await lives.close()


def register(lives: Lives, server: str, restart: Restart) -> None:
    if lives.controller is not None:
        with contextlib.suppress(RequestError, ModelError):  # It is registered already.
            lives.controller.inventory.register_vms(
                [VM.with_one_nic("vm1", vm_mac(1), server, restart=restart)]
            )


async def come(lives: Lives, it: Happening, restart: Restart, away: list[asyncio.Task[None]]) -> None:
    machines = [m for agent in lives.agents.values() for m in agent.hypervisor.machines if not m.ended]
    lives.world.note(f"-- {it.what}")
    match it.what.split():
        case ["power", "off"] if machines:
            machines[-1].power_off()
        case ["crash"] if machines:
            machines[-1].die()
        case ["deaf" | "heeds"] if machines:
            machines[-1].deaf = it.what == "deaf"
        case ["register", server]:
            register(lives, server, restart)
        case ["agent"]:
            away.append(asyncio.create_task(agents_away(lives, it.takes)))
        case ["controller"]:
            away.append(asyncio.create_task(controller_away(lives, it.takes)))
        case ["both"]:
            away.append(asyncio.create_task(agents_away(lives, it.takes)))
            away.append(asyncio.create_task(controller_away(lives, it.takes / 2)))
        case ["cut"]:
            away.append(asyncio.create_task(cut(lives, it.takes)))
        case ["port"]:
            for agent in lives.agents.values():
                for vm in list(agent.ports.plugged):
                    agent.ports.take_out(vm)
        case ["stuck", "port"]:
            lives.agents["server1"].ports.stuck = 3
        case ["stuck", "machine"] if machines:
            machines[-1].immortal = 3
        case _:
            await order(lives, it.what)


async def order(lives: Lives, what: str) -> None:
    if lives.controller is None:
        return
    power = lives.controller.inventory.power
    with contextlib.suppress(RequestError, ModelError):  # Not in this state.
        match what:
            case "start":
                power.start("vm1")
            case "stop" | "hard stop":
                power.stop("vm1", what == "hard stop", 20.0)
            case "reboot":
                power.reboot("vm1", 20.0)
            case "reset":
                power.reset("vm1")
            case "remove":
                await lives.controller.inventory.remove_vm("vm1")


async def agents_away(lives: Lives, seconds: float) -> None:
    for server in SERVERS:
        await lives.agents[server].die()
    await asyncio.sleep(seconds)
    for server in SERVERS:
        if lives.agents[server].dispatcher is None:
            await lives.agents[server].begin()


async def controller_away(lives: Lives, seconds: float) -> None:
    if lives.controller is not None and "vm1" in lives.controller.net.vms:
        await lives.controller_dies()
        await asyncio.sleep(seconds)
        if lives.controller is None:
            await lives.controller_begins()


async def cut(lives: Lives, seconds: float) -> None:
    lines = [agent.line for agent in lives.agents.values()]
    for line in lines:
        line.cut = True
    await asyncio.sleep(seconds)
    for line in lines:
        line.cut = False


def check(lives: Lives) -> None:
    controller, world = lives.controller, lives.world
    assert controller is not None
    assert world.ran_twice == []
    plugged = {server: set(agent.ports.plugged) for server, agent in lives.agents.items()}
    vm = controller.net.vms.get("vm1")
    if vm is None:
        assert world.running("vm1") == []
        assert plugged == {"server1": set(), "server2": set()}
        return
    assert not vm.reported, "a VM that was removed has come back by its port"
    state = controller.inventory.state_of("vm1")
    other = next(server for server in SERVERS if server != vm.server)
    assert plugged == {vm.server: {"vm1"}, other: set()}
    match vm.power:
        case Power.RUNNING:
            assert (world.running("vm1"), state) == ([vm.server], VMState.RUNNING)
        case Power.OFF:
            assert (world.running("vm1"), state) == ([], VMState.OFF)
        case Power.CRASHED:
            assert (world.running("vm1"), state) == ([], VMState.CRASHED)
