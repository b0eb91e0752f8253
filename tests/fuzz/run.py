"""Inputs in blocks, each from a seed of its own: the same inputs in each run, whichever process has the
block."""

import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from random import Random
from types import FrameType

from fuzz.parsers import PARSERS, Parser

BLOCK = 10_000
"""Inputs of one seed."""
SECONDS = 2.0
"""Processor time for one input. None takes a hundredth of it: who takes it all, hangs."""
SEED = 1


class HangsError(BaseException):
    """An input has used up its processor time. No `except Exception` of a parser may take it."""


@dataclass(frozen=True)
class Failure:
    """An input for which a parser has raised what it does not declare."""

    parser: str
    number: int
    error: str
    data: bytes

    def __str__(self) -> str:
        return f"{self.parser}, input {self.number}: {self.error}\n    {self.data.hex()}"


@dataclass
class Outcome:
    parser: str
    inputs: int = 0
    read: int = 0
    """Inputs that were taken for valid: some have to be, or the damage is such that nothing is looked at."""
    failure: Failure | None = None


@cache
def samples_of(parser: Parser) -> tuple[bytes, ...]:
    return tuple(parser.samples())


def inputs(parser: Parser, block: int, count: int) -> Iterator[bytes]:
    """The inputs of a block: every second one mended, where that can be done."""
    random, samples = Random(f"{SEED} {parser.name} {block}"), samples_of(parser)
    for number in range(count):
        data = parser.damage(random.choice(samples), samples, random)
        yield parser.mend(data) if parser.mend is not None and number % 2 else data


def run(parser: Parser, block: int, count: int) -> Outcome:
    """Give the parser a block's inputs, up to the first that fails."""
    outcome = Outcome(parser.name)
    with _hanging():
        for number, data in enumerate(inputs(parser, block, count)):
            outcome.inputs += 1
            signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
            try:
                parser.read(data)
                outcome.read += 1
            except parser.errors:
                pass
            except (Exception, HangsError) as error:
                said = f"{type(error).__name__}: {error}"
                outcome.failure = Failure(parser.name, block * BLOCK + number, said, data)
                break
            finally:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return outcome


@contextmanager
def _hanging() -> Iterator[None]:
    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise HangsError(f"not done after {SECONDS:g} s of processor time")

    before = signal.signal(signal.SIGVTALRM, ring)
    try:
        yield
    finally:
        signal.signal(signal.SIGVTALRM, before)


def _named(name: str, block: int, count: int) -> Outcome:
    return run(next(parser for parser in PARSERS if parser.name == name), block, count)


def all_of(names: list[str], count: int, processes: int) -> Iterator[Outcome]:
    """So many inputs for each parser, block by block, as they come."""
    with ProcessPoolExecutor(processes) as pool:
        running = [
            pool.submit(_named, name, block, min(BLOCK, count - block * BLOCK))
            for name in names
            for block in range(-(-count // BLOCK))
        ]
        try:
            for done in running:
                yield done.result()
        finally:
            for left in running:
                left.cancel()
