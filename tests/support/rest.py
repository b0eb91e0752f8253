"""One request to the REST interface, as any client makes it."""

import json

import aiohttp


async def call(url: str, method: str, path: str, body: object = None) -> tuple[int, dict[str, object]]:
    """The status, and what was answered. A body of bytes is sent as it stands."""
    data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    async with aiohttp.ClientSession() as http, http.request(method, url + path, data=data) as answer:
        return answer.status, await answer.json()
