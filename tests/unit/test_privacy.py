"""What the controller makes is its user's alone, whatever the mask was that it was started with."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retinue.controller import main as controller
from retinue.security.listener import descriptors


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The masks with which a daemon would have run."""
    masks: list[int] = []
    raised: list[int] = []

    def instead(work: Any) -> None:
        work.close()
        masks.append(os.umask(0o022))
        assert raised, "the descriptors are asked for before anything is opened"

    monkeypatch.setattr("asyncio.run", instead)
    monkeypatch.setattr("retinue.logs.to_stderr", lambda: None)
    monkeypatch.setattr(descriptors, "raise_limit", lambda: raised.append(1))
    before = os.umask(0)
    yield masks
    os.umask(before)


def test_a_controller_makes_private_files(started: list[int], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(controller, "load", lambda path: None)
    monkeypatch.setattr(controller, "_serve", nothing)
    assert controller.run(tmp_path / "c.toml", None) == 0
    assert started == [0o077]


async def nothing(*_: Any) -> None:
    pass
