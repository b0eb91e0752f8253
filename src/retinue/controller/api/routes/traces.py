"""Traces: what becomes of a frame, by the entries that switches should hold, or do hold."""

from aiohttp import web

from retinue.controller.api.http import Handlers, answer, body
from retinue.controller.app import Controller
from retinue.protocol.routes import Route
from retinue.protocol.traces import TraceBody


def handlers(controller: Controller) -> Handlers:
    async def trace(request: web.Request) -> web.Response:
        return answer(await controller.tracer.answer(await body(request, TraceBody)))

    return {Route.TRACE_FRAME: trace}
