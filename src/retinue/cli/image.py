"""`retinue image`: images by name, published once and held by servers."""

import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from retinue.cli import options, output
from retinue.cli.connection import Connection, connected
from retinue.cli.errors import CliError
from retinue.protocol.errors import ErrorCode, RejectedError
from retinue.protocol.routes import Route

app = options.group("Images by name: published once, fetched by servers from each other.")

To = Annotated[
    list[str] | None,
    typer.Option("--to", metavar="SERVER", help="Repeat for several; left out: all servers."),
]
Servers = Annotated[
    list[str] | None,
    typer.Option("--server", metavar="SERVER", help="Repeat for several; left out: all servers."),
]
LOOK_SECONDS = 0.25
"""Between two looks at how far a fetch is."""
UPKEEP_SECONDS = 600.0
"""By which a gc or a scrub is done."""


@app.command()
@connected
def publish(
    at: Connection,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Raw, best: a file as it is, byte by byte.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is called, for ever.")],
    server: Annotated[
        str, typer.Option("--server", metavar="SERVER", help="Where it is brought first; left out: anywhere.")
    ] = "",
) -> None:
    """Publish a file under a name, signed with your certificate's key, and bring it to one server.

    Chunks of zeros, and those that are there already, are not sent. After a break, publish it again.

    \b
    Example:
      retinue image publish debian-12.raw debian-12 --server server1
    """
    import msgspec

    from retinue.cli import image_upload
    from retinue.protocol.images import ImageRecord
    from retinue.protocol.records import record
    from retinue.security.credentials import Credentials

    client, shown = at.client(), Credentials.of_environment()
    bar = _Bar(at.as_json)
    listed = image_upload.chunk_list(file, bar.step("reading"))
    signed = image_upload.signed_manifest(name, file, listed, shown)
    body = {"manifest": msgspec.to_builtins(signed), "server": server}
    published = record(ImageRecord, client.ask(Route.PUBLISH_IMAGE, body=body))
    address = _address_of(client.ask(Route.LIST_IMAGES), published.origin)
    sent = image_upload.upload(file, listed, published, address, shown, bar.step("sending"))
    bar.end()
    if at.as_json:
        output.print_json({"name": name, "size": signed.size, "server": published.origin, "sent": sent})
    else:
        output.say(f"{name} is published at {published.origin}: {_size(signed.size)}, {_size(sent)} sent")


@app.command("list")
@connected
def list_(at: Connection) -> None:
    """List the images, and the servers that hold them whole.

    \b
    Example:
      retinue image list
    """
    data = at.client().ask(Route.LIST_IMAGES)
    if at.as_json:
        output.print_json(data)
        return
    output.print_table(
        ("IMAGE", ">SIZE", "PUBLISHER", "HELD BY", "ON THE WAY TO"),
        (
            (
                row["name"],
                _size(row["manifest"]["size"]),
                row["publisher"],
                [held["server"] for held in row["held"] if held["state"] == "held"],
                [held["server"] for held in row["held"] if held["state"] == "fetching"],
            )
            for row in data["images"]
        ),
        "There are no images.",
    )


@app.command()
@connected
def show(at: Connection, name: str) -> None:
    """Show one image: what it is, and what each server has of it and had it from.

    \b
    Example:
      retinue image show debian-12
    """
    row = at.client().ask(Route.GET_IMAGE, name)
    if at.as_json:
        output.print_json(row)
        return
    manifest = row["manifest"]
    output.print_fields(
        (
            ("name", row["name"]),
            ("size", f"{_size(manifest['size'])} ({manifest['size']} bytes)"),
            ("digest", f"sha256:{manifest['list_digest']}"),
            ("published", f"{output.ago(manifest['published_at'])} at {row['origin']}"),
            ("publisher", row["publisher"]),
        )
    )
    output.print_table(
        ("SERVER", "STATE", ">HELD", "FROM", ">FALLBACKS", "NEEDED BY", "FILE", "REASON"),
        (
            (
                held["server"],
                held["state"] if held["here"] else "away",
                _share(held["held"], manifest["size"]),
                _from(held),
                held["fallbacks"],
                held["pins"],
                held["base"],
                held["reason"],
            )
            for held in row["held"]
        ),
        "No server holds anything of it.",
    )


@app.command()
@connected
def fetch(
    at: Connection,
    name: str,
    to: To = None,
    pin: Annotated[
        str, typer.Option(metavar="ID", help="For what it is needed, such as a VM: kept until `unpin`.")
    ] = "",
    base: Annotated[bool, typer.Option("--base", help="Make a file of it there, too.")] = False,
    segment: Annotated[
        str, typer.Option(metavar="FIRST-LAST", help="Only these chunks, of 1 MiB each, from 0.")
    ] = "",
    domain: Annotated[
        str, typer.Option("--from", metavar="DOMAIN", help="Of another domain, by its id.")
    ] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Until all of them hold it, with progress.")] = False,
    timeout: options.Timeout = None,
) -> None:
    """Have servers fetch an image, from whoever holds it. They go on until they hold it.

    \b
    Example:
      retinue image fetch debian-12 --to server2 --to server3 --wait
      retinue image fetch debian-12 --to server2 --segment 0-63
      retinue image fetch debian-13 --from b --to server1
    """
    client = at.client()
    body = {"servers": to or [], "pin": pin, "base": base, "segment": _segment(segment)}
    if domain:  # A controller of an older version knows no such field.
        body["domain"] = domain
    answer = client.ask(Route.FETCH_IMAGE, name, body=body)
    servers = answer["servers"]
    if not wait:
        if at.as_json:
            output.print_json(answer)
        else:
            output.say(f"{', '.join(servers)} will hold {name}")
        return
    deadline = None if timeout is None else time.monotonic() + timeout
    bar = _Bar(at.as_json)
    while True:
        row = client.ask(Route.GET_IMAGE, name)
        held = {one["server"]: one for one in row["held"] if one["server"] in servers}
        size = row["manifest"]["size"] * len(servers)
        has_come = functools.partial(_is_done, base=base, pin=pin, order=answer["order"] if segment else None)
        bar.show(sum(one["held"] for one in held.values()), size, " · ".join(_progress(held, row)))
        failed = [one for one in held.values() if one["state"] == "failed"]
        if failed:
            bar.end()
            raise CliError(f"{failed[0]['server']} cannot fetch {name}: {failed[0]['reason']}")
        if all(server in held and has_come(held[server]) for server in servers):
            break
        if deadline is not None and time.monotonic() >= deadline:
            bar.end()
            raise CliError(f"{name} is not everywhere yet; `retinue image show {name}` says how far it is")
        time.sleep(LOOK_SECONDS)
    bar.end()
    if at.as_json:
        output.print_json(row)
    else:
        for server in servers:
            what = f"{segment} of {name}" if segment else name
            output.say(f"{server} holds {what}: {_from(held[server]) or 'it was there'}")


@app.command()
@connected
def unpin(
    at: Connection,
    name: str,
    pin: Annotated[str, typer.Argument(metavar="ID", help="For what it is not needed any more.")],
    server: Servers = None,
) -> None:
    """Say that an image is not needed for something any more.

    \b
    Example:
      retinue image unpin debian-12 vm1
    """
    answer = at.client().ask(Route.UNPIN_IMAGE, name, body={"pin": pin, "servers": server or []})
    _said(at, answer, f"{name} is not needed for {pin} any more")


@app.command()
@connected
def remove(at: Connection, name: str) -> None:
    """Take an image's name back. Servers forget it; `retinue image gc` frees what nobody else needs.

    \b
    Example:
      retinue image remove debian-12
    """
    _said(at, at.client().ask(Route.REMOVE_IMAGE, name), f"{name} is published no more")


@app.command()
@connected
def gc(at: Connection, server: Servers = None) -> None:
    """Remove the chunks that belong to no image any more.

    \b
    Example:
      retinue image gc --server server2
    """
    _upkeep(at, Route.COLLECT_CHUNKS, "gcs", server, lambda store: f"{_size(store['freed'])} freed")


@app.command()
@connected
def scrub(at: Connection, server: Servers = None) -> None:
    """Read all chunks, remove those that have gone bad, and fetch them again from others.

    \b
    Example:
      retinue image scrub
    """

    def found(store: dict[str, Any]) -> str:
        return f"{store['checked']} chunks read, {store['bad']} bad"

    _upkeep(at, Route.SCRUB_CHUNKS, "scrubs", server, found)


def _upkeep(at: Connection, route: Route, counted: str, servers: list[str] | None, found: Any) -> None:
    """Order it, and wait until each server has said what came of it; one that cannot is no reason to stop."""
    client = at.client()
    before = {one["server"]: one for one in client.ask(Route.LIST_IMAGES)["stores"]}
    waiting: list[str] = []
    not_done: dict[str, str] = {}
    for server in dict.fromkeys(servers or before):
        try:
            client.ask(route, server)
        except RejectedError as error:
            if error.code not in (ErrorCode.PARTY_AWAY, ErrorCode.UNKNOWN_SERVER):
                raise
            not_done[server] = str(error)
        else:
            waiting.append(server)
    deadline, done = time.monotonic() + UPKEEP_SECONDS, {}
    while waiting and time.monotonic() < deadline:
        now = {one["server"]: one for one in client.ask(Route.LIST_IMAGES)["stores"]}
        for server in list(waiting):
            if server not in now:
                waiting.remove(server)
                not_done[server] = f"server {server} was removed meanwhile"
            elif now[server][counted] == before.get(server, {}).get(counted):
                if not now[server]["here"]:
                    waiting.remove(server)
                    not_done[server] = f"the agent of {server} has gone"
            else:
                waiting.remove(server)
                done[server] = now[server]
                if not at.as_json:
                    output.say(f"{server}: {found(now[server])}")
        time.sleep(LOOK_SECONDS if waiting else 0)
    not_done |= {server: f"{server} has not done it within {UPKEEP_SECONDS:g} s" for server in waiting}
    if at.as_json:
        output.print_json({"stores": [done[server] for server in sorted(done)], "not_done": not_done})
    if not_done:
        raise CliError("; ".join(not_done.values()))


class _Bar:
    """One line that says how far it is."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet

    def step(self, what: str) -> Any:
        return lambda done, size: self.show(done, size, what)

    def show(self, done: int, size: int, more: str) -> None:
        if not self._quiet:
            output.status_line(f"{_share(done, size)}  {more}")

    def end(self) -> None:
        if not self._quiet:
            output.status_line("")


def _progress(held: dict[str, Any], row: dict[str, Any]) -> Iterator[str]:
    for server, one in sorted(held.items()):
        rate = f" at {_size(one['rate'])}/s" if one["rate"] else ""
        yield f"{server} {_share(one['held'], row['manifest']['size'])}{rate} {one['reason']}".strip()


def _is_done(held: dict[str, Any], base: bool, pin: str, order: int | None) -> bool:
    """`order`: the one to fetch a segment, after which there may be more to fetch."""
    whole = held["state"] == "held" or (held["state"] == "partial" and held["order"] == order)
    return whole and (held["base"] or not base) and (not pin or pin in held["pins"])


def _segment(text: str) -> list[int] | None:
    """Raises CliError."""
    if not text:
        return None
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal() and len(text) <= 20):
        raise CliError(f"--segment: {text!r} is not FIRST-LAST, such as 0-63")
    return [int(first), int(last)]


def _address_of(data: dict[str, Any], server: str) -> str:
    address = next((one["address"] for one in data["stores"] if one["server"] == server), "")
    if not address:
        raise CliError(f"{server}, where the image is published, has no agent: publish it again when it has")
    return str(address)


def _from(held: dict[str, Any]) -> str:
    return ", ".join(f"{_size(count)} from {server}" for server, count in sorted(held["origins"].items()))


def _said(at: Connection, answer: dict[str, Any], text: str) -> None:
    if at.as_json:
        output.print_json(answer)
    else:
        output.say(text)


def _share(part: int, whole: int) -> str:
    return f"{100 * part // whole} %" if whole else "-"


def _size(count: float) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"
