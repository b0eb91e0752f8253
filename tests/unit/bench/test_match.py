"""The bench of match messages, at a size that is none: all agents are asked, answer, and are waited for."""

import pytest

from bench import match


async def test_every_agent_answers_every_match(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(match, "MATCHES", 2)
    found = await match.measure(3, 2)
    assert [one.silent for one in found] == [0, 0]
    assert all(one.seconds > 0 and one.cpu > 0 for one in found)
