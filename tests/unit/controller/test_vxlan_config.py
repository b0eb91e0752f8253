"""The configuration chooses what joins the leaves: spines, or VXLAN over an IP network that is not ours."""

from pathlib import Path

import pytest

from retinue.config_file import ConfigError
from retinue.controller.config import load
from retinue.core.model import Network
from retinue.core.pipeline.underlay import underlay_of
from retinue.core.pipeline.underlay.fabric import LeafSpine
from retinue.core.pipeline.underlay.mac_spines import MacSpines
from retinue.core.pipeline.underlay.vxlan import VxlanMesh

LEAVES = """
[[switch]]
id = "leaf1"
role = "leaf"
dpid = "0x11"
{first}
[[switch]]
id = "leaf2"
role = "leaf"
dpid = "0x12"
{second}
"""


def network(tmp_path: Path, first: str, second: str, more: str = "") -> Network:
    plain = '[listen]\nplaintext = ["openflow", "ovsdb", "rest"]\n'
    file = tmp_path / "controller.toml"
    tables = LEAVES.format(first=first, second=second)
    file.write_text(f'gateway_mac = "00:00:de:ad:be:ef"\n{more}\n{plain}{tables}')
    return load(file).network()


def end(address: str) -> str:
    return f'tunnel = "vxlan0"\nendpoint = "{address}"\n'


ONE, OTHER = end("172.16.1.2"), end("172.16.2.2")


def test_leaves_with_endpoints_are_joined_by_tunnels(tmp_path: Path) -> None:
    assert type(underlay_of(network(tmp_path, ONE, OTHER))) is VxlanMesh
    assert type(underlay_of(network(tmp_path, "", ""))) is LeafSpine
    assert type(underlay_of(network(tmp_path, "", "", 'spines = "ip"'))) is LeafSpine


def test_spines_may_know_macs_alone(tmp_path: Path) -> None:
    assert type(underlay_of(network(tmp_path, "", "", 'spines = "mac"'))) is MacSpines
    with pytest.raises(ConfigError, match="what joins the leaves is not ours"):
        network(tmp_path, ONE, OTHER, 'spines = "mac"')


@pytest.mark.parametrize(
    ("more", "mtu"),
    [
        ("", 1450),
        ("mtu = 1400", 1400),
        ("mtu = 1450", 1450),
        ("mtu = 9000", 1450),
        ("mtu = 9000\nvxlan = {mtu = 9050}", 9000),
    ],
)
def test_vms_are_offered_what_the_ip_network_leaves(tmp_path: Path, more: str, mtu: int) -> None:
    assert network(tmp_path, ONE, OTHER, more).mtu == mtu


def test_without_tunnels_nothing_is_taken_off(tmp_path: Path) -> None:
    assert network(tmp_path, "", "", "mtu = 9000").mtu == 9000


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        (ONE, "", "leaf leaf2: where tunnels join the leaves"),
        ("", ONE, "leaf leaf1: where tunnels join the leaves"),
        (ONE, ONE, "the same endpoint"),
        (ONE, 'tunnel = "vxlan0"', "belong together"),
        (end("fd00::1"), OTHER, "no address of IPv4"),
        (end("here"), OTHER, "here"),
    ],
)
def test_what_does_not_fit(tmp_path: Path, first: str, second: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        network(tmp_path, first, second)
