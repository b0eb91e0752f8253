"""What the laboratory needs of the machine it runs on: programs, and the right to make tap devices."""

import os
import shutil
from pathlib import Path

from retinue_lab.errors import LabError

PACKAGES = {
    "ovs-vswitchd": "openvswitch-switch",
    "ovsdb-server": "openvswitch-switch",
    "ovs-vsctl": "openvswitch-switch",
    "kea-dhcp4": "kea-dhcp4-server",
    "qemu-system-x86_64": "qemu-system-x86",
    "ip": "iproute2",
    "ethtool": "ethtool",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
}
"""Programs the lab runs, and the Debian package of each."""


def check() -> None:
    """Raise LabError that names every program that is missing, or the device that cannot be opened."""
    missing = [program for program in PACKAGES if shutil.which(program, path=search_path()) is None]
    if missing:
        packages = " ".join(sorted({PACKAGES[program] for program in missing}))
        are = "is" if len(missing) == 1 else "are"
        raise LabError(
            f"{', '.join(missing)} {are} missing: run `make install`, or as root `apt-get install {packages}`"
        )
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        raise LabError(
            "/dev/net/tun cannot be opened, so no switch can have a port of its own: run as root "
            "`modprobe tun; chmod 666 /dev/net/tun`, or run the lab as root"
        )


def search_path() -> str:
    """PATH, and beside each folder called bin its sbin: users often lack those, the programs are there."""
    folders = [folder for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if folder]
    beside = [str(Path(folder).with_name("sbin")) for folder in folders if Path(folder).name == "bin"]
    return os.pathsep.join(dict.fromkeys(folders + beside))


def program(name: str) -> str:
    """The path of one of those programs. Raises LabError when it is missing."""
    found = shutil.which(name, path=search_path())
    if found is None:
        raise LabError(f"{name} is missing: run `make install`, or install the package {PACKAGES[name]}")
    return found
