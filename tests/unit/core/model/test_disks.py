"""What a disk can be, and what it cannot."""

import pytest

from retinue.core.limits import LONGEST_PATH, MOST_DISK_MIB, MOST_DISKS
from retinue.core.model import NIC, VM, Disk, DiskFormat, ModelError
from retinue.core.model.disks import stays_behind


@pytest.mark.parametrize(
    "given",
    [
        {"size_mib": 1},
        {"size_mib": MOST_DISK_MIB, "image": "debian-12"},
        {"image": "debian-12"},
        {"base": "/srv/a b".replace(" ", ","), "size_mib": 5, "format": DiskFormat.QCOW2},
        {"shared": "/" + "x" * (LONGEST_PATH - 1)},
    ],
)
def test_a_disk_is_private_unless_it_is_on_shared_storage(given: dict[str, object]) -> None:
    disk = Disk(**given)  # type: ignore[arg-type]
    assert disk.private is ("shared" not in given)
    assert stays_behind((Disk(shared="/a"), disk)) is disk.private


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({}, "a disk needs a size in MiB"),
        ({"image": "a", "base": "/b"}, "one of image, base and shared, not image and base"),
        ({"base": "/a", "shared": "/b"}, "not base and shared"),
        ({"shared": "/a", "size_mib": 1}, "leave its size out"),
        ({"size_mib": 1, "format": DiskFormat.QCOW2}, "leave it out"),
        ({"image": "a", "format": DiskFormat.QCOW2}, "leave it out"),
        ({"size_mib": -1}, "1 to"),
        ({"size_mib": MOST_DISK_MIB + 1}, f"1 to {MOST_DISK_MIB} MiB"),
        ({"image": "a/b"}, "no name of an image"),
        ({"image": ".."}, "no name of an image"),
        ({"base": "relative"}, "an absolute one"),
        ({"base": "/a/../b"}, "without .."),
        ({"base": "/"}, "an absolute one"),
        ({"shared": "/a b"}, "visible ASCII"),
        ({"shared": "/a\n"}, "visible ASCII"),
        ({"shared": "/" + "x" * LONGEST_PATH}, f"up to {LONGEST_PATH} characters"),
    ],
)
def test_what_no_disk_can_be_is_said(given: dict[str, object], why: str) -> None:
    with pytest.raises(ModelError, match=why):
        Disk(**given)  # type: ignore[arg-type]


def test_a_vm_has_no_more_disks_than_its_machine_has_places() -> None:
    nics, disk = (NIC("52:54:00:00:00:01", "vm1"),), Disk(1)
    assert len(VM("vm1", nics, "server1", disks=(disk,) * MOST_DISKS).disks) == MOST_DISKS
    with pytest.raises(ModelError, match=f"give it {MOST_DISKS} at the most"):
        VM("vm1", nics, "server1", disks=(disk,) * (MOST_DISKS + 1))
