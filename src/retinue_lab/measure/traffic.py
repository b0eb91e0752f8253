"""Sends numbered datagrams to a guest at an even pace, holds a TCP stream to it, and reports what came back.

    python -m retinue_lab.measure.traffic udp --to 10.1.0.100 --pps 1000 --seconds 10 --json

It writes a line {"event": "flowing", ...} at the first reply, and at the end a line {"event": "result", ...}
with the fields of `measure.Traffic`. A line "stop" on standard input, SIGTERM or SIGINT ends it early; it
then still waits a second for stragglers. `--save FILE` keeps every time stamp (`measure.Record`).

Three threads: the sender sleeps until each datagram is due, the receiver takes the kernel's time stamps, so
that the interpreter's own delays are not counted, and the stream has one of its own.
"""

import argparse
import contextlib
import json
import secrets
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from retinue_lab.measure.figures import Arrival, Record, StreamMessage, Traffic, analyse

PORT = 7
HEADER = struct.Struct("!4sIII")
"""Magic, run, sequence number, counter: as in guest/responder.c."""
MAGIC = b"RTNU"
STRAGGLERS, SILENCE = 1.0, 3.0
"""Seconds to wait for late replies at the least; and without any, while some are missing (a busy machine)."""
BUFFER_BYTES = 16 << 20
TCP_MESSAGE = struct.Struct("!Q")
TCP_PATIENCE = 15.0
"""Seconds without an echo after which the stream counts as broken."""

SO_TIMESTAMPNS = 35
"""Linux, asm-generic/socket.h; its message holds two 64-bit numbers, seconds and nanoseconds."""
SO_RCVBUFFORCE = 33
SO_SNDBUFFORCE = 32
TIMESTAMP = struct.Struct("qq")


class Run:
    """One run of datagrams and, where `tcp_rate` (messages a second) is not 0, a stream."""

    def __init__(self, to: str, pps: int, seconds: float, *, size: int = 64, tcp_rate: int = 50) -> None:
        self.pps = pps
        self.flowing = threading.Event()
        """Set at the first reply."""
        self.flowing_since = 0
        self._to = to
        self._total = round(pps * seconds)
        self._size = max(size, HEADER.size)
        self._tcp_rate = tcp_rate
        self._number = secrets.randbits(32) or 1
        self._stop = threading.Event()
        self._over = threading.Event()
        self._sent: list[int] = []
        self._arrivals: list[Arrival] = []
        self._answered: set[int] = set()
        self._messages: list[StreamMessage] = []
        self._tcp_broken = ""
        self._socket = _open(to)

    def stop(self) -> None:
        """End the run early."""
        self._stop.set()

    def run(self) -> Record:
        """Send, until everything is sent or `stop` is called; returns when the stragglers are in."""
        others = [threading.Thread(target=self._receive, daemon=True)]
        if self._tcp_rate:
            others.append(threading.Thread(target=self._hold_stream, daemon=True))
        for thread in others:
            thread.start()
        self._send()
        self._stop.set()
        self._wait_for_stragglers()
        self._over.set()
        for thread in others:
            thread.join(TCP_PATIENCE + 1)
        self._socket.close()
        return Record(self.pps, self._sent, self._arrivals, self._messages, self._tcp_broken)

    def _wait_for_stragglers(self) -> None:
        """Also when all have come: one of them may come twice."""
        begin = quiet_since = time.monotonic()
        before = len(self._arrivals)
        while (now := time.monotonic()) < begin + STRAGGLERS or now < quiet_since + SILENCE:
            time.sleep(0.05)
            arrived = len(self._arrivals)
            if arrived != before:
                before, quiet_since = arrived, time.monotonic()
            elif len(self._answered) == len(self._sent):
                quiet_since = 0.0

    def _send(self) -> None:
        padding = bytes(self._size - HEADER.size)
        begin = time.monotonic_ns()
        for sequence in range(self._total):
            due = begin + sequence * 1_000_000_000 // self.pps
            wait = due - time.monotonic_ns()
            if wait > 0:
                time.sleep(wait / 1e9)
            if self._stop.is_set():
                return
            # Without a reply this counts as lost, also where the network rejects it at once.
            self._sent.append(time.time_ns())
            with contextlib.suppress(OSError):
                self._socket.send(HEADER.pack(MAGIC, self._number, sequence, 0) + padding)

    def _receive(self) -> None:
        while not self._over.is_set():
            try:
                data, ancillary, _, _ = self._socket.recvmsg(2048, 64)
            except TimeoutError:
                continue
            except OSError:  # an ICMP error that came back; the request counts as lost
                continue
            arrived = next((_nanoseconds(value) for _, kind, value in ancillary if kind == SO_TIMESTAMPNS), 0)
            if len(data) < HEADER.size:
                continue
            magic, number, sequence, counter = HEADER.unpack_from(data)
            if magic != MAGIC or number != self._number or sequence >= self._total:
                continue
            self._answered.add(sequence)
            self._arrivals.append(Arrival(sequence, arrived or time.time_ns(), counter))
            if not self.flowing_since:
                self.flowing_since = self._arrivals[0].at
                self.flowing.set()

    def _hold_stream(self) -> None:
        begin = time.monotonic()
        try:
            with socket.create_connection((self._to, PORT), timeout=TCP_PATIENCE) as stream:
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for number in range(sys.maxsize):
                    wait = begin + number / self._tcp_rate - time.monotonic()
                    if self._stop.wait(max(0.0, wait)):
                        return
                    self._exchange(stream, number)
        except OSError as error:
            self._tcp_broken = f"after {len(self._messages)} messages: {error}"

    def _exchange(self, stream: socket.socket, number: int) -> None:
        """Send one message, and wait for its echo."""
        sent = time.time_ns()
        self._messages.append(StreamMessage(sent, 0))
        stream.sendall(TCP_MESSAGE.pack(number))
        echo = b""
        while len(echo) < TCP_MESSAGE.size:
            part = stream.recv(TCP_MESSAGE.size - len(echo))
            if not part:
                raise ConnectionError("the other side closed the connection")
            echo += part
        if TCP_MESSAGE.unpack(echo)[0] != number:
            raise ConnectionError(f"message {number} came back as {TCP_MESSAGE.unpack(echo)[0]}")
        self._messages[-1] = StreamMessage(sent, time.time_ns())


def _open(to: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_DGRAM)
    for plain, forced in ((socket.SO_RCVBUF, SO_RCVBUFFORCE), (socket.SO_SNDBUF, SO_SNDBUFFORCE)):
        try:
            opened.setsockopt(socket.SOL_SOCKET, forced, BUFFER_BYTES)
        except PermissionError:
            opened.setsockopt(socket.SOL_SOCKET, plain, BUFFER_BYTES)
    opened.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    opened.settimeout(0.1)
    opened.connect((to, PORT))
    return opened


def _nanoseconds(timestamp: bytes) -> int:
    seconds, nanoseconds = TIMESTAMP.unpack_from(timestamp)
    return int(seconds * 1_000_000_000 + nanoseconds)


# ---- the program ----


def main(arguments: Sequence[str] | None = None) -> int:
    wanted = _parser().parse_args(arguments)
    with contextlib.suppress(OSError):  # wake the sender on time, not up to 50 us later
        Path("/proc/self/timerslack_ns").write_text("1")
    try:
        run = Run(wanted.to, wanted.pps, wanted.seconds, size=wanted.size, tcp_rate=wanted.tcp_rate)
    except OSError as error:
        print(f"traffic to {wanted.to}: {error}", file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: run.stop())
    threading.Thread(target=_listen_for_stop, args=(run,), daemon=True).start()
    if wanted.json:
        threading.Thread(target=_announce, args=(run,), daemon=True).start()
    record = run.run()
    if wanted.save:
        record.save(wanted.save)
    traffic = analyse(record)
    print(json.dumps({"event": "result", **asdict(traffic)}) if wanted.json else _shown(traffic), flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m retinue_lab.measure.traffic", description="Measure a guest's echo."
    )
    kinds = parser.add_subparsers(required=True)
    udp = kinds.add_parser("udp", help="numbered datagrams, and a TCP stream beside them")
    udp.add_argument("--to", required=True, help="the guest's address")
    udp.add_argument("--pps", type=int, default=1000, help="datagrams a second")
    udp.add_argument("--seconds", type=float, default=10.0, help="for how long")
    udp.add_argument("--size", type=int, default=64, help="bytes of payload")
    udp.add_argument("--tcp-rate", type=int, default=50, help="messages a second on the stream; 0: no stream")
    udp.add_argument("--save", type=Path, help="a file for every time stamp")
    udp.add_argument("--json", action="store_true", help="write JSON lines")
    return parser


def _listen_for_stop(run: Run) -> None:
    for line in sys.stdin:
        if line.strip() == "stop":
            run.stop()


def _announce(run: Run) -> None:
    run.flowing.wait()
    print(json.dumps({"event": "flowing", "at": run.flowing_since / 1e9}), flush=True)


def _shown(traffic: Traffic) -> str:
    return "\n".join(f"{name.replace('_', ' '):22} {value}" for name, value in asdict(traffic).items())


if __name__ == "__main__":
    sys.exit(main())
