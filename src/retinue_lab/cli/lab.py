"""`retinue lab`: the laboratory on this machine."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from retinue.cli import options
from retinue.cli import output as tables
from retinue.cli.errors import CliError
from retinue_lab.cli import target
from retinue_lab.cli.compare import compare

WHOLE = 65_535
"""Bytes of a frame that a capture keeps: all."""

app = options.group("The laboratory: switches, servers, DHCP and VMs on this machine, in a sandbox.")

Name = Annotated[
    str | None, typer.Option(metavar="NAME", help="The lab's name (default: default). Also RETINUE_LAB.")
]


@app.command()
def up(
    topology: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The network to build: a TOML file, or the name of one that comes along, such as libvirt.",
        ),
    ] = None,
    name: Name = None,
    controller: Annotated[bool, typer.Option(help="Run a controller in it.")] = True,
    vms: Annotated[
        bool, typer.Option(help="Run the agents, which start the VMs that are registered.")
    ] = True,
    controllers: Annotated[
        int, typer.Option(min=1, max=5, metavar="N", help="So many, of which one is active.")
    ] = 1,
    databases: Annotated[
        int | None,
        typer.Option(
            min=0, max=5, metavar="N", help="Servers of the database that they share; 3: a cluster."
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Start a lab; return when all of it is up.

    \b
    Examples:
      retinue lab up
      retinue lab up --topology small.toml --name small
      retinue lab up --controllers 2 --databases 3
    """
    with target.lab_errors():
        from retinue_lab.processes import state
        from retinue_lab.sandbox import handle as sandbox
        from retinue_lab.topology import topology_file

        handle = sandbox.up(
            target.lab_name(name),
            topology_file.with_controllers(topology_file.load(topology), controllers, databases),
            start_controller=controller,
            start_driver=controller and vms,
            progress=lambda text: typer.echo(f"  {text}", err=True),
        )
        if as_json:
            typer.echo(state.encode(handle.status()))
            return
    option = "" if handle.name == target.DEFAULT_LAB else f" --name {handle.name}"
    where = f", its controller at {handle.topology.controller_url}" if controller else ""
    typer.echo(f"lab {handle.name} is up{where}; `retinue lab down{option}` ends it")
    if controller:
        typer.echo(f"`retinue lab web{option}` shows it in a browser")


@app.command()
def down(name: Name = None) -> None:
    """End a lab. Nothing of it is left.

    \b
    Example:
      retinue lab down
    """
    from retinue_lab.sandbox import handle as sandbox

    wanted = target.lab_name(name)
    with target.lab_errors():
        sandbox.down(wanted)
    typer.echo(f"lab {wanted} is down")


@app.command("exec")
def exec_(
    node: Annotated[str, typer.Argument(metavar="NODE", help="sandbox, controller, fabric, server1, ...")],
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND", help="What to run there.")],
    name: Name = None,
) -> None:
    """Run a program on a node of the lab, with this terminal; its exit code is passed on.

    \b
    Examples:
      retinue lab exec server1 -- ovs-vsctl show
      retinue lab exec client -- ping -c 3 10.1.0.100
      retinue lab exec sandbox -- bash
    """
    handle = target.running(name)
    env = {"RETINUE_LAB": handle.name, "RETINUE_URL": handle.topology.controller_url}
    target.become(handle, node, command, env)


@app.command()
def capture(
    node: Annotated[str, typer.Argument(metavar="NODE", help="fabric, server1, client, ...")],
    interface: Annotated[str, typer.Argument(metavar="INTERFACE", help="leaf1-spine1, up0, eth0, ...")],
    name: Name = None,
) -> None:
    """Write the frames at an interface of the lab to standard output, for tcpdump, tshark or a file.

    tcpdump itself does not run on a node: it insists on changing its user, and a lab has but one.

    \b
    Examples:
      retinue lab capture fabric leaf1-spine1 | tcpdump -nr -
      timeout 10 retinue lab capture router out0 > outside.pcap
    """
    if sys.stdout.isatty():
        raise CliError("a capture file is no text: send it on, as in `... | tcpdump -nr -`")
    from retinue_lab.measure.capture import WatchedPort, sniff_argv

    target.become(
        target.running(name), node, sniff_argv(WatchedPort(node, interface, direction="inout"), WHOLE), {}
    )


@app.command()
def web(
    port: Annotated[
        int | None,
        typer.Option(metavar="PORT", min=1, max=65535, help="The port here (8090, if it is free)."),
    ] = None,
    name: Name = None,
) -> None:
    """Show a lab's web page: print its address for a browser on this machine, and serve it until Ctrl-C.

    The address has a token in it: whoever has it is the lab's manager. Other machines do not reach the port;
    `ssh -L 8090:127.0.0.1:8090 HOST` leads there.

    \b
    Example:
      retinue lab web
    """
    from retinue_lab.sandbox import web_door
    from retinue_lab.topology.topology import SANDBOX

    handle = target.running(name)
    with target.lab_errors():
        listens = web_door.listening(port)
    listens.set_inheritable(True)
    target.become(handle, SANDBOX, web_door.argv(listens, handle.topology.controller_url), {})


@app.command()
def status(name: Name = None, as_json: options.Json = False) -> None:
    """Show a lab's nodes, switches and programs.

    \b
    Example:
      retinue lab status
    """
    handle = target.running(name)
    with target.lab_errors():
        from retinue_lab.processes import state

        found = handle.status()
    if as_json:
        typer.echo(state.encode(found))
        return
    tables.print_fields(
        (
            ("lab", found.name),
            ("since", tables.ago(found.started_at)),
            ("controller", found.controller_url or "none"),
            ("directory", found.directory),
            ("versions", [f"{program} {version}" for program, version in found.versions.items()]),
        )
    )
    typer.echo()
    tables.print_table(
        ("NODE", "ADDRESSES", "INTERFACES"),
        ((node, row.addresses, row.interfaces) for node, row in found.nodes.items()),
        "There are no nodes.",
    )
    typer.echo()
    tables.print_table(
        ("SWITCH", "ROLE", "NODE", "BRIDGE", "DPID", "PORTS"),
        (
            (
                id,
                row.role,
                row.node,
                row.bridge,
                hex(row.dpid),
                [f"{number} {port}" for port, number in row.ports.items()],
            )
            for id, row in found.switches.items()
        ),
        "There are no switches.",
    )
    typer.echo()
    tables.print_table(
        ("PROGRAM", "NODE", ">PID", "STATE", "LOG"),
        (
            (row.name, row.node, row.pid, "running" if row.running else "ended", row.log)
            for row in found.daemons
        ),
        "There are no programs.",
    )


@app.command("list")
def list_(as_json: options.Json = False) -> None:
    """List the labs that run.

    \b
    Example:
      retinue lab list
    """
    from retinue_lab.sandbox import handle as sandbox

    with target.lab_errors():
        names = sandbox.list_labs()
    if as_json:
        tables.print_json({"labs": names})
    else:
        tables.print_table(("LAB",), ((name,) for name in names), "No lab runs; `retinue lab up` starts one.")


@app.command()
def demo(
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write what was measured to this file.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the lab up afterwards.")] = False,
) -> None:
    """Show a live migration in a lab of its own, from the start to the figures.

    \b
    Example:
      retinue lab demo --output demo.json
    """
    from retinue_lab.demo import run as demonstration

    with target.lab_errors():
        code = demonstration.run(output, keep, typer.echo)
    raise typer.Exit(code)


app.command("compare")(compare)
