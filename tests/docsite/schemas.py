"""Types as msgspec describes them (JSON Schema), told in words and tables."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from docsite.markdown import code, prose, table

Schema = Mapping[str, Any]
Link = Callable[[str], str]
"""By a type's name: the Markdown that leads to where it is described."""

WORDS = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false"}


def plain(name: str) -> str:
    """A type's own name, without its module's."""
    return name.rpartition("/")[2].rpartition(".")[2]


def takes(schema: Schema, link: Link) -> str:
    """What a value may be, in words."""
    if "$ref" in schema:
        return link(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        kinds = [one for one in schema["anyOf"] if one != {"type": "null"}]
        words = " or ".join(takes(one, link) for one in kinds)
        return words if len(kinds) == len(schema["anyOf"]) else f"{words}, or nothing"
    if "enum" in schema:
        return ", ".join(code(str(one)) for one in schema["enum"])
    if "const" in schema:
        return code(str(schema["const"]))
    match schema.get("type"):
        case "array":
            if "prefixItems" in schema:
                return "of each one: " + "; ".join(takes(one, link) for one in schema["prefixItems"])
            return f"a list: {takes(schema.get('items', {}), link)}"
        case "object":
            inner = schema.get("additionalProperties")
            return f"by name: {takes(inner, link)}" if isinstance(inner, dict) and inner else "an object"
        case str(kind):
            return WORDS.get(kind, kind) + _limits(schema)
        case list(kinds):
            return " or ".join(WORDS.get(kind, kind) for kind in kinds if kind != "null")
    return "anything"


def _limits(schema: Schema) -> str:
    least = schema.get("minimum", schema.get("minLength"))
    most = schema.get("maximum", schema.get("maxLength"))
    unit = " characters" if schema.get("type") == "string" else ""
    match least, most:
        case None, None:
            return ""
        case least, None:
            return f", at least {_number(least)}{unit}"
        case None, most:
            return f", at most {_number(most)}{unit}"
    return f", {_number(least)} to {_number(most)}{unit}"


def _number(number: float) -> str:
    return f"{number:,}".removesuffix(".0")


def default(field: Schema, *, required: bool) -> str:
    """As it is written in JSON and TOML; "" where there is none to name."""
    if required:
        return "needed"
    value = field.get("default")
    return "" if value is None or isinstance(value, dict) else code(json.dumps(value, ensure_ascii=False))


def description(schema: Schema) -> Iterator[str]:
    """What a type says of itself; its members stand as a list below."""
    for line in schema.get("description", "").split("\n"):
        yield ("* " + prose(line.removeprefix("* "))) if line.startswith("* ") else prose(line)


def fields(schema: Schema, link: Link) -> list[str]:
    """The table of an object's fields."""
    needed = schema.get("required", ())
    rows = (
        (
            code(name),
            takes(field, link),
            default(field, required=name in needed),
            prose(field.get("description", "")),
        )
        for name, field in schema.get("properties", {}).items()
    )
    return table(("field", "is", "default", ""), rows)
