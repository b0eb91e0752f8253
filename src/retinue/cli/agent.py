"""`retinue agent`: what runs beside the hypervisor, and single things it does."""

import time
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retinue.cli import options, output
from retinue.cli.connection import Connection, connected
from retinue.cli.errors import CliError
from retinue.cli.reported import report

if TYPE_CHECKING:
    from retinue.agent.config import AgentConfig
    from retinue.core.lease_renewal import Lease

ANSWER_LIMIT = 10.0
"""Seconds for the agent's answer."""

app = options.group(
    "Agents of servers: run one; renew a VM's lease now; the leases that it keeps; VMs that others made."
)
app.command()(report)


@app.command()
def run(
    config: Annotated[Path, typer.Option(metavar="FILE", help="The agent's configuration (TOML).")],
) -> None:
    """Run the agent of a server in the foreground until it is ended (SIGTERM, or Ctrl-C).

    \b
    Example:
      retinue agent run --config /etc/retinue/agent.toml
    """
    from retinue.agent import main

    raise typer.Exit(main.run(config))


@app.command()
def check(
    config: Annotated[Path, typer.Option(metavar="FILE", help="The agent's configuration (TOML).")],
) -> None:
    """Check an agent's configuration, and the certificates that it names, without running anything.

    \b
    Example:
      retinue agent check --config /etc/retinue/agent.toml
    """
    from retinue.agent.config import load
    from retinue.config_file import ConfigError
    from retinue.security.authority import PkiError
    from retinue.security.contexts import TlsFilesError

    try:
        found = load(config)
        _check_certificates(found)
    except (ConfigError, PkiError, TlsFilesError) as error:
        raise CliError(str(error)) from error
    controller = f"controller at {found.controller}" if found.controller else "no controller of ours"
    output.say(f"{config} is good: server {found.server}, {controller}; it listens at {found.listen}")


def _check_certificates(config: "AgentConfig") -> None:
    """As the agent reads them, and as others would: whose its own is. Raises TlsFilesError, PkiError."""
    from datetime import UTC, datetime

    from retinue.agent.migration.peer import secured
    from retinue.security.authority import holder
    from retinue.security.credentials import Credentials
    from retinue.security.identity import PeerRole

    if (tls := config.tls) is None:
        return
    others = [domain.ca for domain in config.domain] + [config.report.ca]
    for ca in (tls.ca, *filter(None, others)):
        secured(config.server, Credentials(Path(ca), Path(tls.certificate), Path(tls.key)))
    role, ends = holder(Path(tls.certificate))
    if role not in (None, PeerRole.AGENT):
        raise CliError(f"{tls.certificate} is a {role}'s certificate; `retinue pki issue agent` makes one")
    if ends < datetime.now(UTC):
        raise CliError(f"{tls.certificate} ended on {ends:%Y-%m-%d}: renew it (`retinue pki renew`)")


@app.command()
def leases(
    config: Annotated[Path, typer.Option(metavar="FILE", help="The agent's configuration (TOML).")],
    as_json: options.Json = False,
) -> None:
    """Show the DHCP leases of this server's VMs, as its agent keeps them.

    Learned from the VMs' own DHCP and from renewals on their behalf, and kept over a restart of the agent;
    those of VMs that have gone elsewhere are shown, too. To be run on the server, as the agent's user.

    \b
    Example:
      retinue agent leases --config /etc/retinue/agent.toml
    """
    from retinue.agent.admin_socket import SOCKET
    from retinue.agent.config import load
    from retinue.config_file import ConfigError
    from retinue.protocol.json_lines import RequestError, ask_blocking

    try:
        known = load(config)
        where = Path(known.folder) / SOCKET
        rows = ask_blocking(where, f"the agent of {known.server}", ANSWER_LIMIT, do="leases")["leases"]
    except (ConfigError, RequestError) as error:
        raise CliError(str(error)) from error
    if as_json:
        output.print_json(rows)
        return
    table = [[row["vm"], row["mac"], row["ip"], row["server"], _left(row["seconds_left"])] for row in rows]
    output.print_table(["VM", "MAC", "IP", "SERVER", ">LEFT"], table, "no VM here has had a lease")


def _left(seconds: float | None) -> str:
    if seconds is None:
        return "for ever"
    return "ended" if seconds <= 0 else f"{seconds:.0f} s"


@app.command()
@connected
def renew(
    at: Connection,
    vm: Annotated[str, typer.Option(metavar="ID", help="The VM's name.")],
    standalone: Annotated[
        bool, typer.Option("--standalone", help="No controller of ours: the switch snoops by itself.")
    ] = False,
    port: Annotated[
        str | None, typer.Option(metavar="TAP", help="The VM's tap. With a controller it is known.")
    ] = None,
    bridge: Annotated[
        str,
        typer.Option(metavar="BRIDGE", help='The Open vSwitch bridge the tap is in; "" for other switches.'),
    ] = "",
    mac: Annotated[str | None, typer.Option(metavar="MAC", help="The VM's MAC. Standalone.")] = None,
    ip: Annotated[str | None, typer.Option(metavar="IP", help="The address to renew. Standalone.")] = None,
    server: Annotated[
        str | None,
        typer.Option(metavar="IP", help="The DHCP server that granted it (its option 54). Standalone."),
    ] = None,
    server_mac: Annotated[
        str | None,
        typer.Option(
            metavar="MAC",
            help="MAC of the DHCP server, or of the VM's gateway if it is elsewhere. Left out: broadcast.",
        ),
    ] = None,
    client_id: Annotated[
        str | None,
        typer.Option(
            metavar="HEX",
            help="The VM's DHCP client identifier (option 61), if it uses one. Standalone.",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CODE=HEX",
            help="A DHCP option that the VM's client sends, such as its class (60): servers may judge by it. "
            "Standalone; may be given several times.",
        ),
    ] = None,
    qmp: Annotated[
        Path | None,
        typer.Option(metavar="SOCKET", help="QMP socket of the VM's QEMU: wait until the VM has arrived."),
    ] = None,
    timeout: options.Timeout = None,
) -> None:
    """Renew a VM's DHCP lease on its behalf, from its own port; the guest sees nothing of it.

    A switch that snoops DHCP binds the VM to the port it is at now. Ends with code 0 when the DHCP server has
    acknowledged, with 1 when it has rejected or did not answer. To be run on the server that runs the VM, as
    root.

    \b
    Examples:
      retinue agent renew --vm vm1 --bridge br0
      retinue agent renew --standalone --vm vm1 --mac 52:54:00:00:00:01 --ip 10.1.0.100 \\
          --server 10.1.0.2 --server-mac 02:00:00:00:00:d1 --port tap-vm1
    """
    import asyncio

    from retinue import logs

    logs.to_stderr()  # Standard output has the outcome alone.
    if standalone:
        missing = [n for n, v in (("mac", mac), ("ip", ip), ("server", server), ("port", port)) if not v]
        if missing:
            raise typer.BadParameter(f"with --standalone also --{', --'.join(missing)}")
        lease = _lease(mac or "", ip or "", server or "", server_mac, client_id, option or [])
        work = _standalone(lease, port or "", bridge, qmp, timeout)
    else:
        given = (("mac", mac), ("ip", ip), ("server", server), ("client-id", client_id), ("option", option))
        if superfluous := [name for name, value in given if value]:
            raise typer.BadParameter(
                f"the controller knows the lease: --{', --'.join(superfluous)} only with --standalone"
            )
        work = _ordered(vm, port, bridge or "br0", qmp, timeout, at.client().url)
    outcome = {"vm": vm, **asyncio.run(work)}
    if at.as_json:
        output.print_json(outcome)
    elif outcome["state"] == "acked":
        seconds = outcome["lease_seconds"]
        until = "for ever" if seconds is None else f"for {seconds:.0f} s"
        output.say(f"VM {vm}: {outcome['ip']} is renewed {until}")
    else:
        output.say(f"VM {vm}: {outcome['ip']} is not renewed: {outcome['reason']}", err=True)
    if outcome["state"] != "acked":
        raise typer.Exit(1)


def _lease(
    mac: str, ip: str, server: str, server_mac: str | None, client_id: str | None, options: list[str]
) -> "Lease":
    from retinue.core.lease_renewal import Lease
    from retinue.core.model import ModelError
    from retinue.core.model import mac as checked
    from retinue.core.packets import BROADCAST

    try:
        return Lease(
            ip=IPv4Address(ip),
            mac=checked(mac),
            server=IPv4Address(server),
            client_id=bytes.fromhex((client_id or "").replace(":", "")),
            next_hop=checked(server_mac) if server_mac else BROADCAST,
            options=tuple(map(_option, options)),
        )
    except (AddressValueError, ModelError) as error:
        raise typer.BadParameter(str(error)) from error
    except ValueError as error:
        raise typer.BadParameter(f"--client-id {client_id}: not hexadecimal") from error


def _option(text: str) -> tuple[int, bytes]:
    """A DHCP option as it is given: CODE=HEX. Those that a renewal has of its own cannot be given."""
    from retinue.core.packets import OWN_OPTIONS

    code, _, value = text.partition("=")
    try:
        option = int(code), bytes.fromhex(value.replace(":", ""))
    except ValueError:
        raise typer.BadParameter(f"--option {text}: not CODE=HEX, such as 60=7564686370") from None
    if not 0 < option[0] < 255 or option[0] in OWN_OPTIONS or len(option[1]) > 255:
        raise typer.BadParameter(f"--option {text}: not an option that a client adds to a renewal")
    return option


async def _standalone(
    lease: "Lease", tap: str, bridge: str, qmp: Path | None, limit: float | None
) -> dict[str, Any]:
    from math import isinf

    from retinue.agent.renewal.renewing import InjectionError, fresh_xid
    from retinue.agent.renewal.standalone.at_tap import renew_at_tap

    await _arrived(qmp, limit)
    try:
        done = await renew_at_tap(lease, fresh_xid(), tap, bridge)
    except InjectionError as error:
        raise CliError(str(error)) from error
    seconds = done.lease_seconds
    granted = None if seconds is None or isinf(seconds) else seconds
    return {
        "ip": str(lease.ip),
        "state": str(done.state),
        "sent": done.sent,
        "xid": f"{done.xid:#010x}",
        "lease_seconds": granted,
        "lease_end": None if granted is None else time.time() + granted,
        "reason": done.reason,
    }


async def _ordered(
    vm: str, tap: str | None, bridge: str, qmp: Path | None, limit: float | None, url: str
) -> dict[str, Any]:
    from retinue.agent.renewal.openflow_port import OvsPort, port_number
    from retinue.agent.renewal.renewing import InjectionError
    from retinue.agent.renewal.service import carry_out
    from retinue.protocol.client import ControllerClient
    from retinue.protocol.errors import ControllerError

    await _arrived(qmp, limit)
    try:
        async with ControllerClient(url) as orders:
            number = await port_number(tap) if tap else None
            order = await orders.renew(vm)
            done = await carry_out(order, OvsPort(bridge, number or order.port_number), orders)
    except (ControllerError, InjectionError) as error:
        raise CliError(str(error)) from error
    return {
        "id": done.id,
        "ip": str(done.ip),
        "state": done.state,
        "xid": f"{done.xid:#010x}",
        "lease_seconds": done.lease_seconds,
        "lease_end": done.lease_end,
        "reason": done.reason,
    }


async def _arrived(qmp: Path | None, limit: float | None) -> None:
    from retinue.agent.renewal.standalone.at_tap import ArrivalError, arrived

    if qmp is None:
        return
    try:
        await arrived(qmp, limit, lambda: output.say("waiting for the VM to arrive", err=True))
    except ArrivalError as error:
        raise CliError(str(error)) from error
