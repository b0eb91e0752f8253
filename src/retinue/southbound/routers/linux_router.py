#!/usr/bin/env python3
"""The adapter for a Linux router: host routes as Retinue says, and what the kernel says of them.

Copy this file to the router; it needs Python 3.9, iproute2, Linux 5.3, and nothing else. Whoever starts it
says by lines of JSON what to do, and gets a line for each:

    {"ask": "look"}
        {"ports": {"eth1": [2, "00:00:de:ad:be:ef", true]}, "forwards": true, "strict": [],
         "routes": {"10.1.0.101/32": "10.0.0.11", "10.1.0.0/24": null}}
    {"ask": "change", "put": {"10.1.0.101/32": "10.0.0.12"}, "delete": ["10.1.0.102/32"]}
        {"routes": {"10.1.0.101/32": "10.0.0.12"}}

`strict`: ports that take only what comes by the way back to its source. A next hop is a server's address, to
which the router has a way of its own; null: the prefix leads nowhere. The answer to a change has what the
kernel then holds of the prefixes in it, whether that is as asked or not. What could not be understood or done
at all is answered by {"error": "..."}.

All routes have the protocol and the metric 220: others' routes are never touched. Each next hop is an
object of the kernel's whose number is the server's address. So the table tells which server is meant, and
when the router's own way to a server changes (looked at once a second) all routes to it follow at once.
A route of protocol 220 that is by no such object is told as one to 0.0.0.0: it is none of ours.

Of several that are started at one router only the last one writes: the others end at their next question, or
within a second. So what a caller has given up waiting for never undoes what the next adapter has confirmed.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

PROTOCOL = METRIC = "220"
OURS = f"proto {PROTOCOL} metric {METRIC}"
LOOK_SECONDS = 1.0
IP_SECONDS = 4.0
"""Less than an answer is waited for: `ip` ends before its caller is given up."""
LOCK = "/run/retinue-router-{}.lock"
"""By the network namespace, whose table it is."""
LONGEST = 16 << 20


class RouterFailedError(Exception):
    """What the router has said to what it was asked."""


def ip(*words: str, lines: Sequence[str] | None = None) -> str:
    """What `ip` prints. It inherits the `Turn`: if this program is killed, the next one waits for it."""
    text = None if lines is None else "\n".join(lines) + "\n"
    done = subprocess.run(
        ["ip", *words],
        input=text,
        capture_output=True,
        text=True,
        timeout=IP_SECONDS,
        check=False,
        close_fds=False,
    )
    if done.returncode:
        raise RouterFailedError(f"ip {' '.join(words)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def documents(text: str) -> list[Any]:
    """JSON arrays one behind the other, in one list."""
    text = text.strip()
    decoder, at = json.JSONDecoder(), 0
    found: list[Any] = []
    while at < len(text):
        part, at = decoder.raw_decode(text, at)
        found += part
        while at < len(text) and text[at].isspace():
            at += 1
    return found


class Turn:
    """Who may write: the adapter that was started last, and while it does no other.

    Not the first one for as long as it lives: of a connection that broke its end may not hear for hours.
    """

    def __init__(self, path: str) -> None:
        self.own = f"{os.getpid()} {time.time_ns()}".encode()
        self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        os.set_inheritable(self.file, True)
        with self:
            os.ftruncate(self.file, 0)
            os.pwrite(self.file, self.own, 0)

    def __enter__(self) -> Turn:
        fcntl.flock(self.file, fcntl.LOCK_EX)
        return self

    def __exit__(self, *error: object) -> None:
        fcntl.flock(self.file, fcntl.LOCK_UN)

    def is_ours(self) -> bool:
        return os.pread(self.file, 100, 0) == self.own


class Router:
    def __init__(self) -> None:
        self.ways: dict[str, str] = {}
        """By server: how the kernel was told to reach it; "" when that is not known."""

    def look(self) -> dict[str, Any]:
        routes = self.routes()
        for hop in [hop for hop in routes.values() if hop is not None and number(hop)]:
            self.ways.setdefault(hop, "")  # Of an adapter that was here before.
        ports = {
            one["ifname"]: [one["ifindex"], one.get("address", ""), "LOWER_UP" in one["flags"]]
            for one in documents(ip("-json", "link", "show"))
            if "LOOPBACK" not in one["flags"]
        }
        forwards = Path("/proc/sys/net/ipv4/ip_forward").read_text(encoding="ascii").strip() == "1"
        strict = [name for name in ports if self.is_strict(name)]
        return {"ports": ports, "forwards": forwards, "strict": strict, "routes": routes}

    def is_strict(self, port: str) -> bool:
        """Of the word for all ports and that for this one the greater counts."""
        words = []
        for name in ("all", port):
            with suppress(OSError, ValueError):
                words.append(
                    int(Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").read_text(encoding="ascii"))
                )
        return max(words, default=0) == 1

    def change(self, put: Mapping[str, str | None], delete: Sequence[str]) -> dict[str, Any]:
        routes = {str(ipaddress.IPv4Network(prefix)): hop for prefix, hop in put.items()}
        gone = [str(ipaddress.IPv4Network(prefix)) for prefix in delete]
        hops = {str(ipaddress.IPv4Address(hop)) for hop in put.values() if hop is not None}
        ways = {hop: self.way_to(hop) for hop in sorted(hops)}
        there = self.held(gone) if gone else {}
        todo = []
        for prefix, hop in routes.items():
            way = f"{prefix} nhid {number(hop)}" if hop is not None else f"blackhole {prefix}"
            todo.append(f"route replace {way} {OURS}")
        todo += [f"route del {prefix} {OURS}" for prefix in gone if prefix in there]
        wrong = ""
        try:
            self.do(todo, ways)
        except RouterFailedError as error:
            wrong = str(error)
        answer = {"routes": self.held((*routes, *gone))}
        return {**answer, "error": wrong} if wrong else answer

    def do(self, todo: Sequence[str], ways: Mapping[str, str]) -> None:
        """Make next hops be these ways to servers, and then do this."""
        changed = [server for server, way in ways.items() if self.ways.get(server) != way]
        hops = [f"nexthop replace id {number(server)} {ways[server]} proto {PROTOCOL}" for server in changed]
        # Of what fails nobody knows how much was done.
        self.ways.update(dict.fromkeys(ways, ""))
        if hops or todo:
            ip("-batch", "-", lines=[*hops, *todo])
        self.ways.update(ways)

    def held(self, prefixes: Iterable[str]) -> dict[str, str | None]:
        """What the kernel holds of these prefixes. `ip` reads all routes, however few it is to show."""
        meant, routes = set(prefixes), self.routes()
        return {prefix: hop for prefix, hop in routes.items() if prefix in meant}

    def routes(self) -> dict[str, str | None]:
        return self.table(documents(ip("-json", "-4", "route", "show", "proto", PROTOCOL)))

    def table(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, str | None]:
        found: dict[str, str | None] = {}
        for row in rows:
            if str(row.get("metric", METRIC)) != METRIC:
                continue
            prefix = str(ipaddress.IPv4Network("0.0.0.0/0" if row["dst"] == "default" else row["dst"]))
            if row.get("type") == "blackhole":
                found[prefix] = None
            else:
                found[prefix] = str(ipaddress.IPv4Address(row.get("nhid", 0)))
        return found

    def way_to(self, server: str) -> str:
        """The router's own way to a server, as a next hop."""
        try:
            way = documents(ip("-json", "-4", "route", "get", server))[0]
        except RouterFailedError as error:
            raise RouterFailedError(f"the router has no way to server {server}: {error}") from None
        if way.get("type") in ("blackhole", "unreachable", "prohibit", "local") or "dev" not in way:
            raise RouterFailedError(f"the router has no way to server {server}: {way}")
        return f"via {way.get('gateway', server)} dev {way['dev']} onlink"

    def follow(self) -> None:
        """The router's own ways to servers may have changed, or their next hops gone with a port."""
        there = {row["id"] for row in documents(ip("-json", "nexthop", "show", "proto", PROTOCOL))}
        for server in list(self.ways):
            if number(server) not in there:
                self.ways[server] = ""
            try:
                self.do((), {server: self.way_to(server)})
            except RouterFailedError:
                self.ways.pop(server, None)  # Tried again when a route needs it.


def number(server: str) -> int:
    return int(ipaddress.IPv4Address(server))


def answer(router: Router, line: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(line)
        if asked["ask"] == "look":
            return router.look()
        if asked["ask"] == "change":
            return router.change(dict(asked["put"]), list(asked["delete"]))
        return {"error": f"{asked['ask']!r} is nothing that this adapter does"}
    except RouterFailedError as error:
        return {"error": str(error)}
    except (ValueError, KeyError, TypeError, OSError, subprocess.SubprocessError) as error:
        return {"error": f"{type(error).__name__}: {error}"}


def main() -> int:
    turn, router, waiting = Turn(LOCK.format(Path("/proc/self/ns/net").stat().st_ino)), Router(), b""
    due = time.monotonic() + LOOK_SECONDS
    while True:
        lines: list[bytes] = []
        if select.select([0], [], [], max(0.0, due - time.monotonic()))[0]:
            part = os.read(0, 1 << 16)
            if not part or len(waiting) > LONGEST:
                return 0
            *lines, waiting = (waiting + part).split(b"\n")
        for line in lines:
            with turn:
                if not turn.is_ours():
                    return replaced()
                said = answer(router, line)
            sys.stdout.write(json.dumps(said) + "\n")
            sys.stdout.flush()
        if time.monotonic() >= due:  # However much is asked.
            with turn, suppress(RouterFailedError, OSError, subprocess.SubprocessError):
                if not turn.is_ours():
                    return replaced()
                router.follow()
            due = time.monotonic() + LOOK_SECONDS


def replaced() -> int:
    sys.stderr.write("another adapter was started at this router, and this one ends\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
