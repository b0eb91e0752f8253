"""A short form of `make fuzz`, and that it finds what it looks for."""

from dataclasses import replace

import pytest

from fuzz import samples
from fuzz.parsers import PARSERS, Parser
from fuzz.run import HangsError, inputs, run, samples_of

INPUTS = 2000
REJECTED = (samples.ipv6()[3],)
"""A fragment: they are not put together."""


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_no_parser_raises_what_it_does_not_declare(parser: Parser) -> None:
    outcome = run(parser, 0, INPUTS)
    assert outcome.failure is None, str(outcome.failure)
    assert outcome.inputs == INPUTS
    assert outcome.read > 0, "damage that leaves nothing valid is not looked at"


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_samples_are_valid(parser: Parser) -> None:
    for sample in samples_of(parser):
        if sample not in REJECTED:
            parser.read(sample)


def test_an_error_that_is_not_declared_is_found_with_its_input() -> None:
    parser = replace(PARSERS[0], errors=())
    failure = run(parser, 0, INPUTS).failure
    assert failure is not None
    assert failure.data == list(inputs(parser, 0, INPUTS))[failure.number]
    assert failure.data.hex() in str(failure)


def test_a_parser_that_hangs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(data: bytes) -> object:
        while data:
            try:
                len(data)
            except Exception:
                continue
        return None

    monkeypatch.setattr("fuzz.run.SECONDS", 0.05)
    failure = run(replace(PARSERS[0], read=hangs), 0, INPUTS).failure
    assert failure is not None
    assert HangsError.__name__ in failure.error


def test_inputs_are_the_same_in_each_run_and_differ_by_block() -> None:
    parser = PARSERS[0]
    assert list(inputs(parser, 0, 50)) == list(inputs(parser, 0, 50)) != list(inputs(parser, 1, 50))
