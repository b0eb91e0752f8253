"""Publishing an image from here: its file is read for the digests, and again for what is not there yet."""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from retinue.agent.content.wire import Word, send_bytes
from retinue.agent.migration.peer import agent_of
from retinue.cli.errors import CliError
from retinue.core.content import CHUNK_BYTES, Bitmap, ContentError, Manifest, chunk_digest, digest_of
from retinue.core.content.manifest import DIGEST_BYTES, ZERO
from retinue.core.limits import LARGEST_IMAGE
from retinue.hypervisor.memory_channel import READ_BYTES, Channel, ChannelError
from retinue.protocol.images import ImageRecord, SignedManifest
from retinue.security.contexts import TlsFilesError
from retinue.security.credentials import Credentials
from retinue.security.signatures import SignatureError, sign
from retinue.socket_addresses import endpoint

CONNECT_LIMIT = 10.0
ANSWER_LIMIT = 60.0
"""Seconds for the agent to answer; it may have many chunks to look for."""

Progress = Callable[[int, int], None]
"""Called with the bytes that are done, and all of them."""


def chunk_list(path: Path, progress: Progress) -> bytes:
    """The digests of a file's chunks. Raises CliError for a file that cannot be read or is no image."""
    listed = bytearray()
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if not 0 < size <= LARGEST_IMAGE:
            raise CliError(f"{path} has {size} bytes: an image has 1 to {LARGEST_IMAGE >> 30} GiB")
        while data := file.read(CHUNK_BYTES):
            listed += chunk_digest(data)
            progress(min(size, len(listed) // DIGEST_BYTES * CHUNK_BYTES), size)
    return bytes(listed)


def signed_manifest(name: str, path: Path, listed: bytes, shown: Credentials) -> SignedManifest:
    """Raises CliError where it cannot be signed."""
    try:
        now = int(time.time())
        manifest = Manifest(name, path.stat().st_size, digest_of(listed).hex(), now)
        signature = certificate = ""
        if shown.certificate is not None:
            signature = sign(manifest.signed, shown.key or shown.certificate)
            certificate = shown.certificate.read_text()
    except (ContentError, SignatureError, OSError, ValueError) as error:
        raise CliError(str(error)) from error
    return SignedManifest(name, manifest.size, manifest.list_digest, now, signature, certificate)


def upload(
    path: Path, listed: bytes, record: ImageRecord, address: str, shown: Credentials, progress: Progress
) -> int:
    """Bring what is missing to the agent of the image's first holder; the bytes sent. Raises CliError."""
    try:
        return asyncio.run(_upload(path, listed, record, address, shown, progress))
    except TimeoutError as error:
        raise CliError(f"the agent of {record.origin} at {address} says nothing") from error
    except (ChannelError, OSError, ValueError, TlsFilesError) as error:
        raise CliError(f"the agent of {record.origin} at {address}: {error}; publish it again") from error


async def _upload(
    path: Path, listed: bytes, record: ImageRecord, address: str, shown: Credentials, progress: Progress
) -> int:
    channel = await _connect(record.origin, address, shown)
    refused: asyncio.Task[dict[str, Any]] | None = None
    try:
        await channel.send_message(Word.PUBLISH, image=record.manifest.name)
        await _expect(channel, Word.ACCEPTED)
        await send_bytes(channel, listed)
        async with asyncio.timeout(ANSWER_LIMIT):
            answer = await channel.receive()
        if isinstance(answer, dict):
            raise CliError(f"{record.origin} does not take the image: {answer.get('reason', '')}")
        manifest = record.manifest.manifest
        there = Bitmap(manifest.chunks, answer)
        refused = asyncio.create_task(channel.receive_message())
        sent = 0
        given: set[bytes] = set()
        with _opened(path) as file:
            for chunk in range(manifest.chunks):
                digest = listed[chunk * DIGEST_BYTES : (chunk + 1) * DIGEST_BYTES]
                if chunk in there or digest == ZERO or digest in given or refused.done():
                    continue
                given.add(digest)
                file.seek(chunk * CHUNK_BYTES)
                data = file.read(CHUNK_BYTES)
                await channel.send_message(Word.CHUNK, n=chunk)
                await channel.send_memory(data)
                sent += len(data)
                progress((chunk + 1) * CHUNK_BYTES, manifest.size)
        if not refused.done():
            await channel.send_message(Word.END)
        async with asyncio.timeout(ANSWER_LIMIT):
            last = await refused
        if last["type"] != Word.DONE:
            raise CliError(f"{record.origin} does not take the image: {last.get('reason', '')}")
        return sent
    finally:
        if refused is not None:
            refused.cancel()
            await asyncio.gather(refused, return_exceptions=True)
        await channel.close()


async def _connect(server: str, address: str, shown: Credentials) -> Channel:
    host, port = endpoint(address)
    tls = shown.context() if shown.ca is not None else None
    if tls is not None:
        tls.check_hostname = False  # Whose agent it is counts, which is in the certificate.
    async with asyncio.timeout(CONNECT_LIMIT):
        reader, writer = await asyncio.open_connection(host, port, ssl=tls, limit=READ_BYTES)
    end = writer.get_extra_info("ssl_object")
    if end is not None and server not in agent_of(end):
        writer.close()
        raise CliError(f"at {address} is the agent of another server than {server}")
    return Channel(reader, writer)


async def _expect(channel: Channel, word: Word) -> None:
    async with asyncio.timeout(ANSWER_LIMIT):
        answer = await channel.receive_message()
    if answer["type"] != word:
        raise CliError(f"the image is not taken: {answer.get('reason', answer['type'])}")


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise CliError(f"cannot read {path}: {error.strerror}") from error
