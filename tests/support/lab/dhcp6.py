"""A DHCPv6 server in a lab: Kea on the DHCP server's node; and a client's messages, made by scapy."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec
from scapy.layers.dhcp6 import (
    DUID_LL,
    DHCP6_Advertise,
    DHCP6_RelayForward,
    DHCP6_Reply,
    DHCP6_Request,
    DHCP6_Solicit,
    DHCP6OptClientId,
    DHCP6OptIA_NA,
    DHCP6OptIA_PD,
    DHCP6OptIAAddress,
    DHCP6OptIAPrefix,
    DHCP6OptIfaceId,
    DHCP6OptRelayMsg,
    DHCP6OptServerId,
)
from scapy.layers.inet import UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from retinue.core.model.link_local import link_local
from retinue_lab.topology.topology import DHCP, SANDBOX
from support.lab.relay_node import program
from support.lab.tools import LabBench, mac_of
from support.lab.watch import Frame, Wanted


@dataclass(frozen=True)
class Served:
    """A subnet, of which Kea gives out the addresses behind ::1:0."""

    id: str
    prefix: str
    gateway: str
    slaac: bool = False


NEW = Served("leased6", "fd00:6::/64", "fd00:6::fe")
"""One that no lab has."""
DELEGATED = {"prefix": "fd00:8::", "prefix-len": 48, "delegated-len": 60}
"""Prefixes of which Kea gives one to who asks."""
READY = "DHCP6_STARTED"
_RUN = "/run/retinue/dhcp6"


def configuration(leases: str, prefix: str, valid: int, renew: int) -> dict[str, Any]:
    start = prefix.partition("/")[0]
    pool = f"{start}1:0 - {start}1:ffff"
    return {
        "Dhcp6": {
            "interfaces-config": {"interfaces": ["eth0"]},
            "control-socket": {"socket-type": "unix", "socket-name": f"{_RUN}/kea.sock"},
            "lease-database": {"type": "memfile", "persist": True, "name": leases, "lfc-interval": 0},
            "server-id": {"type": "EN", "enterprise-id": 1, "identifier": "AB01", "persist": False},
            "preferred-lifetime": valid * 3 // 4,
            "valid-lifetime": valid,
            "renew-timer": renew,
            "rebind-timer": renew * 2,
            "subnet6": [{"id": 1, "subnet": prefix, "pools": [{"pool": pool}], "pd-pools": [DELEGATED]}],
            "loggers": [
                {
                    "name": "kea-dhcp6",
                    "output_options": [{"output": "stdout"}],
                    "severity": "DEBUG",
                    "debuglevel": 40,
                }
            ],
        }
    }


@contextlib.asynccontextmanager
async def running(bench: LabBench, served: Served = NEW, *, valid: int, renew: int) -> AsyncIterator[None]:
    """It serves inside the context: leases of `valid` seconds, renewed after `renew`."""
    folder = bench.lab.directory / "dhcp6"
    folder.mkdir(exist_ok=True)
    config = configuration(str(folder / "leases6.csv"), served.prefix, valid, renew)
    (folder / "kea.json").write_bytes(msgspec.json.encode(config))
    prepare = f"""
        mkdir -p {_RUN}
        ip netns exec {DHCP} sh -ec '
            echo 0 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6
            until ip -6 address show dev eth0 | grep fe80 | grep -vq tentative; do sleep 0.1; done
        '
    """
    known = {subnet["id"] for subnet in (await bench.get("subnets"))["subnets"]}
    values = {"prefix": served.prefix, "gateway": served.gateway, "slaac": served.slaac, "dhcp6": True}
    if served.id in known:
        await bench.put(f"subnets/{served.id}", values)
    else:
        await bench.post("subnets", {"id": served.id, **values})
    await bench.run(SANDBOX, "sh", "-ec", prepare)
    variables = [f"{key}={_RUN}" for key in ("KEA_PIDFILE_DIR", "KEA_LOCKFILE_DIR")]
    kea = ("env", *variables, "KEA_LOGGER_DESTINATION=stdout", "kea-dhcp6", "-c", str(folder / "kea.json"))
    async with program(bench, SANDBOX, "ip", "netns", "exec", DHCP, *kea) as told:
        await told.until(READY)
        yield


def inside(frame: Frame) -> Any:
    """What a relay hands on in this frame; None where it is none."""
    ether: Any = frame.ether
    return ether[DHCP6OptRelayMsg].message if ether.haslayer(DHCP6_RelayForward) else None


def relayed(kind: type, address: str = "", circuit: str = "") -> Wanted:
    """Picks the relay's messages that carry one of this kind, about this address, from this port."""

    def picks(frame: Frame) -> bool:
        said, ether = inside(frame), frame.ether
        if not isinstance(said, kind):
            return False
        at: Any = ether
        if circuit and at[DHCP6OptIfaceId].ifaceid != circuit.encode():
            return False
        told: Any = said
        named = [a.addr for a in told[DHCP6OptIA_NA].ianaopts] if told.haslayer(DHCP6OptIA_NA) else []
        return not address or address in named

    return picks


def said_by(mac: str, message: Any, ip: str = "", server: Any = None) -> str:
    """A client's frame in hexadecimal: from the NIC with this MAC, about this address, to this server."""
    addresses = [DHCP6OptIAAddress(addr=ip)] if ip else []
    message /= DHCP6OptClientId(duid=DUID_LL(lladdr=mac))
    if server is not None:
        message /= DHCP6OptServerId(duid=server)
    message /= DHCP6OptIA_NA(iaid=1, ianaopts=addresses)
    way = Ether(src=mac, dst="33:33:00:01:00:02") / IPv6(src=str(link_local(mac)), dst="ff02::1:2", hlim=1)
    return bytes(way / UDP(sport=546, dport=547) / message).hex()


def answered(kind: type, xid: int) -> Wanted:
    """Picks the answers that a client gets to its question."""

    def picks(frame: Frame) -> bool:
        ether: Any = frame.ether
        return bool(ether.haslayer(kind)) and ether[kind].trid == xid

    return picks


def for_prefix(mac: str, message: Any, prefix: str = "", server: Any = None) -> str:
    """As `said_by`, of a prefix (IA_PD)."""
    first, _, length = prefix.partition("/")
    named = [DHCP6OptIAPrefix(prefix=first, plen=int(length))] if prefix else []
    message /= DHCP6OptClientId(duid=DUID_LL(lladdr=mac))
    if server is not None:
        message /= DHCP6OptServerId(duid=server)
    message /= DHCP6OptIA_PD(iaid=1, iapdopt=named)
    way = Ether(src=mac, dst="33:33:00:01:00:02") / IPv6(src=str(link_local(mac)), dst="ff02::1:2", hlim=1)
    return bytes(way / UDP(sport=546, dport=547) / message).hex()


async def delegation(bench: LabBench, vm: str, server: str) -> tuple[str, Any]:
    """The prefix that a guest on this server gets by four messages, and the DUID of who gave it."""
    mac = mac_of(vm)
    async with bench.capture(server, f"tap-{vm}", "out") as tap:
        await bench.send(vm, for_prefix(mac, DHCP6_Solicit(trid=0xB1)))
        offer: Any = (await tap.until(answered(DHCP6_Advertise, 0xB1))).ether
        given, duid = offer[DHCP6OptIA_PD].iapdopt[0], offer[DHCP6OptServerId].duid
        prefix = f"{given.prefix}/{given.plen}"
        await bench.send(vm, for_prefix(mac, DHCP6_Request(trid=0xB2), prefix, duid))
        granted: Any = (await tap.until(answered(DHCP6_Reply, 0xB2))).ether
        assert granted[DHCP6OptIA_PD].iapdopt[0].prefix == given.prefix
    return prefix, duid


async def lease(bench: LabBench, vm: str, server: str) -> str:
    """The address that a guest on this server gets by four messages; it is not set there."""
    mac = mac_of(vm)
    async with bench.capture(server, f"tap-{vm}", "out") as tap:
        await bench.send(vm, said_by(mac, DHCP6_Solicit(trid=0xA1)))
        offer: Any = (await tap.until(answered(DHCP6_Advertise, 0xA1))).ether
        ip, duid = offer[DHCP6OptIA_NA].ianaopts[0].addr, offer[DHCP6OptServerId].duid
        await bench.send(vm, said_by(mac, DHCP6_Request(trid=0xA2), ip, duid))
        granted: Any = (await tap.until(answered(DHCP6_Reply, 0xA2))).ether
        assert granted[DHCP6OptIA_NA].ianaopts[0].addr == ip
    return str(ip)
