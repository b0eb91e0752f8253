"""Renewals on a VM's behalf over HTTP: ordered by an operator or an agent, reported, asked about.

POST /v1/vms/{id}/renewals       {"server", "agent"}: 201 and the order
GET  /v1/renewals                all that are remembered
GET  /v1/renewals/{id}?wait=S    one, when it has ended or after S seconds
POST /v1/renewals/{id}/events    {"event": "silent" or "failed", "reason"}: the agent's word
"""

from typing import Any

import msgspec
from aiohttp import web

from retinue.api import views
from retinue.controller.renewals import RenewalError, Renewals

LONGEST_WAIT = 60.0


class RenewBody(msgspec.Struct, forbid_unknown_fields=True):
    """`server`: whose agent shall do it; "": that of the server where the VM is delivered. `agent`: whoever
    asks is that agent, and acts on the answer; otherwise the event vm.renew tells the agent."""

    server: str = ""
    agent: bool = False


class OutcomeBody(msgspec.Struct, forbid_unknown_fields=True):
    event: str
    reason: str = ""


def routes(renewals: Renewals) -> list[web.RouteDef]:
    async def order(request: web.Request) -> web.Response:
        body = msgspec.json.decode(await request.read() or b"{}", type=RenewBody)
        made = renewals.renew(request.match_info["id"], body.server, announce=not body.agent)
        return _json(made, 201)

    async def all_of_them(_: web.Request) -> web.Response:
        return _json({"renewals": list(renewals.orders.values())})

    async def one(request: web.Request) -> web.Response:
        return _json(await renewals.result(request.match_info["id"], _seconds(request.query.get("wait"))))

    async def agent_says(request: web.Request) -> web.Response:
        body = msgspec.json.decode(await request.read(), type=OutcomeBody)
        return _json(renewals.agent_says(request.match_info["id"], body.event, body.reason))

    return [
        web.post("/v1/vms/{id}/renewals", order),
        web.get("/v1/renewals", all_of_them),
        web.get("/v1/renewals/{id}", one),
        web.post("/v1/renewals/{id}/events", agent_says),
    ]


def _seconds(text: str | None) -> float:
    try:
        seconds = 0.0 if text is None else float(text)
    except ValueError:
        seconds = -1.0
    if not 0.0 <= seconds <= LONGEST_WAIT:
        raise RenewalError(f"wait={text}: not a number of seconds between 0 and {LONGEST_WAIT:.0f}")
    return seconds


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=views.encode(value), content_type="application/json", status=status)
