from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.fabric.networks import fabric
from support.web_page import Served, serving


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(fabric(), tmp_path) as found:
        yield found
