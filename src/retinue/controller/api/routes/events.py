"""The event stream: server-sent events, from now on or from an event that was the listener's last."""

import asyncio
from collections import OrderedDict
from dataclasses import replace

from aiohttp import web

from retinue.controller.api import views
from retinue.controller.api.http import Handlers, QueryError
from retinue.controller.app import Controller
from retinue.controller.event_ring import Event
from retinue.controller.events import Listener
from retinue.core.limits import LONGEST_EVENT_ID
from retinue.core.text import quoted
from retinue.protocol import sse
from retinue.protocol.events import FIELDS, HELLO, EventType
from retinue.protocol.releases import AGENT_HEADER, shown_release
from retinue.protocol.routes import Route
from retinue.protocol.serving import encode

HEARTBEAT = 5.0
"""Seconds between comments on an idle event stream, so that a dead listener is noticed."""
SOON = 1.0
"""Seconds after which an agent that was there before its server is known as its agent, at the latest."""
ENCODED = 1000
"""Events that are kept as they were encoded, for the listeners to come."""


class Encoder:
    """Encodes an event once, however many listen; what has been encoded long ago is encoded anew."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._encoded: OrderedDict[int, bytes] = OrderedDict()

    def encode(self, event: Event, agent_of: str = "") -> bytes:
        """`agent_of`: for that server's agent. A match message names all servers that are asked; of thousands
        no agent need read the others' names, nor be looked for among them: it gets no other's."""
        if agent_of and event.type == EventType.MATCH:
            own = replace(event, data={**event.data, "servers": [agent_of]})
            return sse.encode(event.type, encode(views.event(own, self._controller)), event.id)
        found = self._encoded.get(event.id)
        # An event that only one listener gets has the id of another one (events.lost).
        if found is None or event.type == EventType.EVENTS_LOST:
            found = sse.encode(event.type, encode(views.event(event, self._controller)), event.id)
            if event.type != EventType.EVENTS_LOST:
                self._encoded[event.id] = found
            if len(self._encoded) > ENCODED:
                self._encoded.popitem(last=False)
        return found


def handlers(controller: Controller) -> Handlers:
    encoder = Encoder(controller)

    async def follow(request: web.Request) -> web.StreamResponse:
        """`?since=ID` or the Last-Event-ID header: first what came after that event. `?types=TYPE,TYPE`:
        those only. `?server=ID`: the agent of that server follows, and is not told what only others act on.

        The greeting carries the last id before the stream: nothing falls between the two.
        """
        since = _since(request.query.get("since") or request.headers.get("Last-Event-ID"))
        release = shown_release(request.headers.get(AGENT_HEADER))
        types = _types(request.query.get("types"), of_agent=bool(release))
        bus = controller.events
        hello = encode({"id": bus.last_id, "type": HELLO})
        named = request.query.get("server", "")
        server = named if named in controller.net.servers else ""
        stream = bus.listen(since, types, server)
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        try:
            await response.prepare(request)
            await response.write(sse.encode(HELLO, hello))
            with controller.context.agents.listening(server, release):
                await tell(response, stream, server, "" if server else named)
        except (StopAsyncIteration, ConnectionError):
            pass
        finally:
            stream.close()
        return response

    async def tell(response: web.StreamResponse, stream: Listener, agent_of: str, unknown: str) -> None:
        """Until the stream, or whoever follows it, ends. `unknown`: the agent of a server that is not there
        yet; when that has been given its stream ends, and it comes again as that server's."""
        next_event = asyncio.ensure_future(anext(stream))
        try:
            while unknown not in controller.net.servers:
                done, _ = await asyncio.wait({next_event}, timeout=SOON if unknown else HEARTBEAT)
                if not done:
                    await response.write(sse.COMMENT)
                    continue
                # What has come meanwhile goes in one piece; then others have their turn.
                events = [next_event.result(), *stream.at_once()]
                await response.write(b"".join(encoder.encode(event, agent_of) for event in events))
                next_event = asyncio.ensure_future(anext(stream))
        finally:
            next_event.cancel()
            await asyncio.gather(next_event, return_exceptions=True)

    return {Route.FOLLOW_EVENTS: follow}


def _since(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= LONGEST_EVENT_ID):
        raise QueryError(f"not an event id: {quoted(text)}")
    return int(text)


def _types(text: str | None, *, of_agent: bool) -> frozenset[str] | None:
    """The types a listener asks for; what tells it that it has missed some always comes, too. An agent of a
    newer release asks for some that there are not here (protocol.releases)."""
    if text is None:
        return None
    wanted = frozenset(text.split(","))
    unknown = sorted(wanted - {str(type) for type in FIELDS})
    if unknown and not of_agent:
        raise QueryError(f"not a type of event: {quoted(unknown[0])}")
    return wanted | {EventType.EVENTS_LOST}
