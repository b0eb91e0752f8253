"""A libvirt in memory: what LibvirtHost and LibvirtHypervisor use of the real module, and no more."""

import contextlib
import itertools
import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from retinue.hypervisor.libvirt.domain_xml import interface_ids


class libvirtError(Exception):  # noqa: N801 - the real one's name
    pass


class FakeDomain:
    def __init__(self, connection: "FakeConnection", xml: str, state: tuple[int, int]) -> None:
        self.connection = connection
        self.xml = xml
        self.now = state
        self.memory = b""
        self.written = [64 << 10]
        """Bytes that the VM is found to have written at each look, as a QEMU before 8.0 looks."""
        self.sent = 0
        self.sent_all = -1
        """The same when all has gone."""
        self.looks = 1
        self.stopped_itself = False
        """Its QEMU has, though nobody had let it go on to the end."""
        self.flags = self.remaining = 0
        self.postcopy = False
        """The rest of its memory follows it; at a source, it has been told so."""
        self.dies_before_it_runs = False
        """At a source: the QEMU of its target, in post-copy."""
        self.cancelled = False
        """Its QEMU was told to cancel its migration."""
        self.disks: list[bytes] = []
        """At a target, what has come of disks, by connection."""
        self.rest_goes = threading.Event()
        self.rest_goes.set()
        self.may_end = threading.Event()
        """Its libvirt may end it where it was, now that it is at its target."""
        self.may_end.set()
        self.asked_for = b""
        """What the target's QEMU has asked for since the VM runs there."""
        self.cannot_go_on = self.went_on = 0
        """How often its libvirt fails, and does not, to go on with post-copy whose stream broke."""
        self.downtime = -1
        self.aborted = False
        self.rejects = ""
        self.asked: list[str] = []
        self.deaf = False
        """Its guest does not heed the power button."""
        self.moved = False
        """libvirt has been asked to."""
        self.moving = False
        """libvirt moves it away."""
        self.loaded = False
        self.came: FakeDomain | None = None
        """At a source, the VM at its target."""
        self.settled = threading.Event()
        """At a target: all its memory has come (`loaded`), or never will."""
        self.taken = bytearray()
        self.asks = False
        self._wire: socket.socket | None = None
        self.uuid = ElementTree.fromstring(xml).findtext("uuid") or ""

    def name(self) -> str:
        return ElementTree.fromstring(self.xml).findtext("name") or ""

    def UUIDString(self) -> str:  # noqa: N802
        return self.uuid

    def XMLDesc(self, flags: int) -> str:  # noqa: N802
        self._here()
        return self.xml

    def attachDeviceFlags(self, xml: str, flags: int) -> None:  # noqa: N802
        self._here()
        domain = ElementTree.fromstring(self.xml)
        devices = domain.find("devices")
        assert devices is not None and flags == 1
        devices.append(ElementTree.fromstring(xml))
        self.xml = ElementTree.tostring(domain, encoding="unicode")

    def detachDeviceFlags(self, xml: str, flags: int) -> None:  # noqa: N802
        self._here()
        domain = ElementTree.fromstring(self.xml)
        devices = domain.find("devices")
        assert devices is not None and flags == 1
        (its,) = (
            one for one in devices if ElementTree.tostring(one, encoding="unicode").strip() == xml.strip()
        )
        if not self.deaf:
            devices.remove(its)
        self.xml = ElementTree.tostring(domain, encoding="unicode")

    def state(self) -> list[int]:
        self._here()
        return list(self.now)

    def suspend(self) -> None:
        self._to(3, 2 if self.moving else 1, event=(3, 0))

    def resume(self) -> None:
        self._to(1, 1, event=(4, 0))

    def isPersistent(self) -> int:  # noqa: N802
        return 0

    def migrateSetMaxDowntime(self, limit: int) -> None:  # noqa: N802
        self._here()
        self.downtime = limit

    def jobStats(self) -> dict[str, int]:  # noqa: N802
        self._here()
        if not self.moving:
            return {"type": 0}
        return {
            "type": 2,
            "operation": 5,
            "memory_processed": self.sent,
            "memory_iteration": self.looks,
            "memory_bps": (100 + self.sent % 7) * 125_000,
            "memory_remaining": self.remaining,
        }

    def abortJob(self) -> None:  # noqa: N802
        if self.postcopy:
            raise libvirtError("Requested operation is not valid: cannot abort migration in post-copy mode")
        if not self.moving:
            raise libvirtError("Requested operation is not valid: no job is active on the domain")
        self.aborted = True
        wire = self._wire  # Another thread's: it may go at any moment.
        if wire is None:
            raise libvirtError("Requested operation is not valid: the migration cannot be cancelled yet")
        with contextlib.suppress(OSError):
            wire.shutdown(socket.SHUT_RDWR)

    def migrateGetMaxDowntime(self) -> int:  # noqa: N802
        return max(self.downtime, 300)

    def migrateToURI3(self, uri: str, parameters: dict[str, Any], flags: int) -> None:  # noqa: N802
        """Blocks as the real one does: opens the target, sends the memory, ends when that is answered."""
        self.moved, self.flags = True, flags
        there = self.connection.reaches.get(uri)
        if there is not None and flags & 1 << 19:
            self._go_on(there, self.connection.folder / Path(parameters["migrate_uri"]).name)
            return
        self.sent, self.sent_all, self.looks, self.remaining = 0, -1, 1, len(self.memory)
        if self.rejects or there is None:
            raise libvirtError(self.rejects or f"unable to connect to {uri}")
        self.postcopy = False
        self.moving = True  # Before anybody can see the target: the real one's job begins before that, too.
        try:
            came = self.came = there.take_in(self, parameters.get("destination_xml", self.xml))
        except BaseException:
            self.moving = False
            raise
        try:
            # The path is the same on all servers, each with a folder of its own behind it.
            name = Path(parameters["migrate_uri"].removeprefix("unix://")).name
            if flags & 1 << 7:
                self._send_disks(parameters)
            self._send(self.connection.folder / name)
            came.settled.wait(60)
            if not came.loaded:
                raise libvirtError("operation failed: migration out job: unexpectedly failed")
        except BaseException:
            if self.postcopy:
                self.now = (3, 13)
                came.now = (1, 11)
                raise
            there.give_up(came)
            if self.now == (3, 2):
                self._to(1, 1, event=(4, 1))
            raise
        finally:
            self.moving, self._wire = False, None
        self._has_gone(there, came)

    def _go_on(self, there: "FakeConnection", path: Path) -> None:
        """With post-copy that has failed: what had not come is sent again."""
        came = self.came
        if came is None or (self.now, came.now) != ((3, 13), (1, 11)):
            raise libvirtError("Requested operation is not valid: post-copy of the domain has not failed")
        if self.cannot_go_on:
            self.cannot_go_on -= 1
            raise libvirtError("Timed out during operation: cannot acquire state change lock")
        there.listen_for(came, self)
        with socket.socket(socket.AF_UNIX) as wire:
            wire.connect(str(path))
            self.go_on_by(wire)

    def go_on_by(self, wire: socket.socket) -> None:
        """Its QEMU does, whoever tells it to; libvirt looks on."""
        came = self.came
        assert came is not None
        there = came.connection
        came.settled.clear()
        self.rest_goes.clear()
        self.went_on += 1
        self.remaining += self.sent - len(came.taken)
        self.sent = len(came.taken)
        self.now, came.now, self.moving = (3, 12), (1, 10), True
        try:
            with wire:
                self._send_page(wire)
                self.rest_goes.wait(60)
                while self.remaining:
                    self._send_page(wire)
                self.sent_all = self.sent
                wire.shutdown(socket.SHUT_WR)
                if wire.recv(100) != b"all of it":
                    raise OSError
        except OSError:
            came.settled.wait(1)  # Nobody may have connected to it.
            self.now, came.now = (3, 13), (1, 11)
            raise libvirtError("operation failed: job 'migration out' failed in post-copy phase") from None
        finally:
            self.moving = False
        came.settled.wait(60)
        self._has_gone(there, came)

    def _has_gone(self, there: "FakeConnection", came: "FakeDomain") -> None:
        self.may_end.wait(60)
        came.now = (1, 2)
        there.tell(came, 4, 1)
        self.connection.domains_.remove(self)
        self.connection.tell(self, 5, 3)

    def _send_disks(self, parameters: dict[str, Any]) -> None:
        name = Path(parameters["disks_uri"].removeprefix("unix://")).name
        for device in parameters["migrate_disks"]:
            with socket.socket(socket.AF_UNIX) as wire:
                wire.connect(str(self.connection.folder / name))
                if wire.recv(100) != b"NBD":
                    raise libvirtError("internal error: unable to execute QEMU command 'blockdev-add'")
                wire.sendall(device.encode())
                if wire.recv(100) != b"written":
                    raise libvirtError(f"operation failed: migration of disk {device} failed")

    def _send(self, path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as self._wire:
            try:
                self._wire.connect(str(path))
                while not self.postcopy and self._goes_on():
                    self._send_page(self._wire)
                if self.postcopy:
                    self._send_rest(self._wire)
                elif self.now[0] == 1:  # It converges by itself.
                    self.stopped_itself = self.downtime in (0, 1)
                    self._to(3, 2, event=(3, 1))
                if not self.postcopy:
                    self._look()
                while self.remaining:
                    self._send_page(self._wire)
                self.sent_all = self.sent
                # Its QEMU ends the stream when the target's has answered, and not before.
                if self._wire.recv(100) != b"all of it":
                    raise libvirtError("operation failed: migration out job: unexpectedly failed")
            except OSError:
                raise libvirtError("operation aborted: migration out job: canceled by client") from None

    def migrateStartPostCopy(self, flags: int) -> None:  # noqa: N802
        if not self.flags & 1 << 15:
            raise libvirtError("post-copy migration was not enabled")
        self.postcopy = True

    def _send_rest(self, wire: socket.socket) -> None:
        """The VM stands still here, for good, and runs at the target, whose QEMU asks for what it needs."""
        self._to(3, 12, event=(3, 7))
        assert self.came is not None
        if self.dies_before_it_runs:
            self.came.connection.give_up(self.came)
            raise libvirtError("internal error: qemu unexpectedly closed the monitor")
        self.came.now = (1, 10)
        self.came.connection.tell(self.came, 4, 3)
        self._send_page(wire)
        self.asked_for = wire.recv(100)
        self.rest_goes.wait(60)

    def _goes_on(self) -> bool:
        """There is more to send before the VM stands still for good: so QEMU decides, at 200 Mbit/s."""
        threshold = 25_000 * self.downtime
        if self.remaining == 0 or (self.remaining < threshold and self.now[0] == 1):
            if self.now[0] == 1 and self.downtime:
                self._look()
            return self.remaining >= max(threshold, 1)
        return True

    def _look(self) -> None:
        self.looks += 1
        self.remaining += self.written.pop(0) if self.written else 0

    def _send_page(self, wire: socket.socket) -> None:
        page = self.memory[self.sent : self.sent + 4096] or bytes(4096)
        wire.sendall(page)
        self.sent += len(page)
        self.remaining -= len(page)

    def destroy(self) -> None:
        self._here()
        self.connection.domains_.remove(self)
        self.connection.tell(self, 5, 1)

    def updateDeviceFlags(self, xml: str, flags: int) -> None:  # noqa: N802
        self._here()
        link = ElementTree.fromstring(xml).find("link")
        assert link is not None and flags == 1
        self.asked.append(f"link {link.get('state')}")

    def shutdown(self) -> None:
        """A guest that heeds its power button."""
        self._here()
        self.asked.append("shutdown")
        if not self.deaf:
            self.connection.domains_.remove(self)
            self.connection.tell(self, 5, 0)

    def reboot(self, flags: int = 0) -> None:
        self._here()
        self.asked.append("reboot")
        if not self.deaf:
            self.connection.rebooted(self)

    def reset(self, flags: int = 0) -> None:
        self._here()
        self.asked.append("reset")
        self.connection.rebooted(self)

    def crash(self) -> None:
        """Its QEMU ends, without a word."""
        self._here()
        self.connection.domains_.remove(self)
        self.connection.tell(self, 5, 5)

    def _to(self, state: int, reason: int, event: tuple[int, int]) -> None:
        self._here()
        self.now = (state, reason)
        self.connection.tell(self, *event)

    def _here(self) -> None:
        if self not in self.connection.domains_:
            raise libvirtError("Domain not found: no domain with matching uuid")


class FakeConnection:
    """`tell` is libvirt saying something of a domain; `die` is libvirtd ending."""

    def __init__(self) -> None:
        self.domains_: list[FakeDomain] = []
        self.alive = True
        self.opened = 0
        self.reaches: dict[str, FakeConnection] = {}
        """Other servers' libvirts, by what is to be said to reach them."""
        self.folder = Path()
        """Where its QEMUs' sockets are."""
        self.answer = b"all of it"
        self._callbacks: dict[int, Callable[..., None]] = {}
        self._kinds: dict[int, int] = {}
        self._handles = itertools.count()
        self._closed: Callable[..., None] | None = None

    def createXML(self, xml: str, flags: int) -> FakeDomain:  # noqa: N802
        self._up()
        domain = FakeDomain(self, xml, (3, 1) if flags & 1 else (1, 1))
        self.domains_.append(domain)
        self.tell(domain, 2, 0)
        return domain

    def take_in(self, source: FakeDomain, xml: str) -> FakeDomain:
        """Open a target: its QEMU listens for its memory, and answers when it has all of it."""
        self._up()
        came = FakeDomain(self, xml, (3, 2))
        if ElementTree.fromstring(xml).find("devices/disk") is not None:
            disks = socket.socket(socket.AF_UNIX)
            disks.bind(str(self.folder / f"{interface_ids(xml)[0]}.disks"))
            disks.listen()
            threading.Thread(target=self._write, args=(came, disks), daemon=True).start()
        self.domains_.append(came)
        self.listen_for(came, source)
        self.tell(came, 2, 1)
        return came

    def listen_for(self, came: FakeDomain, source: FakeDomain) -> None:
        """Its QEMU does, for its memory, and answers when it has all of it."""
        path = self.folder / f"{interface_ids(source.xml)[0]}.memory"
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        threading.Thread(target=self._load, args=(came, listener, source), daemon=True).start()

    def _write(self, came: FakeDomain, listener: socket.socket) -> None:
        with listener, contextlib.suppress(OSError):
            listener.settimeout(60)
            while not came.settled.is_set():
                with listener.accept()[0] as wire:
                    wire.sendall(b"NBD")
                    came.disks.append(wire.recv(100))
                    wire.sendall(b"written")
                    wire.recv(1)

    def _load(self, came: FakeDomain, listener: socket.socket, source: FakeDomain) -> None:
        with listener:
            listener.settimeout(60)
            with contextlib.suppress(OSError), listener.accept()[0] as wire:
                wire.settimeout(0.01)
                while len(came.taken) != source.sent_all:
                    try:
                        nbytes = wire.recv(1 << 16)
                    except TimeoutError:
                        continue
                    if not nbytes:
                        break
                    came.taken += nbytes
                    if source.postcopy and not came.asks:
                        came.asks = True
                        wire.sendall(b"a page")
                if len(came.taken) == source.sent_all:
                    wire.sendall(self.answer)
                    came.loaded = self.answer == b"all of it"
        if not came.loaded and not source.postcopy:
            self.give_up(came)
        came.settled.set()

    def give_up(self, came: FakeDomain) -> None:
        if came in self.domains_:
            self.domains_.remove(came)
            self.tell(came, 5, 5)

    def listAllDomains(self, flags: int) -> list[FakeDomain]:  # noqa: N802
        self._up()
        return list(self.domains_)

    def domainEventRegisterAny(  # noqa: N802
        self, domain: None, kind: int, callback: Callable[..., None], opaque: None
    ) -> int:
        self._up()
        handle = next(self._handles)
        self._callbacks[handle] = callback
        self._kinds[handle] = kind
        return handle

    def domainEventDeregisterAny(self, handle: int) -> None:  # noqa: N802
        self._up()
        del self._callbacks[handle]

    def registerCloseCallback(self, callback: Callable[..., None], opaque: None) -> None:  # noqa: N802
        self._closed = callback

    def unregisterCloseCallback(self) -> None:  # noqa: N802
        self._closed = None

    def setKeepAlive(self, interval: int, count: int) -> None:  # noqa: N802
        pass

    def isAlive(self) -> bool:  # noqa: N802
        return self.alive

    def lookupByUUIDString(self, uuid: str) -> FakeDomain:  # noqa: N802
        self._up()
        return next(domain for domain in self.domains_ if domain.uuid == uuid)

    def close(self) -> None:
        self.opened -= 1
        self.alive = self.opened > 0

    def tell(self, domain: FakeDomain, event: int, detail: int) -> None:
        self._to_listeners(0, domain, event, detail)

    def rebooted(self, domain: FakeDomain) -> None:
        self._to_listeners(1, domain)

    def other_devices(self, domain: FakeDomain, xml: str, event: int = 19) -> None:
        domain.xml = xml
        self._to_listeners(event, domain, "net1")

    def _to_listeners(self, kind: int, domain: FakeDomain, *details: object) -> None:
        for handle, callback in list(self._callbacks.items()):
            if self._kinds[handle] == kind:
                callback(self, domain, *details, None)

    def die(self) -> None:
        self.alive = False
        if self._closed is not None:
            self._closed(self, 1, None)

    def watched(self) -> bool:
        return bool(self._callbacks)

    def _up(self) -> None:
        if not self.alive:
            raise libvirtError("Cannot recv data: Connection reset by peer")


class FakeLibrary:
    """The module. `server` is the libvirtd behind every URI, None while it is down."""

    libvirtError = libvirtError  # noqa: N815

    def __init__(self) -> None:
        self.server: FakeConnection | None = FakeConnection()
        self.opened: list[str] = []

    def qemuMonitorCommand(self, domain: FakeDomain, text: str, flags: int) -> str:  # noqa: N802
        """Of the module `libvirt_qemu`."""
        assert flags == 0
        match json.loads(text)["execute"]:
            case "migrate_cancel":
                domain.cancelled = True
            case "cont" if domain.cancelled:
                domain.now = (1, 11)
            case "cont":
                return '{"error": {"desc": "Migration is not finalized yet"}}'
            case "query-status":
                return json.dumps({"return": {"running": domain.now[0] == 1}})
        return '{"return": {}}'

    def open(self, uri: str) -> Any:
        self.opened.append(uri)
        if self.server is None:
            raise libvirtError(f"Failed to connect socket to '{uri}'")
        self.server.opened += 1
        return self.server
