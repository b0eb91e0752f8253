"""Python's garbage collector, in a process that keeps millions of objects for weeks.

A full collection looks at everything there is: 0.8 s with 10,000 VMs, 7 s with 100,000, during which nobody
is answered; and a large change brings many of them. Here what has survived a full collection is set aside
(`gc.freeze`), so that the next one looks only at what has come since: each object is looked at once or twice
in its life. It still goes when nothing refers to it any more. What would stay for ever are circles of old
objects; so a small process, in which that takes no time, looks at everything again now and then, and where
connections end the circles of ours are opened (southbound.openflow.connection).
"""

import gc
from typing import Any

WHOLE_EVERY = 50
"""Full collections; then the next one looks at what was set aside, too."""
WHOLE_BELOW = 500_000
"""Objects that were set aside; of more it would take longer than a tenth of a second."""

_FULL = 2
"""The oldest generation."""


class Collector:
    """From `install` until `remove`: what survives a full collection is set aside."""

    def __init__(self) -> None:
        self._full = 0

    def install(self) -> None:
        gc.callbacks.append(self._collected)

    def remove(self) -> None:
        gc.callbacks.remove(self._collected)
        gc.unfreeze()

    def _collected(self, phase: str, info: dict[str, Any]) -> None:
        if phase != "stop" or info["generation"] != _FULL:
            return
        gc.freeze()
        self._full += 1
        if self._full % WHOLE_EVERY == 0 and gc.get_freeze_count() < WHOLE_BELOW:
            gc.unfreeze()
