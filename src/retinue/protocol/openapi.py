"""The REST interface described by OpenAPI 3.1, made of the route table (routes.py), of what is sent and
answered at each route (operations.py), and of the types themselves.

It says what a body and an answer look like, who may ask, and with which codes a request is rejected. It does
not say what the controller checks beyond a field's type: that a MAC is one, that a VM is there; such a
request is rejected with 409.
"""

from collections.abc import Iterable, Mapping
from enum import Enum
from functools import cache
from typing import Any

import msgspec

from retinue import __version__
from retinue.protocol.answers.common import Rejected
from retinue.protocol.docstrings import said_of
from retinue.protocol.errors import ErrorCode
from retinue.protocol.operations import OPERATIONS, Form, Operation, Query
from retinue.protocol.routes import OF_ITSELF, Right, Route

JSON = Form.JSON
SCHEMAS = "#/components/schemas/{name}"
Schema = dict[str, Any]

ERRORS: Mapping[int, tuple[str, frozenset[ErrorCode]]] = {
    400: (
        "The body or the query cannot be read.",
        frozenset({ErrorCode.MALFORMED_BODY, ErrorCode.MALFORMED_REQUEST}),
    ),
    401: ("The client has not authenticated.", frozenset({ErrorCode.NOT_AUTHENTICATED})),
    403: ("The client is known, and may not do this.", frozenset({ErrorCode.NOT_ALLOWED})),
    404: (
        "There is no such path or thing.",
        frozenset(
            {
                ErrorCode.NO_SUCH_PATH,
                ErrorCode.UNKNOWN_VM,
                ErrorCode.UNKNOWN_NIC,
                ErrorCode.UNKNOWN_SERVER,
                ErrorCode.UNKNOWN_SWITCH,
                ErrorCode.UNKNOWN_LINK,
                ErrorCode.UNKNOWN_GATEWAY_GROUP,
                ErrorCode.UNKNOWN_VRF,
                ErrorCode.UNKNOWN_VNET,
                ErrorCode.UNKNOWN_SUBNET,
                ErrorCode.UNKNOWN_MIGRATION,
                ErrorCode.UNKNOWN_IMAGE,
                ErrorCode.UNKNOWN_ENTITY,
            }
        ),
    ),
    405: ("The path has no such method.", frozenset({ErrorCode.METHOD_NOT_ALLOWED})),
    408: ("The body did not come in time.", frozenset({ErrorCode.MALFORMED_REQUEST})),
    413: ("The body is too large.", frozenset({ErrorCode.BODY_TOO_LARGE})),
    503: ("This controller is not the active one.", frozenset({ErrorCode.STANDBY})),
}
"""By status: what it means, and with which codes it comes. All other codes come with 409 alone."""

NEVER_409 = frozenset(
    {
        ErrorCode.NOT_AUTHENTICATED,
        ErrorCode.NOT_ALLOWED,
        ErrorCode.MALFORMED_BODY,
        ErrorCode.MALFORMED_REQUEST,
        ErrorCode.NO_SUCH_PATH,
        ErrorCode.METHOD_NOT_ALLOWED,
        ErrorCode.BODY_TOO_LARGE,
        ErrorCode.STANDBY,
    }
)
BASE64 = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{2}==)?$"
CONTRADICTS = "The request contradicts the present state, or a value is none; nothing was changed."
NONE_THERE = "There is none with this id."
"""Of codes of which nothing else is said."""

_RIGHTS = {
    Right.READ: "Managers, readers and agents may.",
    Right.MANAGE: "Managers may.",
}


def statuses_of(code: ErrorCode) -> list[int]:
    """The statuses with which a code comes."""
    found = [status for status, (_, codes) in ERRORS.items() if code in codes]
    return sorted(found if code in NEVER_409 else [*found, 409])


@cache
def description() -> Schema:
    """The whole description, as plain values. It takes a moment; the answer must not be changed."""
    types = _types(OPERATIONS.values())
    schemas, components = msgspec.json.schema_components(types, schema_hook=_text, ref_template=SCHEMAS)
    schema_of = dict(zip(types, schemas, strict=True))
    infos = _infos(msgspec.inspect.multi_type_info(types))
    _with_sentences(components, infos)
    _with_grammar(components, infos)
    paths: dict[str, Schema] = {}
    for route in Route:
        operation = _operation(route, OPERATIONS[route], schema_of)
        paths.setdefault(route.template, {})[route.method.lower()] = operation
    whole = {
        "openapi": "3.1.0",
        "info": {
            "title": "retinue",
            "summary": "Virtual machines that migrate, and the network that goes with them",
            "version": __version__,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"token": []}, {"certificate": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": {_name(status): _rejection(status) for status in (*ERRORS, 409)},
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "certificate": {"type": "mutualTLS"},
            },
        },
    }
    # Defaults may be tuples, and parts belong to the types themselves.
    found: Schema = msgspec.json.decode(msgspec.json.encode(whole))
    return found


def _types(operations: Iterable[Operation]) -> list[Any]:
    """All types that are sent, answered or asked with, each once."""
    found: dict[Any, None] = {Rejected: None}
    for one in operations:
        found |= dict.fromkeys((one.body, one.answer, *(part.type for part in one.query)))
    found.pop(None, None)
    return list(found)


def _text(kind: type) -> Schema:
    """Addresses and prefixes are strings in JSON."""
    return {"type": "string"}


def _operation(route: Route, operation: Operation, schema_of: Mapping[Any, Schema]) -> Schema:
    rejected = {
        str(status): {"$ref": f"#/components/responses/{_name(status)}"}
        for status in _rejected(route, operation)
    }
    said: Schema = {
        "operationId": route.name.lower(),
        "summary": operation.does,
        "description": _RIGHTS.get(route.right, f"Managers may, and agents: {route.right}."),
        "tags": [route.template.removeprefix("/v1").split("/")[1]],
        "responses": {str(operation.status): _answer(operation, schema_of), **rejected},
    }
    parameters = [_query(part, schema_of) for part in operation.query]
    if "{id}" in route.template:
        id: Schema = {"name": "id", "in": "path", "required": True}
        parameters.insert(0, id | {"schema": {"type": "string", "minLength": 1}})
    if parameters:
        said["parameters"] = parameters
    if operation.body is not None:
        said["requestBody"] = {
            "required": not operation.body_may_be_empty,
            "content": {str(JSON): {"schema": schema_of[operation.body]}},
        }
    return said


def _answer(operation: Operation, schema_of: Mapping[Any, Schema]) -> Schema:
    found: Schema = {}  # What an event has docs/api.md says: each type its own fields.
    if operation.answer is not None:
        found = {"schema": schema_of[operation.answer]}
    elif operation.form is not Form.EVENTS:
        found = {"schema": {"type": "object" if operation.form is JSON else "string"}}
    return {"description": "Done.", "content": {str(operation.form): found}}


def _query(part: Query, schema_of: Mapping[Any, Schema]) -> Schema:
    return {"name": part.name, "in": "query", "description": part.says, "schema": schema_of[part.type]}


def _rejected(route: Route, operation: Operation) -> list[int]:
    """The statuses with which a request to this route may be rejected."""
    found = {401, 403}
    if route not in OF_ITSELF:
        found.add(503)
    if operation.query or operation.body is not None:
        found.add(400)
    if operation.body is not None:
        found |= {408, 413}
    if "{id}" in route.template or operation.query:
        found.add(404)
    if route.method != "GET" or "{id}" in route.template:
        found.add(409)
    return sorted(found)


def _name(status: int) -> str:
    return f"Rejected{status}"


def _rejection(status: int) -> Schema:
    """A rejection with this status: its codes, and what each means."""
    codes = [code for code in ErrorCode if status in statuses_of(code)]
    means = ERRORS[status][0] if status in ERRORS else CONTRADICTS
    lines = _means(codes, {code.name: NONE_THERE for code in ErrorCode} | said_of(ErrorCode))
    schema = {
        "allOf": [{"$ref": SCHEMAS.format(name=Rejected.__name__)}],
        "properties": {"code": {"enum": [str(code) for code in codes]}},
    }
    return {"description": "\n".join([means, "", *lines]), "content": {str(JSON): {"schema": schema}}}


def _means(members: Iterable[Any], said: Mapping[str, str]) -> list[str]:
    """What members of an enumeration mean, as a list."""
    return [f"* `{one.value}`: {said[one.name]}" for one in members if one.name in said]


def _infos(roots: Iterable[Any]) -> list[Any]:
    """All that msgspec knows of the types, and of those that they are made of."""
    seen: set[int] = set()
    found: list[Any] = []
    left = list(roots)
    while left:
        info = left.pop()
        if isinstance(info, tuple):
            left += info
        if id(info) in seen or not isinstance(info, msgspec.Struct):
            continue
        seen.add(id(info))
        found.append(info)
        left += [getattr(info, name) for name in info.__struct_fields__]
    return found


def _schema_of(info: Any, components: Mapping[str, Schema]) -> Schema | None:
    """Of a class, by its name; of two with the same name by that of its module, too."""
    kind = getattr(info, "cls", None)
    if not isinstance(kind, type):
        return None
    return components.get(kind.__name__) or components.get(f"{kind.__module__}.{kind.__qualname__}")


def _with_sentences(components: Mapping[str, Schema], infos: Iterable[Any]) -> None:
    """Give fields, and members of enumerations, the sentences that stand below them in the code."""
    for kind, schema in {
        info.cls: schema for info in infos if (schema := _schema_of(info, components))
    }.items():
        said = said_of(kind)
        lines = ["", *_means(kind, said)] if issubclass(kind, Enum) else []
        schema["description"] = "\n".join([" ".join(schema.get("description", "").split()), *lines]).strip()
        for name, field in schema.get("properties", {}).items():
            if name in said:
                field.setdefault("description", said[name])


def _with_grammar(components: Mapping[str, Schema], infos: Iterable[Any]) -> None:
    """Say what is checked and msgspec's schemas leave out: words that are keys, base64, one of two fields."""
    for info in infos:
        schema = _schema_of(info, components)
        if schema is not None and (names := getattr(info.cls, "ONE_OF", ())):
            given = [{"required": [name], "properties": {name: {"minLength": 1}}} for name in names]
            schema["anyOf"] = given
        for field in getattr(info, "fields", ()) if schema is not None else ():
            assert schema is not None
            shown = schema["properties"][field.encode_name]
            match field.type:
                case msgspec.inspect.DictType(key_type=msgspec.inspect.EnumType(cls=words)):
                    shown["propertyNames"] = {"enum": [word.value for word in words]}
                case msgspec.inspect.ListType(item_type=msgspec.inspect.BytesType()):
                    shown["items"]["pattern"] = BASE64
