"""What a laboratory could leave on the host."""

import json
import os
import subprocess
from pathlib import Path


def host() -> dict[str, str]:
    """As text; without the network that the tests of QEMU have there."""

    def said(*argv: str) -> str:
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

    links = [link["ifname"] for link in json.loads(said("ip", "-json", "link"))]
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return {
        "links": str(links),
        "netns": str([line for line in said("ip", "netns").splitlines() if "retinue-bench-" not in line]),
        "mounts": str([mount for mount in mounts if not mount.split()[1].startswith("/run/netns")]),
        "name": os.uname().nodename,
    }
