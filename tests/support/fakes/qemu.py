#!/usr/bin/env python3
"""A program that looks like QEMU from outside: its command line, its files and its monitor, and no machine.

Its guest heeds the power button. The words in -append change it: "deaf" does not, "mute" never speaks at its
monitor, "idle" only greets there, "chatty" tells an event before its first answer, "ends" ends at once,
"lacks" runs before all of its memory is there, "rest" has some of the memory of a VM that runs elsewhere,
"waits" does nothing in band from "cont" on, for it lacks a page, until it is told where the rest comes.
"""

import contextlib
import itertools
import json
import os
import select
import socket
import sys
from collections.abc import Iterator
from typing import Any


class Monitor:
    """QMP, on any number of connections, and a machine that runs, is off, or waits to come in."""

    def __init__(self, argv: list[str]) -> None:
        options = list(itertools.pairwise(argv))
        control = next(value for key, value in options if key == "-chardev")
        observer = next(value for key, value in options if key == "-qmp")
        self.append = next((value for key, value in options if key == "-append"), "")
        self.status = "inmigrate" if "-incoming" in argv else "running"
        if "rest" in self.append:
            self.status = "finish-migrate"
        for key, value in options:
            if key == "-serial" and value.startswith("file:"):
                with open(value.removeprefix("file:"), "w") as console:  # noqa: PTH123
                    console.write("RETINUE BOOT\n")
            elif key == "-serial":
                self.shell = self.listen(value)
        self.observer = self.listen(observer)
        self.streams = [socket.socket(fileno=int(control.rpartition("fd=")[2]))]
        self.first, self.chatted = self.streams[:], False
        self.waits, self.later = False, list[tuple[socket.socket, dict[str, Any]]]()
        self.given: list[int] = []
        self.files: dict[str, int] = {}
        if "mute" not in self.append:
            self.greet(self.streams[0])

    @staticmethod
    def listen(option: str) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(option.removeprefix("unix:").partition(",")[0])
        listener.listen()
        return listener

    def greet(self, stream: socket.socket) -> None:
        version = {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}
        self.say(stream, {"QMP": {"version": version, "capabilities": []}})

    def say(self, stream: socket.socket, message: dict[str, object]) -> None:
        with contextlib.suppress(OSError):
            stream.sendall(json.dumps(message).encode() + b"\r\n")

    def tell(self, event: str, **data: object) -> None:
        stamp = {"seconds": 1, "microseconds": 0}
        for stream in self.streams:
            self.say(stream, {"event": event, "data": data, "timestamp": stamp})

    def serve(self) -> None:
        while True:
            readable, _, _ = select.select([self.observer, *self.streams], [], [])
            for ready in readable:
                if ready is self.observer:
                    self.streams.append(ready.accept()[0])
                    if "mute" not in self.append:
                        self.greet(self.streams[-1])
                else:
                    self.read(ready)

    def read(self, stream: socket.socket) -> None:
        received = b""
        with contextlib.suppress(OSError):
            received, given, _, _ = socket.recv_fds(stream, 65536, 4)
            self.given += given
        if not received:
            self.streams.remove(stream)
            stream.close()
            return
        for request in requests_in(received.decode()):
            if "idle" in self.append and request["execute"] != "qmp_capabilities":
                continue
            if "chatty" in self.append and stream not in self.first and not self.chatted:
                self.chatted = True
                self.say(stream, {"event": "MIGRATION_PASS", "data": {}, "timestamp": {"seconds": 1}})
            if "exec-oob" in request:
                self.say(stream, {"return": {}, "id": request.get("id")})
                self.waits = self.waits and request["exec-oob"] != "migrate-recover"
            elif "id" in request or not self.waits:
                self.later.append((stream, request))
        while self.later and not self.waits:
            self.answer(*self.later.pop(0))

    def answer(self, stream: socket.socket, request: dict[str, Any]) -> None:
        done = self.do(request["execute"], request.get("arguments", {}))
        self.say(stream, {"return": done, "id": request.get("id")})
        if request["execute"] == "quit":
            self.end()

    def do(self, command: str, arguments: dict[str, Any]) -> dict[str, object]:
        if command == "query-status":
            return {"status": self.status, "running": self.status == "running", "singlestep": False}
        if command == "getfd":
            self.files[arguments["fdname"]] = self.given.pop()
        if command == "closefd":
            os.close(self.files.pop(arguments["fdname"]))
        if command == "query-migrate" and {"lacks", "rest", "waits"} & {*self.append.split()}:
            return {"status": "postcopy-paused"}
        if command == "cont":
            self.status, self.waits = "running", "waits" in self.append
        if command == "system_reset":
            self.status = "prelaunch" if self.status == "shutdown" else self.status
            self.tell("RESET", guest=False, reason="host-qmp-system-reset")
        if command == "system_powerdown" and "deaf" not in self.append:
            self.status = "shutdown"
            self.tell("SHUTDOWN", guest=True, reason="guest-shutdown")
        return {}

    def end(self) -> None:
        os._exit(0)


def requests_in(text: str) -> Iterator[dict[str, Any]]:
    """JSON objects one after the other, with or without space between: a client need not end its lines."""
    decoder = json.JSONDecoder()
    while text := text.lstrip():
        request, end = decoder.raw_decode(text)
        yield request
        text = text[end:]


if __name__ == "__main__":
    if "ends" in sys.argv:
        sys.exit("no such kernel")
    Monitor(sys.argv).serve()
