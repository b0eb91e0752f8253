"""NICs put into and taken out of a libvirt domain that runs, whoever made it.

A NIC is known by its interface's id, as everywhere (`domain_xml`). What others have put in besides stays.
"""

import asyncio
import time
from collections.abc import Collection, Sequence
from typing import Any
from xml.etree import ElementTree

from retinue.hypervisor.errors import HypervisorError
from retinue.hypervisor.interface import NICSpec
from retinue.hypervisor.libvirt.connection import LibvirtHost
from retinue.hypervisor.libvirt.domain_xml import interface_element, interface_ids

AFFECT_LIVE = 1
"""VIR_DOMAIN_AFFECT_LIVE."""
UNPLUG_LIMIT = 10.0
"""Seconds that a guest may take to let a NIC go."""
LOOK_SECONDS = 0.05


async def set_nics(
    host: LibvirtHost, domain: Any, vm: str, wanted: Sequence[NICSpec], gone: Collection[str]
) -> None:
    """Attach those of these NICs that are not there, and detach those that are to go. Raises
    HypervisorError."""
    xml = await host.call(domain.XMLDesc, 0)
    there = interface_ids(xml)
    for id in there:
        if id in gone and id != vm:
            await host.call(domain.detachDeviceFlags, _interface(xml, id), AFFECT_LIVE)
            await _until_let_go(host, domain, vm, id)
    for nic in wanted:
        if nic.id not in there:
            element = interface_element(nic, _bridge(xml))
            text = ElementTree.tostring(element, encoding="unicode")
            await host.call(domain.attachDeviceFlags, text, AFFECT_LIVE)


async def _until_let_go(host: LibvirtHost, domain: Any, vm: str, id: str) -> None:
    until = time.monotonic() + UNPLUG_LIMIT
    while id in interface_ids(await host.call(domain.XMLDesc, 0)):
        if time.monotonic() > until:
            raise HypervisorError(
                f"VM {vm}: its guest has not let go of NIC {id} within {UNPLUG_LIMIT:.0f} s"
            )
        await asyncio.sleep(LOOK_SECONDS)


def _interface(xml: str, id: str) -> str:
    for interface in ElementTree.fromstring(xml).iterfind("devices/interface"):
        parameters = interface.find("virtualport/parameters")
        if parameters is not None and parameters.get("interfaceid") == id:
            return ElementTree.tostring(interface, encoding="unicode")
    raise HypervisorError(f"libvirt shows no interface {id}")


def _bridge(xml: str) -> str:
    """The bridge that the domain's other interfaces are in."""
    source = ElementTree.fromstring(xml).find("devices/interface/source[@bridge]")
    bridge = None if source is None else source.get("bridge")
    if not bridge:
        raise HypervisorError("libvirt shows no interface in a bridge, so it is not known where one goes")
    return bridge
