"""Ports of VMs on this server's edge switch (agent.vms.local_vm.Ports)."""

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

import structlog

from retinue.host.commands import run
from retinue.host.errors import HostError
from retinue.host.taps import ALIAS, Run, add_port, remove_port, rx_frames, tap_name

log = structlog.get_logger()


class LocalPorts:
    """Programs find Open vSwitch by themselves (OVS_RUNDIR in the environment, where it is elsewhere)."""

    def __init__(self, bridge: str, run: Run = run) -> None:
        self._bridge = bridge
        self._run = run

    async def add(self, nic: str, mac: str, vm: str = "") -> None:
        await add_port(self._run, bridge=self._bridge, tap=tap_name(nic), nic=nic, mac=mac, vm=vm or nic)

    async def remove(self, nic: str) -> None:
        await remove_port(self._run, bridge=self._bridge, tap=tap_name(nic))

    async def rx_frames(self, nic: str) -> int:
        return await rx_frames(self._run, tap_name(nic))

    async def missing(self, nics: Mapping[str, str]) -> list[str]:
        """Those of these NICs, given with their MACs, whose port is not in the bridge as it was made."""
        plugged = await self._in_bridge()
        ids = await self._ids_of_interfaces()
        return [
            nic
            for nic, mac in nics.items()
            if tap_name(nic) not in plugged or ids.get(tap_name(nic)) != (nic, mac)
        ]

    async def clear(self, but: Callable[[], Collection[str]]) -> list[str]:
        """Remove ports that an earlier agent made, except these; those that could not be removed.

        `but` is asked before each: a VM may come meanwhile.

        A tap that has lost its port is found by its alias.
        """
        stale = {port for port in await self._in_bridge() if port.startswith("tap-")} | await self._our_taps()
        left = []
        for port in sorted(stale):
            if port in but():
                continue
            try:
                await remove_port(self._run, bridge=self._bridge, tap=port)
            except HostError as error:
                log.error("port.not_removed", port=port, error=str(error))
                left.append(port)
        return left

    async def _in_bridge(self) -> set[str]:
        return set((await self._run(["ovs-vsctl", "list-ports", self._bridge])).split())

    async def _our_taps(self) -> set[str]:
        links: list[dict[str, Any]] = _json(await self._run(["ip", "-j", "link", "show"]))
        return {str(link.get("ifname")) for link in links if link.get("ifalias") == ALIAS}

    async def _ids_of_interfaces(self) -> dict[str, tuple[str, str]]:
        """By name of an interface: the NIC and the MAC that it is for."""
        columns = "--columns=name,external_ids"
        table = _json(await self._run(["ovs-vsctl", "--format=json", columns, "list", "Interface"]))
        found = {}
        for name, (_, ids) in table["data"]:
            by_key = dict(ids)
            found[name] = (by_key.get("iface-id", ""), by_key.get("attached-mac", ""))
        return found


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise HostError(f"what a program prints is not the JSON that was asked for: {text!r:.200}") from error
