"""The page of configuration files: keys, what they take and their defaults by the code; what they mean by the
tables of other pages, which a test holds to the code key by key.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from docsite.markdown import code, prose, table
from docsite.schemas import default, takes
from retinue.agent.config import AgentConfig
from retinue.controller.config import Config
from retinue.protocol.docstrings import said_of
from retinue.setup.site import Site
from support.pages import row_by_key
from support.pages import table as table_of

FILES = (
    ("Controller", "docs/operators.md", "Configuration file", Config),
    ("Agent", "docs/operators.md", "The agent's configuration file", AgentConfig),
    ("Site", "docs/setup.md", "The site's file", Site),
)
"""Of each file: its heading here, the page and heading where its keys are explained, and its type."""

Schema = Mapping[str, Any]


def _text(kind: type) -> dict[str, Any]:
    """Addresses are strings in TOML."""
    return {"type": "string"}


def page() -> str:
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# Configuration files"
    yield from (
        "",
        "TOML. Examples are in [operators](operators.md#configuration-file), the laboratory's own file in "
        "[lab](lab.md#topology-file). `retinue controller check` says what is wrong with a controller's.",
    )
    for title, page, heading, kind in FILES:
        meanings = {
            key: row["meaning"].replace("](#", f"]({page.removeprefix('docs/')}#")
            for key, row in row_by_key(table_of(page, heading)).items()
        }
        (root,), schemas = msgspec.json.schema_components([kind], schema_hook=_text)
        yield from ("", f"## {title}")
        yield from _file(title, kind, schemas[_name(root)], schemas, meanings)


def _file(
    title: str, kind: type, root: Schema, schemas: Mapping[str, Schema], meanings: Mapping[str, str]
) -> Iterator[str]:
    tables: dict[str, tuple[str, Schema]] = {}
    plain: dict[str, Schema] = {}
    for key, field in root["properties"].items():
        inner, brackets = _table(field, schemas)
        if inner is None:
            plain[key] = field
        else:
            tables[key] = (brackets.format(key), inner)
    yield from _keys({**root, "properties": plain}, schemas, "", meanings, said_of(kind))
    for key, (shown, inner) in tables.items():
        yield from ("", f"### {title}: {shown}")
        does = " ".join(inner.get("description", "").removeprefix(f"{shown}: ").split())
        yield from ("", prose(does[:1].upper() + does[1:]))
        yield from _keys(inner, schemas, f"{key}.", meanings, {})


def _table(field: Schema, schemas: Mapping[str, Schema]) -> tuple[Schema | None, str]:
    """The table that a key is, and how its heading is written in TOML."""
    for one in (field, *field.get("anyOf", ())):
        if "$ref" in one and "properties" in schemas[_name(one)]:
            return schemas[_name(one)], "[{}]"
    items = field.get("items", {})
    if "$ref" in items and "properties" in schemas[_name(items)]:
        return schemas[_name(items)], "[[{}]]"
    return None, ""


def _keys(
    schema: Schema,
    schemas: Mapping[str, Schema],
    prefix: str,
    meanings: Mapping[str, str],
    said: Mapping[str, str],
) -> list[str]:
    def link(name: str) -> str:
        shown = schemas[name]
        return takes(shown, link) if "enum" in shown else "a table"

    needed = schema.get("required", ())
    rows = (
        (
            code(key),
            takes(field, link),
            default(field, required=key in needed),
            meanings.get(prefix + key) or prose(said.get(key, "")),
        )
        for key, field in schema["properties"].items()
    )
    return table(("key", "is", "default", "meaning"), rows)


def _name(reference: Schema) -> str:
    return str(reference["$ref"]).rpartition("/")[2]
