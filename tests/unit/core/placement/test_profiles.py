"""What the manager may say of VMs, servers, services, images and clients."""

import pytest

from retinue.core.model import ModelError
from retinue.core.placement.profiles import FIELDS, Entity, EntityKind, Profile

VM, SERVER, SERVICE, IMAGE = EntityKind.VM, EntityKind.SERVER, EntityKind.SERVICE, EntityKind.IMAGE
CLIENT = EntityKind.CLIENT
SAID: dict[str, tuple[Profile, set[EntityKind]]] = {
    "os": (Profile(os="debian"), {VM, SERVER, IMAGE, CLIENT}),
    "version": (Profile(version="12"), {VM, SERVER, SERVICE, IMAGE, CLIENT}),
    "applications": (Profile(applications=("web",)), {VM, SERVICE, IMAGE, CLIENT}),
    "cpus": (Profile(cpus=2), {VM, SERVER}),
    "memory_mib": (Profile(memory_mib=128), {VM, SERVER}),
    "disk_mib": (Profile(disk_mib=10), {VM, SERVER, IMAGE}),
    "bandwidth_mbps": (Profile(bandwidth_mbps=5), {VM, SERVER, CLIENT}),
    "clients": (Profile(clients=("10.0.0.9",)), {VM}),
    "image": (Profile(image="img"), {VM}),
    "apart": (Profile(apart="db"), {VM}),
    "pinned": (Profile(pinned=True), {VM}),
    "served_by": (Profile(served_by=("vm1",)), {SERVICE}),
}
"""By field: a profile that has it alone, and the kinds of things of which it may be said."""


def test_every_field_of_a_profile_is_here() -> None:
    assert set(SAID) == set(Profile.__dataclass_fields__)
    assert set(FIELDS) == set(EntityKind)


@pytest.mark.parametrize("field", SAID)
@pytest.mark.parametrize("kind", EntityKind)
def test_of_each_kind_something_may_be_said_and_the_rest_not(kind: EntityKind, field: str) -> None:
    profile, kinds = SAID[field]
    if kind is SERVICE and field != "served_by" and kind in kinds:
        with pytest.raises(ModelError, match=r"service x: say which VMs serve it \(served_by\)"):
            Entity("x", kind, profile)
    elif kind in kinds:
        assert Entity("x", kind, profile).profile == profile
    else:
        with pytest.raises(ModelError, match=f"x: the profile of a {kind} has no {field}"):
            Entity("x", kind, profile)


def test_of_a_thing_nothing_need_be_said_but_who_serves_a_service() -> None:
    for kind in (VM, SERVER, IMAGE):
        assert Entity("x", kind).profile == Profile()
    with pytest.raises(ModelError, match="say which VMs serve it"):
        Entity("x", SERVICE)
