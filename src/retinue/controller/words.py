"""Which manager said what first: of several managers that contradict each other the later is told.

    somebody registers a VM, a server, a VRF, vnet   kept: who, and when, by the thing
    or subnet, or starts a migration of a VM
    the same thing is said once more, and rejected   the rejection says who was first
    a server is given otherwise by another manager   rejected, with who was first; by the same: changed
    the thing is removed, or goes by itself; the     forgotten
    migration has ended

To change a thing that is there (PATCH, PUT) is no contradiction, whoever does it. Where managers need not
show who they are, they are one to us.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass

from retinue.controller.changes import Change
from retinue.controller.context import Context
from retinue.controller.state import State, Storable, Word
from retinue.core.model.network import NOTHING, Touched


@dataclass(frozen=True, slots=True)
class WordKept(Change):
    """A manager was the first to say something."""

    word: Word

    def apply(self, state: State) -> Touched:
        state.words[self.word.about] = self.word
        return NOTHING

    def kept(self) -> tuple[Storable, ...]:
        return (self.word,)


@dataclass(frozen=True, slots=True)
class WordForgotten(Change):
    """What was said is no more."""

    word: Word

    def apply(self, state: State) -> Touched:
        state.words.pop(self.word.about, None)
        return NOTHING

    def dropped(self) -> tuple[Storable, ...]:
        return (self.word,)


class Words:
    """Keeps who was first. `kind` and id name the thing, such as "vm" and "web"."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def say(self, kind: str, ids: Iterable[str], by: str) -> None:
        """Accepted from this manager; "": it need not say who it is, and nothing is kept."""
        now = self._context.clock()
        for id in ids if by else ():
            self._context.apply(WordKept(Word(f"{kind} {id}", by, now)))

    def forget(self, kind: str, id: str) -> None:
        word = self._context.state.words.get(f"{kind} {id}")
        if word is not None:
            self._context.apply(WordForgotten(word))

    def about(self, kind: str) -> list[str]:
        """The ids of all things of a kind about which somebody was first."""
        heads = (word.about.rpartition(" ") for word in self._context.state.words.values())
        return [id for said_of, _, id in heads if said_of == kind]

    def of(self, kind: str, id: str) -> Word | None:
        return self._context.state.words.get(f"{kind} {id}")

    def first(self, kind: str, ids: Iterable[str]) -> str:
        """Who was first to say one of these, in words; "" where nobody knows."""
        word = next((word for id in ids if (word := self.of(kind, id)) is not None), None)
        return "" if word is None else in_words(word)


def in_words(word: Word) -> str:
    at = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(word.at))
    return f"{word.by} was first, at {at}"


__all__ = ["WordForgotten", "WordKept", "Words", "in_words"]
