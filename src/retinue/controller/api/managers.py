"""The mobility manager and resource manager of a configuration: found, asked, and let go."""

import ssl
from pathlib import Path
from secrets import token_hex

from retinue.config_file import ConfigError
from retinue.controller.app import Controller
from retinue.controller.by_the_clock import repeat
from retinue.controller.config_tables import ManagersTable
from retinue.controller.mobility.managers import LOOK_SECONDS, ManagerClients, Managers
from retinue.security.contexts import TlsFilesError, client_context, reload_certificate
from retinue.security.identity import PeerRole


class ManagersLink:
    """Nothing, where the configuration names none."""

    def __init__(
        self, table: ManagersTable, files: tuple[Path, Path, Path] | None, controller: Controller
    ) -> None:
        """`files`: our authority, certificate and key. Raises ConfigError."""
        self._controller = controller
        self._clients: ManagerClients | None = None
        self._context: tuple[ssl.SSLContext, tuple[Path, Path, Path]] | None = None
        if not table.mobility:
            return
        assert files is not None
        shown = (Path(table.ca) if table.ca else files[0], *files[1:])
        try:
            context = client_context(*shown, role=PeerRole.MOBILITY)
        except TlsFilesError as error:
            raise ConfigError(f"managers: {error}") from error
        self._context = context, shown
        self._clients = ManagerClients(table.mobility, table.resources, context)
        controller.mobility.deciding.managers = Managers(
            controller.context, controller.resources, self._clients, token_hex(8), table.domains
        )

    def reload(self) -> None:
        """Read the certificate again, for connections to come. Raises ConfigError, and what was in use
        stays."""
        if self._context is None:
            return
        context, files = self._context
        try:
            reload_certificate(context, *files)
        except TlsFilesError as error:
            raise ConfigError(f"managers: {error}") from error

    def start(self) -> None:
        managers = self._controller.mobility.deciding.managers
        if managers is not None:
            repeat(self._controller.context, LOOK_SECONDS, managers.look, "managers")

    async def stop(self) -> None:
        managers = self._controller.mobility.deciding.managers
        if self._clients is not None and managers is not None:
            managers.close()
            await self._clients.close()
