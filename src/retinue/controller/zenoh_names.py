"""Names as resources of zenoh: `retinue/DOMAIN/names/NAME` is the row of that name in the table of entities.

    get of one name, or of names/*     the rows, as GET /v1/entities/{id} shows them
    subscription                       what is there, within a second of the first one; then each row whose
                                       profile or locator has changed, and a deletion for each that has gone

Nothing is copied: a row is made when it is asked for. It is only read: the session takes questions and
subscriptions for these keys and nothing else, so nobody can publish a name here, or send anything to others
through the controller. What comes faster than it is answered pushes out what waits the longest.

zenoh has threads of its own, and calls of it may wait for a peer. So questions are answered in a thread,
which asks the event loop for the rows.
"""

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from retinue.config_file import ConfigError, ConfigTable
from retinue.controller.counters import Count
from retinue.controller.mobility.entities import Entities
from retinue.core.limits import ID, MOST_QUESTIONS, NAME
from retinue.core.text import quoted
from retinue.core.token_bucket import TokenBucket
from retinue.socket_addresses import endpoint

if TYPE_CHECKING:
    import zenoh

LOOK_SECONDS = 1.0
"""Between two looks at what has changed, while somebody listens."""
AT_ONCE = 200
"""Rows that are made before the controller's other work has its turn."""
MOST_WAITING = 256
"""Questions that wait for their answer; of more the oldest get none."""
MOST_SESSIONS = 64
"""Peers at a time."""
LARGEST_QUESTION = 1 << 16
"""Bytes of a message to us."""
ANSWER_LIMIT = 10.0
"""Seconds for the event loop to make the rows of one answer."""
JSON = "application/json"

log = structlog.get_logger()


class ZenohTable(ConfigTable, frozen=True):
    """[zenoh]: names of VMs, servers, services and images as resources of zenoh."""

    domain: str = ""
    """The DOMAIN of the keys; "": no zenoh."""
    listen: list[str] = []
    """Where peers connect, such as "tls/192.0.2.1:7447"."""
    connect: list[str] = []
    """Routers, or peers, that are connected to."""
    plaintext: bool = False
    """Whether "tcp/...", which nothing protects, is meant."""

    def checked(self, *, tls: bool) -> "ZenohTable":
        """Itself; `tls`: there are certificates. Raises ConfigError."""
        if not self.domain:
            if self.listen or self.connect:
                raise ConfigError("zenoh: domain is missing: the keys are retinue/DOMAIN/names/NAME")
            return self
        if not ID.fullmatch(self.domain):
            raise ConfigError(f"zenoh.domain: {quoted(self.domain)} cannot be part of a key")
        if not self.listen and not self.connect:
            raise ConfigError("zenoh: say where peers connect (listen), or to which it connects (connect)")
        for text in (*self.listen, *self.connect):
            found = re.fullmatch(r"(tcp|tls)/([^?#]+)", text)
            try:
                endpoint(found[2] if found else "")
            except ValueError as error:
                raise ConfigError(f"zenoh: {quoted(text)} is not tls/HOST:PORT or tcp/HOST:PORT") from error
            if found and found[1] == "tcp" and not self.plaintext:
                raise ConfigError(f"zenoh: {text} is plain text: use tls/, or say plaintext = true")
            if found and found[1] == "tls" and not tls:
                raise ConfigError(f"zenoh: {text}: there are no certificates; add the table [tls]")
        return self


class ZenohNames:
    """Answers and publishes, from `start` to `stop`. Raises OSError where zenoh cannot be opened."""

    def __init__(
        self,
        table: ZenohTable,
        files: tuple[Path, Path, Path] | None,
        entities: Entities,
        counters: MutableMapping[str, int],
    ) -> None:
        """`files`: authority, certificate and key, where there are any."""
        self.prefix = f"retinue/{table.domain}/names"
        self._table, self._files = table, files
        self._entities, self._counters = entities, counters
        self._session: zenoh.Session | None = None
        self._queryable: zenoh.Queryable[Any] | None = None
        self._publisher: zenoh.Publisher | None = None
        self._thread: threading.Thread | None = None
        self._looking: asyncio.Task[None] | None = None
        self._bucket = TokenBucket(MOST_QUESTIONS, 0.0)
        self._published: dict[str, int] = {}
        """By name: what was published last, as a hash."""

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._bucket = TokenBucket(MOST_QUESTIONS, loop.time())
        await asyncio.to_thread(self._open)
        self._thread = threading.Thread(target=self._serve, args=(loop,), name="zenoh names", daemon=True)
        self._thread.start()
        self._looking = loop.create_task(self._look_again_and_again(), name="zenoh names")

    def _open(self) -> None:
        try:
            import zenoh
        except ImportError as error:
            raise OSError("[zenoh] needs the package eclipse-zenoh: pip install retinue[zenoh]") from error
        config = zenoh.Config()
        for key, value in self._settings().items():
            config.insert_json5(key, json.dumps(value))
        try:
            self._session = zenoh.open(config)
            waiting: zenoh.handlers.RingChannel[zenoh.Query] = zenoh.handlers.RingChannel(MOST_WAITING)
            self._queryable = self._session.declare_queryable(f"{self.prefix}/*", waiting, complete=True)
            self._publisher = self._session.declare_publisher(f"{self.prefix}/*")
        except zenoh.ZError as error:
            raise OSError(f"zenoh: {error}") from error

    def _settings(self) -> dict[str, Any]:
        """zenoh's configuration: nobody is searched for, and nothing passes but what the module says."""
        keys = [f"{self.prefix}/**"]
        asked = ["query", "declare_subscriber"]
        told = ["reply", "put", "delete", "declare_queryable"]
        found: dict[str, Any] = {
            "mode": "peer",
            "listen/endpoints": list(self._table.listen),
            "connect/endpoints": list(self._table.connect),
            "connect/timeout_ms": -1,  # A router that is away is tried again for ever, in the background.
            "connect/exit_on_failure": False,
            "scouting/multicast/enabled": False,
            "scouting/gossip/enabled": False,
            "transport/unicast/max_sessions": MOST_SESSIONS,
            "transport/link/rx/max_message_size": LARGEST_QUESTION,
            "access_control": {
                "enabled": True,
                "default_permission": "deny",
                "rules": [_rule("asked", asked, "ingress", keys), _rule("told", told, "egress", keys)],
                "subjects": [{"id": "all"}],
                "policies": [{"rules": ["asked", "told"], "subjects": ["all"]}],
            },
        }
        if self._files is not None:
            ca, certificate, key = map(str, self._files)
            found["transport/link/tls"] = {
                "root_ca_certificate": ca,
                "listen_certificate": certificate,
                "listen_private_key": key,
                "connect_certificate": certificate,
                "connect_private_key": key,
                "enable_mtls": True,
            }
        return found

    async def stop(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        if self._session is not None:
            await asyncio.to_thread(self._close)

    def _close(self) -> None:
        assert self._session is not None
        if self._queryable is not None:
            self._queryable.undeclare()  # type: ignore[no-untyped-call]  # This ends the thread.
        self._session.close()  # type: ignore[no-untyped-call]
        if self._thread is not None:
            self._thread.join(ANSWER_LIMIT)

    # ---- questions, in a thread ----

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        assert self._queryable is not None
        for query in self._queryable:
            try:
                self._answer(query, loop)
            except Exception as error:  # One question that goes wrong is no reason to answer no other.
                log.warning("zenoh.not_answered", key=str(query.key_expr), error=str(error))

    def _answer(self, query: "zenoh.Query", loop: asyncio.AbstractEventLoop) -> None:
        with query:
            key = str(query.key_expr)
            made = asyncio.run_coroutine_threadsafe(self._rows(key), loop)
            rows = made.result(ANSWER_LIMIT)
            if rows is None:
                query.reply_err(b"too many questions at once: ask again", encoding="text/plain")
                return
            for name, row in rows:
                query.reply(f"{self.prefix}/{name}", row, encoding=JSON)

    async def _rows(self, key: str) -> list[tuple[str, bytes]] | None:
        """The rows that a key asks for: of one name, or, by a pattern, of all; None: it is too much now."""
        if not self._bucket.take(asyncio.get_running_loop().time()):
            self._counters[Count.ZENOH_TOO_MANY] += 1
            return None
        self._counters[Count.ZENOH_ASKED] += 1
        name = key.removeprefix(f"{self.prefix}/")
        if NAME.fullmatch(name):
            row = self._row(name)
            return [] if row is None else [(name, msgspec.json.encode(row))]
        import zenoh

        asked = zenoh.KeyExpr(key)
        return [
            (name, msgspec.json.encode(row))
            async for name, row in self._every()
            if asked.includes(zenoh.KeyExpr(f"{self.prefix}/{name}"))
        ]

    def _row(self, name: str) -> dict[str, Any] | None:
        """A VM of another domain is in its home's names."""
        return None if self._entities.is_guest(name) else self._entities.shown(name)

    async def _every(self) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        for number, name in enumerate(self._entities.names()):
            if number % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)
            if (row := self._row(name)) is not None:
                yield name, row

    # ---- changes ----

    async def _look_again_and_again(self) -> None:
        while True:
            try:
                await self.look()
            except Exception as error:
                log.warning("zenoh.not_published", error=str(error))
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Publish what has changed since the last look, where anybody listens."""
        assert self._session is not None and self._publisher is not None
        listened_to = self._publisher.matching_status
        if not getattr(listened_to, "matching", listened_to):
            self._published.clear()  # Who listens next is told of all.
            return
        import zenoh

        drop = zenoh.CongestionControl.DROP  # Who does not read misses it, and nobody waits for that.
        gone = set(self._published)
        async for name, row in self._every():
            gone.discard(name)
            said = hash(msgspec.json.encode({**row, "measured": None}))
            if self._published.get(name) != said:
                self._published[name] = said
                key = f"{self.prefix}/{name}"
                self._session.put(key, msgspec.json.encode(row), encoding=JSON, congestion_control=drop)
        for name in gone:
            del self._published[name]
            self._session.delete(f"{self.prefix}/{name}", congestion_control=drop)


def _rule(id: str, messages: list[str], flow: str, keys: list[str]) -> dict[str, Any]:
    return {"id": id, "messages": messages, "flows": [flow], "permission": "allow", "key_exprs": keys}


__all__ = ["ZenohNames", "ZenohTable"]
