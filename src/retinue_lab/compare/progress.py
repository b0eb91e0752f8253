"""How far a comparison is, and how long it still takes. Pure: times are given.

What lies ahead is reckoned by what each kind of run usually takes, and set right by how long the ones so far
have taken in fact.
"""

from collections.abc import Iterable, Sequence

from retinue_lab.compare.inside import Task

LAB_SECONDS = 15.0
"""To build a lab, boot its VM, and make its network the system's."""
SECONDS = {"noise": 4.5, "move": 5.0, "tcp": 6.0}
TRUST = 30.0
"""Seconds' worth of runs after which what was seen weighs as much as what is usual."""


class Progress:
    """Of `tasks` for each of the systems; it begins at the time `began`, in seconds."""

    def __init__(self, systems: Iterable[str], tasks: Sequence[Task], began: float) -> None:
        self._labs = set(systems)
        self._began = began
        self.total = len(self._labs) * len(tasks)
        self.over = 0
        """Tasks that are done, or given up."""
        self._ahead = len(self._labs) * (LAB_SECONDS + sum(SECONDS[task.kind] for task in tasks))
        self._behind = 0.0

    def lab_is_up(self, system: str) -> None:
        """Its first task begins. A further lab of the same system was in no reckoning."""
        if system in self._labs:
            self._labs.remove(system)
            self._pass(LAB_SECONDS)

    def ended(self, task: Task) -> None:
        self.over += 1
        self._pass(SECONDS[task.kind])

    def given_up(self, tasks: Sequence[Task]) -> None:
        """None of these will be done."""
        self.over += len(tasks)
        self._ahead -= sum(SECONDS[task.kind] for task in tasks)

    def seconds_left(self, now: float) -> float:
        pace = (TRUST + now - self._began) / (TRUST + self._behind)
        return max(0.0, self._ahead) * pace

    def text(self, now: float) -> str:
        """Of the task that begins: which it is of how many, and how long all still take."""
        return f"[{self.over + 1}/{self.total}, {duration(self.seconds_left(now))} left]"

    def _pass(self, seconds: float) -> None:
        self._ahead -= seconds
        self._behind += seconds


def duration(seconds: float) -> str:
    """About how long, in words: in steps of ten seconds, from a minute and a half on of minutes."""
    if seconds < 90:
        return f"about {max(10, round(seconds, -1)):.0f} s"
    return f"about {seconds / 60:.0f} min"
