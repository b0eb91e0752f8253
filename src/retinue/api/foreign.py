"""What a server's hypervisor does by itself, over HTTP.

POST /v1/servers/{id}/hypervisor-events  {"vm", "kind", "at"}: {"move", "state"}, of the move it belongs to

`kind`: started, incoming, suspended, resumed, departed, stopped, failed (controller/foreign.py). `vm`: the
iface-id of the VM's port. `at`: seconds since the epoch, by the server's clock.
"""

from typing import Annotated

import msgspec
from aiohttp import web

from retinue.api import views
from retinue.controller.foreign import ForeignMoves, Kind


class ReportBody(msgspec.Struct, forbid_unknown_fields=True):
    vm: str
    kind: Kind
    at: Annotated[float, msgspec.Meta(gt=0)]


def routes(foreign: ForeignMoves) -> list[web.RouteDef]:
    async def report(request: web.Request) -> web.Response:
        body = msgspec.json.decode(await request.read(), type=ReportBody)
        move = foreign.says(request.match_info["id"], body.vm, body.kind, body.at)
        said = {"move": "", "state": ""} if move is None else {"move": move.id, "state": move.state}
        return web.Response(body=views.encode(said), content_type="application/json")

    return [web.post("/v1/servers/{id}/hypervisor-events", report)]
