"""The configuration says that leaves are routers which are not ours, and whether edges rewrite."""

from pathlib import Path

import pytest

from retinue.config_file import ConfigError
from retinue.controller.config import Config, load
from retinue.core.pipeline.underlay import underlay_of
from retinue.core.pipeline.underlay.routers import PlainRouters

HEAD = 'gateway_mac = "00:00:de:ad:be:ef"\n{more}\n[listen]\nplaintext = ["openflow", "ovsdb", "rest"]\n'
ROUTERS = """
[[switch]]
id = "tor1"
role = "leaf"
router = ["ssh", "root@tor1", "python3", "linux_router.py"]
[[switch]]
id = "tor2"
role = "leaf"
router = ["ssh", "root@tor2", "python3", "linux_router.py"]
[[switch]]
id = "edge1"
role = "edge"
dpid = "0x31"
uplink = "up0"
"""
SERVER = """
[[server]]
id = "server1"
mac = "02:00:00:00:00:01"
address = "10.0.0.11"
edge = "edge1"
at = "tor1:eth1"
"""


def loaded(tmp_path: Path, tables: str, more: str = "") -> Config:
    file = tmp_path / "controller.toml"
    file.write_text(HEAD.format(more=more) + tables)
    return load(file)


def test_leaves_with_a_router_are_routers(tmp_path: Path) -> None:
    config = loaded(tmp_path, ROUTERS + SERVER)
    net = config.network()
    assert type(underlay_of(net)) is PlainRouters
    assert config.routers()["tor2"] == ["ssh", "root@tor2", "python3", "linux_router.py"]
    assert net.switches["tor1"].endpoint != net.switches["tor2"].endpoint
    assert net.mtu == 1500, "there is no tunnel"


@pytest.mark.parametrize(
    ("tables", "why"),
    [
        (
            ROUTERS.replace('router = ["ssh", "root@tor2", "python3", "linux_router.py"]', 'dpid = "0x12"'),
            "all",
        ),
        (ROUTERS.replace('id = "tor1"\n', 'id = "tor1"\ndpid = "0x11"\n'), "beside `router` there is only"),
        (ROUTERS.replace('role = "leaf"', 'role = "spine"', 1), "a router that is not ours is a leaf"),
        (ROUTERS.replace('dpid = "0x31"', ""), "datapath id"),
        (ROUTERS + SERVER.replace('at = "tor1:eth1"', ""), "say at which port"),
        (ROUTERS + SERVER.replace('address = "10.0.0.11"', ""), "next hop"),
    ],
)
def test_what_makes_no_network_is_rejected(tmp_path: Path, tables: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        loaded(tmp_path, tables).network()


def test_the_rewrite_is_there_unless_it_is_switched_off(tmp_path: Path) -> None:
    assert loaded(tmp_path, ROUTERS).network().rewrites
    assert not loaded(tmp_path, ROUTERS, "rewrite = false").network().rewrites
