"""One laboratory for each test module that asks for `lab` or `bench`; the VMs of its list VMS run in it."""

import fcntl
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from retinue_lab.guest.image import Guest, ensure_guest
from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology import topology_file
from support.lab.guest_dhcp import of_vm, start_udhcpc
from support.lab.left_over import host
from support.lab.migrating import go_home
from support.lab.start import addressed, boot, lab_of
from support.lab.tools import Doorman, Json, LabBench
from support.pages import ROOT


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHandle]:
    """The default network, or the module's TOPOLOGY. It ends with the module, or with this process."""
    network = topology_file.load(getattr(request.module, "TOPOLOGY", None))
    with lab_of(tmp_path_factory.mktemp("labs"), network) as handle:
        registered = getattr(request.module, "VMS", [])
        if registered:
            boot(handle, registered)
        yield handle


@pytest.fixture(scope="session")
def debs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages, of this tree, where they are built one after the other."""
    folder = tmp_path_factory.mktemp("debs") / "packages"
    with (ROOT / "deploy/deb/build.sh").open() as script:
        fcntl.flock(script, fcntl.LOCK_EX)
        subprocess.run(["sh", script.name, Path(sys.executable).parent], cwd=ROOT, check=True)
        shutil.copytree(ROOT / "build/deb", folder)
    return folder


@pytest.fixture(scope="module")
def guest() -> Guest:
    return ensure_guest(print)


@pytest.fixture(scope="module")
def doorman(lab: LabHandle) -> Iterator[Doorman]:
    made = Doorman(lab)
    yield made
    made.close()


@pytest.fixture
async def bench(lab: LabHandle, doorman: Doorman) -> AsyncIterator[LabBench]:
    made = LabBench(lab, doorman)
    yield made
    await made.aclose()


@pytest.fixture
async def home(request: pytest.FixtureRequest, bench: LabBench) -> AsyncIterator[None]:
    """After each test the VMs of the module's list VMS are where they were."""
    yield
    await go_home(bench, request.module.VMS)


@pytest.fixture
async def leased(request: pytest.FixtureRequest, bench: LabBench) -> None:
    """The VMs of the module's list VMS hold an address each, whatever the test before did."""
    for vm in (registered["id"] for registered in request.module.VMS):
        if not await bench.bindings(vm):
            async with bench.events() as events:
                await bench.guest(vm, "killall -9 udhcpc", check=False)
                await start_udhcpc(bench, vm)
                await events.until("binding.added", of_vm(vm))
        await addressed(bench, vm)


@pytest.fixture
async def kea(bench: LabBench) -> AsyncIterator[Json]:
    """The DHCP server's configuration, to be changed and set with `config-set`; put back at the end."""
    found = await bench.kea("config-get")
    found.pop("hash", None)
    before = {"Dhcp4": {**found["Dhcp4"], "subnet4": [dict(found["Dhcp4"]["subnet4"][0])]}}
    yield found
    await bench.kea("config-set", before)


@pytest.fixture
def traceless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Labs and temporary files in folders of their own, in which nothing may be left; nor on the host."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with tempfile.TemporaryDirectory(prefix="labs-") as folder:  # short: paths of sockets are in it
        monkeypatch.setenv("RETINUE_LAB_DIR", folder)
        monkeypatch.setenv("TMPDIR", str(temporary))
        before = host()
        yield
        assert list(Path(folder).iterdir()) == []
        assert list(temporary.iterdir()) == []
        assert host() == before
