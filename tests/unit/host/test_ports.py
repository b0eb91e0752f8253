"""Ports of VMs on a server: what is there is looked at, and one that is busy holds nothing else up."""

import json
from collections.abc import Sequence

import pytest

from retinue.host.errors import HostError
from retinue.host.ports import LocalPorts
from retinue.host.taps import ALIAS

MAC = "52:54:00:00:00:01"


class FakeServer:
    """Its bridge and its links; `busy` taps cannot be removed."""

    def __init__(self, ports: Sequence[str] = (), taps: Sequence[str] = ()) -> None:
        self.ports, self.taps = set(ports), set(taps)
        self.ids: dict[str, dict[str, str]] = {}
        self.busy: set[str] = set()
        self.garbled = False

    async def __call__(self, argv: Sequence[str]) -> str:
        match list(argv):
            case ["ovs-vsctl", "list-ports", "br0"]:
                return "\n".join(sorted({*self.ports, "up0"}))
            case ["ip", "-j", "link", "show"]:
                links = [
                    {"ifname": "eth0"},
                    *({"ifname": tap, "ifalias": ALIAS} for tap in sorted(self.taps)),
                ]
                return "{" if self.garbled else json.dumps(links)
            case ["ovs-vsctl", "--format=json", *_]:
                rows = [[name, ["map", list(map(list, ids.items()))]] for name, ids in self.ids.items()]
                return json.dumps({"headings": ["name", "external_ids"], "data": rows})
            case ["ovs-vsctl", "--", "--if-exists", "del-port", _, port]:
                self.ports.discard(port)
            case ["ip", "tuntap", "del", "dev", tap, "mode", "tap"]:
                if tap in self.busy:
                    raise HostError(f"{tap}: Device or resource busy")
                self.taps.discard(tap)
        return ""


async def test_what_an_earlier_agent_left_is_cleared_and_one_busy_port_holds_up_no_other() -> None:
    server = FakeServer(["tap-a", "tap-b", "tap-c"], ["tap-a", "tap-b", "tap-c", "tap-lost"])
    server.busy = {"tap-a"}
    ports = LocalPorts("br0", server)
    assert await ports.clear(lambda: {"tap-c"}) == ["tap-a"]
    assert (server.ports, server.taps) == ({"tap-c"}, {"tap-a", "tap-c"})
    server.busy = set()
    assert await ports.clear(lambda: {"tap-c"}) == [], "its tap is found without a port"
    assert server.taps == {"tap-c"}


async def test_a_vm_that_comes_meanwhile_keeps_its_port() -> None:
    server = FakeServer(["tap-a", "tap-b"], ["tap-a", "tap-b"])
    here: set[str] = set()

    async def run(argv: Sequence[str]) -> str:
        if "tap-a" in argv:
            here.add("tap-b")
        return await server(argv)

    assert await LocalPorts("br0", run).clear(lambda: here) == []
    assert server.ports == {"tap-b"}


async def test_a_port_is_missing_that_is_not_as_it_was_made() -> None:
    server = FakeServer(["tap-a", "tap-b", "tap-c", "tap-d"])
    server.ids = {
        "tap-a": {"iface-id": "a", "attached-mac": MAC},
        "tap-b": {"attached-mac": MAC},
        "tap-c": {"iface-id": "c", "attached-mac": "52:54:00:00:00:09"},
        "tap-e": {"iface-id": "e", "attached-mac": MAC},
    }
    vms = dict.fromkeys("abcde", MAC)
    assert await LocalPorts("br0", server).missing(vms) == ["b", "c", "d", "e"]


async def test_a_program_that_prints_something_else_is_an_error_of_the_host() -> None:
    server = FakeServer()
    server.garbled = True
    with pytest.raises(HostError, match="not the JSON"):
        await LocalPorts("br0", server).clear(set)
