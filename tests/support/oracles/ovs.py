"""A real Open vSwitch to ask: what do you do with this frame, given these entries?

    with RealSwitch([1, 2, PortNo.LOCAL]) as real:
        real.install(flows, groups)
        real.inject(frame, in_port=1)          # [(2, b"...")]

It runs with its userspace datapath in network, mount and PID namespaces of its own, and ends with them. Each
port is a veth pair; a packet socket on the far end sends and captures. The sockets are made inside and handed
out, so that a test uses them as its own.

When is it known that nothing more comes? A sentinel frame, which an entry of ours sends to every port and to
the controller, follows the frame; a second one follows when the first has come back everywhere. The switch
works off what a port received batch by batch: when the second is back, the batch of the first is done, and so
is the frame.
"""

import os
import select
import socket
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from retinue.core.packets import summarize
from retinue.core.pipeline.entry import Flow, Group, Meter, PortNo
from support.fakes.switch import FakeSwitch, Result, every_choice
from support.oracles.ofctl_text import flow_text, group_text, meter_text, port_text

BRIDGE = "br0"
PATIENCE = 60.0
"""Seconds to wait for the switch before the test fails."""
_SENTINEL_TYPE = 0x88B6
_SENTINEL = struct.Struct("!6s6sHQ38x")
_SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"


@dataclass(frozen=True, slots=True)
class Observed:
    """What the switch did, in no particular order of ports."""

    outputs: tuple[tuple[int, bytes], ...]
    to_controller: tuple[tuple[int, int, bytes], ...]
    """Cookie, port the frame came in by, frame."""


class RealSwitch:
    def __init__(self, ports: Sequence[int]) -> None:
        self.ports = list(ports)
        self._stack = ExitStack()
        self._sockets: dict[int, socket.socket] = {}
        self._sent = 0

    def __enter__(self) -> "RealSwitch":
        with ExitStack() as stack:
            self._dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="ovs"))
            ours, theirs = socket.socketpair()
            stack.enter_context(ours)
            command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
            command += [
                sys.executable,
                "-m",
                __name__,
                self._dir,
                str(theirs.fileno()),
                *map(str, self.ports),
            ]
            paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
            found_in = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
            child = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=found_in
            )
            stack.callback(_end, child)
            theirs.close()
            ours.settimeout(PATIENCE * 3)
            said, fds, _, _ = socket.recv_fds(ours, 16, len(self.ports))
            if said != b"ready":
                raise RuntimeError("Open vSwitch did not start; what it said is on standard error")
            for port, fd in zip(self.ports, fds, strict=True):
                self._sockets[port] = stack.enter_context(socket.socket(fileno=fd))
            self._openflow = stack.enter_context(_OpenFlow(f"{self._dir}/{BRIDGE}.mgmt"))
            self.install(())
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def install(
        self, flows: Iterable[Flow], groups: Iterable[Group] = (), meters: Iterable[Meter] = ()
    ) -> None:
        """Give it these entries in place of all it has. Raises RuntimeError with its words if it rejects."""
        everywhere = [f"output:{port_text(port)}" for port in self.ports] + ["IN_PORT", "controller"]
        sentinel = f"table=0,priority=65535,eth_type={_SENTINEL_TYPE:#x},actions={','.join(everywhere)}"
        self._ofctl("del-flows", BRIDGE)
        self._ofctl("del-meters", BRIDGE)
        for meter in meters:
            self._ofctl("add-meter", BRIDGE, meter_text(meter))
        lines = ["group delete group_id=all"]
        lines += [f"group add {group_text(group)}" for group in groups]
        lines += [f"flow add {flow_text(flow)}" for flow in flows]
        self._ofctl("bundle", BRIDGE, "-", text="\n".join([*lines, f"flow add {sentinel}", ""]))
        # What it remembers of the entries before would else be thrown away a little later.
        self._run("ovs-appctl", "-t", f"{self._dir}/switch.ctl", "dpctl/del-flows")

    def inject(self, frame: bytes, in_port: int) -> list[tuple[int, bytes]]:
        """The ports and frames that came out; those of one port in their order."""
        return list(self.observe(frame, in_port).outputs)

    def observe(self, frame: bytes, in_port: int) -> Observed:
        """Send a frame into a port, and return all that comes of it."""
        self._sockets[in_port].send(frame)
        outputs: list[tuple[int, bytes]] = []
        told: list[tuple[int, int, bytes]] = []
        for _ in range(2):
            self._sent += 1
            mark = _SENTINEL.pack(b"\x02" * 6, b"\x02" * 6, _SENTINEL_TYPE, self._sent)
            self._sockets[in_port].send(mark)
            for port, end in self._sockets.items():
                while (seen := _receive(end, port)) != mark:
                    outputs.append((port, seen))
            while (copy := self._openflow.packet_in())[2] != mark:
                told.append(copy)
        return Observed(tuple(outputs), tuple(told))

    def dump(self) -> str:
        """Its flow tables, for a failed test."""
        return self._ofctl("--no-stats", "dump-flows", BRIDGE) + self._ofctl("dump-groups", BRIDGE)

    def _ofctl(self, *command: str, text: str = "") -> str:
        target = f"unix:{self._dir}/{BRIDGE}.mgmt"
        return self._run(
            "ovs-ofctl", "-O", "OpenFlow14", *(target if w == BRIDGE else w for w in command), text=text
        )

    def _run(self, *command: str, text: str = "") -> str:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env={**os.environ, "OVS_RUNDIR": self._dir},
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}\n{text}")
        return done.stdout


def assert_agrees(real: RealSwitch, fake: FakeSwitch, frame: bytes, in_port: int) -> Observed:
    """Let both have the frame. Raises AssertionError unless the fake could do what the real switch did.

    "Could": the real one's choice of a bucket is its own, the fake's choices are all tried.
    """
    seen = real.observe(frame, in_port)
    wanted = list(every_choice(lambda choose: fake.receive(frame, in_port, choose)))
    if not any(_same(seen, result) for result in wanted):
        lines = [f"port {in_port}: {summarize(frame)}", frame.hex(), "Open vSwitch:", *_lines(seen)]
        for result in wanted:
            lines += ["fake:", *_lines(result), *(f"  by {flow}" for flow in result.matched)]
        raise AssertionError("\n".join([*lines, real.dump()]))
    return seen


def _same(seen: Observed, result: Result) -> bool:
    return Counter(seen.outputs) == Counter(result.outputs) and seen.to_controller == result.to_controller


def _lines(found: Observed | Result) -> list[str]:
    lines = [f"  out {port}: {summarize(frame)}\n    {frame.hex()}" for port, frame in found.outputs]
    return lines + [
        f"  told {cookie:#x} {port}: {frame.hex()}" for cookie, port, frame in found.to_controller
    ]


def _end(child: subprocess.Popen[bytes]) -> None:
    """Its end is the end of all it started: they live in its PID namespace. It does not heed SIGTERM."""
    child.kill()
    child.wait()


# ---- frames out of a packet socket ----

_SOL_PACKET, _PACKET_AUXDATA, _PACKET_IGNORE_OUTGOING = 263, 8, 23
_AUX = struct.Struct("=IIIHHHH")
_VLAN_VALID = 0x10


def _receive(end: socket.socket, port: int) -> bytes:
    """The next frame, with the VLAN tag that the kernel keeps beside it put back."""
    _wait(end, f"port {port}")
    frame, beside, _, _ = end.recvmsg(65536, socket.CMSG_SPACE(_AUX.size))
    for level, kind, data in beside:
        if (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA):
            status, _, _, _, _, tci, tpid = _AUX.unpack(data[: _AUX.size])
            if status & _VLAN_VALID:
                return frame[:12] + struct.pack("!HH", tpid or 0x8100, tci) + frame[12:]
    return frame


def _wait(end: socket.socket, what: str) -> None:
    if not select.select([end], [], [], PATIENCE)[0]:
        raise TimeoutError(f"nothing came from the switch's {what} for {PATIENCE:g} s, not even the sentinel")


class _OpenFlow:
    """Just enough of OpenFlow 1.4 to be told of packets."""

    _HEADER = struct.Struct("!BBHI")
    _VERSION, _HELLO, _ECHO_REQUEST, _ECHO_REPLY, _SET_CONFIG, _PACKET_IN = 5, 0, 2, 3, 9, 10

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._buffer = b""
        self._send(self._HELLO, b"")
        # A connection of this kind is told of packets once it has said how much of them it wants.
        # First fragments show their ports, as the controller asks for (OFPC_FRAG_NX_MATCH).
        self._send(self._SET_CONFIG, struct.pack("!HH", 3, 0xFFFF))

    def __enter__(self) -> "_OpenFlow":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def packet_in(self) -> tuple[int, int, bytes]:
        """The next packet-in: cookie, in port, frame."""
        while True:
            kind, body = self._message()
            if kind == self._ECHO_REQUEST:
                self._send(self._ECHO_REPLY, body)
            elif kind == self._PACKET_IN:
                cookie, _, length = struct.unpack_from("!QHH", body, 8)
                terms, start = body[20 : 16 + length], 16 + (length + 7) // 8 * 8 + 2
                return cookie, self._in_port(terms), body[start:]

    @staticmethod
    def _in_port(terms: bytes) -> int:
        at = 0
        while at < len(terms):
            oxm_class, field, size = struct.unpack_from("!HBB", terms, at)
            if (oxm_class, field >> 1) == (0x8000, 0):
                return int.from_bytes(terms[at + 4 : at + 8], "big")
            at += 4 + size
        raise AssertionError("a packet-in without its port")

    def _send(self, kind: int, body: bytes) -> None:
        self._socket.sendall(self._HEADER.pack(self._VERSION, kind, 8 + len(body), 0) + body)

    def _message(self) -> tuple[int, bytes]:
        _, kind, length, _ = self._HEADER.unpack(self._take(8))
        return kind, self._take(length - 8)

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            _wait(self._socket, "OpenFlow connection")
            more = self._socket.recv(65536)
            if not more:
                raise ConnectionError("the switch closed its OpenFlow connection")
            self._buffer += more
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken


# ---- inside the namespaces ----


def _serve(rundir: str, channel: int, ports: list[int]) -> None:
    """Start the switch, hand out a packet socket for each port, and stay until the other side is gone."""
    os.environ["OVS_RUNDIR"] = rundir

    def run(*command: str) -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=PATIENCE)

    # Quiet links: no router solicitations among the frames.
    run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
    run("ip", "link", "set", "lo", "up")
    db = f"{rundir}/conf.db"
    run("ovsdb-tool", "create", db, _SCHEMA)
    daemon = ("--detach", "--no-chdir", "--pidfile", "-vconsole:err")
    run("ovsdb-server", db, f"--remote=punix:{rundir}/db.sock", *daemon)
    vsctl = ("ovs-vsctl", f"--db=unix:{rundir}/db.sock")
    run(*vsctl, "--no-wait", "init")
    run("ovs-vswitchd", f"unix:{rundir}/db.sock", f"--unixctl={rundir}/switch.ctl", *daemon)
    setup = ["add-br", BRIDGE, "--", "set", "bridge", BRIDGE, "datapath_type=netdev", "fail-mode=secure"]
    ends: dict[int, str] = {}
    for port in ports:
        if port == PortNo.LOCAL:
            ends[port] = BRIDGE
            continue
        near, far = f"p{port}", f"h{port}"
        run("ip", "link", "add", near, "type", "veth", "peer", "name", far)
        for name in (near, far):
            run("ethtool", "-K", name, "tx", "off")
            run("ip", "link", "set", name, "up")
        setup += ["--", "add-port", BRIDGE, near, "--", "set", "interface", near, f"ofport_request={port}"]
        ends[port] = far
    run(*vsctl, *setup)
    run("ip", "link", "set", BRIDGE, "up")
    sockets = [_packet_socket(ends[port]) for port in ports]
    with socket.socket(fileno=channel) as out:
        socket.send_fds(out, [b"ready"], [s.fileno() for s in sockets])
        out.recv(1)


def _packet_socket(interface: str) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
    made.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
    made.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    made.bind((interface, 0))
    return made


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]), [int(word) for word in sys.argv[3:]])
