"""The pages of the REST interface, made of its OpenAPI description: each path, and each type."""

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from docsite.markdown import code, prose, table
from docsite.schemas import description as told
from docsite.schemas import fields, plain, takes
from retinue.protocol.openapi import description

TYPES = "rest-types.md"


def page() -> str:
    """The operations, by what they are about."""
    return "\n".join(_operations(description())) + "\n"


def types_page() -> str:
    """The types of bodies and answers, each with its fields."""
    return "\n".join(_types(description()["components"]["schemas"])) + "\n"


def _operations(api: Mapping[str, Any]) -> Iterator[str]:
    yield "# REST interface"
    yield from (
        "",
        "Made of the description that `retinue openapi` prints and the controller serves, `/v1/openapi.json` "
        "([here](openapi.json)). How it is used, and the events: [api](api.md).",
    )
    every = [
        (operation["tags"][0], method.upper(), path, operation)
        for path, methods in api["paths"].items()
        for method, operation in methods.items()
    ]
    for tag, group in groupby(sorted(every, key=lambda one: one[0]), key=lambda one: one[0]):
        yield from ("", f"## {tag}")
        for _, method, path, operation in group:
            yield from ("", f"### {method} {path}", *_operation(operation))
    yield from (
        "",
        "## Rejections",
        "",
        "With each status a body of type " + _link("Rejected") + ", whose code is one of:",
    )
    for response in sorted(api["components"]["responses"].items()):
        yield from _rejection(*response)


def _operation(operation: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", f"{prose(operation['summary'])}. {prose(operation['description'])}")
    rows = [
        (code(one["name"]), one["in"], takes(one["schema"], _link), prose(one.get("description", "")))
        for one in operation.get("parameters", ())
    ]
    if rows:
        yield from table(("parameter", "in", "is", ""), rows)
    if body := operation.get("requestBody"):
        (kind, content), *_ = body["content"].items()
        needed = "" if body["required"] else " It may be empty."
        yield from ("", f"Body ({kind}): {takes(content['schema'], _link)}.{needed}")
    for status, answer in operation["responses"].items():
        if "content" in answer:
            (kind, content), *_ = answer["content"].items()
            yield from ("", f"Answer: {status}, {kind}: {takes(content.get('schema', {}), _link)}.")
    rejected = [
        f"[{one}](#rejected-{one})" for one, answer in operation["responses"].items() if "$ref" in answer
    ]
    yield from ("", f"Rejected with {', '.join(rejected)}.")


def _rejection(name: str, response: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", f"### Rejected {name.removeprefix('Rejected')}", "", *told(response))


def _types(schemas: Mapping[str, Any]) -> Iterator[str]:
    yield "# REST interface: types"
    yield from ("", "What is sent to the [REST interface](rest.md) and answered by it, type by type.")
    for name, schema in sorted(schemas.items(), key=lambda one: plain(one[0]).lower()):
        yield from ("", f"## {_title(name)}", "", *told(schema))
        if schema.get("properties"):
            yield from fields(schema, _link)
        elif "enum" in schema:
            yield from ("", f"One of {takes(schema, _link)}.")


def _title(name: str) -> str:
    """Two types of the same name are told apart by their modules."""
    return name.removeprefix("retinue.").replace(".", " ") if "." in name else name


def _link(name: str) -> str:
    return f"[{plain(name)}]({TYPES}#{_title(name).lower().replace(' ', '-')})"
