"""The page of configuration files: keys, what they take and their defaults by the code; what they mean by the
tables of other pages, which a test holds to the code key by key.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from docsite.markdown import code, prose, table
from docsite.schemas import default, takes
from retinue.agent.config import AgentConfig
from retinue.controller.config import Config
from retinue.managers.config import MobilityConfig, ResourceConfig
from retinue.protocol.docstrings import said_of
from retinue.setup.site import Site
from support.pages import row_by_key
from support.pages import table as table_of

FILES = (
    ("Controller", "docs/operators.md", "Configuration file", Config),
    ("Agent", "docs/operators.md", "The agent's configuration file", AgentConfig),
    ("Mobility", "docs/operators.md", "The mobility manager's configuration file", MobilityConfig),
    ("Resource", "docs/operators.md", "The resource manager's configuration file", ResourceConfig),
    ("Site", "docs/setup.md", "The site's file", Site),
)
"""Of each file: its heading here, the page and heading where its keys are explained, and its type."""

Schema = Mapping[str, Any]
LIST = "[[{}]]"
"""How a table of which there may be several is written in TOML."""


def _text(kind: type) -> dict[str, Any]:
    """Addresses are strings in TOML."""
    return {"type": "string"}


@dataclass(frozen=True)
class Key:
    name: str
    takes: str
    """In Markdown, as all of these."""
    default: str
    meaning: str


@dataclass(frozen=True)
class Table:
    """`heading`: as it is written in TOML; "": the keys above all tables."""

    heading: str
    does: str
    keys: tuple[Key, ...]


def page() -> str:
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# Configuration files"
    yield from (
        "",
        "TOML. Examples are in [operators](operators.md#configuration-file), the laboratory's own file in "
        "[lab](lab.md#topology-file). `retinue controller check` says what is wrong with a controller's.",
    )
    for title, where, heading, kind in FILES:
        yield from ("", f"## {title}")
        for one in tables(where, heading, kind):
            yield from ("", f"### {title}: {one.heading}", "", prose(one.does)) if one.heading else ()
            rows = ((code(key.name), key.takes, key.default, key.meaning) for key in one.keys)
            yield from table(("key", "is", "default", "meaning"), rows)


def tables(where: str, heading: str, kind: type) -> list[Table]:
    """Of a file whose keys are explained on page `where`: the keys above all tables first."""
    meanings = {
        key: row["meaning"].replace("](#", f"]({where.removeprefix('docs/')}#")
        for key, row in row_by_key(table_of(where, heading)).items()
    }
    (reference,), schemas = msgspec.json.schema_components([kind], schema_hook=_text)
    root = schemas[_name(reference)]
    return list(_tables(root, "", "", schemas, meanings, said_of(kind)))


def _tables(
    schema: Schema,
    name: str,
    shown: str,
    schemas: Mapping[str, Schema],
    meanings: Mapping[str, str],
    said: Mapping[str, str],
) -> Iterator[Table]:
    """That of a schema, which is called `name` where its keys are explained, and the lists in it."""
    inner = {key: _table(field, schemas) for key, field in schema["properties"].items()}
    if shown:
        inner = {key: one if one[1] == LIST else (None, "") for key, one in inner.items()}
    plain = {key: field for key, field in schema["properties"].items() if inner[key][0] is None}
    does = " ".join(schema.get("description", "").removeprefix(f"{shown}: ").split()) if shown else ""
    keys = _keys({**schema, "properties": plain}, schemas, f"{name}." if name else "", meanings, said)
    yield Table(shown, does[:1].upper() + does[1:], keys)
    for key, (table_schema, brackets) in inner.items():
        if table_schema is not None:
            heading = brackets.format(f"{name}.{key}" if name else key)
            yield from _tables(table_schema, key, heading, schemas, meanings, {})


def _table(field: Schema, schemas: Mapping[str, Schema]) -> tuple[Schema | None, str]:
    """The table that a key is, and how its heading is written in TOML."""
    for one in (field, *field.get("anyOf", ())):
        if "$ref" in one and "properties" in schemas[_name(one)]:
            return schemas[_name(one)], "[{}]"
    items = field.get("items", {})
    if "$ref" in items and "properties" in schemas[_name(items)]:
        return schemas[_name(items)], LIST
    return None, ""


def _keys(
    schema: Schema,
    schemas: Mapping[str, Schema],
    prefix: str,
    meanings: Mapping[str, str],
    said: Mapping[str, str],
) -> tuple[Key, ...]:
    def link(name: str) -> str:
        shown = schemas[name]
        return takes(shown, link) if "enum" in shown else "a table"

    needed = schema.get("required", ())
    return tuple(
        Key(
            key,
            takes(field, link),
            default(field, required=key in needed),
            meanings.get(prefix + key) or prose(said.get(key, "")),
        )
        for key, field in schema["properties"].items()
    )


def _name(reference: Schema) -> str:
    return str(reference["$ref"]).rpartition("/")[2]
