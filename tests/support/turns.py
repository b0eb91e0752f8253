"""Which process of `pytest -n` runs which test module.

A module marked `alone` counts packets, and no VMs run beside it but its own. All such modules are one unit of
work, so that one process runs them in turn; the others do meanwhile what needs no VMs.
"""

import functools

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

ALONE, NO_VMS = "alone", "no_vms"
LABS = "tests/lab/"


class Turns(LoadFileScheduling):  # type: ignore[misc]
    """A module at a time for each process. Who hands out the work has names only, no marks: it looks for them
    in the module's text.
    """

    def __init__(self, config: pytest.Config, log: Producer | None = None) -> None:
        super().__init__(config, log)
        self._text = functools.cache(lambda module: (config.rootpath / module).read_text())

    def _split_scope(self, nodeid: str) -> str:
        module = str(super()._split_scope(nodeid))
        return ALONE if self._has(module, ALONE) else module

    def _assign_work_unit(self, node: WorkerController) -> None:
        others = [work for other, work in self.assigned_work.items() if other is not node]
        if any(self._pending_of({ALONE: work.get(ALONE, {})}) for work in others):
            fits = next((unit for unit in self.workqueue if not self._runs_vms(unit)), None)
            if fits is not None:
                self.workqueue.move_to_end(fits, last=False)
        super()._assign_work_unit(node)

    def _runs_vms(self, unit: str) -> bool:
        return unit == ALONE or (unit.startswith(LABS) and not self._has(unit, NO_VMS))

    def _has(self, module: str, mark: str) -> bool:
        return f"pytest.mark.{mark}" in self._text(module)
