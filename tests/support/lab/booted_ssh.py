"""Booted machines that reach each other by SSH, and know each other's names, as those of a site do."""

from pathlib import Path

from support.lab.booted import Machine
from support.lab.booted_site import CONTROLLER, CONTROLLER_ADDRESS, MACHINES, SERVERS, BootedSite

KEY = "root/.ssh/id_ed25519"
ADDRESSES = {CONTROLLER: CONTROLLER_ADDRESS, **{name: at for name, (at, _) in SERVERS.items()}}
_CONFIG = "Host *\n    StrictHostKeyChecking accept-new\n"
"""A machine's host key is believed when it is first seen, as who has set it up would have said yes."""


def trust(site: BootedSite) -> Path:
    """Root of each machine is root of all; where its private key is, seen from the host."""
    first, *others = (site.machines[name] for name in MACHINES if name in site.machines.by_name)
    first.sh("mkdir -p -m 700 .ssh; ssh-keygen -q -t ed25519 -N '' -f .ssh/id_ed25519")
    for machine in (first, *others):
        _give(machine, {part: (first.files / f"{KEY}{part}").read_text() for part in ("", ".pub")})
        machine.eventually("systemctl", "is-active", "ssh", until="active")
    return first.files / KEY


def _give(machine: Machine, key: dict[str, str]) -> None:
    own = machine.files / "root/.ssh"
    own.mkdir(mode=0o700, exist_ok=True)
    files = {"id_ed25519": key[""], "authorized_keys": key[".pub"], "config": _CONFIG}
    for name, text in files.items():
        (own / name).write_text(text)
        (own / name).chmod(0o600)
    hosts = "".join(f"{address} {name}\n" for name, address in ADDRESSES.items())
    (machine.files / "etc/hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
