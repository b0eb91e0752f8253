"""What runs behind a gateway is not dead with it: an operator cannot say so."""

import pytest

from retinue.controller.errors import RequestError
from retinue.controller.marks import ServerFenced
from retinue.controller.migrations.requests import MigrationError
from retinue.core.migration import MigrationState as S
from retinue.core.model import VM
from support.fabric.domains import gateway_of, nic, server_of
from support.fabric.two_controllers import VM_ID, TwoDomains


async def test_a_gateway_is_not_fenced(domains: TwoDomains) -> None:
    await domains.move("a", "b", server_of("b", 1))
    a = domains.controller("a")
    with pytest.raises(RequestError, match="VMs behind a gateway are not dead with it"):
        await a.fencing.fence(gateway_of("a"))
    assert not a.net.fenced
    with pytest.raises(RequestError, match="VM vm-a1 is registered already, at to-b"):
        a.inventory.register_vms([VM(VM_ID, (nic("a", 1),), server_of("a", 2))])


async def test_nobody_speaks_for_what_is_behind_a_gateway(domains: TwoDomains) -> None:
    """Fenced by a controller of before: nothing is taken as said."""
    a = domains.controller("a")
    migration = domains.begin(server=server_of("b", 1))
    await domains.until("a", S.PREPARED, S.COPYING, S.DIVERTED)
    a.context.apply(ServerFenced(gateway_of("a")))
    a.orchestrator.end_those_of(gateway_of("a"))
    assert a.orchestrator.migrations[migration.id].state.may_undo


async def test_a_gateway_that_is_away_is_waited_for(domains: TwoDomains) -> None:
    a = domains.controller("a")
    domains.fakes["a"].sessions["a-edge3"].close("it is away")
    with pytest.raises(MigrationError) as refused:
        domains.begin(server=server_of("b", 1))
    assert "is not connected" in str(refused.value)
    assert "fence" not in str(refused.value)
    assert not a.orchestrator.migrations


async def test_the_tunnel_is_nobodys_port_that_was_left(domains: TwoDomains) -> None:
    """Fenced by a controller of before, with VMs at home: it can be taken back."""
    a = domains.controller("a")
    a.context.apply(ServerFenced(gateway_of("a")))
    await a.fencing.unfence(gateway_of("a"))
    assert not a.net.fenced
