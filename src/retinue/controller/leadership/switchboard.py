"""The switches' sessions while this controller is a standby, and how the active one takes them over.

A standby's sessions stand, in the role of SLAVE: nothing is said over them but that both ends are alive. The
active controller asks each switch for the role of MASTER, with its epoch as generation id: a switch that
knows a later one rejects it, and else demotes whoever had the role before. Only then is the session the
controller's.
"""

import asyncio
from collections.abc import Callable

import structlog

from retinue.controller.leadership.mandate import Mandate
from retinue.southbound.openflow.codec.messages import ErrorMessage, FlowRemoved, PacketIn, PortStatus
from retinue.southbound.openflow.codec.wire import ControllerRole
from retinue.southbound.openflow.server import Rejected, Session, SwitchHandler

log = structlog.get_logger()


class Switchboard:
    """Between the OpenFlow server and a controller (a SwitchHandler itself)."""

    def __init__(self, handler: SwitchHandler, mandate: Mandate, look: Callable[[], None]) -> None:
        """`look` is called when a switch behaves as if another controller were active."""
        self._handler = handler
        self._mandate = mandate
        self._look = look
        self._epoch: int | None = None
        """This controller's, once it is the active one."""
        self._waiting: set[Session] = set()
        self._taken: set[Session] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def standing(self) -> int:
        """Switches whose sessions stand and wait to be taken over."""
        return len(self._waiting)

    def activate(self, epoch: int) -> None:
        """Take all switches over, those that stand and those to come."""
        self._epoch = epoch
        for session in list(self._waiting):
            self._spawn(session, epoch)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, session: Session, epoch: int) -> None:
        task = asyncio.get_running_loop().create_task(self._take(session, epoch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take(self, session: Session, epoch: int) -> None:
        await self._mandate.held()
        try:
            await session.request_role(ControllerRole.MASTER, epoch)
        except Rejected as error:
            session.close(f"it does not take this controller for its master: {error}")
            self._look()
        except (ConnectionError, TimeoutError) as error:
            session.close(f"it could not be taken over: {error}")
        else:
            if session.alive:
                self._waiting.discard(session)
                self._taken.add(session)
                self._handler.connected(session)

    # ---- the switches' word (a SwitchHandler) ----

    def connected(self, session: Session) -> None:
        self._waiting.add(session)
        if self._epoch is not None:
            self._spawn(session, self._epoch)

    def disconnected(self, session: Session, reason: str) -> None:
        self._waiting.discard(session)
        if session in self._taken:
            self._taken.discard(session)
            self._look()
            self._handler.disconnected(session, reason)

    def packet_in(self, session: Session, message: PacketIn) -> None:
        if session in self._taken:
            self._handler.packet_in(session, message)

    def flow_removed(self, session: Session, message: FlowRemoved) -> None:
        if session in self._taken:
            self._handler.flow_removed(session, message)

    def port_status(self, session: Session, message: PortStatus) -> None:
        if session in self._taken:
            self._handler.port_status(session, message)

    def error(self, session: Session, message: ErrorMessage) -> None:
        if session in self._taken:
            self._handler.error(session, message)
        else:
            log.warning("switch.error", switch=hex(session.dpid), error=str(message))
