"""Keeps the adapter of each router running, and tells the controller of the sessions that come and go."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

import structlog

from retinue.core.model.network import Network
from retinue.southbound.routers.link import FIRST_ANSWER_SECONDS, RouterError, RouterLink
from retinue.southbound.routers.session import RouterSession

log = structlog.get_logger()

LOOK_SECONDS = 2.0
"""How often a router is looked at that nobody asks anything."""
AGAIN_SECONDS = 2.0
"""Before an adapter that has ended is started again."""


class RouterHandler(Protocol):
    """What is told of each session."""

    def connected(self, session: RouterSession) -> None: ...

    def disconnected(self, session: RouterSession, reason: str) -> None: ...

    def router_ports(self, session: RouterSession) -> None: ...


class RouterKeeper:
    def __init__(self, net: Network, commands: Mapping[str, Sequence[str]], handler: RouterHandler) -> None:
        """`commands`: by router, what starts its adapter."""
        self._net, self._commands, self._handler = net, commands, handler
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._keep(router, command), name=f"adapter of {router}")
            for router, command in self._commands.items()
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep(self, router: str, command: Sequence[str]) -> None:
        told = ""
        while True:
            try:
                link = await RouterLink.start(command, router)
                try:
                    await self._serve(router, link)
                finally:
                    await link.closed()
            except (OSError, RouterError) as error:  # ConnectionError and TimeoutError among the first.
                if str(error) != told:
                    log.error("router.away", router=router, error=str(error), command=command[0])
                told = str(error)
            except Exception:  # Whatever went wrong: without its adapter a router would be away for good.
                log.exception("router.adapter_not_kept", router=router)
            await asyncio.sleep(AGAIN_SECONDS)

    async def _serve(self, router: str, link: RouterLink) -> None:
        """From the adapter's first answer to its end."""

        def gone(reason: str) -> None:
            self._handler.disconnected(session, reason)

        session = RouterSession(self._net, router, link, await link.look(FIRST_ANSWER_SECONDS), gone)
        log.info("router.connected", router=router, ports=len(session.ports))
        try:
            self._handler.connected(session)
            while session.alive:
                await asyncio.sleep(LOOK_SECONDS)
                if session.alive and await session.look():
                    self._handler.router_ports(session)
        except (OSError, RouterError) as error:
            session.close(str(error))
            raise
        finally:
            session.close("the controller stops")
