"""Configuration files: the keys, defaults and examples that pages show are those of the code."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from retinue.agent import config as agent_config
from retinue.controller import config as controller_config
from retinue.managers.config import MobilityConfig, ResourceConfig
from retinue.setup.site import Site
from retinue_lab.topology.topology import Topology
from support.pages import PAGES, fenced, row_by_key, section, table, text, ticked

OPERATORS = "docs/operators.md"


def keys(struct: type[msgspec.Struct], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each key of a configuration file with its default (msgspec.NODEFAULT: needed), tables by their keys."""
    for field in msgspec.structs.fields(struct):
        inner = _struct(field.type)
        if inner is None:
            yield (
                prefix + field.encode_name,
                field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory(),
            )
        else:
            yield from keys(inner, f"{field.encode_name}.")


def _struct(kind: Any) -> type[msgspec.Struct] | None:
    kinds = (kind, *getattr(kind, "__args__", ()))
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, msgspec.Struct)), None)


NEEDED_SOMETIMES = ("switch.uplink", "switch.dpid", "alone.qmp")
"""Keys with a default that is of use to some only."""


@pytest.mark.parametrize(
    ("page", "heading", "kind", "besides"),
    [
        (OPERATORS, "Configuration file", controller_config.Config, set()),
        (OPERATORS, "The agent's configuration file", agent_config.AgentConfig, {"vm"}),
        (OPERATORS, "The mobility manager's configuration file", MobilityConfig, set()),
        (OPERATORS, "The resource manager's configuration file", ResourceConfig, set()),
        ("docs/setup.md", "The site's file", Site, set()),
    ],
)
def test_configuration_keys_and_defaults_are_the_codes(
    page: str, heading: str, kind: type[msgspec.Struct], besides: set[str]
) -> None:
    defaults = {key: row["default"] for key, row in row_by_key(table(page, heading)).items()}
    code = dict(keys(kind))
    assert defaults.keys() - besides == code.keys()
    for key, default in code.items():
        said = defaults[key].split(":")[0] if key.startswith("rest.") else defaults[key]
        if default is msgspec.NODEFAULT:
            assert said.startswith("needed"), f"{key} is needed"
        elif key in NEEDED_SOMETIMES:
            assert said.startswith("needed ")
        elif default in ("", [], (), None):
            assert said in ("none", '""', "[]"), f"{key} is {default!r} by default, not {said}"
        elif isinstance(default, bool):
            assert said == str(default).lower()
        else:
            listed = json.dumps(default) if isinstance(default, tuple) else str(default)
            shown = f"{default:g}" if isinstance(default, float) else listed
            assert said.strip('"`') == shown, f"{key} is {shown} by default, not {said}"


def test_the_configuration_files_shown_are_good(tmp_path: Path) -> None:
    (shown,) = fenced(section(OPERATORS, "Configuration file"), "toml")
    file = tmp_path / "controller.toml"
    file.write_text(shown)
    assert controller_config.load(file).network().switches
    qemu, libvirt, alone = fenced(section(OPERATORS, "The agent's configuration file"), "toml")
    file.write_text(qemu)
    assert agent_config.load(file).vm is not None
    without = "".join(line for line in qemu.splitlines(keepends=True) if not line.startswith("wrapper"))
    file.write_text(without + libvirt)
    assert agent_config.load(file).libvirt is not None
    file.write_text(alone)
    assert agent_config.load(file).alone is not None


def test_configuration_files_are_shown_in_one_place_only() -> None:
    for page in PAGES:
        for block in fenced(text(page), "toml") if page != OPERATORS else []:
            assert not {"controller", "listen"} <= tomllib.loads(block).keys(), (
                f"{page} repeats an agent's file"
            )


def test_the_keys_of_a_topology_are_the_codes() -> None:
    page: dict[str, set[str]] = {}
    for row in table("docs/lab.md", "Topology file"):
        lists = [name for name in ticked(row["table"]) if name.startswith("[")]
        for name in lists or [""]:
            page[name.strip("[]")] = set(re.findall(r"`(\w+)`(?=[:,;]| \(|$)", row["keys"]))
    code: dict[str, set[str]] = {"": set()}
    for field in msgspec.structs.fields(Topology):
        if (struct := _struct(field.type)) is not None and struct is not Topology:
            code[field.name] = {inner.name for inner in msgspec.structs.fields(struct)} - {"reservation"}
        else:
            code[""].add(field.name)
    page["dhcp"] -= {"reservation"}
    page["server"] -= {"qemu", "libvirt"}
    page["client"] -= {"outside"}
    assert page == code
