"""Agents that hold images, in one process: real stores and connections, and a controller that is not."""

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retinue.agent.content.service import NO_DOMAINS, ContentService
from retinue.agent.content.store import Store
from retinue.agent.content.wire import Word, send_bytes
from retinue.agent.migration.peer import Transfer
from retinue.core.content import CHUNK_BYTES, Bitmap, ChunkList, Patience
from retinue.hypervisor.memory_channel import Channel, ChannelError
from retinue.protocol.errors import ErrorCode, RejectedError
from retinue.protocol.events import ControllerEvent, EventType
from retinue.protocol.images import ImageState, SignedManifest
from retinue.protocol.routes import Route
from support.content import image, parts

QUICK = Patience(deadline=1.0, patience=0.25, avoided=0.25, longest_avoided=1.0)


class ImageController:
    """Knows what is published, and who says that it holds it."""

    def __init__(self) -> None:
        self.published: dict[str, tuple[SignedManifest, str]] = {}
        self.reports: dict[str, dict[str, Any]] = {}
        self.more_holders: dict[str, str] = {}
        """Addresses of holders that report nothing."""
        self.caches: set[str] = set()
        self.leaves: dict[str, str] = {}
        """By server: where it is, if that matters."""
        self.changed = asyncio.Event()

    async def get(self, path: str) -> dict[str, Any]:
        if path == Route.LIST_IMAGES.path():
            digests = {name: signed.list_digest for name, (signed, _) in self.published.items()}
            return {"images": [{"name": n, "manifest": {"list_digest": d}} for n, d in digests.items()]}
        name, _, query = path.rpartition("/")[2].partition("?")
        asker = query.removeprefix("server=")
        if name not in self.published:
            raise RejectedError(f"there is no image {name}", ErrorCode.UNKNOWN_IMAGE, 404)
        signed, origin = self.published[name]
        holders = {
            server: report["address"]
            for server, report in self.reports.items()
            if any(held["name"] == name for held in report["images"])
            or (server in self.caches and asker not in self.caches)
        }
        return {
            "manifest": {field: getattr(signed, field) for field in signed.__struct_fields__},
            "origin": origin,
            "holders": [
                {
                    "server": server,
                    "address": address,
                    "near": asker in self.leaves and self.leaves[asker] == self.leaves.get(server),
                }
                for server, address in (holders | self.more_holders).items()
            ],
        }

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self.reports[path.split("/")[3]] = body
        self.changed.set()
        return {}

    def held(self, server: str, name: str) -> dict[str, Any]:
        images = self.reports.get(server, {"images": []})["images"]
        return next((held for held in images if held["name"] == name), {})

    async def until(self, server: str, name: str, state: ImageState = ImageState.HELD) -> dict[str, Any]:
        """What the server reports of the image, once it is in that state."""
        async with asyncio.timeout(60):
            while self.held(server, name).get("state") != state:
                self.changed.clear()
                await self.changed.wait()
        return self.held(server, name)


class ImageAgents:
    """Agents on this machine; `close` ends them all."""

    def __init__(
        self,
        folder: Path,
        ca: Path | None = None,
        patience: Patience = QUICK,
        domains: Mapping[str, Path] = NO_DOMAINS,
    ) -> None:
        self.controller = ImageController()
        self.services: dict[str, ContentService] = {}
        self.transfers: dict[str, Transfer] = {}
        self._folder, self._ca, self._patience, self._domains = folder, ca, patience, domains
        self._running: list[asyncio.Task[None]] = []

    async def start(self, server: str, quota: int = 1 << 30, *, cache: bool = False) -> ContentService:
        store = Store(self._folder / server, quota, evicts=cache)
        if cache:
            self.controller.caches.add(server)
        transfer = Transfer(server)
        await transfer.start("127.0.0.1")
        service = ContentService(
            server,
            store,
            self.controller,
            transfer.open_anywhere,
            lambda: transfer.address,
            self._ca,
            self._patience,
            cache=cache,
            domains=self._domains,
            doors=lambda: {domain: door.address for domain, door in transfer.domains.items()},
        )
        transfer.visitors = service
        self.services[server], self.transfers[server] = service, transfer
        self._running.append(asyncio.create_task(service.run()))
        return service

    async def publish(self, server: str, name: str, data: bytes) -> ChunkList:
        """Straight into a server's store; returns when it has told so."""
        manifest, chunks = image(name, data)
        signed = SignedManifest(name, manifest.size, manifest.list_digest, manifest.published_at)
        self.controller.published[name] = (signed, server)
        store = self.services[server].store
        made = store.put_image(signed, chunks.data, server)
        cut = parts(data)
        for chunk in store.missing(made):
            store.put_chunk(made, chunk, cut[chunk])
        await self.controller.until(server, name)
        return chunks

    def order(self, server: str, name: str, **more: Any) -> None:
        event = ControllerEvent(EventType.IMAGE_FETCH, server=server, image=name, **more)
        self.services[server].on_event(event)

    async def close(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        for service in self.services.values():
            await service.close()
        for transfer in self.transfers.values():
            await transfer.close()


class BadHolder:
    """A holder of an image that does not do what it should: `manner` says what."""

    def __init__(self, chunks: ChunkList, data: bytes, manner: str) -> None:
        self.chunks, self.parts, self.manner = chunks, parts(data), manner
        self.address = ""
        self.asked: list[int] = []
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[Any]] = set()

    async def start(self) -> "BadHolder":
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", limit=1 << 20)
        self.address = "{}:{}".format(*self._server.sockets[0].getsockname())
        return self

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        with contextlib.suppress(ChannelError):
            await self._talk(Channel(reader, writer), writer)

    async def _talk(self, channel: Channel, writer: asyncio.StreamWriter) -> None:
        await channel.receive_message()
        if self.manner == "mute":
            await asyncio.Event().wait()
        if self.manner == "garbage":
            writer.write(b"\xff" * 99)
            await writer.drain()
            await asyncio.Event().wait()
        await channel.send_message(Word.ACCEPTED)
        if self.manner == "bitmap":
            await channel.send_memory(b"\xff" * 999)
        await channel.send_memory(bytes(Bitmap.full(len(self.chunks))))
        if self.manner == "notice":
            await channel.send_message(Word.HAS, chunks=[-1, "x"])
        while True:
            request = await channel.receive_message()
            if request["type"] == Word.LIST:
                await channel.send_message(Word.LIST)
                await send_bytes(channel, self.chunks.data[::-1])
                continue
            self.asked.append(request["n"])
            await self._answer(channel, request["n"])

    async def _answer(self, channel: Channel, chunk: int) -> None:
        match self.manner:
            case "hangs late" if len(self.asked) > 3:
                await asyncio.Event().wait()
            case "hangs":
                await asyncio.Event().wait()
            case "leaves":
                await channel.close()
                await asyncio.Event().wait()
            case "absent":
                await channel.send_message(Word.ABSENT, n=chunk)
                return
            case "number":
                await channel.send_message(Word.CHUNK, n=1 << 40)
                return
        await channel.send_message(Word.CHUNK, n=chunk)
        data = self.parts[chunk]
        forged = {
            "flips": bytes([data[0] ^ 1]) + data[1:],
            "truncates": data[:-1],
            "zeros": bytes(CHUNK_BYTES),
        }
        await channel.send_memory(forged.get(self.manner, data))
