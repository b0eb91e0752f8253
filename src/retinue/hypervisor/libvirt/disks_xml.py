"""The disks of VMs of ours in a libvirt domain's XML: pure functions.

A private disk is known in a domain by its alias, which is ours to give: `ua-private1` is the first. Where its
file is may be another path on each server, so that a migration's target has to be told (`with_files`).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from xml.etree import ElementTree

import msgspec

from retinue.core.limits import LONGEST_PATH, MOST_DISKS
from retinue.hypervisor.errors import HypervisorError
from retinue.hypervisor.interface import DiskSpec

_PRIVATE, _SHARED = (re.compile(rf"ua-{kind}([1-9][0-9]{{0,2}})") for kind in ("private", "shared"))
FilePath = Annotated[str, msgspec.Meta(pattern=f"^(/[!-~]{{1,{LONGEST_PATH - 1}}})?$")]


class DiskFiles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a disk is on one server, as its agent tells another."""

    number: Annotated[int, msgspec.Meta(ge=1, le=MOST_DISKS)]
    path: FilePath
    base: FilePath = ""
    """What its overlay is over; "": nothing."""


def files_of(disks: Sequence[DiskSpec]) -> list[dict[str, Any]]:
    """As `said_files` reads it."""
    found = [DiskFiles(disk.number, str(disk.path), str(disk.base or "")) for disk in disks]
    return [msgspec.to_builtins(one) for one in found]


def said_files(said: object) -> dict[int, DiskFiles]:
    """By number, what another server's agent says of its files. Raises HypervisorError."""
    try:
        found = msgspec.convert(said, Annotated[list[DiskFiles], msgspec.Meta(max_length=MOST_DISKS)])
    except msgspec.ValidationError as error:
        raise HypervisorError(
            f"the target says otherwise than expected where its disks are: {error}"
        ) from error
    return {disk.number: disk for disk in found}


def said_shared(said: object) -> dict[int, str]:
    """By number, the files of shared disks that another server's agent has seen to be the same there. Raises
    HypervisorError."""
    try:
        found = msgspec.convert(said, Annotated[list[DiskFiles], msgspec.Meta(max_length=MOST_DISKS)])
        return {disk.number: disk.path for disk in found}
    except msgspec.ValidationError as error:
        raise HypervisorError(
            f"the target says otherwise than expected which disks it has: {error}"
        ) from error


def all_are_ours(xml: str, shared: Mapping[int, str]) -> bool:
    """Each disk of a domain is a private one of ours, or one of those shared files, by number: there is none
    of which only libvirt knows whether the target has it. After a snapshot a disk is another file."""
    for disk in _parsed(xml).iterfind("devices/disk"):
        alias, source = disk.find("alias"), disk.find("source")
        name = "" if alias is None else alias.get("name", "")
        file = "" if source is None else source.get("file", "")
        its = _SHARED.fullmatch(name)
        if not _PRIVATE.fullmatch(name) and (not file or its is None or shared.get(int(its[1])) != file):
            return False
    return True


def disk_element(disk: DiskSpec) -> ElementTree.Element:
    """A guest is told of a full disk as of any other fault: who would resume a VM that was stopped for it?"""
    element = ElementTree.Element("disk", type="file", device="disk")
    errors = {"error_policy": "report", "rerror_policy": "report"}
    _add(element, "driver", {"name": "qemu", "type": disk.format, "discard": "unmap", **errors})
    _add(element, "source", {"file": str(disk.path)})
    if disk.format == "qcow2":
        # Said in any case: what a file's header says is not asked.
        element.append(_backing(str(disk.base or ""), disk.base_format))
    _add(element, "target", {"dev": _device(disk.number), "bus": "virtio"})
    ElementTree.SubElement(element, "serial").text = disk.node
    _add(element, "alias", {"name": f"ua-{'private' if disk.private else 'shared'}{disk.number}"})
    return element


def private_disks(xml: str) -> dict[int, tuple[str, str]]:
    """By number, a domain's private disks: what the guest's is called (`vda`), and the file."""
    found = {}
    for number, disk in _private(_parsed(xml)).items():
        target, source = disk.find("target"), disk.find("source")
        if target is not None and source is not None:
            found[number] = (target.get("dev", ""), source.get("file", ""))
    return found


def with_files(xml: str, files: Mapping[int, DiskFiles]) -> str:
    """The domain as it is to be where its private disks are these files. Raises HypervisorError."""
    domain = _parsed(xml)
    for number, disk in _private(domain).items():
        source, backing, there = disk.find("source"), disk.find("backingStore"), files.get(number)
        if there is None or source is None:
            raise HypervisorError(f"the target does not say where disk {number} is")
        source.set("file", there.path)
        format = None if backing is None else backing.find("format")
        if backing is not None:
            place = list(disk).index(backing)
            disk.remove(backing)
            disk.insert(place, _backing(there.base, "raw" if format is None else format.get("type", "raw")))
    return ElementTree.tostring(domain, encoding="unicode")


def _private(domain: ElementTree.Element) -> dict[int, ElementTree.Element]:
    found = {}
    for disk in domain.iterfind("devices/disk"):
        alias = disk.find("alias")
        its = None if alias is None else _PRIVATE.fullmatch(alias.get("name", ""))
        if its is not None:
            found[int(its[1])] = disk
    return found


def _backing(base: str, format: str) -> ElementTree.Element:
    element = ElementTree.Element("backingStore")
    if base:
        element.set("type", "file")
        _add(element, "format", {"type": format})
        _add(element, "source", {"file": base})
        _add(element, "backingStore", {})
    return element


def _parsed(xml: str) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise HypervisorError(f"libvirt describes a VM as we do not know it: {error}") from error


def _device(number: int) -> str:
    return f"vd{chr(ord('a') + number - 1)}"


def _add(parent: ElementTree.Element, name: str, attributes: dict[str, str]) -> None:
    ElementTree.SubElement(parent, name, attributes)


__all__ = [
    *("DiskFiles", "all_are_ours", "disk_element", "files_of", "private_disks"),
    *("said_files", "said_shared", "with_files"),
]
