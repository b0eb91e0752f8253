"""What of the pages is typed by tests, how, and what is not, with the reason that stands on the page.

Above a block of commands that no session here types there is a comment on the page:

    <!-- run by: tests/lab/test_demo.py -->      a test of its own runs it, as it stands there
    <!-- as in: tests/lab/test_san.py -->        a test does the same with names and numbers of its own
    <!-- not run: a measurement of an hour -->   it cannot be run in a test
"""

from dataclasses import dataclass

from support.pages import section, text

UP = "```\n$ retinue lab up\n{}```\n"
VMS = "$ retinue vm add vm1 --server server1 --wait\n$ retinue vm add vm2 --server server3 --wait\n"
BOTH = f"""{VMS}$ retinue vm list
VM  MAC  IP  SERVER  SWITCH  PORT  STATE  MOVE  SPOOFED
vm1  52:54:00:7b:11:e3  10.1.0.100  server1  edge1  2  running  -  -
vm2  52:54:00:36:d0:1e  10.1.0.101  server3  edge3  2  running  -  -
"""
"""The VMs of the tutorial, with which other pages go on."""
SEVERAL = "".join(
    f"$ retinue vm add {vm} --server server2\n" for vm in ("vm1", "dhcp1", "lb1", "lb2", "k8s1")
)
"""Those of which docs/networks.md says something."""
TAKEN_OUT = """```
$ retinue lab exec server3 -- ovs-ofctl -O OpenFlow14 del-flows br0 table=30,ip,nw_dst=10.1.0.101
```
"""
"""Somebody changes a switch."""
NETWORKS = (
    *("Vnets and subnets", "VRFs", "Gateway groups", "Broadcast and multicast", "Ports", "Prefixes"),
    *("Anycast", "Addresses that several may take", "A guest that changes its MAC", "A pool of pairs"),
)


@dataclass(frozen=True)
class Session:
    """`typed`: Markdown with what is typed, a page's own and what must be there before it."""

    typed: str
    here: tuple[tuple[str, str], ...] = ()
    """What a command has in place of what the page shows: patterns, and what stands for them here."""
    programs: tuple[str, ...] = ()
    """Without which it is skipped."""


def of(page: str, *headings: str) -> str:
    """What stands under these headings of a page."""
    return "".join(section(f"docs/{page}.md", heading) for heading in headings)


SESSIONS: dict[str, Session] = {
    "tutorial": Session(text("docs/tutorial.md")),
    "README": Session(section("README.md", "A first session")),
    "trace": Session(
        UP.format(BOTH)
        + of("trace", "A way", "Where it ends")
        + TAKEN_OUT
        + of("trace", "By what switches hold")
    ),
    "mobility": Session(UP.format("") + of("mobility", "A session")),
    "networks": Session(UP.format(SEVERAL) + of("networks", *NETWORKS)),
    "switches": Session(UP.format("") + of("operators", "Switches and links that come and go")),
    "tags": Session(
        UP.format(
            "$ retinue vnet add shop --vlan 42\n"
            "$ retinue vm add web --server server1 --nic vnet=shop --wait\n"
            "$ retinue lab exec server1 -- ovs-vsctl set port tap-web tag=43\n"
        )
        + of("networks", "VLAN tags of libvirt")
    ),
    "trunks": Session(UP.format("$ retinue vrf add red\n") + of("networks", "Trunks")),
}

_GUEST = section("docs/tutorial.md", "3. A spoofing attempt").split("```")[1]
"""The shell's function `ask`."""
FORGES = (
    """$ ask vmdriver.sock '{"do": "guest", "vm": "vm1", "command":"""
    """ "ip address add 10.1.0.77/32 dev eth0; ping -c 3 -W 1 -I 10.1.0.77 10.1.0.254"}'\n"""
)
"""vm1 sends what is not its own, which is dropped."""
END_ONE = """retinue lab exec sandbox -- kill $(retinue lab status --json | python3 -c 'import json, sys
print(*(one["pid"] for one in json.load(sys.stdin)["daemons"] if one["name"] == sys.argv[1]))' {})
"""
"""Ends a program of the laboratory."""
LIBVIRT = ("libvirtd", "virsh")


def agent_of(server: str, verb: str) -> tuple[str, str]:
    """A command at a server, by the file of its agent here."""
    own = f"/tmp/retinue-labs/default/agents/{server}/agent.toml"
    there = rf"retinue lab exec {server} -- \1 --config {own}"
    return f"^(retinue agent {verb}.*) --config /etc/retinue/agent.toml", there


SESSIONS |= {
    "lab": Session(UP.format(VMS) + of("lab", "Up, look, down", "Nodes", "VMs")),
    "vxlan": Session(of("lab", "Over an IP network")),
    "tor": Session(of("lab", "Beside routers")),
    "libvirt": Session(of("libvirt", "The laboratory"), programs=LIBVIRT),
    "domains": Session(of("domains", "A session")),
    "web": Session(
        of("web", "In the laboratory"),
        here=(("^retinue lab web$", "timeout --preserve-status --signal=INT 20 retinue lab web"),),
    ),
    "cluster": Session(
        "```\n$ retinue lab up --controllers 2\n```\n"
        + of("high-availability", "What is needed", "Who is active"),
        here=(
            (" --url https://192.0.2.1:8080,https://192.0.2.2:8080", ""),
            ("/etc/retinue/|/var/lib/retinue/", ""),
        ),
    ),
    "storage": Session(of("storage", "In the laboratory")),
    "images": Session(
        UP.format("$ head -c 30M /dev/urandom > debian-12.raw; truncate -s 96M debian-12.raw\n")
        + of("images", "A session")
    ),
    "disks": Session(
        UP.format("$ head -c 1M /dev/urandom > debian.raw; truncate -s 8M debian.raw\n")
        + of("disks", "Add a VM with disks"),
    ),
    "ipv6": Session("```\n$ retinue lab up --topology dual-stack\n```\n" + of("ipv6", "How to say it")),
    "certificates": Session(
        UP.format("$ mkdir tokens\n$ cp /tmp/retinue-labs/default/controller.toml .\n")
        + of("operators", "The controller").split("\n### ")[0]
        + of("operators", "Certificates"),
        here=(
            ("/root/pki", "own-pki"),
            ("/etc/retinue/", "tokens/"),
            ("--(ca|cert|key) ", "--\\1 /tmp/retinue-labs/default/pki/"),
            ("manager-anna", "manager-lab"),
            (" --url https://192.0.2.1:8080$", ""),
        ),
    ),
    "on call": Session(
        UP.format(
            VMS
            + "$ retinue vm add vm3 --server server2 --wait\n"
            + "$ retinue server drain server3\n"
            + FORGES
            + f"$ {END_ONE.format('server2-agent')}"
        ).replace("$ ask", f"```\n```{_GUEST}```\n```\n$ ask")
        + of("operators", "What is wrong", "Spoofing attempts")
    ),
    "others": Session(
        UP.format("") + of("operators", "VMs that others made"), here=(agent_of("server3", "report"),)
    ),
    "servers": Session(
        UP.format(BOTH)
        + of("operators", "NICs", "VMs that write faster than they are copied")
        + of("operators", "A server without VMs")
    ),
    "dead": Session(
        UP.format("$ retinue vm add vm1 --mac 52:54:00:00:00:01 --server server2 --wait\n")
        + of("operators", "A server that is dead")
    ),
    "links": Session(
        UP.format(
            "$ retinue lab exec fabric -- tc qdisc add dev leaf1-spine1 root tbf rate 8bit burst 1 limit 1\n"
        )
        + of("operators", "Links that lose frames")
    ),
    "leases": Session(
        UP.format(BOTH) + of("renewal", "What the agent keeps"), here=(agent_of("server1", "leases"),)
    ),
    "choosing": Session(of("choosing", "A network of others between the servers")),
}
