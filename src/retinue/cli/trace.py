"""`retinue trace`: what becomes of a frame, hop by hop, where it ends, why, and what would make it pass."""

import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from retinue.cli import output
from retinue.cli.connection import Connection, connected
from retinue.protocol.routes import Route

WIDE = 90
"""Columns of an entry's match or actions."""
PROTOCOLS = ("udp", "tcp", "icmp", "arp")


@connected
def trace(
    at: Connection,
    vm: Annotated[str, typer.Option("--from", metavar="VM", help="This VM sends it.")] = "",
    nic: Annotated[str, typer.Option(metavar="NIC", help="From this NIC; left out: its first.")] = "",
    server: Annotated[
        str, typer.Option("--on", metavar="SERVER", help="There; left out: where it is delivered.")
    ] = "",
    port: Annotated[
        str, typer.Option("--at", metavar="SWITCH:PORT", help="It comes in at this port, by name or number.")
    ] = "",
    forgery: Annotated[
        str, typer.Option(metavar="ID", help="A spoofing attempt of the log: why was it dropped?")
    ] = "",
    to: Annotated[str, typer.Option(metavar="IP", help="Where it is sent: an address, or a VM.")] = "",
    udp: Annotated[
        int | None, typer.Option(metavar="PORT", min=0, max=65535, help="A datagram to this port.")
    ] = None,
    tcp: Annotated[
        int | None, typer.Option(metavar="PORT", min=0, max=65535, help="A SYN to this port.")
    ] = None,
    icmp: Annotated[
        bool, typer.Option("--icmp", help="An echo request; so it is where nothing is said.")
    ] = False,
    arp: Annotated[
        bool, typer.Option("--arp", help="The question who has the address; for IPv6 by ND.")
    ] = False,
    src: Annotated[str, typer.Option(metavar="IP", help="From this address; left out: one it has.")] = "",
    src_mac: Annotated[str, typer.Option(metavar="MAC", help="From this MAC; left out: its own.")] = "",
    dst_mac: Annotated[
        str, typer.Option(metavar="MAC", help="To this MAC; left out: as its ARP would find it.")
    ] = "",
    vlan: Annotated[
        int, typer.Option(metavar="VLAN", min=0, max=4094, help="With --at: from a router's VLAN of a VRF.")
    ] = 0,
    ttl: Annotated[int, typer.Option(metavar="N", min=0, max=255, help="Time to live, or hop limit.")] = 64,
    frame: Annotated[
        str, typer.Option(metavar="HEX", help="The frame itself; @FILE: from a file, in hexadecimal.")
    ] = "",
    live: Annotated[
        bool,
        typer.Option("--live", help="By the entries that switches hold now; differences are told."),
    ] = False,
) -> None:
    """Tell what becomes of a frame: the entries it meets, switch by switch, where it ends and why.

    Nothing is sent. Of each entry: its table and priority, by their names in the pipeline; what it matches;
    what it does.

    \b
    Examples:
      retinue trace --from vm1 --to 10.1.0.101 --udp 53
      retinue trace --from vm1 --to vm2 --tcp 80 --live
      retinue trace --from vm1 --src 10.0.0.9 --to 203.0.113.9
      retinue trace --at leaf2:leaf2-router --src 203.0.113.9 --to 10.1.0.101 --icmp
      retinue trace --forgery 5f1c09aa
    """
    chosen = [
        name
        for name, given in zip(PROTOCOLS, (udp is not None, tcp is not None, icmp, arp), strict=True)
        if given
    ]
    if len(chosen) > 1:
        said = " and ".join(f"--{name}" for name in chosen)
        raise typer.BadParameter(f"give one of --udp, --tcp, --icmp and --arp, not {said}")
    kind = chosen[0] if chosen else "icmp"
    given: dict[str, Any] = {
        "vm": vm, "nic": nic, "server": server, "at": port, "forgery": forgery, "frame": _hex(frame),
        "to": to, "src": src, "src_mac": src_mac, "dst_mac": dst_mac, "vlan": vlan,
    }  # fmt: skip
    body = {name: value for name, value in given.items() if value}
    body |= {"kind": kind, "port": udp or tcp or 0, "ttl": ttl, "live": live}
    data = at.client().ask(Route.TRACE_FRAME, body=body)
    if at.as_json:
        output.print_json(data)
        return
    if "live" in data:
        _print_live(data)
        return
    _print_way(data)


def _hex(text: str) -> str:
    if not text.startswith("@"):
        return "".join(text.split()).replace(":", "")
    try:
        return "".join(Path(text[1:]).read_text().split()).replace(":", "")
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"cannot read the frame in {text[1:]}: {error}") from error


def _print_live(data: dict[str, Any]) -> None:
    live = data["live"]
    _print_way({**live, "notes": data["notes"]}, live=True)
    output.say("")
    for switch, reason in live["unread"].items():
        output.say(f"Not read: {switch}, {reason}; of it the entries are told that it should have.")
    if not live["differs"]:
        output.say("The switches have what they should, of all that the frame meets.")
        return
    output.say("The switches differ from what they should have:")
    for line in live["differs"]:
        output.say(f"  {line}")


def _print_way(data: dict[str, Any], live: bool = False) -> None:
    output.say(f"In at {data['at']['name']}: {data['summary']}")
    for note in data["notes"]:
        output.say(f"  Note: {note}.")
    for number, hop in enumerate(data["hops"]):
        output.say("")
        came = f": {hop['summary']}" if number else ""
        output.say(f"{hop['switch']} ({hop['role']}), in by {hop['port']}{came}")
        for entry in hop["entries"]:
            _print_entry(entry, live)
        for sent in hop["sent"]:
            to = f" to {sent['to']}" if sent["to"] else ""
            output.say(f"  out by {sent['port']}{to}")
    output.say("")
    _print_ends(data["ends"])
    if data["ways"] > 1:
        output.say(f"This is one of {data['ways']} ways of equal cost; {_others(data['others'])}")


def _print_entry(entry: dict[str, Any], live: bool) -> None:
    """Table and priority, what it matches, what it does, and what there is to know of it."""
    head = f"  {entry['table']:>2} {entry['table_name']:<8} {entry['priority_name']} {entry['priority']}"
    if live:
        state = "not read" if entry["packets"] is None else f"{entry['packets']} packets"
    else:
        state = "" if entry["confirmed"] else "not confirmed by the switch"
    known = "; ".join(filter(None, (entry["meter"], state)))
    output.say(f"{head}  ({known})" if known else head)
    for sign, text in (("  ", entry["match"]), ("->", entry["actions"])):
        first, *more = textwrap.wrap(text.replace(",", ", "), WIDE, break_long_words=False)
        output.say(f"      {sign} {first}")
        for line in more:
            output.say(f"         {line}")


def _print_ends(ends: list[dict[str, Any]]) -> None:
    for end in ends:
        output.say(f"{end['fate'].capitalize()}: {end['text']}.")
        for number, line in enumerate(end["advice"]):
            output.say(f"  {'To pass: ' if number == 0 else '         '}{line}")


def _others(others: list[str]) -> str:
    return "they all come to the same." if not others else f"others end otherwise: {'; '.join(others)}."
