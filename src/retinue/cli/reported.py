"""What servers report of VMs that others made: `retinue agent report`, and `retinue vm confirm`."""

from pathlib import Path
from typing import Annotated

import typer

from retinue.cli import output
from retinue.cli.connection import Connection, connected
from retinue.cli.errors import CliError
from retinue.cli.options import Json
from retinue.protocol.routes import Route

ANSWER_LIMIT = 15.0
"""Seconds for the agent's answer, which asks the controller, or a manager, first."""


def report(
    vm: Annotated[str, typer.Argument(metavar="ID", help="The iface-id of the VM's port, or of its first.")],
    mac: Annotated[str, typer.Option(metavar="MAC", help="Of the NIC that is meant.")],
    config: Annotated[Path, typer.Option(metavar="FILE", help="The agent's configuration (TOML).")],
    address: Annotated[
        list[str] | None,
        typer.Option(metavar="IP", help="A static address its guest uses; repeated, all of them."),
    ] = None,
    gone: Annotated[bool, typer.Option("--gone", help="The VM is no more.")] = False,
    as_json: Json = False,
) -> None:
    """Tell the controller of a VM that was made at this server, without it: for hooks of other managers.

    The agent adds this server's own MAC. Addresses wait for a manager (retinue vm confirm).
    To be run on the server, as the agent's user, once for each NIC.

    \b
    Examples:
      retinue agent report vm100 --mac bc:24:11:00:00:64 --address 10.1.0.64 --config /etc/retinue/agent.toml
      retinue agent report vm100 --mac bc:24:11:00:00:64 --gone --config /etc/retinue/agent.toml
    """
    from retinue.agent.admin_socket import SOCKET
    from retinue.agent.config import load
    from retinue.config_file import ConfigError
    from retinue.protocol.json_lines import RequestError, ask_blocking

    said = {"vm": vm, "mac": mac, "addresses": address or [], "gone": gone}
    try:
        known = load(config)
        where = Path(known.folder) / SOCKET
        told = ask_blocking(where, f"the agent of {known.server}", ANSWER_LIMIT, do="report", **said)
    except (ConfigError, RequestError) as error:
        raise CliError(str(error)) from error
    if as_json:
        output.print_json(told)
        return
    output.say(f"VM {vm} is reported{' to be gone' if gone else ''} at server {known.server}")
    if told["waiting"]:
        output.say(f"to be confirmed by a manager: {', '.join(told['waiting'])} (retinue vm confirm {vm})")


@connected
def confirm(
    at: Connection,
    id: Annotated[str, typer.Argument(metavar="ID")],
    address: Annotated[
        list[str] | None,
        typer.Option(metavar="IP", help="Which of the reported; repeated. Left out: those that wait now."),
    ] = None,
) -> None:
    """Confirm the static addresses that a VM's server has reported: from now on they are the VM's.

    `retinue vm show` has those that wait. Without --address they are shown, and are these that are sent.

    \b
    Examples:
      retinue vm confirm vm100
      retinue vm confirm vm100 --address 10.1.0.64
    """
    client = at.client()
    if address is None:
        address = client.ask(Route.GET_VM, id)["reported_addresses"]
        if address and not at.as_json:
            output.say(f"the server of VM {id} has reported {', '.join(address)}")
    changed = client.ask(Route.CONFIRM_VM, id, body={"addresses": address})
    if at.as_json:
        output.print_json(changed)
        return
    output.say(f"VM {id} has {', '.join(ip for nic in changed['nics'] for ip in nic['addresses'])}")
