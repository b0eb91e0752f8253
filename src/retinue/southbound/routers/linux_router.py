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
"""

from __future__ import annotations

import ipaddress
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

PROTOCOL = METRIC = "220"
OURS = f"proto {PROTOCOL} metric {METRIC}"
LOOK_SECONDS = 1.0
LONGEST = 16 << 20


class RouterFailedError(Exception):
    """What the router has said to what it was asked."""


def ip(*words: str, lines: Sequence[str] | None = None) -> str:
    """What `ip` prints."""
    text = None if lines is None else "\n".join(lines) + "\n"
    done = subprocess.run(["ip", *words], input=text, capture_output=True, text=True, timeout=10, check=False)
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


class Router:
    def __init__(self) -> None:
        self.ways: dict[str, str] = {}
        """By server: how the kernel was told to reach it."""

    def look(self) -> dict[str, Any]:
        routes = self.table(documents(ip("-json", "-4", "route", "show", "proto", PROTOCOL)))
        for hop in [hop for hop in routes.values() if hop is not None]:
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
        hops = {str(ipaddress.IPv4Address(hop)) for hop in put.values() if hop is not None}
        todo = [line for hop in sorted(hops) for line in self.to_server(hop)]
        touched = [str(ipaddress.IPv4Network(prefix)) for prefix in (*put, *delete)]
        for prefix, hop in put.items():
            way = f"{prefix} nhid {number(hop)}" if hop is not None else f"blackhole {prefix}"
            todo.append(f"route replace {way} {OURS}")
        there = self.held(delete) if delete else {}
        todo += [f"route del {prefix} {OURS}" for prefix in delete if prefix in there]
        wrong = ""
        try:
            if todo:
                ip("-batch", "-", lines=todo)
        except RouterFailedError as error:
            wrong = str(error)
        answer = {"routes": self.held(touched)}
        return {**answer, "error": wrong} if wrong else answer

    def held(self, prefixes: Iterable[str]) -> dict[str, str | None]:
        """What the kernel holds of these prefixes."""
        lines = [f"route show exact {ipaddress.IPv4Network(prefix)} proto {PROTOCOL}" for prefix in prefixes]
        return self.table(documents(ip("-json", "-batch", "-", lines=lines))) if lines else {}

    def table(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, str | None]:
        found: dict[str, str | None] = {}
        for row in rows:
            if str(row.get("metric", METRIC)) != METRIC:
                continue
            prefix = str(ipaddress.IPv4Network("0.0.0.0/0" if row["dst"] == "default" else row["dst"]))
            if row.get("type") == "blackhole":
                found[prefix] = None
            else:
                hop = row.get("nhid")
                found[prefix] = str(ipaddress.IPv4Address(hop)) if hop else row.get("gateway", "")
        return found

    def to_server(self, server: str) -> list[str]:
        """What makes the next hop for a server be the router's own way to it; nothing when it is."""
        try:
            way = documents(ip("-json", "-4", "route", "get", server))[0]
        except RouterFailedError as error:
            raise RouterFailedError(f"the router has no way to server {server}: {error}") from None
        if way.get("type") in ("blackhole", "unreachable", "prohibit", "local") or "dev" not in way:
            raise RouterFailedError(f"the router has no way to server {server}: {way}")
        line = f"via {way.get('gateway', server)} dev {way['dev']} onlink"
        if self.ways.get(server) == line:
            return []
        self.ways[server] = line
        return [f"nexthop replace id {number(server)} {line} proto {PROTOCOL}"]

    def follow(self) -> None:
        """The router's own ways to servers may have changed, or their next hops gone with a port."""
        there = {row["id"] for row in documents(ip("-json", "nexthop", "show", "proto", PROTOCOL))}
        for server in list(self.ways):
            if number(server) not in there:
                del self.ways[server]
            try:
                todo = self.to_server(server)
                if todo:
                    ip("-batch", "-", lines=todo)
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
    router, waiting = Router(), b""
    while True:
        if not select.select([0], [], [], LOOK_SECONDS)[0]:
            with suppress(RouterFailedError, OSError, subprocess.SubprocessError):
                router.follow()
            continue
        part = os.read(0, 1 << 16)
        if not part or len(waiting) > LONGEST:
            return 0
        *lines, waiting = (waiting + part).split(b"\n")
        for line in lines:
            sys.stdout.write(json.dumps(answer(router, line)) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
