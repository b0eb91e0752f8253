"""The interface's description by OpenAPI."""

import asyncio

from aiohttp import web

from retinue.controller.api.http import Handlers, answer
from retinue.controller.app import Controller
from retinue.protocol import openapi
from retinue.protocol.routes import Route


def handlers(_: Controller) -> Handlers:
    async def description(_: web.Request) -> web.Response:
        # To make it takes a moment, the first time.
        return answer(await asyncio.to_thread(openapi.description))

    return {Route.GET_DESCRIPTION: description}
