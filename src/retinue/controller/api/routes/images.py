"""Images: published, shown, fetched and removed by managers; what agents hold, they report."""

from typing import Any

from aiohttp import web

from retinue.controller.api.http import Handlers, NotFoundError, answer, body
from retinue.controller.api.views import plain
from retinue.controller.app import Controller
from retinue.controller.errors import RequestError
from retinue.controller.state import Image
from retinue.protocol.errors import ErrorCode
from retinue.protocol.images import FetchImageBody, ImagesBody, PublishBody, UnpinBody
from retinue.protocol.routes import Route


def handlers(controller: Controller) -> Handlers:
    images = controller.images

    def named(request: web.Request) -> Image:
        try:
            return images.get(request.match_info["id"])
        except RequestError as error:
            raise NotFoundError(str(error), ErrorCode.UNKNOWN_IMAGE) from error

    async def all_images(_: web.Request) -> web.Response:
        found = [shown(controller, image) for _, image in sorted(images.published.items())]
        return answer({"images": found, "stores": stores(controller), "rejected": images.holders.faults()})

    async def publish(request: web.Request) -> web.Response:
        given: PublishBody = await body(request, PublishBody)
        return answer(shown(controller, images.publish(given.manifest, given.server)), status=201)

    async def one(request: web.Request) -> web.Response:
        return answer(shown(controller, named(request), request.query.get("server", "")))

    async def remove(request: web.Request) -> web.Response:
        image = named(request)
        images.remove(image.name)
        return answer({"removed": image.name})

    async def fetch(request: web.Request) -> web.Response:
        given: FetchImageBody = await body(request, FetchImageBody, empty=b"{}")

        def may(image: Image) -> None:
            images.may_fetch(image, given.servers, given.pin, base=given.base, segment=given.segment)

        try:
            image = await controller.domains.images.adopt(request.match_info["id"], given.domain, may)
        except RequestError as error:
            if error.code is not ErrorCode.UNKNOWN_IMAGE:
                raise
            raise NotFoundError(str(error), ErrorCode.UNKNOWN_IMAGE) from error
        chosen, order = images.fetch(
            image.name, given.servers, given.pin, base=given.base, segment=given.segment
        )
        return answer({"image": image.name, "servers": chosen, "order": order}, status=202)

    async def unpin(request: web.Request) -> web.Response:
        image = named(request)
        given: UnpinBody = await body(request, UnpinBody)
        chosen = images.unpin(image.name, given.pin, given.servers)
        return answer({"image": image.name, "servers": chosen}, status=202)

    async def collect(request: web.Request) -> web.Response:
        images.collect(request.match_info["id"])
        return answer({"server": request.match_info["id"]}, status=202)

    async def scrub(request: web.Request) -> web.Response:
        images.scrub(request.match_info["id"])
        return answer({"server": request.match_info["id"]}, status=202)

    async def report(request: web.Request) -> web.Response:
        said: ImagesBody = await body(request, ImagesBody)
        images.holders.on_report(request.match_info["id"], said)
        return answer({"ok": True})

    return {
        Route.LIST_IMAGES: all_images,
        Route.PUBLISH_IMAGE: publish,
        Route.GET_IMAGE: one,
        Route.REMOVE_IMAGE: remove,
        Route.FETCH_IMAGE: fetch,
        Route.UNPIN_IMAGE: unpin,
        Route.COLLECT_CHUNKS: collect,
        Route.SCRUB_CHUNKS: scrub,
        Route.REPORT_IMAGES: report,
    }


def shown(controller: Controller, image: Image, asker: str = "") -> dict[str, Any]:
    """An image with who holds how much of it; `asker`: the server that would fetch it."""
    holders = controller.images.holders
    here = holders.servers()
    asked = holders.who(image.name, image.signed.list_digest, image.origin, asker)
    elsewhere = controller.domains.images.holders(image, asker) if asker else []
    return {
        "name": image.name,
        "manifest": plain(image.signed),
        "publisher": image.publisher,
        "origin": image.origin,
        "holders": plain([*asked, *elsewhere]),
        "held": [
            {"server": server, "here": server in here, **plain(held)}
            for server, held in holders.of(image.name).items()
        ],
    }


def stores(controller: Controller) -> list[dict[str, Any]]:
    """The chunk store of each server, as its agent said last, and whether that is there."""
    holders = controller.images.holders
    here, found = holders.servers(), []
    for server in sorted(controller.net.servers):
        report = holders.report(server)
        if report is not None:
            at = report.address
            row = {"server": server, "here": server in here, "address": at}
            found.append(row | plain(report.store) | plain(report.upkeep))
    return found
