"""What holds for all tests."""

from collections.abc import Iterator
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer

from retinue.controller.context import Context
from support import examples, turns
from support.turns import Kind, Turns

# How long an example takes depends on the machine, and on what else it does. `make test` looks at the same
# ones each time, so that a change is judged by what it changes; `make test-long` at others, and at more.
settings.register_profile(
    "any machine",
    deadline=None,
    derandomize=not examples.wanted_more(),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("any machine")

SMALL_LIMITS = (
    "retinue.agent.renewal.openflow_port.LIMIT",
    "retinue.agent.migration.peer.HANDSHAKE_LIMIT",
    "retinue.agent.migration.peer.HELLO_LIMIT",
    "retinue.security.listener.http_service.HANDSHAKE_SECONDS",
    "retinue.southbound.routers.link.ANSWER_SECONDS",
    "retinue.southbound.routers.keeper.FIRST_ANSWER_SECONDS",
    "retinue.hypervisor.libvirt.outgoing.WORD_LIMIT",
    "retinue.hypervisor.libvirt.hypervisor.CALL_OFF_LIMIT",
)
"""Of the product, in seconds: a busy machine may miss them where nothing is wrong."""


@pytest.fixture(autouse=True, scope="session")
def unhurried() -> Iterator[None]:
    """Where a test is about such a limit, it sets it itself."""
    with pytest.MonkeyPatch.context() as patch:
        for name in SMALL_LIMITS:
            patch.setattr(name, 60.0)
        yield


@pytest.fixture(autouse=True)
def background_errors(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """What failed, in any controller that the test has made. A controller counts such errors and goes on, so
    that without this a test would not see them. The mark `provokes_errors` is for tests that want them."""
    failed, errors = Context.failed, list[str]()

    def noted(self: Context, what: str, error: BaseException) -> None:
        errors.append(f"{what}: {error!r}")
        failed(self, what, error)

    with patch.object(Context, "failed", noted):
        yield errors
    provoked = request.node.get_closest_marker("provokes_errors") is not None
    assert bool(errors) == provoked, f"failed in the background: {errors or 'nothing, though it should'}"


def worker(config: pytest.Config) -> str:
    """Which of the processes of `pytest -n` this is; "" if there is one only."""
    return str(getattr(config, "workerinput", {}).get("workerid", ""))


@pytest.fixture(autouse=True, scope="module")
def turn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """With `pytest -n`: see support.turns."""
    if not worker(request.config):
        yield
        return
    with turns.turn(tmp_path_factory.getbasetemp().parent, kind_of(request.node)):
        yield


def kind_of(node: pytest.Item) -> Kind:
    return turns.kind_of({mark: node.get_closest_marker(mark) for mark in turns.MARKS})


def pytest_runtest_setup(item: pytest.Item) -> None:
    """With `pytest -n`: see support.turns."""
    if worker(item.config):
        turns.rank(kind_of(item))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Turns | None:
    return Turns(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules marked `alone` come first, then other laboratories, those that count packets before `patient`
    ones, and the slow ones before the others: so `pytest -n` ends sooner.
    """
    order = list(Kind)

    def place(item: pytest.Item) -> tuple[int, bool]:
        return order.index(kind_of(item)), item.get_closest_marker("slow") is None

    items.sort(key=place)
