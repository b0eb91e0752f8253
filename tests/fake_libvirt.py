"""A libvirt in memory: what LibvirtHost and LibvirtHypervisor use of the real module, and no more."""

import contextlib
import socket
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree


class libvirtError(Exception):  # noqa: N801 - the real one's name
    pass


class FakeDomain:
    def __init__(self, connection: "FakeConnection", xml: str, state: tuple[int, int]) -> None:
        self.connection = connection
        self.xml = xml
        self.now = state
        self.memory = b""
        self.sent = 0
        self.downtime = -1
        self.aborted = False
        self.refuses = ""
        self.goes_to: FakeConnection | None = None
        self._wire: socket.socket | None = None
        self.uuid = ElementTree.fromstring(xml).findtext("uuid") or ""

    def UUIDString(self) -> str:  # noqa: N802
        return self.uuid

    def XMLDesc(self, flags: int) -> str:  # noqa: N802
        self._here()
        return self.xml

    def state(self) -> list[int]:
        self._here()
        return list(self.now)

    def suspend(self) -> None:
        self._to(3, 1, event=(3, 0))

    def resume(self) -> None:
        self._to(1, 1, event=(4, 0))

    def isPersistent(self) -> int:  # noqa: N802
        return 0

    def migrateSetMaxDowntime(self, limit: int) -> None:  # noqa: N802
        self._here()
        self.downtime = limit

    def jobStats(self) -> dict[str, int]:  # noqa: N802
        self._here()
        return {"memory_processed": self.sent, "memory_remaining": len(self.memory) - self.sent}

    def abortJob(self) -> None:  # noqa: N802
        self.aborted = True
        assert self._wire is not None
        with contextlib.suppress(OSError):
            self._wire.shutdown(socket.SHUT_RDWR)

    def migrateToURI3(self, uri: str, parameters: dict[str, str], flags: int) -> None:  # noqa: N802
        """Blocks as the real one does: sends the memory, and ends when the target has answered."""
        if self.refuses:
            raise libvirtError(self.refuses)
        with socket.socket(socket.AF_UNIX) as self._wire:
            self._wire.connect(parameters["migrate_uri"].removeprefix("unix://"))
            try:
                while self.sent < len(self.memory):
                    self.sent += self._wire.send(self.memory[self.sent : self.sent + 4096])
                if self.now[0] == 1:  # It converges by itself.
                    self._to(3, 2, event=(3, 1))
                self._wire.shutdown(socket.SHUT_WR)
                if self._wire.recv(100) != b"all of it":
                    raise libvirtError("operation failed: migration out job: unexpectedly failed")
            except OSError:
                raise libvirtError("operation aborted: migration out job: canceled by client") from None
        if self.goes_to is not None:
            there = FakeDomain(self.goes_to, self.xml, (1, 1))
            self.goes_to.domains_.append(there)
            self.goes_to.tell(there, 4, 1)
        self.connection.domains_.remove(self)
        self.connection.tell(self, 5, 3)

    def destroy(self) -> None:
        self._here()
        self.connection.domains_.remove(self)
        self.connection.tell(self, 5, 1)

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
        self._callbacks: dict[int, Callable[..., None]] = {}
        self._closed: Callable[..., None] | None = None

    def createXML(self, xml: str, flags: int) -> FakeDomain:  # noqa: N802
        self._up()
        domain = FakeDomain(self, xml, (3, 1) if flags & 1 else (1, 1))
        self.domains_.append(domain)
        self.tell(domain, 2, 0)
        return domain

    def listAllDomains(self, flags: int) -> list[FakeDomain]:  # noqa: N802
        self._up()
        return list(self.domains_)

    def domainEventRegisterAny(  # noqa: N802
        self, domain: None, kind: int, callback: Callable[..., None], opaque: None
    ) -> int:
        self._up()
        self._callbacks[len(self._callbacks)] = callback
        return len(self._callbacks) - 1

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

    def close(self) -> None:
        self.alive = False

    def tell(self, domain: FakeDomain, event: int, detail: int) -> None:
        for callback in list(self._callbacks.values()):
            callback(self, domain, event, detail, None)

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

    def open(self, uri: str) -> Any:
        self.opened.append(uri)
        if self.server is None:
            raise libvirtError(f"Failed to connect socket to '{uri}'")
        return self.server
