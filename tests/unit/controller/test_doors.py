"""How far switches are, as the configuration says: it reaches the listeners for them and their databases."""

import msgspec
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


@pytest.mark.parametrize("factor", [1.0, 10.0])
async def test_migrations_steps_may_take_as_long_as_is_configured(factor: float) -> None:
    config = msgspec.convert({"gateway_mac": "00:00:de:ad:be:ef", "step_factor": factor}, Config)
    controller = build(config, config.network(), TlsConfig({}, None, Tokens(), None), None)
    assert controller.orchestrator.copy_options.step_factor == factor


@pytest.mark.parametrize("factor", [0.5, 10.1])
def test_no_more_than_ten_times_as_long_and_never_less(factor: float) -> None:
    with pytest.raises(msgspec.ValidationError, match="step_factor"):
        msgspec.convert({"gateway_mac": "00:00:de:ad:be:ef", "step_factor": factor}, Config)
