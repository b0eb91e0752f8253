"""The controller of another domain, as it is spoken to."""

import ssl
from typing import Any, Protocol

import msgspec

from retinue.core.limits import LARGEST_PEER_ANSWER
from retinue.protocol.client import ControllerClient, lasting
from retinue.protocol.domains import (
    IMAGES_PATH,
    MATCHES_PATH,
    NAMES_PATH,
    PREPARE_PATH,
    REMOVALS_PATH,
    WORDS_PATH,
    Heard,
    ImageAsked,
    ImageFound,
    Match,
    Names,
    NamesAsked,
    Offer,
    Prepare,
    Prepared,
    Removed,
    Word,
)
from retinue.protocol.records import record
from retinue.security.credentials import Credentials

PREPARE_LIMIT, WORD_LIMIT, MATCH_LIMIT = 15.0, 8.0, 5.0
"""Seconds for an answer: a peer may have to look for a server, and waits for a mark at most 4 s."""


class PeerDoor(Protocol):
    """What can be said to a peer. Raises ControllerError."""

    async def match(self, wanted: Match) -> Offer: ...
    async def prepare(self, wanted: Prepare) -> Prepared: ...
    async def say(self, migration: str, word: Word) -> Heard: ...
    async def removed(self, guest: Removed) -> None: ...
    async def names(self, asked: NamesAsked) -> Names: ...
    async def image(self, asked: ImageAsked) -> ImageFound: ...


class PeerClient:
    """Speaks to the door that a peer has for us. Close it after use."""

    def __init__(self, url: str, context: ssl.SSLContext) -> None:
        self._client = ControllerClient(url, Credentials(), lasting(context), largest=LARGEST_PEER_ANSWER)

    async def match(self, wanted: Match) -> Offer:
        return record(Offer, await self._post(MATCHES_PATH, wanted, MATCH_LIMIT))

    async def prepare(self, wanted: Prepare) -> Prepared:
        return record(Prepared, await self._post(PREPARE_PATH, wanted, PREPARE_LIMIT))

    async def say(self, migration: str, word: Word) -> Heard:
        return record(Heard, await self._post(WORDS_PATH.format(id=migration), word, WORD_LIMIT))

    async def removed(self, guest: Removed) -> None:
        await self._post(REMOVALS_PATH, guest, WORD_LIMIT)

    async def names(self, asked: NamesAsked) -> Names:
        return record(Names, await self._post(NAMES_PATH, asked, WORD_LIMIT))

    async def image(self, asked: ImageAsked) -> ImageFound:
        return record(ImageFound, await self._post(IMAGES_PATH, asked, WORD_LIMIT))

    async def _post(self, path: str, body: msgspec.Struct, limit: float) -> dict[str, Any]:
        return await self._client.request("POST", path, msgspec.to_builtins(body), limit)

    async def close(self) -> None:
        await self._client.close()
