"""What a server's agent has refused at its own door, over HTTP.

POST /v1/servers/{id}/counters  {"since", "refused": {REASON: COUNT}}: {"ok": true}

`since`: when the agent started, by the server's clock. `refused`: its totals since then
(controller/refusals.py has the reasons).
"""

from typing import Annotated

import msgspec
from aiohttp import web

from retinue.api import views
from retinue.controller.refusals import MOST, AgentRefusals, Refusal


class CountersBody(msgspec.Struct, forbid_unknown_fields=True):
    since: Annotated[float, msgspec.Meta(gt=0)]
    refused: dict[Refusal, Annotated[int, msgspec.Meta(ge=0, le=MOST)]]


def routes(refusals: AgentRefusals) -> list[web.RouteDef]:
    async def report(request: web.Request) -> web.Response:
        body = msgspec.json.decode(await request.read(), type=CountersBody)
        refusals.says(request.match_info["id"], body.since, body.refused)
        return web.Response(body=views.encode({"ok": True}), content_type="application/json")

    return [web.post("/v1/servers/{id}/counters", report)]
