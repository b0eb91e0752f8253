"""How far switches are, as the configuration says: it reaches the listeners for them and their databases."""

import pytest

from retinue.controller.authn.tls import TlsConfig
from retinue.controller.config import Config
from retinue.controller.doors import Doors
from retinue.controller.leadership.candidate import build
from retinue.security.tokens import Tokens
from retinue.southbound.openflow.connection import Timing


@pytest.mark.parametrize(("given", "seconds"), [({}, 5.0), ({"switch_seconds": 20.0}, 20.0)])
async def test_switches_that_are_far_are_given_more_time(given: dict[str, float], seconds: float) -> None:
    config = Config(gateway_mac="00:00:de:ad:be:ef", **given)  # type: ignore[arg-type]
    protected = TlsConfig({}, None, Tokens(), None)
    doors = Doors(config, protected, build(config, config.network(), protected, None))
    assert doors._switches._timing == Timing(seconds, seconds, 2 * seconds)
    assert doors._switches._answer_timeout == seconds
    assert doors._databases._proof_timeout == seconds
