"""Pairs of MAC and IP: given, shown and taken back by managers."""

from aiohttp import web

from retinue.controller.api.http import Handlers, answer, body, many
from retinue.controller.app import Controller
from retinue.controller.parsing import address
from retinue.core.model import mac
from retinue.protocol.pairs import PairBody
from retinue.protocol.routes import Route


def handlers(controller: Controller) -> Handlers:
    pairs = controller.pairs

    async def all_pairs(_: web.Request) -> web.Response:
        return answer({"pairs": list(pairs.shown())})

    async def add(request: web.Request) -> web.Response:
        bodies: list[PairBody] = many(await body(request, PairBody | list[PairBody]))
        given = [(mac(one.mac), address(one.ip)) for one in bodies]
        return answer({"pairs": [pairs.row(pair) for pair in pairs.add(given)]}, status=201)

    async def remove(request: web.Request) -> web.Response:
        id = mac(request.match_info["id"])
        pairs.remove(id)
        return answer({"removed": id})

    return {Route.LIST_PAIRS: all_pairs, Route.ADD_PAIRS: add, Route.REMOVE_PAIR: remove}
