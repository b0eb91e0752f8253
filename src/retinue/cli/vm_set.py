"""`retinue vm set`: what of a registered VM its manager may change; what `vm add` shares with it."""

from typing import Annotated, Any

import typer

from retinue.cli import output
from retinue.cli.connection import Connection, connected
from retinue.cli.request_bodies import left_in
from retinue.protocol.routes import Route

Memory = Annotated[
    int | None,
    typer.Option(metavar="MIB", min=0, help="Its memory. 0: as its server's configuration has it."),
]


@connected
def set_(
    at: Connection,
    id: Annotated[str, typer.Argument(metavar="ID")],
    memory: Memory = None,
    address: Annotated[
        list[str] | None,
        typer.Option(metavar="IP", help="A static address; repeated, all of them. Others are taken away."),
    ] = None,
    no_address: Annotated[
        bool, typer.Option("--no-address", help="No static address: it asks by DHCP.")
    ] = False,
    restart: Annotated[
        str | None, typer.Option(metavar="WHEN", help="When it is started again: never, or on-crash.")
    ] = None,
    server_mac: Annotated[
        str | None,
        typer.Option(
            metavar="MAC",
            help="The physical MAC of the server it will be at: its routes go there at once. Where no agent "
            "of ours runs it.",
        ),
    ] = None,
) -> None:
    """Change a VM. Addresses change in the network at once, memory only while the VM is off.

    The guest of a VM that runs has to set new addresses itself, or is started anew: vm stop, vm start.

    \b
    Examples:
      retinue vm set vm1 --memory 256
      retinue vm set vm1 --address 10.1.0.50 --address 10.1.0.51
      retinue vm set vm1 --no-address --restart on-crash
      retinue vm set vm1 --server-mac 02:00:00:00:00:02
    """
    if address and no_address:
        raise typer.BadParameter("give --address, or --no-address")
    addresses = [] if no_address else address or None
    body = left_in(memory_mib=memory, addresses=addresses, restart=restart, server_mac=server_mac)
    if not body:
        options = "--memory, --address, --no-address, --restart, --server-mac"
        raise typer.BadParameter(f"say what is to be different: {options}")
    changed = at.client().ask(Route.SET_VM, id, body=body)
    if at.as_json:
        output.print_json(changed)
        return
    its_memory = f"{changed['memory_mib']} MiB" if changed["memory_mib"] else "memory as its server has it"
    static = ", ".join(changed["addresses"]) or "no static address"
    restarted = f"restart {changed['restart']}"
    output.say(f"VM {id} is changed: {its_memory}, {static}, {restarted}; it is {changed['state']}")
    warn(changed)


def warn(vm: dict[str, Any]) -> None:
    """Tell what the controller doubts of a VM."""
    for warning in vm.get("warnings", []):
        output.say(f"warning: VM {vm['id']}: {warning}", err=True)
