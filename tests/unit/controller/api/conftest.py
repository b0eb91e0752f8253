"""The REST interface of a module's `controller`."""

from collections.abc import AsyncIterator

import pytest

from retinue.controller.api.server import Api
from retinue.controller.app import Controller


@pytest.fixture
async def url(controller: Controller) -> AsyncIterator[str]:
    api = Api(controller, dict)
    yield f"http://127.0.0.1:{await api.start('127.0.0.1', 0)}"
    await api.stop()
