"""The doors of the other domains of a configuration: ours for each, and theirs for us."""

import ssl
from pathlib import Path

from retinue.config_file import ConfigError
from retinue.controller.api.peer_door import Door
from retinue.controller.config_tables import DomainTable
from retinue.controller.domains.domains import Domains
from retinue.controller.domains.peer_client import PeerClient
from retinue.security.contexts import TlsFilesError, client_context, reload_certificate, server_context
from retinue.socket_addresses import endpoint


class Peers:
    """Opens and closes them."""

    def __init__(
        self, tables: list[DomainTable], files: tuple[Path, Path, Path] | None, domains: Domains
    ) -> None:
        """`files`: our authority, certificate and key. Raises ConfigError.

        From now on they can be spoken to: what migrations say as they are taken up after a restart counts.
        """
        self._tables = tables
        self._files: dict[str, tuple[Path, Path, Path]] = {}
        """By domain: its authority, and what we show it."""
        self._contexts: dict[str, tuple[ssl.SSLContext, ssl.SSLContext]] = {}
        """By domain: of our door, and for theirs."""
        self._clients: list[PeerClient] = []
        self.doors: dict[str, Door] = {}
        for table in tables:
            assert files is not None
            own = self._files[table.id] = (Path(table.ca), *files[1:])
            try:
                door, client = self._contexts[table.id] = server_context(*own), client_context(*own)
            except TlsFilesError as error:
                raise ConfigError(f"domain {table.id}: {error}") from error
            self.doors[table.id] = Door(table.id, domains, door)
            self._clients.append(PeerClient(table.url, client))
            domains.saying.doors[table.id] = self._clients[-1]
            domains.images.authorities[table.id] = own[0]

    def reload(self) -> None:
        """Read our certificate and their authorities again, for connections to come.

        Raises ConfigError, when all have been read; where there is a mistake, what was in use stays.
        """
        wrong: list[str] = []
        for id, contexts in self._contexts.items():
            try:
                for context in contexts:
                    reload_certificate(context, *self._files[id])
            except TlsFilesError as error:
                wrong.append(f"domain {id}: {error}")
        if wrong:
            raise ConfigError("; ".join(wrong))

    async def start(self) -> None:
        for table in self._tables:
            await self.doors[table.id].start(*endpoint(table.listen))

    async def stop(self) -> None:
        for door in self.doors.values():
            await door.stop()
        for client in self._clients:
            await client.close()

    def rejected(self) -> dict[str, dict[str, int]]:
        """By listener: what it has turned away."""
        return {f"domain {id}": dict(door.rejected) for id, door in self.doors.items()}
