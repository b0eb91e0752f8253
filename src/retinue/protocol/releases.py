"""Agents and a controller of two releases: what one does not know of what the other says.

In the middle of an upgrade some agents may be newer than their controller, and some older.

    older agent      what it says is as ever: a field that a message has got since may be left out; of what it
                     hears, a field or a type of event that it does not know is nothing to it
    newer agent      says its release with each request (AGENT_HEADER): what its reports have besides, and
                     types of events that there are not, are left out

Only what our own agents report is read so. Of what people and their programs send a field that is not known
may be a mistake, or matter: it is rejected.
"""

from retinue.core.limits import LONGEST_RELEASE
from retinue.core.text import cut, printable

AGENT_HEADER = "Retinue-Agent"
"""The release of the agent that asks, such as "0.1.0"."""


def shown_release(text: str | None) -> str:
    """What an agent has said of its release, fit to be shown; "": nothing."""
    return cut(printable(text or ""), LONGEST_RELEASE)


def is_newer(release: str, other: str) -> bool:
    """Whether a release comes after another. What is no release, such as "", comes before all."""
    return _numbers(release) > _numbers(other)


def _numbers(release: str) -> tuple[int, ...]:
    parts = release.split(".")
    return (
        tuple(int(part) for part in parts) if all(part.isascii() and part.isdigit() for part in parts) else ()
    )
