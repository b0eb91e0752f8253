"""The interface's description is OpenAPI, has every route, and says what its pages say."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from retinue.cli.main import app
from retinue.protocol import openapi
from retinue.protocol.errors import ErrorCode
from retinue.protocol.operations import OPERATIONS
from retinue.protocol.routes import Right, Route
from support.pages import table, ticked

pytest.importorskip("openapi_spec_validator", reason="make install-openapi")
from openapi_spec_validator import OpenAPIV31SpecValidator, validate
from openapi_spec_validator.validation.exceptions import OpenAPIValidationError


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    return openapi.description()


def test_it_is_valid(described: dict[str, Any]) -> None:
    validate(described, cls=OpenAPIV31SpecValidator)
    broken = json.loads(json.dumps(described))
    del broken["paths"]["/v1/vms/{id}"]["get"]["parameters"]
    with pytest.raises(OpenAPIValidationError):
        validate(broken, cls=OpenAPIV31SpecValidator)


def test_every_route_is_in_it_and_no_other(described: dict[str, Any]) -> None:
    found = {(method.upper(), path) for path, item in described["paths"].items() for method in item}
    assert found == {(route.method, route.template) for route in Route}
    assert set(OPERATIONS) == set(Route)


@pytest.mark.parametrize("route", Route)
def test_a_route_says_who_may_and_how_it_rejects(described: dict[str, Any], route: Route) -> None:
    said = described["paths"][route.template][route.method.lower()]
    assert ("readers" in said["description"]) == (route.right is Right.READ)
    assert {"401", "403"} <= said["responses"].keys()
    assert ("requestBody" in said) == ("413" in said["responses"])
    assert any(part["name"] == "id" for part in said.get("parameters", [])) == ("{id}" in route.template)


def test_codes_come_with_the_statuses_that_the_page_says() -> None:
    rows = {
        ticked(row["code"])[0]: row["status"] for row in table("docs/api.md", "The manager's interface", 1)
    }
    said = {str(code): ", ".join(map(str, openapi.statuses_of(code))) for code in ErrorCode}
    assert said == rows


def test_a_rejection_has_a_code_and_what_each_means(described: dict[str, Any]) -> None:
    response = described["components"]["responses"]["Rejected409"]
    codes = response["content"]["application/json"]["schema"]["properties"]["code"]["enum"]
    assert "already_there" in codes and "not_allowed" not in codes
    for code in codes:
        assert f"* `{code}`: " in response["description"]
    assert "the VM is at the target already" in response["description"]


def test_fields_are_described_by_what_stands_below_them_in_the_code(described: dict[str, Any]) -> None:
    schemas = described["components"]["schemas"]
    assert schemas["VMBody"]["properties"]["memory_mib"]["maximum"] > 0
    assert "in the place of `server`" in schemas["VMBody"]["properties"]["server_mac"]["description"]
    assert "* `crashed`: It has ended by itself" in schemas["VMState"]["description"]
    assert schemas["Role"]["description"].count("* `edge`:") == 1, "several types have a field of this one"
    assert not schemas["VMBody"]["additionalProperties"] and "id" in schemas["VMBody"]["required"]


def test_the_command_prints_it(described: dict[str, Any]) -> None:
    printed = CliRunner().invoke(app, ["openapi"])
    assert printed.exit_code == 0 and json.loads(printed.stdout) == described
