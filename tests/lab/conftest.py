"""One laboratory for each test module that asks for `lab` or `bench`; the VMs of its list VMS run in it."""

from collections.abc import AsyncIterator, Iterator

import pytest

from lab_start import boot, lab_of
from lab_tools import Bench, Doorman
from retinue.lab.sandbox import LabHandle


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHandle]:
    """The default network. It ends with the module, or with this process."""
    with lab_of(tmp_path_factory.mktemp("labs")) as handle:
        booked = getattr(request.module, "VMS", [])
        if booked:
            boot(handle, booked)
        yield handle


@pytest.fixture(scope="module")
def doorman(lab: LabHandle) -> Iterator[Doorman]:
    made = Doorman(lab)
    yield made
    made.close()


@pytest.fixture
async def bench(lab: LabHandle, doorman: Doorman) -> AsyncIterator[Bench]:
    made = Bench(lab, doorman)
    yield made
    await made.aclose()
