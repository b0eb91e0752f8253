"""The real REST interface, before a network that is a model, is asked what its description allows, and what
it does not: it answers as it is described, and never fails."""

import copy
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from retinue.controller.api.access import Access
from retinue.controller.api.server import Api
from retinue.controller.app import Controller
from retinue.core.snooping.spoofing import SpoofingKind
from retinue.protocol import openapi
from retinue.protocol.routes import Route
from retinue.security.tokens import Tokens
from support.api_thread import serving
from support.fabric.networks import add_vm, fabric, vm_mac, vm_port

pytest.importorskip("schemathesis", reason="make install-openapi")
import schemathesis
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.failures import FailureGroup

TOKEN = "the token of the manager"
EXAMPLES = int(os.environ.get("RETINUE_FUZZ_EXAMPLES", "5"))
"""For each route, of what it takes, and as many of what it does not."""
KNOWN = {
    "id": ["vm1", "vm2", "server1", "server2", "edge1", "migration-1", "blue", "default", vm_mac(1)],
    "vm": ["vm1", "vm2"],
    "server": ["server1", "server2"],
    "target_server": ["server3"],
    "mac": [vm_mac(5)],
    "server_mac": ["02:00:00:00:00:02"],
    "address": ["10.1.0.50"],
    "ip": ["10.1.0.51"],
    "to": ["vm2", "10.1.0.102"],
    "at": ["edge1:up0"],
}
"""Words by which a request gets further than to what is not there."""
ENDING = [route for route in Route if route is not Route.FOLLOW_EVENTS]
"""Routes whose answers have an end."""
load_all_checks()
JUDGED: Any = CHECKS.get_by_names(
    [
        *("not_a_server_error", "status_code_conformance", "content_type_conformance"),
        *("response_schema_conformance", "negative_data_rejection", "positive_data_acceptance"),
        *("unsupported_method", "ignored_auth"),
    ]
)


def populated() -> Controller:
    net = fabric()
    controller = Controller(net, clock=lambda: 1000.0)
    for number in (1, 2, 3):
        add_vm(net, number, at=number)
    controller.orchestrator.start("vm2", target_server="server3")
    log = controller.context.spoof_attempts
    log.note(SpoofingKind.IP, "edge1", vm_port(1), "vm1", (vm_mac(1), "10.1.0.77"), 1000.0)
    return controller


def strict(description: dict[str, Any]) -> dict[str, Any]:
    """The same, but that no answer has a field which is not described."""
    made = copy.deepcopy(description)
    for schema in made["components"]["schemas"].values():
        if "properties" in schema:
            schema["additionalProperties"] = False
    return made


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The description, of an interface that listens."""
    tokens = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    tokens.touch(0o600)
    tokens.write_text(f'[[token]]\nname = "boss"\nrole = "manager"\ntoken = "{TOKEN}"\n')
    access = Tokens(tokens)
    with serving(populated, lambda one: Api(one, dict, Access(one, access, open=False))) as port:
        schema = schemathesis.openapi.from_dict(strict(openapi.description()))
        schema.config.base_url = f"http://127.0.0.1:{port}"
        yield schema


def with_known_words(value: Any, draw: Callable[[Any], Any]) -> Any:
    """The same with some words replaced by such as mean something here."""
    if isinstance(value, list):
        return [with_known_words(one, draw) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        key: draw(st.sampled_from([one, *KNOWN[key]]))
        if key in KNOWN and isinstance(one, str)
        else with_known_words(one, draw)
        for key, one in value.items()
    }


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
@pytest.mark.parametrize("route", ENDING, ids=lambda route: route.name.lower())
def test_answers_are_as_described(described: Any, route: Route, mode: Any) -> None:
    operation = described[route.template][route.method]

    @given(case=operation.as_strategy(generation_mode=mode), data=st.data())
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    def judged(case: schemathesis.Case[Any], data: st.DataObject) -> None:
        if mode.is_positive:
            case.body = with_known_words(case.body, data.draw)
            case.path_parameters = with_known_words(case.path_parameters, data.draw)
        shown = {"Authorization": f"Bearer {TOKEN}"}
        case.call_and_validate(checks=JUDGED, headers=shown, timeout=60)

    try:
        judged()
    except FailureGroup as failures:
        pytest.fail("\n".join(f"{one}\n{getattr(one, 'response', '')}" for one in failures.exceptions))
