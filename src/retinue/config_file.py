"""Configuration files: TOML, read into typed tables of which every key is checked.

A mistake is answered with the file, the key and what was expected there. Controller, agent and laboratory
read their files this way; each defines its own tables.
"""

import contextlib
import difflib
import re
import tomllib
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin

import msgspec


class ConfigError(Exception):
    """The file cannot be used; the message names it, the place in it and the reason."""


class ConfigTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the file. A key that is not known is an error, not ignored."""


class TlsTable(ConfigTable, frozen=True):
    """Files (PEM); relative ones are looked for beside the configuration."""

    ca: str
    """The authority whose certificates are trusted."""
    certificate: str
    """The own one, of the role that the program has."""
    key: str

    def beside(self, folder: Path) -> "TlsTable":
        """With complete paths."""
        return TlsTable(*(str(folder / file) for file in (self.ca, self.certificate, self.key)))


T = TypeVar("T", bound=ConfigTable)


def read(path: Path, kind: type[T], decode: Callable[[type, Any], Any] | None = None) -> T:
    """The whole file as a `kind`. Raises ConfigError.

    `decode` makes values of types that TOML does not know (msgspec's dec_hook).
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text in UTF-8: {error}") from error
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}{_hint(str(error), kind)}") from error
    try:
        return msgspec.convert(found, kind, dec_hook=decode)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {in_words(str(error), found, kind)}") from error


def _hint(said: str, kind: type[ConfigTable]) -> str:
    if (table := re.match(r"Cannot declare \('(\w+)',\) twice", said)) is not None:
        if get_origin(_within(kind, table[1])) is list:
            return f": there may be several, each of which begins with [[{table[1]}]]"
        return f": there is one table [{table[1]}]"
    if said.startswith("Cannot overwrite a value"):
        return ": [name] is one table, and each [[name]] one of several"
    if said.startswith(("Expected newline or end of document", "Invalid value")):
        return ': text stands in quotes, as in name = "value"'
    return ""


def in_words(said: str, found: Mapping[str, Any], kind: type[ConfigTable]) -> str:
    """What msgspec says of a file, by the names that its reader has for places: of [[switch]] with an id
    that, and what may stand there.
    """
    what, _, path = said.partition(" - at `$")
    steps = [int(step[1:-1]) if step[0] == "[" else step[1:] for step in _STEPS.findall(path.rstrip("`"))]
    names, value, expected = list[str](), cast(Any, found), cast(Any, kind)
    for step in steps:
        expected, is_table = _within(expected, step), isinstance(value, dict)
        with contextlib.suppress(LookupError, TypeError):
            value = value[step]
        if isinstance(step, str):
            names.append(step)
        elif is_table or not isinstance(value, dict):
            names.append(f"number {step + 1}")
        else:
            names[-1] = f"[[{names[-1]}]] {value.get('id', f'number {step + 1}')}"
    place = f"{': '.join(names)}: " if names else ""
    if (key := re.fullmatch(r"Object contains unknown field `(.*)`", what)) is not None:
        tables = [one for one in _kinds(expected) if _is_table(one)]
        keys = [field.name for one in tables for field in msgspec.structs.fields(one)]
        near = difflib.get_close_matches(key[1], keys, 1)
        return f"{place}there is no key {key[1]}" + (f"; is {near[0]} meant?" if near else "")
    if (key := re.fullmatch(r"Object missing required field `(.*)`", what)) is not None:
        return f"{place}{key[1]} is missing"
    if (given := re.fullmatch(r"Invalid enum value (.*)", what)) is not None:
        return f"{place}{given[1]} is none of {', '.join(_members(expected))}"
    if (kinds := re.fullmatch(r"Expected `(.*)`, got `(.*)`", what)) is not None:
        return f"{place}{_KINDS.get(kinds[1], kinds[1])} is expected, not {_KINDS.get(kinds[2], kinds[2])}"
    if (limit := re.fullmatch(r"Expected `\w+` (of length )?(>=|<=|>|<) (\S+?)(?:\.0)?", what)) is not None:
        length, compared, bound = limit.groups()
        return f"{place}{'its length is' if length else 'it is'} to be {compared} {bound}"
    return f"{place}{what}"


_STEPS = re.compile(r"\.\w+|\[\d+\]")
_KINDS = {
    "str": "text in quotes",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": 'a list, as in ["one", "two"]',
    "object": "a table",
}


def _within(kind: Any, step: int | str) -> Any:
    """The type of what is at this step of a value of this type; None where it is not known."""
    for one in _kinds(kind):
        if isinstance(step, int) and get_origin(one) in (list, tuple):
            return get_args(one)[0]
        if isinstance(step, str) and _is_table(one):
            return next((field.type for field in msgspec.structs.fields(one) if field.name == step), None)
    return None


def _kinds(kind: Any) -> tuple[Any, ...]:
    """Those of a union, and of what has limits the type itself."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _members(kind: Any) -> list[str]:
    if isinstance(kind, type) and issubclass(kind, Enum):
        return [str(one.value) for one in kind]
    return [str(one) for one in get_args(kind)]
