"""`retinue vm nic`: NICs of VMs; and how `retinue vm add --nic mac=MAC,address=IP` has them."""

import hashlib
from typing import Annotated, Any

import typer

from retinue.cli import options, output
from retinue.cli.connection import Connection, connected
from retinue.cli.request_bodies import left_in
from retinue.protocol.routes import Route

app = options.group("NICs of a VM: put one in, change one, take one out, also while it runs.")

KEYS = ("mac", "address", "id", "vnet", "enabled", "trunk")
"""What may be said of a NIC; `address` may be repeated."""
_BOOLEAN = {"yes": True, "no": False, "true": True, "false": False}


def mac_for(id: str) -> str:
    """A MAC address that is always the same for the same id, from the locally administered 52:54:00 block."""
    return "52:54:00:" + hashlib.sha256(id.encode()).digest()[:3].hex(":")


def parsed(text: str, port_id: str) -> dict[str, Any]:
    """A NIC as POST /v1/vms takes it; without a MAC it gets one made from the id of its port.

    Raises typer.BadParameter.
    """
    nic: dict[str, Any] = {}
    for word in filter(None, text.split(",")):
        key, equals, value = word.partition("=")
        if key not in KEYS or not equals:
            raise typer.BadParameter(f"--nic {text}: {word} is none of {', '.join(f'{k}=...' for k in KEYS)}")
        if key == "address":
            nic.setdefault("addresses", []).append(value)
        elif key in nic:
            raise typer.BadParameter(f"--nic {text}: {key} is given twice")
        elif key == "enabled" and value not in _BOOLEAN:
            raise typer.BadParameter(f"--nic {text}: enabled is yes or no, not {value}")
        else:
            nic[key] = _BOOLEAN[value] if key == "enabled" else value
    return {"mac": mac_for(nic.get("id") or port_id)} | nic


def is_set(nic: dict[str, Any]) -> bool:
    """True where something is said of a NIC that most have not."""
    names = ("vnet", "rate", "allowed", "prefixes", "trusted", "trunk", "mac_changes", "mirror", "anycast")
    return any(nic.get(name) for name in names) or not nic["enabled"]


def words(nic: dict[str, Any]) -> str:
    """A NIC in one line, for `vm show`."""
    where = f"port {nic['port']}" if nic.get("port") is not None else "no port yet"
    vnet = f" in {nic['vnet']}" if nic["vnet"] else ""
    vnet += f", VLAN {nic['vlan']} in the trunk of {nic['trunk']}" if nic.get("trunk") else ""
    holds = ", ".join(nic["holds"]) or "no address"
    rate = f", {nic['rate']} kbit/s" if nic.get("rate") else ""
    may = ", ".join(one["address"] for one in nic.get("allowed", ()))
    allowed = f", may take {may}" if may else ""
    allowed += f", has {', '.join(nic['prefixes'])} routed to it" if nic.get("prefixes") else ""
    if nic.get("anycast"):
        allowed += f", shares {', '.join(nic['anycast'])} (load {nic['load']})"
    allowed += ", a DHCP server" if nic.get("trusted") else ""
    allowed += ", may change its MAC" if nic.get("mac_changes") else ""
    allowed += f", copied to {nic['mirror']}" if nic.get("mirror") else ""
    return f"{nic['mac']}{vnet}, {where}: {holds}{rate}{allowed}{'' if nic['enabled'] else ' (disabled)'}"


Vm = Annotated[str, typer.Argument(metavar="VM", help="The VM's name.")]
Nic = Annotated[str, typer.Argument(metavar="NIC", help="The NIC's id, as `retinue vm show` has it.")]


@app.command()
@connected
def add(
    at: Connection,
    vm: Vm,
    mac: Annotated[
        str | None, typer.Option(metavar="MAC", help="Its MAC address. Left out: one made from its id.")
    ] = None,
    address: Annotated[
        list[str] | None,
        typer.Option(metavar="IP", help="A static address; may be repeated. Left out: it asks by DHCP."),
    ] = None,
    id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="The id of its port. Left out: VM-2 and so on.")
    ] = None,
    vnet: Annotated[str | None, typer.Option(metavar="VNET", help="The vnet it is in.")] = None,
    trunk: Annotated[
        str | None,
        typer.Option(
            metavar="NIC",
            help="The VM's NIC by whose port it goes, with its vnet's VLAN as tag. Left out: it has a port.",
        ),
    ] = None,
) -> None:
    """Put a NIC into a VM; into one that runs it is plugged at once.

    \b
    Examples:
      retinue vm nic add vm1
      retinue vm nic add vm1 --mac 52:54:00:00:00:02 --address 10.1.0.51
      retinue vm nic add vm1 --trunk vm1 --vnet shop
    """
    controller = at.client()
    if mac is None:
        taken = [nic["id"] for nic in controller.ask(Route.GET_VM, vm)["nics"]]
        mac = mac_for(id or next(name for n in range(2, 99) if (name := f"{vm}-{n}") not in taken))
    body: dict[str, Any] = {"mac": mac, "addresses": address or []}
    body |= {key: value for key, value in (("id", id), ("vnet", vnet), ("trunk", trunk)) if value}
    _say(at, controller.ask(Route.ADD_NIC, vm, body=body))


@app.command("set")
@connected
def set_(
    at: Connection,
    vm: Vm,
    nic: Annotated[str, typer.Argument(metavar="NIC", help="Its id. Left out: the VM's first.")] = "",
    address: Annotated[
        list[str] | None, typer.Option(metavar="IP", help="Its static addresses; may be repeated.")
    ] = None,
    no_address: Annotated[bool, typer.Option("--no-address", help="No static address any more.")] = False,
    vnet: Annotated[str | None, typer.Option(metavar="VNET", help="Another vnet.")] = None,
    enabled: Annotated[
        bool | None,
        typer.Option("--enable/--disable", help="Whether its port lets anything in or out, wherever it is."),
    ] = None,
    trusted: Annotated[
        bool | None,
        typer.Option("--trust/--no-trust", help="Whether it is a DHCP server, whose messages are believed."),
    ] = None,
    rate: Annotated[
        int | None, typer.Option(metavar="KBIT", help="Kilobits a second, in each direction; 0: any.")
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="IP[=MAC]",
            help="An address it may take by announcing it (VRRP); may be repeated. Takes the place of those "
            "before; none: no address.",
        ),
    ] = None,
    prefix: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PREFIX",
            help="A prefix that is routed to it, from which it may send; may be repeated. Takes the place of "
            "those before; none: no prefix.",
        ),
    ] = None,
    anycast: Annotated[
        list[str] | None,
        typer.Option(
            metavar="IP",
            help="An address, in no subnet, that it has together with other NICs: each leaf sends to the "
            "nearest. May be repeated. Takes the place of those before; none: no address.",
        ),
    ] = None,
    load: Annotated[
        int | None,
        typer.Option(metavar="NUMBER", help="Of NICs that are equally near the least loaded is sent to."),
    ] = None,
    mac: Annotated[
        str | None,
        typer.Option(metavar="MAC", help="Another MAC, of a NIC without a port; what it holds stays."),
    ] = None,
    mac_changes: Annotated[
        bool | None,
        typer.Option(
            "--mac-changes/--no-mac-changes",
            help="Whether its guest may give it another MAC: seen at its port, it replaces the old.",
        ),
    ] = None,
    mirror: Annotated[
        str | None,
        typer.Option(
            metavar="PORT",
            help="The port called so at the switch of its server, wherever that is, takes a copy of its "
            'traffic, such as mirror0; "": none.',
        ),
    ] = None,
) -> None:
    """Change a NIC of a VM: what is left out stays. It stays so through migrations and restarts.

    \b
    Examples:
      retinue vm nic set vm1 vm1-2 --address 10.1.0.51
      retinue vm nic set vm1 --disable
      retinue vm nic set vm1 --rate 100000
      retinue vm nic set dhcp1 --trust
      retinue vm nic set lb1 --allow 10.1.0.200 --allow 10.1.0.201=00:00:5e:00:01:07
      retinue vm nic set k8s1 --prefix 10.9.0.0/28 --prefix fd00:9::/64
      retinue vm nic set web1 --anycast 10.9.9.9 --load 20
      retinue vm nic set vm1 vm1-2 --mac 52:54:00:00:00:99
      retinue vm nic set vm1 --mac-changes
      retinue vm nic set vm1 --mirror mirror0
    """
    if address and no_address:
        raise typer.BadParameter("--address and --no-address contradict each other")
    wanted = left_in(
        addresses=[] if no_address else address or None,
        vnet=vnet,
        enabled=enabled,
        trusted=trusted,
        rate=rate,
        allowed=None if allow is None else allowed(allow),
        prefixes=None if prefix is None else [one for one in prefix if one != "none"],
        anycast=None if anycast is None else [one for one in anycast if one != "none"],
        load=load,
        mac=mac,
        mac_changes=mac_changes,
        mirror=mirror,
    )
    if not wanted:
        raise typer.BadParameter("say what is to be different: `retinue vm nic set --help` has all of it")
    _say(at, at.client().ask(Route.SET_NIC, vm, body={"nic": nic} | wanted))


@app.command()
@connected
def remove(at: Connection, vm: Vm, nic: Nic) -> None:
    """Take a NIC out of a VM, also out of one that runs: its bindings and flows are deleted.

    \b
    Example:
      retinue vm nic remove vm1 vm1-2
    """
    _say(at, at.client().ask(Route.REMOVE_NIC, vm, body={"nic": nic}))


def _say(at: Connection, vm: dict[str, Any]) -> None:
    if at.as_json:
        output.print_json(vm)
        return
    for one in vm["nics"]:
        output.say(f"NIC {one['id']}: {words(one)}")


def allowed(texts: list[str]) -> list[dict[str, str]]:
    """`10.1.0.200` and `10.1.0.201=00:00:5e:00:01:07` for POST /v1/vms/{id}/nics/set; `none`: no address."""
    if texts == ["none"]:
        return []
    parts = [text.partition("=") for text in texts]
    return [{"address": ip, "mac": mac} if mac else {"address": ip} for ip, _, mac in parts]


__all__ = ["allowed", "app", "mac_for", "parsed", "words"]
