"""Disks of VMs as the command line takes them, and as it shows them."""

import re
from typing import Any

import typer

KEYS = ("size", "image", "base", "shared", "format")
_SIZE = re.compile(r"([1-9][0-9]{0,8})([MGT])")
_MIB = {"M": 1, "G": 1 << 10, "T": 1 << 20}


def parsed(text: str) -> dict[str, Any]:
    """A disk as POST /v1/vms takes it. Raises typer.BadParameter."""
    disk: dict[str, Any] = {}
    for word in filter(None, text.split(",")):
        key, _, value = word.partition("=")
        if key not in KEYS or not value:
            known = ", ".join(f"{key}=..." for key in KEYS)
            raise typer.BadParameter(f"--disk {text}: {word} is none of {known}")
        if key in disk or (key == "size" and "size_mib" in disk):
            raise typer.BadParameter(f"--disk {text}: {key} is given twice")
        if key == "size":
            found = _SIZE.fullmatch(value)
            if found is None:
                raise typer.BadParameter(f"--disk {text}: a size is a number with M, G or T, such as 20G")
            disk["size_mib"] = int(found[1]) * _MIB[found[2]]
        else:
            disk[key] = value
    return disk


def words(disk: dict[str, Any]) -> str:
    """A disk in one line, for `vm show`."""
    kind = f", {disk['format']}" if disk["format"] != "raw" else ""
    if disk["shared"]:
        return f"{disk['shared']}{kind}, on shared storage"
    size = f"private, {shown(disk['size_mib'])}" if disk["size_mib"] else "private, as large as its base"
    if disk["image"]:
        return f"{size}, over image {disk['image']}"
    return f"{size}, over {disk['base']}{kind}" if disk["base"] else f"{size}, empty at first"


def shown(mib: int) -> str:
    """A size as people write it."""
    unit = next(unit for unit in ("T", "G", "M") if mib % _MIB[unit] == 0)
    return f"{mib // _MIB[unit]}{unit}"
